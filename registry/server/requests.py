"""What a handler gets: the request, already taken apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote

from aiohttp.web_request import BaseRequest

from registry.config import Settings
from registry.digest import Digest
from registry.server.auth import Identity
from registry.server.direct import DirectBody


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
    # Set by a handler that took the body around the protocol.
    direct: DirectBody | None = None
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
        path = quote(self.settings.prefix.rstrip("/") + path, safe="/:@!$&'()*+,;=-._~")
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
