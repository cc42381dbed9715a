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
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from registry.digest import Hasher
from registry.store import paths
from registry.store.commits import GroupCommit
from registry.store.driver import STREAM_CHUNK, Appender, Files, FileStat, Spent
from registry.store.growing import GrowingFile
from registry.store.placing import in_folder_sync, remove_folder_sync, sync_file_sync, sync_folder_sync
from registry.store.walks import find_folders_sync, names_sync, split_names_sync, tidy_sync
from registry.tasks import acquire, open_to_read, run_blocking

LONG_SYNC_BYTES = 32 * 1024 * 1024
_ORIGIN = ".origin"


class FilesystemDriver:
    """Everything below one root folder, which is created on demand."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._prefix = os.fspath(root) + "/"
        self._temporary = self._prefix + paths.TEMPORARY
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

    async def write_all(self, files: Files, unless_same: bool = False) -> None:
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
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = in_folder_sync(os.path.dirname(target), lambda: os.open(target, flags, 0o666))
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
                found.append(FileStat(status.st_size, status.st_mtime, status.st_ctime))
        return found

    async def names(self, path: str) -> list[str]:
        """The sorted names inside a folder; empty when there is none."""
        return await run_blocking(names_sync, self._prefix + path)

    async def split_names(self, path: str, holding: str) -> tuple[list[str], list[str]]:
        """The sorted names inside a folder: those below which `holding` lies, and the others."""
        return await run_blocking(split_names_sync, self._prefix + path, holding)

    async def find_folders(self, path: str, marker: str) -> list[str]:
        """Every folder below `path` that has a child `marker`, relative to `path`, not looking into `_` folders."""
        return await run_blocking(find_folders_sync, self._prefix + path, marker)

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

    async def remove(self, path: str, durable: bool = False) -> bool:
        """Remove a file; whether there was one."""
        return await run_blocking(self._remove_sync, path, durable)

    def _remove_sync(self, path: str, durable: bool) -> bool:
        try:
            os.unlink(self._prefix + path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return False
        if durable:
            self._sync_parent_sync(path)
        return True

    async def remove_tree(self, path: str, durable: bool = False) -> bool:
        """Remove a folder with all it holds; whether there was one. It vanishes at once: renamed away, then deleted."""
        return await run_blocking(self._remove_tree_sync, path, durable)

    def _remove_tree_sync(self, path: str, durable: bool) -> bool:
        trash = self._trash()
        try:
            os.rename(self._prefix + path, trash)
        except (FileNotFoundError, NotADirectoryError):
            return False
        if durable:
            self._sync_parent_sync(path)
        shutil.rmtree(trash, ignore_errors=True)
        return True

    async def remove_folder(self, path: str, names: Sequence[str]) -> None:
        """The same for one that holds little but these files; they go one after the other, the folder last."""
        await run_blocking(self._remove_folder_sync, path, names)

    def _remove_folder_sync(self, path: str, names: Sequence[str]) -> None:
        if not remove_folder_sync(self._prefix + path, names):
            self._remove_tree_sync(path, durable=False)

    def _trash(self) -> str:
        os.makedirs(self._temporary, exist_ok=True)
        return f"{self._temporary}/trash-{uuid.uuid4().hex}"

    def _sync_parent_sync(self, path: str) -> None:
        # Somebody may have removed the whole folder meanwhile.
        with contextlib.suppress(FileNotFoundError):
            sync_folder_sync(os.path.dirname(self._prefix + path))

    async def remove_old(self, path: str, judge: str, limit: float) -> bool:
        """Remove a folder unless the file `judge` in it (or the folder, if there is none) is younger than `limit`;
        whether it did.

        Looked at when it is out of everybody's reach: who touched it before is respected, who comes later finds
        nothing. Beside it lies a symbolic link that says where it was, for `restore`.
        """
        return await run_blocking(self._remove_old_sync, path, judge, limit)

    def _remove_old_sync(self, path: str, judge: str, limit: float) -> bool:
        held = self._set_aside_sync(path)
        if held is None:
            return False
        try:
            modified = _modified_sync(held, judge)
            if modified > limit and self._put_back_sync(held, path):
                return False
            # Should a young one be there again, somebody has just written it.
            trash = self._trash()
            os.rename(held, trash)
        except FileNotFoundError:
            return False  # another process has just started, and put it back
        finally:
            _forget_origin_sync(held)
        shutil.rmtree(trash, ignore_errors=True)
        return modified <= limit

    def _set_aside_sync(self, path: str) -> str | None:
        os.makedirs(self._temporary, exist_ok=True)
        held = f"{self._temporary}/{paths.JUDGED}{uuid.uuid4().hex}"
        # Without it, on a disk that is full or knows no such links, a crash while it is judged takes the folder.
        with contextlib.suppress(OSError):
            os.symlink(path, held + _ORIGIN)
        try:
            os.rename(self._prefix + path, held)
        except (FileNotFoundError, NotADirectoryError):
            _forget_origin_sync(held)
            return None
        return held

    def _put_back_sync(self, held: str, path: str) -> bool:
        try:
            os.rename(held, self._prefix + path)
        except OSError:
            return False
        return True

    async def restore(self, limit: float) -> int:
        """Put back what a crash left out of reach; how many. What nobody knows the place of goes when it was put there
        before `limit`."""
        return await run_blocking(self._restore_sync, limit)

    def _restore_sync(self, limit: float) -> int:
        restored = 0
        names = [name for name in names_sync(self._temporary) if name.startswith(paths.JUDGED)]
        for held in (f"{self._temporary}/{name}" for name in names if not name.endswith(_ORIGIN)):
            try:
                path = os.readlink(held + _ORIGIN)
                os.makedirs(os.path.dirname(self._prefix + path), exist_ok=True)
            except OSError:
                with contextlib.suppress(FileNotFoundError):
                    if os.stat(held).st_ctime < limit:
                        shutil.rmtree(held, ignore_errors=True)
                continue
            restored += self._put_back_sync(held, path)
        for name in names:
            _forget_origin_sync(f"{self._temporary}/{name.removesuffix(_ORIGIN)}")
        return restored

    async def tidy(self, path: str, limit: float, with_folders: bool = False) -> int:
        """Remove the unfinished files below a folder that are older than `limit`; how many. See `walks.tidy_sync`."""
        return await run_blocking(tidy_sync, self._prefix + path, limit, with_folders)

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

    async def publish(self, source: str, target: str, then: Files = (), spent: Spent = ()) -> None:
        """Sync a finished file and rename it into place; then write small ones, and remove folders that held only
        these files."""
        gone = [(self._prefix + folder, names) for folder, names in spent]
        await self.adopt(self._prefix + source, target, then, gone)

    async def adopt(self, source: str, target: str, then: Files = (), spent: Spent = ()) -> None:
        """The same for a file of the same file system that lies anywhere; `source` and what is `spent` are absolute."""
        if os.stat(source).st_size >= LONG_SYNC_BYTES:
            # Others' small files, made durable in one go with it, need not wait for all that.
            await run_blocking(sync_file_sync, source)
        await self._commits.write(self._absolute(then), moves=[(source, self._prefix + target)], spent=spent)

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


def _modified_sync(folder: str, judge: str) -> float:
    try:
        return os.stat(f"{folder}/{judge}").st_mtime
    except FileNotFoundError:
        return os.stat(folder).st_mtime


def _forget_origin_sync(held: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(held + _ORIGIN)
