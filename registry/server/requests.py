"""What a handler gets: the request, already taken apart, and careful ways to read its body."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote

from aiohttp import ClientPayloadError
from aiohttp.web_protocol import RequestPayloadError
from aiohttp.web_request import BaseRequest

from registry import errors
from registry.config import Settings
from registry.digest import Digest
from registry.errors import RegistryError
from registry.server.auth import Identity

BODY_STALL_SECONDS = 60.0
BODY_PAUSE_SECONDS = 0.5


@dataclass(slots=True)
class Call:
    """One request to the API. `repository` and `reference` fit their grammars; `reference` is a tag, digest or upload
    id."""

    request: BaseRequest
    settings: Settings
    method: str
    kind: str
    repository: str
    reference: str
    query_string: str
    identity: Identity
    request_id: str = ""
    _query: dict[str, list[str]] | None = None

    @property
    def query(self) -> Mapping[str, list[str]]:
        """The decoded query."""
        if self._query is None:
            self._query = {}
            if self.query_string:
                for name, value in parse_qsl(self.query_string, keep_blank_values=True):
                    self._query.setdefault(name, []).append(value)
        return self._query

    def argument(self, name: str) -> str | None:
        """The first value of a query parameter."""
        values = self.query.get(name)
        return values[0] if values else None

    def header(self, name: str) -> str | None:
        """A request header."""
        return self.request.headers.get(name)

    def url(self, path: str) -> str:
        """A `Location`: absolute as registry:2 gives it, or the path alone when so configured."""
        path = quote(path, safe="/:@!$&'()*+,;=-._~")
        if self.settings.relative_urls:
            return path
        return base_url(self.request, self.settings) + path

    def upload_url(self, upload_id: str) -> str:
        """Where an upload goes on."""
        return self.url(f"/v2/{self.repository}/blobs/uploads/{upload_id}")

    def blob_url(self, digest: Digest) -> str:
        """Where a blob is served."""
        return self.url(f"/v2/{self.repository}/blobs/{digest}")

    def manifest_url(self, reference: str) -> str:
        """Where a manifest is served."""
        return self.url(f"/v2/{self.repository}/manifests/{reference}")

    @property
    def content_length(self) -> int | None:
        """The declared length of the body."""
        return self.request.content_length


def base_url(request: BaseRequest, settings: Settings) -> str:
    """Scheme and host the client used, as far as headers of trusted kind say."""
    if settings.host:
        return settings.host.rstrip("/")
    headers = request.headers
    scheme = "https" if settings.serves_tls else "http"
    scheme = (headers.get("X-Forwarded-Proto") or scheme).partition(",")[0].strip()
    host = (headers.get("X-Forwarded-Host") or headers.get("Host") or "localhost").partition(",")[0].strip()
    forwarded = headers.get("Forwarded", "").partition(",")[0]
    for part in forwarded.split(";"):
        name, _, value = part.strip().partition("=")
        value = value.strip('"')
        if name.lower() == "proto" and value:
            scheme = value
        elif name.lower() == "host" and value:
            host = value
    if scheme not in ("http", "https"):
        scheme = "https" if settings.serves_tls else "http"
    return f"{scheme}://{quote(host, safe=':[]-._~')}"


class Body:
    """The body of a request, in batches. A client that is silent for a minute is given up."""

    __slots__ = ("_begun", "_broken", "_content", "_request")

    def __init__(self, request: BaseRequest) -> None:
        self._request = request
        self._content = request.content
        self._begun = False
        self._broken: Exception | None = None

    async def next(self, batch_bytes: int) -> list[bytes]:
        """The next batch of about `batch_bytes`, empty at the end; ConnectionResetError when the body broke off.

        What arrived before the break is handed out first, so that an upload can be resumed behind it.
        """
        if not self._begun:
            self._begun = True
            send_continue(self._request)
        if self._broken is not None:
            raise ConnectionResetError("the body ended early") from self._broken
        batch: list[bytes] = []
        size = 0
        try:
            while size < batch_bytes:
                try:
                    async with asyncio.timeout(BODY_PAUSE_SECONDS if batch else BODY_STALL_SECONDS):
                        chunk = await self._content.readany()
                except TimeoutError:
                    if batch:
                        break  # what a slow client has sent so far goes to disk, where it survives us
                    raise
                if not chunk:
                    break
                batch.append(chunk)
                size += len(chunk)
        except (OSError, ClientPayloadError, RequestPayloadError) as error:
            self._broken = error
            if not batch:
                raise ConnectionResetError("the body ended early") from error
        return batch


async def read_body(request: BaseRequest, limit: int) -> bytes:
    """The whole body, or 413 when it is longer than `limit` bytes."""
    too_large = RegistryError(errors.MANIFEST_TOO_LARGE, message=f"the manifest is larger than {limit} bytes")
    if request.content_length is not None and request.content_length > limit:
        raise too_large
    pieces: list[bytes] = []
    size = 0
    body = Body(request)
    while batch := await body.next(1 << 16):
        pieces += batch
        size += sum(map(len, batch))
        if size > limit:
            raise too_large
    return b"".join(pieces)


def send_continue(request: BaseRequest) -> None:
    """Answer `Expect: 100-continue`, now that the request was found acceptable."""
    expect = request.headers.get("Expect")
    if expect is not None and expect.lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
