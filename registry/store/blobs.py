"""The blob store: content by digest. A blob is visible whole or not at all, and its name is always its true digest.

The engine's images and the registry's repositories share one such store. A blob on its own belongs to nobody:
repository links, engine images and leases are what keep it (see `collector.py`).
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

from registry.digest import Digest, new_hasher
from registry.errors import BlobUnknown, DigestMismatch
from registry.store import paths
from registry.store.driver import Appender, StorageDriver
from registry.tasks import run_blocking

# Small enough that many parallel writers stay cheap, large enough that a visit to a thread is worth it.
_BATCH_BYTES = 512 * 1024


class BlobStore:
    """Reads and writes blobs through a storage driver."""

    def __init__(self, driver: StorageDriver) -> None:
        self.driver = driver

    async def stat(self, digest: Digest) -> int | None:
        """The blob's size in bytes, or None when the store has no such blob."""
        found = await self.driver.stat(paths.blob_data(digest))
        return None if found is None else found.size

    def local_path(self, digest: Digest) -> Path:
        """Where the bytes lie, whether or not they are there. Only file system drivers have such a place."""
        path = self.driver.local_path(paths.blob_data(digest))
        if path is None:
            raise OSError("this storage driver keeps no local files")
        return path

    async def read(self, digest: Digest) -> bytes:
        """The whole blob; `BlobUnknown` when absent. For manifests and configs, not for layers."""
        try:
            return await self.driver.read(paths.blob_data(digest))
        except FileNotFoundError as error:
            raise BlobUnknown(digest) from error

    async def open(self, digest: Digest, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The blob's bytes from `offset`, at most `length`, in chunks; `BlobUnknown` before the first one."""
        try:
            async for chunk in self.driver.stream(paths.blob_data(digest), offset, length):
                yield chunk
        except FileNotFoundError as error:
            raise BlobUnknown(digest) from error

    async def writer(self, algorithm: str = "sha256") -> BlobWriter:
        """A new blob in the making. Use `commit` or `abort`, or `async with`, which aborts what was not committed."""
        name = paths.temporary(uuid.uuid4().hex)
        return BlobWriter(self.driver, name, await self.driver.append(name), algorithm)

    async def put(self, data: bytes, expected: Digest | None = None) -> Digest:
        """Store bytes that are already in memory; `DigestMismatch` when they are not what was expected."""
        digest = await self.digest_of(data, expected)
        path = paths.blob_data(digest)
        found = await self.driver.stat(path)
        if found is None or found.size != len(data) or not await self.driver.touch(path):
            await self.driver.write(path, data)
        return digest

    @staticmethod
    async def digest_of(data: bytes, expected: Digest | None = None) -> Digest:
        """The digest of bytes in memory; `DigestMismatch` when they are not what was expected."""
        algorithm = expected.algorithm if expected is not None else "sha256"
        digest = Digest.of(data, algorithm) if len(data) <= 65536 else await run_blocking(Digest.of, data, algorithm)
        if expected is not None and digest != expected:
            raise DigestMismatch(expected, digest)
        return digest

    async def adopt(self, path: Path, digest: Digest) -> None:
        """Take a finished, verified file of the same file system into the store: synced, then renamed."""
        adopt = getattr(self.driver, "adopt", None)
        if adopt is None:
            raise OSError("this storage driver cannot adopt local files")
        await adopt(os.fspath(path), paths.blob_data(digest))

    async def delete_old(self, digest: Digest, limit: float) -> bool:
        """Remove the blob unless somebody has made it younger than `limit`; whether it did."""
        return await self.driver.remove_old(paths.blob_folder(digest), "data", limit)

    async def delete(self, digest: Digest) -> bool:
        """Remove the blob; whether there was one. The caller has made sure that nothing needs it."""
        return await self.driver.remove_tree(paths.blob_folder(digest))

    async def digests(self) -> AsyncIterator[Digest]:
        """Every digest in the store."""
        for algorithm in await self.driver.names(paths.BLOBS):
            for prefix in await self.driver.names(f"{paths.BLOBS}/{algorithm}"):
                for encoded in await self.driver.names(f"{paths.BLOBS}/{algorithm}/{prefix}"):
                    with contextlib.suppress(ValueError):
                        yield Digest.parse(f"{algorithm}:{encoded}")

    def temp_dir(self) -> Path:
        """A folder on the store's own file system for unfinished files of other writers; it exists."""
        path = self.driver.local_path(paths.TEMPORARY)
        if path is None:
            raise OSError("this storage driver keeps no local files")
        path.mkdir(parents=True, exist_ok=True)
        return path

    async def clear_temporary(self, older_than_seconds: float) -> int:
        """Remove unfinished files nobody has written to, or moved there, for so long; how many. What a collector that
        died had put out of reach is put back first."""
        limit = time.time() - older_than_seconds
        await self.driver.restore(limit)
        removed = 0
        for name in await self.driver.names(paths.TEMPORARY):
            if name.startswith(paths.JUDGED):
                continue
            path = paths.temporary(name)
            found = await self.driver.stat(path)
            if found is not None and max(found.modified, found.changed) < limit:
                removed += await self.driver.remove(path) or await self.driver.remove_tree(path)
        return removed


class BlobWriter:
    """One blob in the making: bytes are collected to batches, hashed and written by threads."""

    def __init__(self, driver: StorageDriver, name: str, appender: Appender, algorithm: str) -> None:
        self._driver = driver
        self._name = name
        self._appender = appender
        self._algorithm = algorithm
        self._hasher = new_hasher(algorithm)
        self._batch: list[bytes] = []
        self._batched = 0
        self._size = 0
        self._open = True

    @property
    def size(self) -> int:
        """Bytes taken so far."""
        return self._size

    @property
    def local_path(self) -> Path | None:
        """Where the unfinished bytes lie, for whoever reads along; None where the driver has no local files."""
        return self._driver.local_path(self._name)

    async def write(self, data: bytes) -> None:
        """Take the next bytes; they are hashed and written in order."""
        self._batch.append(data)
        self._batched += len(data)
        self._size += len(data)
        if self._batched >= _BATCH_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        if self._batch:
            batch, self._batch, self._batched = self._batch, [], 0
            await self._appender.write(batch, self._hasher)

    async def commit(self, expected: Digest | None = None) -> Digest:
        """Make the blob visible and durable. On `DigestMismatch` or any failure nothing is left behind."""
        try:
            await self._flush()
            digest = Digest.of_hasher(self._hasher, self._algorithm)
            if expected is not None and expected != digest:
                raise DigestMismatch(expected, digest)
            await self._appender.close()
            await self._driver.publish(self._name, paths.blob_data(digest))
            self._open = False
        except BaseException:
            await self.abort()
            raise
        return digest

    async def abort(self) -> None:
        """Forget everything. Harmless after `commit`."""
        if self._open:
            self._open = False
            await self._appender.close()
            await self._driver.remove(self._name)

    async def __aenter__(self) -> BlobWriter:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.abort()
