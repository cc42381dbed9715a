"""HTTP to a daemon over its unix socket or a TCP address, with the standard library only.

Promises: every failure of the daemon is an `ApiError` with its own sentence; a daemon that cannot be reached is an
`Unreachable` that says what was tried. Streams are read as they come, never collected.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlencode, urlsplit

API_VERSION = "1.41"
DEFAULT_HOST = "unix:///var/run/docker.sock"
_CONNECT_TIMEOUT_SECONDS = 10.0

Value = str | int | bool | None
Query = Mapping[str, Value] | Sequence[tuple[str, str]]
Body = bytes | BinaryIO | Iterator[bytes]


class ApiError(Exception):
    """The daemon answered with an error: `status` and its `message`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Unreachable(Exception):
    """No daemon answers at the address that was tried."""


_BLOCK = 1 << 18
"""Bytes of a file that go out at once: archives are large."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", blocksize=_BLOCK)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_CONNECT_TIMEOUT_SECONDS)
        self.sock.connect(self._path)
        self.sock.settimeout(None)


class Takeover:
    """A connection taken over from HTTP (attach, exec): raw bytes both ways.

    `leftover` holds output that arrived together with the response's head.
    """

    def __init__(self, sock: socket.socket, leftover: bytes, content_type: str) -> None:
        self.sock = sock
        self.leftover = leftover
        self.multiplexed = "multiplexed" in content_type

    def close(self) -> None:
        """Close the connection; the daemon sees it as a client that left."""
        self.sock.close()


def _encode_query(query: Query | None) -> str:
    if not query:
        return ""
    items: Iterable[tuple[str, Value]] = query.items() if isinstance(query, Mapping) else query
    pairs = [(k, str(int(v)) if isinstance(v, bool) else str(v)) for k, v in items if v is not None]
    return "?" + urlencode(pairs) if pairs else ""


def _tls_context() -> ssl.SSLContext | None:
    """TLS as docker's own variables ask for it: DOCKER_TLS_VERIFY and DOCKER_CERT_PATH."""
    if not os.environ.get("DOCKER_TLS_VERIFY"):
        return None
    folder = Path(os.environ.get("DOCKER_CERT_PATH") or Path.home() / ".docker")
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    if (folder / "cert.pem").exists():
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def error_from(status: int, raw: bytes) -> ApiError:
    """The daemon's `{"message": …}` as an exception; any other text as it is."""
    try:
        message = str(json.loads(raw)["message"])
    except (ValueError, KeyError, TypeError):
        message = raw.decode("utf-8", "replace").strip() or f"HTTP status {status}"
    return ApiError(status, message)


class Client:
    """One daemon. Each request uses a connection of its own, so streams never wait for each other."""

    def __init__(self, host: str | None = None) -> None:
        self.host = host or os.environ.get("BERTH_HOST") or os.environ.get("DOCKER_HOST") or DEFAULT_HOST
        self._url = urlsplit(self.host)
        if self._url.scheme not in ("unix", "tcp"):
            raise Unreachable(f"{self.host}: only unix:// and tcp:// addresses are supported")

    def _connection(self) -> http.client.HTTPConnection:
        if self._url.scheme == "unix":
            return _UnixConnection(self._url.path)
        context = _tls_context()
        name, port = self._url.hostname or "localhost", self._url.port
        if context is not None:
            return http.client.HTTPSConnection(name, port or 2376, context=context, blocksize=_BLOCK)
        return http.client.HTTPConnection(name, port or 2375, blocksize=_BLOCK)

    def open(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        *,
        body: object = None,
        raw: Body | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> http.client.HTTPResponse:
        """Send one request and return the response with its body unread. `body` is sent as JSON, `raw` as it is."""
        connection = self._connection()
        # One connection a request: with this header the response owns the socket and closes it at its end.
        sent: dict[str, str] = {"Connection": "close", **(headers or {})}
        payload: Any = raw
        if body is not None:
            payload = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        chunked = payload is not None and not isinstance(payload, bytes)
        if chunked:
            sent.setdefault("Content-Type", "application/x-tar")
            sent["Transfer-Encoding"] = "chunked"
        target = f"/v{API_VERSION}{path}{_encode_query(query)}"
        try:
            connection.request(method, target, body=payload, headers=sent, encode_chunked=chunked)
            response = connection.getresponse()
        except (BrokenPipeError, ConnectionResetError) as error:
            if connection.sock is None:  # it went without an answer
                raise self._unreachable(error) from error
            # The daemon may refuse before it has read the whole body; its answer is still there to read.
            response = self._early_answer(connection)
        except OSError as error:
            connection.close()
            raise self._unreachable(error) from error
        if connection.sock is not None:
            # The response keeps the descriptor open through its own file until it has been read.
            connection.sock.close()
        if response.status >= 400:
            with response:
                raise error_from(response.status, response.read())
        return response

    def _early_answer(self, connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
        response = http.client.HTTPResponse(cast(socket.socket, connection.sock))
        try:
            response.begin()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._unreachable(error) from error
        return response

    def _unreachable(self, error: BaseException) -> Unreachable:
        return Unreachable(f"Cannot connect to the berth daemon at {self.host}: {error}. Is it running?")

    def json(self, method: str, path: str, query: Query | None = None, **options: Any) -> Any:
        """One request whose answer is one JSON document (or nothing)."""
        with self.open(method, path, query, **options) as response:
            raw = response.read()
        return json.loads(raw) if raw.strip() else None

    def lines(self, method: str, path: str, query: Query | None = None, **options: Any) -> Iterator[dict[str, Any]]:
        """One request whose answer is a stream of JSON documents, one a line, as they come."""
        with self.open(method, path, query, **options) as response:
            for line in response:
                if line.strip():
                    yield json.loads(line)

    def chunks(self, method: str, path: str, query: Query | None = None, **options: Any) -> Iterator[bytes]:
        """One request whose answer is a stream of bytes."""
        with self.open(method, path, query, **options) as response:
            while piece := response.read1(_BLOCK):
                yield piece

    def take_over(self, path: str, query: Query | None = None, *, body: object = None) -> Takeover:
        """POST and take the connection over (docker's hijack): 101 with Upgrade, or 200 from older daemons."""
        connection = self._connection()
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise self._unreachable(error) from error
        sock = cast(socket.socket, connection.sock)
        payload = b"" if body is None else json.dumps(body).encode()
        head = (
            f"POST /v{API_VERSION}{path}{_encode_query(query)} HTTP/1.1\r\nHost: localhost\r\n"
            "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(payload)}\r\n\r\n"
        )
        sock.sendall(head.encode() + payload)
        received = b""
        while b"\r\n\r\n" not in received:
            piece = sock.recv(65536)
            if not piece:
                raise Unreachable(f"{self.host}: the daemon closed the connection")
            received += piece
        raw_head, leftover = received.split(b"\r\n\r\n", 1)
        status, fields = _parse_head(raw_head)
        if status >= 400:
            raise error_from(status, _rest_of_body(sock, leftover, fields))
        return Takeover(sock, leftover, fields.get("content-type", ""))


def _parse_head(raw: bytes) -> tuple[int, dict[str, str]]:
    first, *rest = raw.decode("latin-1").split("\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
    return int(first.split(" ", 2)[1]), fields


def _rest_of_body(sock: socket.socket, begun: bytes, fields: Mapping[str, str]) -> bytes:
    wanted = int(fields.get("content-length", "0"))
    while len(begun) < wanted:
        piece = sock.recv(65536)
        if not piece:
            break
        begun += piece
    sock.close()
    return begun
