"""Reading from a remote repository: manifests, tags, blobs. What is returned has been verified against its digest."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

import msgspec
from aiohttp import StreamReader

from registry.client.failures import ConnectionFailed, RemoteError
from registry.client.session import RegistrySession
from registry.digest import Digest
from registry.errors import DigestMismatch
from registry.manifest import ACCEPTED, MAX_MANIFEST_BYTES, SCHEMA1_TYPES, Descriptor

_BACKOFF_SECONDS = 0.5
# Of one page: registries that know no pages send all.
_MAX_TAGS_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class RemoteManifest:
    """A manifest as a registry sent it, its digest computed here."""

    data: bytes
    media_type: str
    digest: Digest


class _Tags(msgspec.Struct):
    tags: list[str] | None = None


class Sink(Protocol):
    """Where a blob's bytes go."""

    @property
    def size(self) -> int: ...
    async def write(self, data: bytes) -> None: ...


class RemoteSource:
    """One repository to pull from. `attempts` counts tries without progress for one blob."""

    def __init__(self, session: RegistrySession, path: str, attempts: int = 5) -> None:
        self.session = session
        self.path = path
        self._attempts = attempts
        self._scope = f"repository:{path}:pull"

    async def manifest(self, reference: str) -> RemoteManifest:
        """The manifest or index of a tag or digest. `RemoteError`, `ConnectionFailed`, `DigestMismatch`."""
        url = f"{self.path}/manifests/{quote(reference, safe=':')}"
        headers = {"Accept": ", ".join((*ACCEPTED, *sorted(SCHEMA1_TYPES)))}
        async with self.session.request("GET", url, scope=self._scope, headers=headers) as response:
            data = await _document(response.content, f"manifest of {reference}")
            media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
        digest = Digest.of(data)
        if ":" in reference:
            expected = Digest.parse(reference)
            digest = Digest.of(data, expected.algorithm)
            if digest != expected:
                raise DigestMismatch(expected, digest)
        return RemoteManifest(data, media_type, digest)

    async def tags(self) -> list[str]:
        """Every tag, following pages."""
        found: list[str] = []
        url: str | None = f"{self.path}/tags/list"
        while url:
            async with self.session.request("GET", url, scope=self._scope) as response:
                data = await _document(response.content, "list of tags", _MAX_TAGS_BYTES)
                found += msgspec.json.decode(data, type=_Tags).tags or []
                following = re.search(r'<([^>]+)>;\s*rel="?next"?', response.headers.get("Link", ""))
            url = following[1] if following else None
        return found

    async def fetch(self, descriptor: Descriptor, writer: Sink, progress: Callable[[int], None]) -> None:
        """Write a blob's bytes to `writer`, going on where a broken connection ended. The caller commits.

        Tries again as long as bytes arrive, and `attempts` times when none do.
        """
        failures = 0
        while True:
            before = writer.size
            try:
                await self._fetch_rest(descriptor, writer, progress)
                return
            except (ConnectionFailed, RemoteError) as error:
                failures = 0 if writer.size > before else failures + 1
                final = isinstance(error, RemoteError) and not error.is_temporary
                if final or failures >= self._attempts:
                    raise
            await asyncio.sleep(_BACKOFF_SECONDS * 2**failures)

    async def _fetch_rest(self, descriptor: Descriptor, writer: Sink, progress: Callable[[int], None]) -> None:
        start = writer.size
        if start and start == descriptor.size:
            return
        headers = {"Range": f"bytes={start}-"} if start else {}
        url = f"{self.path}/blobs/{descriptor.digest}"
        async with self.session.request("GET", url, scope=self._scope, headers=headers, accept=(200, 206)) as response:
            skip = start if response.status == 200 else 0
            async for chunk in response.content.iter_any():
                if skip:
                    chunk, skip = chunk[skip:], max(0, skip - len(chunk))
                    if not chunk:
                        continue
                if writer.size + len(chunk) > descriptor.size:
                    raise ValueError(f"blob {descriptor.digest} is larger than the {descriptor.size} bytes promised")
                await writer.write(chunk)
                progress(writer.size)
        if writer.size < descriptor.size:
            raise ConnectionFailed("GET", self.session.url(url), "unexpected EOF")

    async def read(self, descriptor: Descriptor) -> bytes:
        """A small blob (a configuration) in memory, verified."""
        if descriptor.size > MAX_MANIFEST_BYTES:
            raise ValueError(f"blob {descriptor.digest} is too large for a document")
        expected = descriptor.checked_digest()
        async with self.session.request("GET", f"{self.path}/blobs/{expected}", scope=self._scope) as response:
            data = await _document(response.content, f"blob {expected}")
        actual = Digest.of(data, expected.algorithm)
        if actual != expected:
            raise DigestMismatch(expected, actual)
        return data


async def _document(body: StreamReader, name: str, limit: int = MAX_MANIFEST_BYTES) -> bytes:
    """All of a body that is to be a document. Raises `ValueError` when it goes on and on."""
    data = bytearray()
    while chunk := await body.read(MAX_MANIFEST_BYTES):
        data += chunk
        if len(data) > limit:
            raise ValueError(f"{name} is larger than {limit} bytes")
    return bytes(data)
