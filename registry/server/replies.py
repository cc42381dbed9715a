"""Answers, written to the connection in as few pieces as possible.

aiohttp's own response objects cost more than everything else a cached manifest needs, so a `Reply` formats its head
itself and sends head and body in one write. `FileReply` sends large files around the transport (`sending.py`).
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.web_request import BaseRequest

from registry.server.sending import SEND_STALL_SECONDS, FileSender
from registry.tasks import begin, open_to_read, run_blocking

_LINES = {status.value: f"{status.value} {status.phrase}".encode() for status in HTTPStatus}
_LARGE_BODY = 64 * 1024
_FILE_CHUNK = 256 * 1024


class Reply:
    """A complete answer. It has what aiohttp's protocol asks of a response: prepare, write_eof, keep_alive."""

    __slots__ = (
        "after",
        "body",
        "body_length",
        "content_length",
        "headers",
        "keep_alive",
        "status",
        "user",
        "warnings",
    )

    def __init__(
        self,
        status: int,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        content_length: int | None = None,
    ) -> None:
        self.status = status
        self.headers = dict(headers) if headers else {}
        self.body = body
        self.content_length = len(body) if content_length is None else content_length
        self.body_length = 0
        self.keep_alive = True
        self.user = ""
        # What the client is to know besides (OCI, "Warnings").
        self.warnings: Sequence[str] = ()
        # Done when everything was sent, with whether the connection stays.
        self.after: Callable[[bool], None] | None = None

    def head(self, request: BaseRequest) -> bytes:
        """Status line and headers."""
        self.keep_alive = self.keep_alive and request.keep_alive
        # No line break can get into a value: whatever came from a client was checked against a grammar or quoted
        # before.
        lines = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        for text in self.warnings:
            # A header of its own for each: clients read one warning from one header.
            lines += f'Warning: 299 - "{_escaped(text)}"\r\n'
        date = _date_line(int(time.time()))
        length = b"" if self.status in (204, 304) else b"Content-Length: %d\r\n" % self.content_length
        connection = b"" if self.keep_alive else b"Connection: close\r\n"
        head = lines.encode("latin-1", "replace")
        return b"HTTP/1.1 %b\r\n%b%b%b%b\r\n" % (_LINES[self.status], head, date, length, connection)

    async def prepare(self, request: BaseRequest) -> None:
        """Send everything."""
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        head = self.head(request)
        if request.method == "HEAD" or not self.body:
            transport.write(head)
            return
        self.body_length = len(self.body)
        transport.write(head + self.body)
        if self.body_length > _LARGE_BODY:
            await drain(request)

    async def write_eof(self) -> None:
        """Nothing is left to send."""
        if self.after is not None:
            self.after(self.keep_alive)


@functools.lru_cache(maxsize=1)
def _date_line(second: int) -> bytes:
    return f"Date: {formatdate(second, usegmt=True)}\r\n".encode()


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


class GoneReply(Reply):
    """No answer: the client left, or fell silent, in the middle of its body. Logged under nginx's 499."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(499)
        self.keep_alive = False

    async def prepare(self, request: BaseRequest) -> None:
        """Have the connection closed."""
        raise ConnectionResetError("the client has gone")


class FileReply(Reply):
    """`length` bytes of a local file from `offset`."""

    __slots__ = ("offset", "path")

    def __init__(self, status: int, headers: Mapping[str, str], path: str, offset: int, length: int) -> None:
        super().__init__(status, headers, b"", length)
        self.path = path
        self.offset = offset

    async def prepare(self, request: BaseRequest) -> None:
        """Send head and file."""
        if request.method == "HEAD":
            await super().prepare(request)
            return
        descriptor = await open_to_read(self.path)
        try:
            transport = request.transport
            if transport is None or transport.is_closing():
                raise ConnectionResetError("the client has gone")
            small = self.content_length <= _LARGE_BODY
            first = await run_blocking(os.pread, descriptor, self.content_length, self.offset) if small else b""
            sender = None if small else FileSender.of(request, transport)
            if sender is not None:
                self.body_length = await sender.send(self.head(request), descriptor, self.offset, self.content_length)
                return
            transport.write(self.head(request) + first)
            self.body_length = len(first)
            if self.body_length < self.content_length:
                await self._send_rest(request, transport, descriptor)
        except (TimeoutError, OSError):
            # The length was promised: only a broken connection can tell the client that it will not be kept.
            if request.transport is not None:
                request.transport.abort()
            raise
        finally:
            os.close(descriptor)

    async def _send_rest(self, request: BaseRequest, transport: asyncio.Transport, descriptor: int) -> None:
        position, end = self.offset, self.offset + self.content_length
        ahead = begin(run_blocking(os.pread, descriptor, min(_FILE_CHUNK, end - position), position))
        try:
            while position < end:
                data = await ahead
                if not data:
                    raise ConnectionResetError("the file is shorter than it was")
                position += len(data)
                if position < end:
                    ahead = begin(run_blocking(os.pread, descriptor, min(_FILE_CHUNK, end - position), position))
                transport.write(data)
                self.body_length += len(data)
                await drain(request)
        finally:
            # The descriptor is closed next; a read still running must not meet its number reused.
            await asyncio.wait([ahead])


class StreamReply(Reply):
    """A body of known length that comes from elsewhere in chunks."""

    __slots__ = ("chunks",)

    def __init__(self, status: int, headers: Mapping[str, str], chunks: AsyncIterator[bytes], length: int) -> None:
        super().__init__(status, headers, b"", length)
        self.chunks = chunks

    async def prepare(self, request: BaseRequest) -> None:
        """Send head and chunks; a body that ends early breaks the connection."""
        if request.method == "HEAD":
            await super().prepare(request)
            return
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        transport.write(self.head(request))
        try:
            async for chunk in self.chunks:
                if transport.is_closing():
                    raise ConnectionResetError("the client has gone")
                transport.write(chunk)
                self.body_length += len(chunk)
                await drain(request)
            if self.body_length != self.content_length:
                raise ConnectionResetError("the content is shorter than promised")
        except BaseException:
            transport.abort()
            raise
        finally:
            close = getattr(self.chunks, "aclose", None)
            if close is not None:
                await close()


def json_reply(status: int, document: Any, headers: Mapping[str, str] | None = None) -> Reply:
    """A JSON document with the newline registry:2 ends them with."""
    body = msgspec.json.encode(document) + b"\n"
    return Reply(status, {"Content-Type": "application/json", **(headers or {})}, body)


async def drain(request: BaseRequest) -> None:
    """Wait until the client has taken enough; a client that takes nothing for two minutes is dropped."""
    protocol = request.protocol
    if protocol.writing_paused:
        async with asyncio.timeout(SEND_STALL_SECONDS):
            await protocol._drain_helper()


def as_response(reply: Reply) -> web.StreamResponse:
    """Tell the type checker what the protocol only finds out by asking: a reply answers like a response."""
    return reply  # type: ignore[return-value]
