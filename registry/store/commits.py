# Paths are strings here: a Path costs more than the system call it is for.
"""Group commit: small files of requests that come together are made durable together.

A sync costs the same for one file as for many, and one thread that does all of it leaves the interpreter to the loop.
While one batch is written the next gathers; a request that fails does so alone.

The order within a batch: write each file beside its target, sync all, rename in order, sync the folders. So no name
ever shows unfinished content, and nobody is told of success before it would survive a crash. Links that say the same
and can never change are one file with several names, which is synced once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import itertools
import os
import secrets
from collections.abc import Sequence

from registry.tasks import begin, run_blocking

_MAX_TOGETHER = 16
_BATCHES_AT_ONCE = 3
Files = Sequence[tuple[str, bytes]]


class GroupCommit:
    """Writes files atomically and durably, for as many callers as wait."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Files, bool, asyncio.Future[None]]] = []
        self._working: set[asyncio.Future[None]] = set()

    async def write(self, files: Files, unless_same: bool = False) -> None:
        """Put `data` at each absolute path, in order. `unless_same` leaves files alone that hold it already."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((files, unless_same, done))
        if len(self._working) < _BATCHES_AT_ONCE:
            worker = begin(self._work())
            self._working.add(worker)
            worker.add_done_callback(self._working.discard)
        await done

    async def _work(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_MAX_TOGETHER], self._waiting[_MAX_TOGETHER:]
            results = await run_blocking(_write_requests_sync, [(files, same) for files, same, _ in batch])
            for (_, _, done), error in zip(batch, results, strict=True):
                if done.done():
                    continue
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(error)


def _write_requests_sync(requests: Sequence[tuple[Files, bool]]) -> list[OSError | None]:
    """All requests as one batch; should that fail, one by one, so that only the guilty one is told."""
    try:
        write_files_sync([entry for files, unless_same in requests for entry in _needed(files, unless_same)])
    except OSError as error:
        if len(requests) == 1:
            return [error]
        return [_write_requests_sync([request])[0] for request in requests]
    return [None] * len(requests)


def _needed(files: Files, unless_same: bool) -> Files:
    if not unless_same:
        return files
    needed = []
    for target, data in files:
        if not _holds(target, data):
            needed.append((target, data))
        elif target.endswith("/data"):
            # Links keep their age, which caches go by; a blob somebody pushed again is young for the collector.
            os.utime(target)
    return needed


def _holds(path: str, data: bytes) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.read(descriptor, len(data) + 1) == data
    finally:
        os.close(descriptor)


def write_files_sync(files: Files) -> None:
    """One batch. Whatever fails, no unfinished file stays."""
    descriptors: list[int] = []
    unfinished: list[str] = []
    originals: dict[bytes, str] = {}
    # Twice the same link would be two names of one file, and a rename between those does nothing.
    files = [*dict.fromkeys(files)]
    try:
        for target, data in files:
            is_fixed = _is_fixed(target, data)
            copy = _link_beside(originals[data], target) if is_fixed and data in originals else None
            if copy is not None:
                unfinished.append(copy)
                continue
            descriptor, temporary = _create_beside(target)
            descriptors.append(descriptor)
            unfinished.append(temporary)
            if is_fixed:
                originals[data] = temporary
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            # Begin writing back, so that the first sync below finds the others under way and commits them along.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        for descriptor in descriptors:
            os.fdatasync(descriptor)
        for temporary, (target, _) in zip(unfinished, files, strict=True):
            os.rename(temporary, target)
    except BaseException:
        for temporary in unfinished:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        raise
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    folders = list(dict.fromkeys(os.path.dirname(target) for target, _ in files))
    if len(folders) > 1 and _has_one_journal(folders[-1]):
        folders = folders[-1:]
    for folder in folders:
        sync_folder_sync(folder)


def _is_fixed(target: str, data: bytes) -> bool:
    """Whether a file is a link that lies under the very digest it holds: no such file ever gets other content, so one
    file on disk can stand at several places. What a tag names now is not of this kind; registry:2 overwrites it in
    place."""
    return data.startswith(b"sha") and target.endswith(f"/{data.partition(b':')[2].decode('ascii', 'replace')}/link")


@functools.lru_cache(maxsize=64)
def _journals(device: int) -> bool:
    """Whether a device holds ext4 or XFS. Their journal is one sequence: a sync of the last change commits all before
    it."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            fields, _, rest = line.partition(" - ")
            if fields.split()[2] == wanted:
                return rest.split()[0] in ("ext4", "xfs")
    return False


def _has_one_journal(folder: str) -> bool:
    return _journals(os.stat(folder).st_dev)


_process_mark = f"{os.getpid():x}{secrets.token_hex(6)}"
_numbers = itertools.count()


def _create_beside(target: str) -> tuple[int, str]:
    """A new file next to `target`, under a name registry:2 ignores (`*.tmp`)."""
    temporary = _name_beside(target)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(temporary, flags, 0o666), temporary
    except FileNotFoundError:
        _make_folder(os.path.dirname(target))
        return os.open(temporary, flags, 0o666), temporary


def _link_beside(original: str, target: str) -> str | None:
    """A second name for a file of this batch, next to `target`; None where the file system has no such thing."""
    temporary = _name_beside(target)
    try:
        try:
            os.link(original, temporary)
        except FileNotFoundError:
            _make_folder(os.path.dirname(target))
            os.link(original, temporary)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EMLINK, errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS):
            return None
        raise
    return temporary


def _name_beside(target: str) -> str:
    return f"{target}.{_process_mark}{next(_numbers):x}.tmp"


def _make_folder(path: str) -> None:
    """Make a folder with its parents; unlike os.makedirs it asks nothing twice."""
    try:
        os.mkdir(path)
    except FileNotFoundError:
        _make_folder(os.path.dirname(path))
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)
    except FileExistsError:
        return


def sync_folder_sync(folder: str) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
