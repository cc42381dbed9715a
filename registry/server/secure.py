"""TLS connections that threads can decrypt for. They are accepted plain and upgraded here, which leaves both ends of
the cipher at hand: the transport below it, to pause, and the memory it reads from, to fill (see `direct.py`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any, cast

from registry.tasks import Background, begin

log = logging.getLogger("berth.registry.tls")

_HANDSHAKE_SECONDS = 30.0
# What is encrypted passes through memory of the cipher that never shrinks, one for each connection.
_READ_BYTES = 128 * 1024
_local = threading.local()


class OpenObject(ssl.SSLObject):
    """A cipher with what is around it: `incoming` is what it reads from, `raw` the transport of the encrypted bytes."""

    incoming: ssl.MemoryBIO
    raw: asyncio.Transport

    def receive_sync(self, sock: socket.socket, view: memoryview) -> int:
        """Fill `view` with decrypted bytes, as far as they are there; ConnectionResetError at the end of the stream.

        Only for a thread that has cipher and socket to itself: `raw` is paused and nothing is written.
        """
        filled = 0
        scratch = _scratch()
        while filled < len(view):
            try:
                count = cast(int, self.read(len(view) - filled, cast(Any, view[filled:])))
            except ssl.SSLWantReadError:
                try:
                    arrived = sock.recv_into(scratch, 0, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                if not arrived:
                    return _ended(filled)
                self.incoming.write(scratch[:arrived])
                continue
            except ssl.SSLZeroReturnError:
                count = 0
            if not count:
                return _ended(filled)
            filled += count
        return filled

    def rest(self) -> bytes:
        """What is decrypted or can be, without the socket: requests that came along with a body's end."""
        pieces = []
        try:
            while self.pending() or self.incoming.pending:
                piece = self.read(_READ_BYTES)
                if not piece:
                    break
                pieces.append(piece)
        except ssl.SSLError:
            pass  # half a record, most likely: the transport goes on with it
        return b"".join(pieces)


def _scratch() -> memoryview:
    view: memoryview | None = getattr(_local, "view", None)
    if view is None:
        view = _local.view = memoryview(bytearray(_READ_BYTES))
    return view


def _ended(filled: int) -> int:
    if not filled:
        raise ConnectionResetError("the client has gone")
    return filled  # the next call finds the end again


class OpenContext(ssl.SSLContext):
    """A context whose connections know their `OpenObject`."""

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **more: Any) -> ssl.SSLObject:
        """As the base class; remembers where the encrypted bytes come from."""
        wrapped = super().wrap_bio(incoming, outgoing, *args, **more)
        if isinstance(wrapped, OpenObject):
            wrapped.incoming = incoming
        return wrapped


def new_context() -> OpenContext:
    """A server's context."""
    context = OpenContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslobject_class = OpenObject
    return context


class Handshake(asyncio.Protocol):
    """The protocol of a connection until its TLS handshake is over; then `successor`'s product has it."""

    def __init__(
        self, successor: Callable[[], asyncio.Protocol], context: ssl.SSLContext, background: Background
    ) -> None:
        self._successor = successor
        self._context = context
        self._background = background
        self._early = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        self._background.start(self._upgrade(cast(asyncio.Transport, transport)), "handshake")

    def data_received(self, data: bytes) -> None:
        """What comes while no other protocol is in charge: the client's first words, or its first request."""
        self._early += data

    async def _upgrade(self, raw: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        shaking = begin(
            loop.start_tls(raw, self, self._context, server_side=True, ssl_handshake_timeout=_HANDSHAKE_SECONDS)
        )
        try:
            # One round until the TLS protocol is there, one until it knows its transport; it reads nothing before.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self._hand_on(raw)
            secured = await shaking
        except (OSError, RuntimeError) as error:
            log.debug("TLS handshake: %s", error)
            raw.abort()
            return
        finally:
            shaking.cancel()
        if secured is None or secured.is_closing():
            raw.abort()
            return
        wrapped = secured.get_extra_info("ssl_object")
        if isinstance(wrapped, OpenObject):
            wrapped.raw = raw
        protocol = self._successor()
        secured.set_protocol(protocol)
        protocol.connection_made(secured)
        if self._early:
            # The first request can be here before this task knows that the handshake is over.
            protocol.data_received(self._early)

    def _hand_on(self, raw: asyncio.Transport) -> None:
        protocol = cast(asyncio.BufferedProtocol, raw.get_protocol())
        while self._early:
            buffer = memoryview(cast(bytearray, protocol.get_buffer(len(self._early))))
            count = min(len(buffer), len(self._early))
            buffer[:count] = self._early[:count]
            self._early = self._early[count:]
            protocol.buffer_updated(count)
