"""The driver for S3-compatible object stores: registry:2's layout as keys, all state in the bucket, so any replica can
go on.

An object store knows no appending and no renaming. A growing file is therefore a row of parts,
`<path>.parts/<offset>`, each an object of its own that any replica can see and continue; publishing streams them into
the target as one multipart upload, which becomes visible whole. Age cannot be renewed in place either: `touch` leaves
a mark beside the content, which `stat` respects.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from registry.config import S3
from registry.digest import Hasher
from registry.store import paths
from registry.store.driver import Files, FileStat, Spent
from registry.tasks import run_blocking

T = TypeVar("T")
_STREAM_BYTES = 1024 * 1024
_TOUCHED = "berth/touched/"
# Younger content needs no mark: by default grace periods are longer.
_MARK_WORTH_SECONDS = 600.0
_DELETE_TOGETHER = 500
_ASK_TOGETHER = 16


class S3Driver:
    """Objects of one bucket, below an optional prefix."""

    def __init__(self, store: S3Store, settings: S3, mark_worth_seconds: float = _MARK_WORTH_SECONDS) -> None:
        self._store = store
        self._settings = settings
        self._mark_worth_seconds = mark_worth_seconds

    @classmethod
    def connect(cls, settings: S3, grace_seconds: float = 3600.0) -> S3Driver:
        """A driver for these settings; nothing is sent yet. Without keys, AWS's usual sources of credentials are
        asked."""
        options: dict[str, Any] = {"timeout": "300 seconds"}
        if settings.endpoint.startswith("http://") or not settings.secure:
            options["allow_http"] = True
        if settings.skip_verify:
            options["allow_invalid_certificates"] = True
        arguments: dict[str, Any] = {
            "region": settings.region,
            "virtual_hosted_style_request": not settings.path_style,
            "client_options": options,
        }
        if settings.endpoint:
            endpoint = settings.endpoint
            if "://" not in endpoint:
                endpoint = ("https://" if settings.secure else "http://") + endpoint
            arguments["endpoint"] = endpoint
        if settings.encrypt:
            arguments["server_side_encryption"] = "aws:kms" if settings.key_id else "AES256"
            if settings.key_id:
                arguments["sse_kms_key_id"] = settings.key_id
        if settings.access_key:
            arguments["access_key_id"] = settings.access_key
            arguments["secret_access_key"] = settings.secret_key
        store = S3Store(settings.bucket, prefix=settings.root or None, **arguments)
        return cls(store, settings, min(_MARK_WORTH_SECONDS, grace_seconds / 6))

    async def read(self, path: str) -> bytes:
        """The whole object."""
        result = await _ask(obstore.get_async(self._store, path))
        return bytes(await _ask(result.bytes_async()))

    async def write(self, path: str, data: bytes) -> None:
        """Put an object: visible whole, durable when acknowledged."""
        await _ask(obstore.put_async(self._store, path, data, use_multipart=len(data) > self._settings.chunk_bytes))

    async def write_all(self, files: Files, unless_same: bool = False) -> None:
        """Put several, in order."""
        for path, data in files:
            if unless_same and await self._holds(path, data):
                if paths.is_kept_by_age(path):
                    await self.touch(path)
                continue
            await self.write(path, data)

    async def _holds(self, path: str, data: bytes) -> bool:
        try:
            return await self.read(path) == data
        except FileNotFoundError:
            return False

    async def write_new(self, path: str, data: bytes) -> None:
        """Put an object nobody else knows of yet."""
        await self.write(path, data)

    async def hash_into(self, path: str, hasher: Hasher) -> None:
        """Feed an object, or the parts of a growing one, to a hasher."""
        async for chunk in self.stream(path):
            await run_blocking(hasher.update, chunk)

    async def stat(self, path: str) -> FileStat | None:
        """Size and time of an object, of the parts of a growing one, or None."""
        try:
            meta = await _ask(obstore.head_async(self._store, path))
        except FileNotFoundError:
            return await self._stat_parts(path)
        modified = meta["last_modified"].timestamp()
        if paths.is_kept_by_age(path) and time.time() - modified > self._mark_worth_seconds:
            modified = max(modified, await self._touched(path))
        return FileStat(meta["size"], modified)

    async def _stat_parts(self, path: str) -> FileStat | None:
        if path.startswith(paths.BLOBS) or path.endswith("/link"):
            return None
        parts = await self._parts(path)
        if parts:
            offset, size, modified = parts[-1]
            return FileStat(offset + size, modified)
        # A folder exists when something is in it; callers ask this of folders of tags.
        async for batch in _all(obstore.list(self._store, path + "/", chunk_size=1)):
            return FileStat(0, batch[0]["last_modified"].timestamp())
        return None

    async def _touched(self, path: str) -> float:
        try:
            meta = await _ask(obstore.head_async(self._store, _TOUCHED + path))
        except FileNotFoundError:
            return 0.0
        return float(meta["last_modified"].timestamp())

    async def stat_all(self, paths: Sequence[str]) -> list[FileStat | None]:
        """The same for several, some at a time."""
        gate = asyncio.Semaphore(_ASK_TOGETHER)

        async def ask(path: str) -> FileStat | None:
            async with gate:
                return await self.stat(path)

        return await asyncio.gather(*map(ask, paths))

    async def names(self, path: str) -> list[str]:
        """The sorted names directly below a key prefix."""
        prefix = path + "/"
        found = await _ask(obstore.list_with_delimiter_async(self._store, prefix))
        below = [name.rstrip("/").rpartition("/")[2] for name in found["common_prefixes"]]
        below += [meta["path"].rpartition("/")[2] for meta in found["objects"]]
        return sorted(set(below))

    async def split_names(self, path: str, holding: str) -> tuple[list[str], list[str]]:
        """All names: a push leaves no folder behind that it has put nothing into, and asking for each costs too
        much."""
        return await self.names(path), []

    async def find_folders(self, path: str, marker: str) -> list[str]:
        """Every prefix below `path` that has a child `marker`. One pass over the keys."""
        found: set[str] = set()
        cut = len(path) + 1
        async for batch in _all(obstore.list(self._store, path + "/", chunk_size=1000)):
            for meta in batch:
                name, marked, _ = meta["path"][cut:].partition(f"/{marker}/")
                if marked and "/_" not in name:
                    found.add(name)
        return list(found)

    async def stream(self, path: str, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `offset`, at most `length`."""
        options: Any = {}
        if length == 0:
            await _ask(obstore.head_async(self._store, path))
            return
        if length is not None:
            options = {"range": (offset, offset + length)}
        elif offset:
            options = {"range": {"offset": offset}}
        try:
            result = await _ask(obstore.get_async(self._store, path, options=options or None))
        except FileNotFoundError:
            parts = await self._parts(path)
            if not parts:
                raise
            for start, _, _ in parts:
                yield await self.read(_part(path, start))
            return
        async for chunk in _all(result.stream(min_chunk_size=_STREAM_BYTES)):
            yield bytes(chunk)

    async def remove(self, path: str, durable: bool = False) -> bool:
        """Delete an object, or a growing one's parts; whether there was one. What the store has acknowledged is
        durable."""
        parts = await self._parts(path) if not path.endswith("/link") else []
        if parts:
            await _ask(obstore.delete_async(self._store, [_part(path, start) for start, _, _ in parts]))
            return True
        try:
            await _ask(obstore.head_async(self._store, path))
        except FileNotFoundError:
            return False
        await _ask(obstore.delete_async(self._store, path))
        return True

    async def remove_tree(self, path: str, durable: bool = False) -> bool:
        """Delete everything below a prefix, with the marks beside it; whether there was anything."""
        doomed: list[str] = []
        for prefix in (path + "/", f"{_TOUCHED}{path}/"):
            async for batch in _all(obstore.list(self._store, prefix, chunk_size=1000)):
                doomed += [meta["path"] for meta in batch]
        for start in range(0, len(doomed), _DELETE_TOGETHER):
            await _ask(obstore.delete_async(self._store, doomed[start : start + _DELETE_TOGETHER]))
        return bool(doomed)

    async def remove_folder(self, path: str, names: Sequence[str]) -> None:
        """Delete everything below a prefix."""
        await self.remove_tree(path)

    async def remove_old(self, path: str, judge: str, limit: float) -> bool:
        """Remove a folder unless the file `judge` in it is younger than `limit`; whether it did. What is touched in
        between the look and the removal, some thousandths of a second, goes nevertheless: a store has no locks."""
        found = await self.stat(f"{path}/{judge}")
        return (found is None or found.modified <= limit) and await self.remove_tree(path)

    async def restore(self, limit: float) -> int:
        """Nothing was ever out of reach."""
        return 0

    async def tidy(self, path: str, limit: float, with_folders: bool = False) -> int:
        """An object is there whole or not at all."""
        return 0

    async def touch(self, path: str) -> bool:
        """Leave a mark that makes the content young again; whether the content is there."""
        await _ask(obstore.put_async(self._store, _TOUCHED + path, b"1"))
        try:
            await _ask(obstore.head_async(self._store, path))
        except FileNotFoundError:
            await _ask(obstore.delete_async(self._store, _TOUCHED + path))
            return False
        return True

    async def append(self, path: str, beside: str = "") -> PartAppender:
        """Go on with a growing file, or begin it; FileNotFoundError when `beside` is missing."""
        if beside and await self.stat(beside) is None:
            raise FileNotFoundError(beside)
        parts = await self._parts(path)
        size = parts[-1][0] + parts[-1][1] if parts else 0
        return PartAppender(self._store, path, size, self._settings.chunk_bytes)

    async def publish(self, source: str, target: str, then: Files = (), spent: Spent = ()) -> None:
        """Make the parts of a growing file one object, which appears whole, then drop the parts and what is `spent`.
        What came in several and is there already is not sent again."""
        parts = await self._parts(source)

        async def content() -> AsyncIterator[bytes]:
            for start, _, _ in parts:
                yield await self.read(_part(source, start))

        if len(parts) == 1:
            await _ask(obstore.copy_async(self._store, _part(source, 0), target))
        elif not parts:
            await self.write(target, b"")
        elif not await self._is_there(target, parts[-1][0] + parts[-1][1]):
            await _ask(
                obstore.put_async(
                    self._store,
                    target,
                    content(),
                    use_multipart=True,
                    chunk_size=self._settings.chunk_bytes,
                    max_concurrency=2,
                )
            )
        await self.write_all(then)
        await _ask(obstore.delete_async(self._store, [_part(source, start) for start, _, _ in parts]))
        for folder, _ in spent:
            await self.remove_tree(folder)

    async def _is_there(self, path: str, size: int) -> bool:
        found = await self.stat(path)
        return found is not None and found.size == size and await self.touch(path)

    async def presign(self, path: str, seconds: int) -> str | None:
        """An address where the client may fetch the object itself, unless redirects are off."""
        if not self._settings.redirect:
            return None
        return str(await _ask(obstore.sign_async(self._store, "GET", path, timedelta(seconds=seconds))))

    def local_path(self, path: str) -> Path | None:
        """Objects have no place on this machine."""
        return None

    def fingerprint(self, path: str) -> tuple[int, ...] | None:
        """Nothing can be known of an object without asking the store."""
        return None

    async def close(self) -> None:
        """Nothing is held open."""

    async def _parts(self, path: str) -> list[tuple[int, int, float]]:
        """Offset, size and time of each part, in order, as far as they join without a gap."""
        found: list[tuple[int, int, float]] = []
        async for batch in _all(obstore.list(self._store, path + ".parts/", chunk_size=1000)):
            for meta in batch:
                name = meta["path"].rpartition("/")[2]
                if name.isdigit():
                    found.append((int(name), meta["size"], meta["last_modified"].timestamp()))
        found.sort()
        joined: list[tuple[int, int, float]] = []
        end = 0
        for part in found:
            if part[0] != end:
                break
            joined.append(part)
            end += part[1]
        return joined


class PartAppender:
    """Collects what is appended to parts of `part_bytes`; `close` puts what is left, so nothing is lost with this
    process."""

    threaded = None

    def __init__(self, store: S3Store, path: str, size: int, part_bytes: int) -> None:
        self._store = store
        self._path = path
        self._stored = size
        self._part_bytes = part_bytes
        self._pending: list[bytes] = []
        self._pending_bytes = 0

    @property
    def size(self) -> int:
        """Bytes taken so far."""
        return self._stored + self._pending_bytes

    async def write(self, chunks: Sequence[bytes | memoryview], hasher: Hasher | None = None) -> None:
        """Take the next bytes."""
        if hasher is not None:
            await run_blocking(_hash_sync, hasher, chunks)
        # A memoryview is the caller's memory, which holds other bytes soon.
        self._pending += [bytes(chunk) for chunk in chunks]
        self._pending_bytes += sum(map(len, chunks))
        if self._pending_bytes >= self._part_bytes:
            await self._put()

    async def _put(self) -> None:
        if not self._pending:
            return
        data = b"".join(self._pending)
        await _ask(obstore.put_async(self._store, _part(self._path, self._stored), data))
        self._stored += len(data)
        self._pending, self._pending_bytes = [], 0

    async def close(self) -> None:
        """Put what is left."""
        await self._put()


async def _ask(answer: Awaitable[T]) -> T:
    """What the store answers; OSError when it does not, or refuses: callers know disks that fail."""
    try:
        return await answer
    except BaseError as error:
        raise _failure(error) from error


async def _all(items: AsyncIterable[T]) -> AsyncIterator[T]:
    """The same for what comes piece by piece."""
    try:
        async for item in items:
            yield item
    except BaseError as error:
        raise _failure(error) from error


def _failure(error: BaseError) -> OSError:
    """The first line: what follows it is for those who debug HTTP clients."""
    return OSError(errno.EIO, f"the object store failed: {str(error).partition(chr(10))[0]}")


def _part(path: str, offset: int) -> str:
    return f"{path}.parts/{offset:020d}"


def _hash_sync(hasher: Hasher, chunks: Sequence[bytes | memoryview]) -> None:
    for chunk in chunks:
        hasher.update(chunk)
