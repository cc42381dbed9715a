# The hot paths here build strings, not Path objects: a Path costs more than the system call it is for.
"""The file system driver. Files appear by rename after fsync; folders of a renamed file are synced too.

`fingerprint` touches the disk on the loop, as `publish` does: a single `stat` of a path that was used moments ago,
which the kernel answers from its dentry cache in about a microsecond. It lets hot answers be cached although another
process, registry:2 included, may share the folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from registry.digest import Hasher
from registry.store.commits import GroupCommit
from registry.store.driver import STREAM_CHUNK, Appender, FileStat
from registry.store.growing import GrowingFile
from registry.store.placing import sync_file_sync
from registry.tasks import acquire, open_to_read, run_blocking

WALK_SECONDS = 0.001
PAUSE_SECONDS = 0.0005
LONG_SYNC_BYTES = 32 * 1024 * 1024


class FilesystemDriver:
    """Everything below one root folder, which is created on demand."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._prefix = os.fspath(root) + "/"
        self._commits = GroupCommit()

    async def read(self, path: str) -> bytes:
        """The whole file."""
        return await run_blocking(self.read_sync, path)

    def read_sync(self, path: str) -> bytes:
        """The whole file; one open, one read of its size, one close."""
        descriptor = os.open(self._prefix + path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            data = os.read(descriptor, size + 1)
            while True:
                more = os.read(descriptor, STREAM_CHUNK)
                if not more:
                    return data
                data += more
        finally:
            os.close(descriptor)

    async def write(self, path: str, data: bytes) -> None:
        """Replace the file atomically and durably."""
        await self.write_all([(path, data)])

    async def write_all(self, files: Sequence[tuple[str, bytes]], unless_same: bool = False) -> None:
        """Write several files in this order, each atomically. `unless_same` leaves equal files alone (mtime
        included)."""
        await self._commits.write(self._absolute(files), unless_same)

    def _absolute(self, files: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        return [(self._prefix + path, data) for path, data in files]

    async def write_new(self, path: str, data: bytes) -> None:
        """Write a file that nobody else knows of yet, in a folder of its own; a crash may lose it."""
        await run_blocking(self._write_new_sync, path, data)

    def _write_new_sync(self, path: str, data: bytes) -> None:
        target = self._prefix + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)

    async def hash_into(self, path: str, hasher: Hasher) -> None:
        """Feed the whole file to a hasher, in one thread."""
        await run_blocking(self._hash_into_sync, path, hasher)

    def _hash_into_sync(self, path: str, hasher: Hasher) -> None:
        buffer = bytearray(1024 * 1024)
        view = memoryview(buffer)
        with open(self._prefix + path, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                hasher.update(view[:count])

    async def stat(self, path: str) -> FileStat | None:
        """Size and time of a file, or None."""
        return (await self.stat_all([path]))[0]

    async def stat_all(self, paths: Sequence[str]) -> list[FileStat | None]:
        """The same for several, in one visit to the pool."""
        return await run_blocking(self._stat_all_sync, paths)

    def _stat_all_sync(self, paths: Sequence[str]) -> list[FileStat | None]:
        found: list[FileStat | None] = []
        for path in paths:
            try:
                status = os.stat(self._prefix + path)
            except (FileNotFoundError, NotADirectoryError):
                found.append(None)
            else:
                found.append(FileStat(status.st_size, status.st_mtime))
        return found

    async def names(self, path: str) -> list[str]:
        """The sorted names inside a folder; empty when there is none."""
        return await run_blocking(self._names_sync, path)

    def _names_sync(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(self._prefix + path))
        except (FileNotFoundError, NotADirectoryError):
            return []

    async def find_folders(self, path: str, marker: str) -> list[str]:
        """Every folder below `path` that has a child `marker`, relative to `path`, not looking into `_` folders.

        A large tree is walked with pauses, so that whoever is served meanwhile does not wait for the interpreter.
        """
        return await run_blocking(self._find_folders_sync, path, marker)

    def _find_folders_sync(self, path: str, marker: str) -> list[str]:
        top = self._prefix + path
        found: list[str] = []
        pending = [""]
        pause = time.monotonic() + WALK_SECONDS
        while pending:
            if time.monotonic() > pause:
                time.sleep(PAUSE_SECONDS)
                pause = time.monotonic() + WALK_SECONDS
            relative = pending.pop()
            try:
                with os.scandir(f"{top}/{relative}") as entries:
                    children = [entry.name for entry in entries if entry.is_dir(follow_symlinks=True)]
            except (FileNotFoundError, NotADirectoryError):
                continue
            if marker in children and relative:
                found.append(relative)
            inside = f"{relative}/" if relative else ""
            pending += [inside + name for name in children if not name.startswith(("_", "."))]
        return found

    async def stream(self, path: str, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `offset`, at most `length`; the next chunk is read while the consumer handles this one."""
        descriptor = await open_to_read(self._prefix + path)
        try:
            while length is None or length > 0:
                wanted = STREAM_CHUNK if length is None else min(STREAM_CHUNK, length)
                data = await run_blocking(os.pread, descriptor, wanted, offset)
                if not data:
                    return
                offset += len(data)
                if length is not None:
                    length -= len(data)
                yield data
        finally:
            os.close(descriptor)

    async def remove(self, path: str) -> bool:
        """Remove a file; whether there was one."""
        return await run_blocking(self._remove_sync, path)

    def _remove_sync(self, path: str) -> bool:
        try:
            os.unlink(self._prefix + path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    async def remove_tree(self, path: str) -> bool:
        """Remove a folder with all it holds; whether there was one. It vanishes at once: renamed away, then deleted."""
        return await run_blocking(self._remove_tree_sync, path)

    def _remove_tree_sync(self, path: str) -> bool:
        trash = self._take_away_sync(path)
        if trash is None:
            return False
        shutil.rmtree(trash, ignore_errors=True)
        return True

    def _take_away_sync(self, path: str) -> str | None:
        trash = f"{self._prefix}berth/tmp/trash-{uuid.uuid4().hex}"
        os.makedirs(f"{self._prefix}berth/tmp", exist_ok=True)
        try:
            os.rename(self._prefix + path, trash)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return trash

    async def remove_old(self, path: str, judge: str, limit: float) -> bool:
        """Remove a folder unless the file `judge` in it (or the folder, if there is none) is younger than `limit`;
        whether it did.

        Looked at when it is out of everybody's reach: who touched it before is respected, who comes later finds
        nothing.
        """
        return await run_blocking(self._remove_old_sync, path, judge, limit)

    def _remove_old_sync(self, path: str, judge: str, limit: float) -> bool:
        trash = self._take_away_sync(path)
        if trash is None:
            return False
        try:
            modified = os.stat(f"{trash}/{judge}").st_mtime
        except FileNotFoundError:
            modified = os.stat(trash).st_mtime
        if modified > limit:
            # Should it be there again, somebody has just written it.
            with contextlib.suppress(OSError):
                os.rename(trash, self._prefix + path)
                return False
        shutil.rmtree(trash, ignore_errors=True)
        return modified <= limit

    async def touch(self, path: str) -> bool:
        """Make the file young again, for collectors that spare young content; whether it is there."""
        return await run_blocking(self._touch_sync, path)

    def _touch_sync(self, path: str) -> bool:
        try:
            os.utime(self._prefix + path)
        except FileNotFoundError:
            return False
        except OSError as error:
            # What we may only read is served nevertheless.
            if error.errno not in (errno.EROFS, errno.EPERM, errno.EACCES):
                raise
            return os.path.exists(self._prefix + path)
        return True

    async def append(self, path: str, beside: str = "") -> Appender:
        """Open a file to grow it, made if need be; FileNotFoundError when `beside` is missing."""
        absolute = self._prefix + beside if beside else ""
        return await acquire(GrowingFile.open_sync, self._prefix + path, absolute, release=GrowingFile.drop_sync)

    async def publish(self, source: str, target: str, then: Sequence[tuple[str, bytes]] = ()) -> None:
        """Sync a finished file and rename it into place; then write small ones."""
        await self.adopt(self._prefix + source, target, then)

    async def adopt(self, source: str, target: str, then: Sequence[tuple[str, bytes]] = ()) -> None:
        """The same for a file of the same file system that lies anywhere; `source` is absolute."""
        if os.stat(source).st_size >= LONG_SYNC_BYTES:
            # Others' small files, made durable in one go with it, need not wait for all that.
            await run_blocking(sync_file_sync, source)
        await self._commits.write(self._absolute(then), moves=[(source, self._prefix + target)])

    async def presign(self, path: str, seconds: int) -> str | None:
        """Files have no address of their own."""
        return None

    def local_path(self, path: str) -> Path | None:
        """Where the file is."""
        return Path(self._prefix + path)

    def fingerprint(self, path: str) -> tuple[int, ...] | None:
        """What changes when the file (or a folder's list of children) changes; None when it is missing."""
        try:
            status = os.stat(self._prefix + path)
        except OSError:
            return None
        return (status.st_ino, status.st_mtime_ns, status.st_size)

    async def close(self) -> None:
        """Nothing is held open."""
