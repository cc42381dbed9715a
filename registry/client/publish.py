"""Writing to a remote repository: mounts, uploads that resume, manifests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import quote, urljoin

import aiofiles
from aiofiles.threadpool.binary import AsyncBufferedReader

from registry.client.failures import ConnectionFailed, RemoteError
from registry.client.session import RegistrySession
from registry.digest import Digest
from registry.manifest import ACCEPTED

_CHUNK = 256 * 1024
_ATTEMPTS = 5
_BACKOFF_SECONDS = 0.5


class RemoteTarget:
    """One repository to push to."""

    def __init__(self, session: RegistrySession, path: str) -> None:
        self.session = session
        self.path = path
        self._scope = f"repository:{path}:pull,push"

    async def has(self, digest: Digest) -> bool:
        """Whether the repository holds the blob already."""
        url = f"{self.path}/blobs/{digest}"
        async with self.session.request("HEAD", url, scope=self._scope, accept=(200, 404, 307)) as response:
            return response.status == 200

    async def mount(self, digest: Digest, source: str) -> str | None:
        """Take the blob over from another repository of the same registry: None when that worked.

        Otherwise the registry has begun an upload: its location, for `upload`; empty when it has not.
        """
        url = f"{self.path}/blobs/uploads/?mount={digest}&from={quote(source, safe='')}"
        scope = f"{self._scope} repository:{source}:pull"
        try:
            async with self.session.request("POST", url, scope=scope, accept=(201, 202)) as response:
                return None if response.status == 201 else self._location(response.headers.get("Location", ""))
        except RemoteError:
            return ""

    async def upload(
        self, digest: Digest, path: Path, size: int, progress: Callable[[int], None], location: str = ""
    ) -> None:
        """Send the file at `path` as the blob `digest`; after a broken connection goes on at the registry's offset."""
        failures = 0
        offset = 0
        while True:
            try:
                if not location:
                    location, offset = await self._begin(), 0
                if offset < size or not size:
                    location = await self._send(location, path, offset, progress)
                await self._finish(location, digest)
                progress(size)
                return
            except (ConnectionFailed, RemoteError) as error:
                failures += 1
                if failures >= _ATTEMPTS or (isinstance(error, RemoteError) and not error.is_temporary):
                    raise
                await asyncio.sleep(_BACKOFF_SECONDS * 2**failures)
                location, offset = await self._where(location)

    async def _begin(self) -> str:
        url = f"{self.path}/blobs/uploads/"
        async with self.session.request("POST", url, scope=self._scope, accept=(202,)) as response:
            return self._location(response.headers.get("Location", ""))

    async def _send(self, location: str, path: Path, offset: int, progress: Callable[[int], None]) -> str:
        headers = {"Content-Type": "application/octet-stream"}
        # aiohttp leaves the iterator as it is when the connection breaks: the file is closed here.
        async with aiofiles.open(path, "rb") as file:
            data = _read(file, offset, progress)
            async with self.session.request(
                "PATCH", location, scope=self._scope, headers=headers, data=data, accept=(202, 204)
            ) as response:
                return self._location(response.headers.get("Location", "")) or location

    async def _finish(self, location: str, digest: Digest) -> None:
        url = f"{location}{'&' if '?' in location else '?'}digest={quote(digest, safe='')}"
        async with self.session.request(
            "PUT", url, scope=self._scope, headers={"Content-Length": "0"}, accept=(201, 204)
        ):
            return

    async def _where(self, location: str) -> tuple[str, int]:
        """Where an interrupted upload goes on, or ("", 0) to begin again."""
        if not location:
            return "", 0
        try:
            async with self.session.request("GET", location, scope=self._scope, accept=(204, 202)) as response:
                last = response.headers.get("Range", "").rpartition("-")[2]
                fresh = self._location(response.headers.get("Location", "")) or location
                return fresh, int(last) + 1 if last.isdigit() and int(last) else 0
        except (RemoteError, ConnectionFailed):
            return "", 0

    async def put_manifest(self, reference: str, data: bytes, media_type: str) -> Digest:
        """Store a manifest under a tag or digest; its digest."""
        url = f"{self.path}/manifests/{quote(reference, safe=':')}"
        headers = {"Content-Type": media_type}
        async with self.session.request(
            "PUT", url, scope=self._scope, headers=headers, data=data, accept=(200, 201, 202)
        ):
            return Digest.of(data)

    async def has_manifest(self, digest: Digest) -> bool:
        """Whether the repository serves this manifest."""
        url = f"{self.path}/manifests/{digest}"
        headers = {"Accept": ", ".join(ACCEPTED)}
        async with self.session.request("HEAD", url, scope=self._scope, headers=headers, accept=(200, 404)) as response:
            return response.status == 200

    def _location(self, header: str) -> str:
        return urljoin(f"{self.session.endpoint.base}/v2/", header) if header else ""


async def _read(file: AsyncBufferedReader, offset: int, progress: Callable[[int], None]) -> AsyncIterator[bytes]:
    await file.seek(offset)
    while chunk := await file.read(_CHUNK):
        yield chunk
        offset += len(chunk)
        progress(offset)
