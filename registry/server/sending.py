"""Large files, sent by threads around the transport: by sendfile where the connection is plain, encrypted in pieces
where it is TLS.

A thread sends as much as the socket takes, at most `_VISIT_BYTES`; then the loop waits until the client has taken some.
So a slow client holds no thread, and many clients take turns. Under TLS the transport is paused for the length of the
body: what the client says meanwhile (a key update, the next request) is read afterwards.
"""

from __future__ import annotations

import asyncio
import os
import socket

from aiohttp.web_request import BaseRequest

from registry.server.secure import OpenObject
from registry.server.sockets import writable
from registry.tasks import begin_blocking

SEND_STALL_SECONDS = 120.0
# Milliseconds of work: others who wait for a thread can bear it, and what a visit costs the loop is little beside it.
_VISIT_BYTES = 8 * 1024 * 1024


class FileSender:
    """One answer's way out. `send` may be called once."""

    def __init__(self, transport: asyncio.Transport, cipher: OpenObject | None, descriptor: int) -> None:
        self._transport = transport
        self._cipher = cipher
        self._descriptor = descriptor
        self._head = b""
        # What the socket has not taken yet of the head or of what is encrypted: goes before the rest of the file.
        self._waiting = memoryview(b"")

    @classmethod
    def of(cls, request: BaseRequest, transport: asyncio.Transport) -> FileSender | None:
        """The way around the transport, if there is one, and nothing is on the way through it."""
        pseudo = transport.get_extra_info("socket")
        if pseudo is None or pseudo.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        if not request.content.is_eof() or transport.get_write_buffer_size():
            return None
        if transport.get_extra_info("sslcontext") is None:
            return cls(transport, None, pseudo.fileno())
        cipher = transport.get_extra_info("ssl_object")
        if not isinstance(cipher, OpenObject) or cipher.raw.get_write_buffer_size():
            return None
        return cls(transport, cipher, pseudo.fileno())

    async def send(self, head: bytes, file: int, offset: int, length: int) -> int:
        """Send `head` and `length` bytes of an open file; the number of bytes of the file.

        Any failure, and a cancellation, leaves half an answer behind: the connection is broken off.
        """
        sock = socket.socket(fileno=os.dup(self._descriptor))  # `sockets.py` demands a duplicate
        if self._cipher is not None:
            self._cipher.raw.pause_reading()
        try:
            await self._send(sock, head, file, offset, length)
        except BaseException:
            self._transport.abort()
            raise
        finally:
            sock.close()
        if self._cipher is not None and not self._cipher.raw.is_closing():
            self._cipher.raw.resume_reading()
        return length

    async def _send(self, sock: socket.socket, head: bytes, file: int, offset: int, length: int) -> None:
        sent = 0
        self._head = head
        while True:
            if self._cipher is None:
                visit = begin_blocking(self._send_plain_sync, sock, file, offset + sent, length - sent)
            else:
                visit = begin_blocking(self._send_sealed_sync, self._cipher, sock, file, offset + sent, length - sent)
                self._cipher.lend(visit)
            try:
                sent += await asyncio.shield(visit)
            finally:
                # Socket and file are closed next, and the cipher is the loop's again: not under the thread's hands.
                if not visit.done():
                    await asyncio.wait([visit])
            if sent == length and not self._waiting:
                return
            if self._transport.is_closing():
                raise ConnectionResetError("the connection was closed")
            async with asyncio.timeout(SEND_STALL_SECONDS):
                await writable(sock.fileno())

    def _send_plain_sync(self, sock: socket.socket, file: int, offset: int, length: int) -> int:
        """As much as the socket takes now; the bytes of the file."""
        if self._head:
            self._waiting, self._head = memoryview(self._head), b""
        if not self._send_waiting_sync(sock, socket.MSG_MORE):
            return 0
        sent, wanted = 0, min(length, _VISIT_BYTES)
        while sent < wanted:
            try:
                count = os.sendfile(sock.fileno(), file, offset + sent, wanted - sent)
            except BlockingIOError:
                break
            if not count:
                raise ConnectionResetError("the file is shorter than it was")
            sent += count
        return sent

    def _send_sealed_sync(self, cipher: OpenObject, sock: socket.socket, file: int, offset: int, length: int) -> int:
        """The same, encrypted; what the socket has not taken yet counts too, and waits."""
        if self._head:
            self._waiting, self._head = cipher.seal_sync(self._head), b""
        sealed, wanted = 0, min(length, _VISIT_BYTES)
        while self._send_waiting_sync(sock) and sealed < wanted:
            count, self._waiting = cipher.send_file_sync(sock, file, offset + sealed, wanted - sealed)
            sealed += count
            if sealed < wanted and not self._waiting:
                raise ConnectionResetError("the file is shorter than it was")
        return sealed

    def _send_waiting_sync(self, sock: socket.socket, flags: int = 0) -> bool:
        """Whether the socket took all of what waited."""
        while self._waiting:
            try:
                count = sock.send(self._waiting, socket.MSG_DONTWAIT | flags)
            except BlockingIOError:
                return False
            self._waiting = self._waiting[count:]
        return True
