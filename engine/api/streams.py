"""Responses that are not one document: JSON-lines progress, raw byte streams, and connections taken over from HTTP.

A taken-over ("hijacked") connection carries attach and exec: after the response head both directions are raw bytes and
each may be closed alone. aiohttp closes a connection on the client's half-close, so ``TakeoverHandler`` keeps it open
once a takeover has begun; the bytes reach us through the payload-parser hook that aiohttp has for websockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import re
import termios
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from engine.api.tls import HalfOpenCipher
from engine.errors import EngineError, os_words

log = logging.getLogger(__name__)

RAW_STREAM = "application/vnd.docker.raw-stream"
MULTIPLEXED_STREAM = "application/vnd.docker.multiplexed-stream"
HIGH_WATER = 1 << 20
MAX_HEAD = 64 * 1024
HEAD_POLLS = 20

_encoder = msgspec.json.Encoder()


def json_response(body: object, status: int = 200) -> web.Response:
    """One JSON document, encoded by msgspec, with the newline that Go's encoder writes."""
    return web.Response(status=status, body=_encoder.encode(body) + b"\n", content_type="application/json")


def no_content() -> web.Response:
    """204."""
    return web.Response(status=204)


class JsonLines:
    """A stream of JSON documents, one a line; see ``json_lines``."""

    def __init__(self, request: web.Request, response: web.StreamResponse) -> None:
        self._request = request
        self.response = response

    @property
    def started(self) -> bool:
        """Whether the head has gone out, so that errors must go in-band."""
        return self.response.prepared

    async def start(self) -> None:
        """Send the head now."""
        if not self.response.prepared:
            await self.response.prepare(self._request)

    async def send(self, document: object) -> None:
        """Send one document; waits when the client reads slowly."""
        await self.start()
        await self.response.write(_encoder.encode(document) + b"\r\n")


@contextlib.asynccontextmanager
async def json_lines(
    request: web.Request, status: int = 200, *, errors_in_lines: bool = False
) -> AsyncIterator[JsonLines]:
    """A progress stream. An error before the first line is an ordinary HTTP error, after it an ``errorDetail`` line.

    With ``errors_in_lines`` it is a line in either case.
    """
    response = web.StreamResponse(status=status, headers={"Content-Type": "application/json"})
    response.enable_chunked_encoding()
    stream = JsonLines(request, response)
    try:
        yield stream
    except ConnectionError:
        raise
    except Exception as error:
        if not stream.started and not errors_in_lines:
            raise
        message = error.message if isinstance(error, EngineError) else os_words(error)
        if not isinstance(error, EngineError):
            log.exception("%s %s failed while streaming", request.method, request.path)
        await stream.send({"errorDetail": {"message": message}, "error": message})
    await stream.start()


_UPGRADE = re.compile(rb"\r\nupgrade:[ \t]*(?!websocket)[a-z0-9]", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)", re.IGNORECASE)


def upgrade_request_size(data: bytes) -> int | None:
    """How many bytes the request that begins with ``data`` has, if it asks to become a raw stream; None if not.

    Only a head that comes in one piece is seen, as all clients send it.
    """
    if not data.startswith((b"POST /", b"GET /")):
        return None
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD)
    if end < 0 or _UPGRADE.search(data, 0, end) is None:
        return None
    length = _LENGTH.search(data, 0, end)
    return end + 4 + (int(length[1]) if length else 0)


class TakeoverHandler(RequestHandler):
    """aiohttp's connection handler, but a taken-over connection survives the client's half-close.

    aiohttp drops what follows an upgrade request in the same packet, and reads what follows later as another request.
    So bytes after one are kept here until the handler takes the connection over; if it declines, the connection ends
    with the answer (``Api`` sees to that).
    """

    takeover: Takeover | None = None
    _request_left = 0
    _ahead: bytearray | None = None
    _ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the client's end of a TLS connection as that of any other."""
        super().connection_made(transport)
        cipher = transport.get_extra_info("ssl_object")
        if isinstance(cipher, HalfOpenCipher):
            cipher.on_end = self._cipher_ended

    def _cipher_ended(self) -> None:
        if not self.eof_received() and self.transport is not None:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        if self.takeover is None and self._ahead is None and self._current_request is None:
            size = upgrade_request_size(data)
            if size is not None:
                self._request_left, self._ahead = size, bytearray()
        if self._ahead is None or self.takeover is not None:
            super().data_received(data)
            return
        if self._request_left:
            head, data = data[: self._request_left], data[self._request_left :]
            self._request_left -= len(head)
            super().data_received(head)
        self._ahead += data
        if len(self._ahead) > HIGH_WATER and self.transport is not None:
            self.transport.pause_reading()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Called by the transport when the client has shut down its writing side."""
        if self.takeover is not None:
            self.takeover.feed_eof()
            return True
        self._ended = True
        return True if self._ahead is not None else super().eof_received()

    def hand_over(self, takeover: Takeover) -> None:
        """From now on everything goes to ``takeover``, first what has come already."""
        self.takeover = takeover
        self.set_parser(takeover)  # type: ignore[arg-type]
        takeover.feed_data(bytes(self._ahead or b""))
        self._ahead = None
        if self._ended:
            takeover.feed_eof()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is gone in both directions."""
        if self.takeover is not None:
            self.takeover.connection_lost()
        super().connection_lost(exc)


class Takeover:
    """A connection taken over from HTTP: raw bytes both ways, each direction closable alone.

    aiohttp feeds it as if it were a websocket parser.
    """

    def __init__(self, request: web.Request) -> None:
        protocol = request.protocol
        assert isinstance(protocol, TakeoverHandler) and protocol.transport is not None
        self._protocol = protocol
        self._transport = protocol.transport
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._eof = False
        self._finished = False
        self._readable = asyncio.Event()
        self.lost = asyncio.Event()

    def begin(self, request: web.Request, content_type: str, headers: Mapping[str, str]) -> None:
        """Send the response head and switch the connection to raw bytes."""
        upgrade = request.headers.get("Upgrade")
        lines = ["HTTP/1.1 101 UPGRADED" if upgrade else "HTTP/1.1 200 OK", f"Content-Type: {content_type}"]
        if upgrade:
            lines += ["Connection: Upgrade", f"Upgrade: {upgrade}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._protocol.keep_alive(False)
        self._protocol.hand_over(self)
        self.write("\r\n".join([*lines, "", ""]).encode())

    async def head_taken(self) -> None:
        """Wait a moment until the client has read the head alone.

        Python's clients read ahead and would lose bytes that arrive together with it; dockerd is slow enough there.
        """
        descriptor = self._transport.get_extra_info("socket").fileno()
        for _ in range(HEAD_POLLS):
            if fcntl.ioctl(descriptor, termios.TIOCOUTQ, b"\0\0\0\0") == b"\0\0\0\0":
                return
            await asyncio.sleep(0.001)

    # What aiohttp calls as the connection's parser.
    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Bytes from the client."""
        if data:
            self._chunks.append(bytes(data))
            self._buffered += len(data)
            if self._buffered > HIGH_WATER:
                self._transport.pause_reading()
            self._readable.set()
        return False, b""

    def feed_eof(self) -> None:
        """The client will send no more."""
        self._eof = True
        self._readable.set()

    def connection_lost(self) -> None:
        """Both directions are gone."""
        self.lost.set()
        self.feed_eof()

    async def read(self) -> bytes:
        """The next bytes from the client; ``b""`` after its end."""
        while not self._chunks:
            if self._eof:
                return b""
            self._readable.clear()
            await self._readable.wait()
        data = b"".join(self._chunks) if len(self._chunks) > 1 else self._chunks[0]
        self._chunks.clear()
        if self._buffered > HIGH_WATER and not self._transport.is_closing():
            self._transport.resume_reading()
        self._buffered = 0
        return data

    def write(self, data: bytes | memoryview) -> None:
        """Queue bytes for the client; follow with ``drain``."""
        if not self._transport.is_closing() and not self._finished:
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait while the client reads slower than we write. Raises ``ConnectionError`` when it is gone."""
        if self.lost.is_set() or self._transport.is_closing():
            raise ConnectionResetError("the client is gone")
        await self._protocol._drain_helper()

    def close_write(self) -> None:
        """Shut down our writing side after what is queued; the client may still send."""
        self._finished = True
        if not self._transport.is_closing() and self._transport.can_write_eof():
            self._transport.write_eof()

    def finished(self) -> web.StreamResponse:
        """What the handler returns to aiohttp: nothing more is to be sent, the connection is to be closed."""
        return _AlreadySent()


class _AlreadySent(web.StreamResponse):
    """A response whose bytes went out by a takeover."""

    @property
    def prepared(self) -> bool:
        """True, so that nobody adds headers."""
        return True

    @property
    def keep_alive(self) -> bool:
        """False: a taken-over connection serves no second request."""
        return False

    async def prepare(self, request: web.BaseRequest) -> Any:
        """Nothing to send."""
        return None

    async def write_eof(self, data: Any = b"") -> None:
        """Nothing to send."""
