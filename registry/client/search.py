"""The search of the index protocol, version 1: `GET <index>/v1/search?q=…&n=…`."""

from __future__ import annotations

from urllib.parse import quote

import msgspec

from registry.client.credentials import AuthConfig
from registry.client.hosts import Endpoint
from registry.client.session import RegistrySession, Transport

_HUB = Endpoint("https://index.docker.io", "index.docker.io")


class SearchResult(msgspec.Struct):
    """One repository found."""

    name: str = ""
    description: str = ""
    is_official: bool = False
    is_automated: bool = False
    star_count: int = 0


class _Answer(msgspec.Struct):
    results: list[SearchResult] = []


async def search_index(transport: Transport, term: str, limit: int, auth: AuthConfig) -> list[SearchResult]:
    """Ask Docker Hub, or the host that `term` begins with (`host:5000/word`). Raises the failures of a session."""
    host, slash, rest = term.partition("/")
    endpoint, words = _HUB, term.removeprefix("library/")
    if slash and ("." in host or ":" in host or host == "localhost"):
        endpoint, words = (await transport.policy.endpoints(host))[-1], rest
    session = RegistrySession(transport, endpoint, auth)
    url = f"{endpoint.base}/v1/search?q={quote(words, safe='')}&n={limit}"
    async with session.request("GET", url) as response:
        return msgspec.json.decode(await response.read(), type=_Answer).results
