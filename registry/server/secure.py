"""TLS connections that threads can encrypt and decrypt for. They are accepted plain and upgraded here, which leaves
both ends of the cipher at hand: the transport below it, to pause, and the memory it reads from and writes to (see
`direct.py` for receiving, `sending.py` for sending).

Promise: one owner at a time. While a thread has the cipher, the loop's TLS protocol finds it waiting for the network.

Every record that the loop decrypts costs it several times what a thread pays, who does nothing else: of a large body
it should take no more than it must. So when much of a request is here it takes one record and leaves the rest alone for
some rounds, in which a handler may hold the cipher.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any, Protocol, cast

from registry.tasks import Background, ThreadBuffer, begin

log = logging.getLogger("berth.registry.tls")

_HANDSHAKE_SECONDS = 30.0
# What is encrypted passes through memory of the cipher that never shrinks, one for each connection.
_READ_BYTES = 128 * 1024
# More than this is a body that somebody may want to receive in another way.
_REST_WORTH_BYTES = 64 * 1024
# One until the request's task is woken up, one until its handler runs, and some to spare.
_REST_ROUNDS = 4
_scratch = ThreadBuffer(_READ_BYTES)
_PLAIN_HTTP = (
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"Client sent an HTTP request to an HTTPS server.\n"
)


class Refusal(ssl.SSLError):
    """A handshake that failed, and what the client should hear of it."""

    def __init__(self, error: ssl.SSLError, last_words: bytes) -> None:
        super().__init__(*error.args)
        self.last_words = last_words


class Keeper(Protocol):
    """Knows what connections are secured with now."""

    @property
    def context(self) -> ssl.SSLContext:
        """The context for the next one."""


class OpenObject(ssl.SSLObject):
    """A cipher with what is around it: `incoming` is what it reads from, `raw` the transport of the encrypted bytes.

    It writes to `sealed`, and the loop's TLS protocol reads from `outgoing`, so that the protocol, which may be closed
    at any time, takes nothing that a thread has just encrypted.
    """

    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    sealed: ssl.MemoryBIO
    raw: asyncio.Transport
    is_lent = False
    is_held = False
    _may_rest = False
    _is_resting = False

    def lend(self, work: asyncio.Future[Any]) -> None:
        """Leave the cipher to a thread that was just begun, until `work` is done."""
        self.is_lent = True
        work.add_done_callback(self._give_back)

    def _give_back(self, work: asyncio.Future[Any]) -> None:
        self.is_lent = False

    def do_handshake(self) -> None:
        """For the loop, as all the base class's methods. `Refusal` when it fails."""
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            raise Refusal(error, _PLAIN_HTTP if error.reason == "HTTP_REQUEST" else self.sealed.read()) from error
        finally:
            self._pass_on()

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        """As the base class, unless a thread has the cipher, or may want it."""
        if self.is_lent or self.is_held or self._is_resting:
            raise ssl.SSLWantReadError
        try:
            data = super().read(len, buffer)
        finally:
            self._pass_on()
        if self._may_rest and self.incoming.pending > _REST_WORTH_BYTES:
            self._may_rest = False
            self._rest(_REST_ROUNDS)
        return data

    def _rest(self, rounds: int) -> None:
        self._is_resting = rounds > 0
        if self._is_resting:
            asyncio.get_running_loop().call_soon(self._rest, rounds - 1)
        else:
            self._go_on()

    def hold(self) -> None:
        """Leave what comes to a thread that will be lent the cipher."""
        self.is_held = True

    def release(self) -> None:
        """The loop's TLS protocol is to read again; soon also what is here already."""
        self.is_held = False
        asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        """Make the loop's TLS protocol look for more, as it does by itself when something arrives."""
        if not self.is_held and not self.is_lent and not self.raw.is_closing():
            protocol = cast(asyncio.BufferedProtocol, self.raw.get_protocol())
            protocol.get_buffer(1)
            protocol.buffer_updated(0)

    def write(self, data: Any) -> int:
        """As the base class, unless a thread has the cipher."""
        if self.is_lent:
            raise ssl.SSLWantReadError
        self._may_rest = True  # what comes after an answer is another request
        try:
            return super().write(data)
        finally:
            self._pass_on()

    def unwrap(self) -> None:
        """As the base class, unless a thread has the cipher: then the connection is closed without a goodbye."""
        if self.is_lent:
            raise ssl.SSLWantReadError
        try:
            super().unwrap()
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        if self.sealed.pending:
            self.outgoing.write(self.sealed.read())

    def receive_sync(self, sock: socket.socket, view: memoryview) -> int:
        """Fill `view` with decrypted bytes, as far as they are there; ConnectionResetError at the end of the stream.

        Only for a thread that has cipher and socket to itself: it is lent, and `raw` is paused.
        """
        filled = 0
        scratch = _scratch.view
        read = cast("Callable[[int, memoryview], int]", super().read)
        while filled < len(view):
            try:
                count = read(len(view) - filled, view[filled:])
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

    def seal_sync(self, data: bytes) -> memoryview:
        """Something small, encrypted. Only for a thread that the cipher is lent to."""
        super().write(data)
        return memoryview(self.sealed.read())

    def send_file_sync(self, sock: socket.socket, file: int, offset: int, length: int) -> tuple[int, memoryview]:
        """Encrypt and send a part of a file, piece by piece, until a piece did not fit into the socket: how much of the
        file was encrypted, and what the socket has not taken of it. Less than `length` without a rest: the file ended.

        Only for a thread that the cipher is lent to. Between two pieces lie caches full of bytes, so each step in here
        costs more than it would elsewhere.
        """
        read, write, take, send = os.preadv, super().write, self.sealed.read, sock.send
        piece = _scratch.view
        pieces = [piece]
        done = 0
        while done < length:
            if length - done < len(piece):
                piece = piece[: length - done]
                pieces = [piece]
            count = read(file, pieces, offset + done)
            if not count:
                break
            write(piece if count == len(piece) else piece[:count])
            done += count
            sealed = take()
            try:
                sent = send(sealed, socket.MSG_DONTWAIT)
            except BlockingIOError:
                sent = 0
            if sent < len(sealed):
                return done, memoryview(sealed)[sent:]
        return done, memoryview(b"")

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


def _ended(filled: int) -> int:
    if not filled:
        raise ConnectionResetError("the client has gone")
    return filled  # the next call finds the end again


class OpenContext(ssl.SSLContext):
    """A context whose connections know their `OpenObject`."""

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **more: Any) -> ssl.SSLObject:
        """As the base class; remembers where the encrypted bytes come from and go to."""
        sealed = ssl.MemoryBIO()
        wrapped = super().wrap_bio(incoming, sealed, *args, **more)
        assert isinstance(wrapped, OpenObject)
        wrapped.incoming, wrapped.outgoing, wrapped.sealed = incoming, outgoing, sealed
        return wrapped


def new_context() -> OpenContext:
    """A server's context."""
    context = OpenContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslobject_class = OpenObject
    # Clients know what their machine does fast, and nothing weak is on offer: docker and everything else in Go wants
    # AES-128 first, which is a fifth cheaper for both ends than what OpenSSL's order chooses.
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    return context


class Handshake(asyncio.Protocol):
    """The protocol of a connection until its TLS handshake is over; then `successor`'s product has it."""

    def __init__(self, successor: Callable[[], asyncio.Protocol], keeper: Keeper, background: Background) -> None:
        self._successor = successor
        self._context = keeper.context
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
        # A loop that refuses a client closes the connection before anybody hears of it.
        try:
            last_way = os.dup(raw.get_extra_info("socket").fileno())
        except OSError as error:
            log.debug("TLS handshake: %s", error)
            raw.abort()
            return
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
            if isinstance(error, Refusal):
                with contextlib.suppress(OSError):
                    os.write(last_way, error.last_words)
            raw.abort()
            return
        finally:
            os.close(last_way)
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
