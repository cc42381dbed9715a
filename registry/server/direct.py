"""Large bodies, read from the socket (and decrypted) by threads into aligned memory.

The protocol's parser would copy every byte twice on the loop, and a third copy would be needed before it can go around
the page cache to the disk. Here the transport is paused, a duplicate of its socket is read until the body's last byte
is in, and then a fresh protocol takes the connection over, because the old one's parser still waits for the body. Short
and chunked bodies take the ordinary way (`bodies.Body`).
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import socket
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

from aiohttp import ClientPayloadError
from aiohttp.web_protocol import RequestPayloadError
from aiohttp.web_request import BaseRequest

from registry.server.bodies import BODY_PAUSE_SECONDS, BODY_STALL_SECONDS, send_continue
from registry.server.secure import OpenObject
from registry.server.sockets import readable
from registry.store.uploads import Sink
from registry.tasks import ThreadBuffer, begin_blocking, begin_carrying

T = TypeVar("T")
_WORTH_BYTES = 1024 * 1024
# Each of a body's two buffers: enough to be worth a visit to a thread, little enough for fifty bodies at once.
_LEAST_BYTES = 256 * 1024
_MOST_BYTES = 2 * 1024 * 1024
# What all buffers above the least take together: clients who fill theirs and fall silent cannot have more.
_SHARED_BYTES = 64 * 1024 * 1024
_PAGE = mmap.PAGESIZE
# Of a crowd each body gets this much of a visit; then the next one has its turn. The buffer belongs to the thread.
_VISIT_BYTES = 4 * 1024 * 1024
_VISIT_BUFFER_BYTES = 512 * 1024
_visiting = ThreadBuffer(_VISIT_BUFFER_BYTES)
# One thread at a time: each record releases the interpreter and wants it back, and two that do that starve the loop.
_DECIPHERING = threading.Lock()
# Waking up for less is not worth a visit to a thread; what comes slower is taken after `BODY_PAUSE_SECONDS`.
_WAKE_BYTES = 256 * 1024


class DirectBody:
    """The body of one request. `next` fills two buffers in turn: a batch is valid until the one after the next."""

    # What is in use of `_SHARED_BYTES`.
    shared = 0

    def __init__(
        self, request: BaseRequest, raw: asyncio.Transport, cipher: OpenObject | None, descriptor: int, length: int
    ) -> None:
        self._request = request
        self._raw = raw
        self._cipher = cipher
        self._socket = socket.socket(fileno=os.dup(descriptor))
        self._left = length
        self._wake = 0
        self._early: list[bytes] = []
        self._buffers: list[memoryview] = []
        self._share = 0
        self._running: asyncio.Future[Any] | None = None
        self._broken: Exception | None = None
        # Whether the protocol had the body whole before it could be stopped: then it lives on.
        self._is_whole = False

    @classmethod
    def of(cls, request: BaseRequest) -> DirectBody | None:
        """The body, if it is worth it and the connection allows it."""
        length = request.content_length
        transport = request.transport
        if length is None or length < _WORTH_BYTES or transport is None or request.content.is_eof():
            return None
        pseudo = transport.get_extra_info("socket")
        if pseudo is None or pseudo.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        if transport.get_extra_info("sslcontext") is None:
            return cls(request, transport, None, pseudo.fileno(), length)
        cipher = transport.get_extra_info("ssl_object")
        if not isinstance(cipher, OpenObject):
            return None
        return cls(request, cipher.raw, cipher, pseudo.fileno(), length)

    @property
    def is_complete(self) -> bool:
        """Whether every byte of the body was handed out."""
        return self._left == 0

    async def next(self, batch_bytes: int) -> list[memoryview]:
        """The next batch of about `batch_bytes`, empty at the end; ConnectionResetError when the body broke off.

        What arrived before the break is handed out first, so that an upload can be resumed behind it.
        """
        if not self._buffers:
            await self._begin()
            self._allocate()
        if self._broken is not None:
            raise ConnectionResetError("the body ended early") from self._broken
        if not self._left:
            return []
        self._buffers.reverse()
        # Whole pages: what is left over of one would make every later write a copied one.
        wanted = min(batch_bytes // _PAGE * _PAGE, self._left, len(self._buffers[0]))
        view = self._buffers[0][:wanted]
        filled = 0
        try:
            while filled < wanted:
                filled += await self._fill(view[filled:], patient=not filled)
        except _Pause:
            pass  # what a slow client has sent so far goes to disk, where it survives us
        except OSError as error:
            self._broken = error
            if not filled:
                raise ConnectionResetError("the body ended early") from error
        self._left -= filled
        return [view[:filled]]

    async def pour(self, sink: Sink) -> None:
        """Hand the rest of the body to `sink`, which the threads that receive it call; whole pages, but for the end,
        of which it is told.

        For a crowd: what `next` overlaps in three visits to threads takes one, without memory of the body's own, and
        bodies overlap each other. ConnectionResetError when the body broke off, after what had arrived was handed on.
        """
        await self._begin()
        kept = b""
        while self._left:
            if self._broken is not None:
                raise ConnectionResetError("the body ended early") from self._broken
            before = self._left
            kept = await self._lend(begin_carrying(self._pour_sync, kept, sink))
            if self._left == before and self._broken is None:
                try:
                    await self._more(min(_VISIT_BUFFER_BYTES, self._left), patient=not kept)
                except _Pause:
                    await self._lend(begin_carrying(sink, memoryview(kept), False))
                    kept = b""
                except OSError as error:
                    self._broken = error  # it was silent for too long

    def _pour_sync(self, rest: bytes, sink: Sink) -> bytes:
        """One visit: as much as is there. `rest` is what the visit before had over of a page; what this one has."""
        buffer = _visiting.view
        kept = len(rest)
        buffer[:kept] = rest
        end = max(self._left - _VISIT_BYTES, 0)
        while self._left > end:
            wanted = min(len(buffer) - kept, self._left)
            try:
                with contextlib.nullcontext() if self._cipher is None else _DECIPHERING:
                    count = self._receive_sync(buffer[kept : kept + wanted])
            except OSError as error:
                self._broken = error
                sink(buffer[:kept], False)
                return b""
            self._left -= count
            filled = kept + count
            whole = filled - filled % _PAGE if self._left else filled
            if whole:
                sink(buffer[:whole], not self._left)
                buffer[: filled - whole] = buffer[whole:filled]
            kept = filled - whole
            if count < wanted:
                break
        return bytes(buffer[:kept])

    def stop(self) -> None:
        """Leave what arrives from now on to threads."""
        self._raw.pause_reading()
        if self._cipher is not None:
            self._cipher.hold()

    async def _begin(self) -> None:
        """Stop the protocol's reading. What it has taken of the body already comes first."""
        send_continue(self._request)
        quiet, enough = 0, 1 if self._cipher is None else 3
        while quiet < enough:
            if self._raw.is_closing():
                raise ConnectionResetError("the client has gone")
            self.stop()
            try:
                data = self._request.content.read_nowait(-1)
            except (ClientPayloadError, RequestPayloadError) as error:
                raise ConnectionResetError("the body ended early") from error
            if data:
                self._early.append(data)
                quiet = 0
                continue
            quiet += 1
            if quiet < enough:
                # Emptying the protocol's buffer makes the one above the cipher read on, a round later.
                await asyncio.sleep(0)
        self._is_whole = self._request.content.is_eof()

    def _allocate(self) -> None:
        size = _LEAST_BYTES
        wish = min(max(self._left // 16, _LEAST_BYTES), _MOST_BYTES) // _PAGE * _PAGE
        if wish > size and DirectBody.shared + 2 * wish <= _SHARED_BYTES:
            size, self._share = wish, 2 * wish
            DirectBody.shared += self._share
        self._buffers = [memoryview(mmap.mmap(-1, size)) for _ in range(2)]

    def _receive_sync(self, view: memoryview) -> int:
        filled = self._take_early_sync(view) if self._early else 0
        if filled == len(view):
            return filled
        receive = _receive_sync if self._cipher is None else self._cipher.receive_sync
        try:
            return filled + receive(self._socket, view[filled:])
        except ConnectionResetError:
            if filled:
                return filled  # the next call finds the end again
            raise

    def _take_early_sync(self, view: memoryview) -> int:
        filled = 0
        while self._early and filled < len(view):
            data = self._early.pop(0)
            count = min(len(data), len(view) - filled)
            view[filled : filled + count] = data[:count]
            filled += count
            if count < len(data):
                self._early.insert(0, data[count:])
        return filled

    async def _fill(self, view: memoryview, patient: bool) -> int:
        """Take what is there, or wait for more and take nothing; `_Pause` as `_more`."""
        count = await self._lend(begin_blocking(self._receive_sync, view))
        if not count:
            await self._more(len(view), patient)
        return count

    async def _lend(self, visit: asyncio.Future[T]) -> T:
        """Wait for a thread that has the connection meanwhile."""
        self._running = visit
        if self._cipher is not None:
            self._cipher.lend(visit)
        return await asyncio.shield(visit)

    async def _more(self, wanted: int, patient: bool) -> None:
        """Wait until it is worth looking again; `_Pause` when nothing comes and, not `patient`, something is there to
        be handed on."""
        wake = min(wanted, _WAKE_BYTES)
        if self._cipher is not None:
            # A part of a record is in its memory already, and will not come again.
            wake = max(wake - self._cipher.incoming.pending, 1)
        if wake != self._wake:
            self._wake = wake
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wake)
        try:
            async with asyncio.timeout(BODY_PAUSE_SECONDS):
                await readable(self._socket.fileno())
        except TimeoutError:
            await self._more_slowly(patient)

    async def _more_slowly(self, patient: bool) -> None:
        self._wake = 1
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        if patient and self._buffers:
            # Nothing is in the buffer whose turn it is: a client that may say nothing for long needs no memory for it.
            cast(mmap.mmap, self._buffers[0].obj).madvise(mmap.MADV_DONTNEED)
        try:
            async with asyncio.timeout(BODY_STALL_SECONDS if patient else 0.01):
                await readable(self._socket.fileno())
        except TimeoutError:
            if patient:
                raise
            raise _Pause from None

    async def close(self) -> None:
        """Let go of the socket. An incomplete body's rest is the protocol's again, which reads and drops it."""
        if self._socket.fileno() < 0:
            return
        if self._running is not None and not self._running.done():
            await asyncio.wait([self._running])
        if self._wake:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        self._socket.close()
        self._buffers.clear()
        DirectBody.shared, self._share = DirectBody.shared - self._share, 0
        if self._left and not self._raw.is_closing():
            self._go_on()

    def _go_on(self) -> None:
        self._raw.resume_reading()
        if self._cipher is not None:
            self._cipher.release()

    def hand_over(self, successor: Callable[[], asyncio.Protocol], keep_alive: bool) -> None:
        """Give the connection to a fresh protocol, after the answer was written; or end it.

        The old protocol is told that its connection is lost, without the transport to close: it ends its task and
        counts no more.
        """
        protocol, transport = self._request.protocol, self._request.transport
        if transport is None or transport.is_closing():
            return
        if self._is_whole:
            self._go_on()
            return
        if not keep_alive:
            protocol.force_close()
            if self._cipher is not None:
                self._go_on()  # the client's goodbye has to be read
            return
        protocol.transport = None
        protocol.connection_lost(None)
        fresh = successor()
        transport.set_protocol(fresh)
        fresh.connection_made(transport)
        if self._cipher is not None:
            self._cipher.release()
            rest = self._cipher.rest()
            if rest:
                fresh.data_received(rest)
        self._raw.resume_reading()


class _Pause(Exception):
    """The client makes a pause."""


def _receive_sync(sock: socket.socket, view: memoryview) -> int:
    """As much as is there now; ConnectionResetError at the end of the stream."""
    filled = 0
    while filled < len(view):
        try:
            count = sock.recv_into(view[filled:], 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            break
        if not count:
            if filled:
                break  # the next call finds the end again
            raise ConnectionResetError("the client has gone")
        filled += count
    return filled
