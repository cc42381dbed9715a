# Paths are strings here: a Path costs more than the system call it is for.
"""Group commit: small files of requests that come together are made durable together.

A sync costs the same for one file as for many, and one thread that does all of it leaves the interpreter to the loop.
While one batch is written the next gathers; a request that fails does so alone.

The order within a batch: write each file beside its target, sync all, rename in order, sync the folders. So no name
ever shows unfinished content, and nobody is told of success before it would survive a crash. Where the file system has
one journal, syncing the files of the next batch commits the names of the one before: a batch is answered then, and only
the last one of a row has its folder synced. Links that say the same and can never change are one file with several
names, which is synced once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import itertools
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from registry.store import paths
from registry.tasks import begin, run_blocking

T = TypeVar("T")

_MAX_TOGETHER = 16
# While one waits for the disk another fills; how many did not matter much (1 to 3) on disks that were quick.
_LANES = 3
# Whoever wrote a file that we need not write again (registry:2, or one of us a moment ago) may not have synced it; what
# is older than this the kernel has written by itself.
_YOUNG_SECONDS = 120.0
Files = Sequence[tuple[str, bytes]]
# Folders whose names a crash may still lose, one for each device.
Unsettled = dict[int, str]


class GroupCommit:
    """Writes files atomically and durably, for as many callers as wait."""

    def __init__(self, lanes: int = _LANES) -> None:
        self._waiting: list[tuple[Files, bool, asyncio.Future[None]]] = []
        self._free = lanes
        self._working: set[asyncio.Future[None]] = set()

    async def write(self, files: Files, unless_same: bool = False) -> None:
        """Put `data` at each absolute path, in order. `unless_same` leaves files alone that hold it already."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((files, unless_same, done))
        if self._free:
            self._free -= 1
            lane = begin(self._work())
            self._working.add(lane)
            lane.add_done_callback(self._working.discard)
        await done

    async def _work(self) -> None:
        renamed: list[asyncio.Future[None]] = []
        unsettled: Unsettled = {}
        try:
            while self._waiting or renamed:
                batch, self._waiting = self._waiting[:_MAX_TOGETHER], self._waiting[_MAX_TOGETHER:]
                requests = [(files, same) for files, same, _ in batch]
                written = await run_blocking(_write_requests_sync, requests, unsettled)
                for done in renamed:
                    _tell(done, written.before)
                renamed, unsettled = [], written.unsettled
                for (_, _, done), error in zip(batch, written.errors, strict=True):
                    if error is not None or not unsettled:
                        _tell(done, error)
                    else:
                        renamed.append(done)
        finally:
            # At once, not when the task's end is told: a request that comes in between would wait for nobody.
            self._free += 1


def _tell(done: asyncio.Future[None], error: Exception | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


@dataclass(slots=True)
class _Written:
    """How a batch went: what failed of it, whether the batch before it is safe now, and what is not safe yet."""

    errors: list[Exception | None]
    before: Exception | None
    unsettled: Unsettled


def _write_requests_sync(requests: Sequence[tuple[Files, bool]], unsettled: Unsettled) -> _Written:
    """All requests as one batch; should that fail, one by one, so that only the guilty one is told. What the batch
    before left `unsettled` is safe afterwards."""
    settled: set[int] = set()
    still: Unsettled = {}
    errors: list[Exception | None] = [None] * len(requests)
    try:
        _place_sync(requests, settled, still)
    except Exception as error:  # noqa: BLE001 - whoever asked for it is told, whatever it is
        if len(requests) == 1:
            errors = [error]
        else:
            for number, request in enumerate(requests):
                try:
                    _place_sync([request], settled, still)
                except Exception as own:  # noqa: BLE001 - as above
                    errors[number] = own
    try:
        for device, folder in unsettled.items():
            if device not in settled:
                sync_folder_sync(folder)
    except OSError as error:
        return _Written(errors, error, still)
    return _Written(errors, None, still)


def _place_sync(requests: Sequence[tuple[Files, bool]], settled: set[int], unsettled: Unsettled) -> None:
    files: list[tuple[str, bytes]] = []
    present: list[str] = []
    for wanted, unless_same in requests:
        for target, data in wanted:
            if unless_same and _holds(target, data):
                present.append(target)
            else:
                files.append((target, data))
    place_files_sync(files, present, settled, unsettled)


def _holds(path: str, data: bytes) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.read(descriptor, len(data) + 1) == data
    finally:
        os.close(descriptor)


def place_files_sync(files: Files, present: Sequence[str], settled: set[int], unsettled: Unsettled) -> None:
    """Write and rename one batch; `present` are files that are right already, and need to be safe too.

    `settled` gets the devices whose earlier changes are safe now, `unsettled` a folder for each device where a sync has
    to follow. Whatever fails, no unfinished file stays.
    """
    descriptors: list[int] = []
    unfinished: list[str] = []
    originals: dict[bytes, tuple[str, int]] = {}
    devices: dict[int, list[str]] = {}
    # Twice the same link would be two names of one file, and a rename between those does nothing.
    files = [*dict.fromkeys(files)]
    try:
        for target, data in files:
            is_fixed = _is_fixed(target, data)
            original, device = originals.get(data, ("", 0)) if is_fixed else ("", 0)
            copy = _link_beside(original, target) if original else None
            if copy is not None:
                unfinished.append(copy)
                devices.setdefault(device, []).append(target)
                continue
            descriptor, temporary = _create_beside(target)
            descriptors.append(descriptor)
            unfinished.append(temporary)
            device = os.fstat(descriptor).st_dev
            devices.setdefault(device, []).append(target)
            if is_fixed:
                originals[data] = temporary, device
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            # Begin writing back, so that the first sync below finds the others under way and commits them along.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        changed = [device for device in devices if _has_one_journal(device)]
        for target in present:
            young = _open_young(target, descriptors)
            if young is not None:
                devices.setdefault(young, []).append(target)
        for descriptor in descriptors:
            os.fdatasync(descriptor)
        settled.update(changed)
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
    for device, targets in devices.items():
        folders = list(dict.fromkeys(map(os.path.dirname, targets)))
        if _has_one_journal(device):
            unsettled[device] = folders[-1]
            continue
        for folder in folders:
            sync_folder_sync(folder)


def _open_young(target: str, descriptors: list[int]) -> int | None:
    """Have a file synced that nobody may have synced so far; its device, or None when it is old."""
    try:
        descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    status = os.fstat(descriptor)
    is_young = time.time() - max(status.st_mtime, status.st_ctime) < _YOUNG_SECONDS
    if paths.is_kept_by_age(target):
        # What somebody pushed again is young for the collector. Tags keep their age: retention goes by it.
        os.utime(descriptor)
    if not is_young:
        os.close(descriptor)
        return None
    descriptors.append(descriptor)
    return status.st_dev


def _is_fixed(target: str, data: bytes) -> bool:
    """Whether a file is a link that lies under the very digest it holds: no such file ever gets other content, so one
    file on disk can stand at several places. What a tag names now is not of this kind; registry:2 overwrites it in
    place."""
    return data.startswith(b"sha") and target.endswith(f"/{data.partition(b':')[2].decode('ascii', 'replace')}/link")


@functools.lru_cache(maxsize=64)
def _has_one_journal(device: int) -> bool:
    """Whether a device holds ext4 or XFS. Their journal is one sequence: a sync of the last change commits all before
    it."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            fields, _, rest = line.partition(" - ")
            if fields.split()[2] == wanted:
                return rest.split()[0] in ("ext4", "xfs")
    return False


# Parents of folders we made: they grow no new ones often.
_seen: set[str] = set()
_SEEN_FOLDERS = 4096
_DEEPEST = 6
_process_mark = f"{os.getpid():x}{secrets.token_hex(6)}"
_numbers = itertools.count()


def _create_beside(target: str) -> tuple[int, str]:
    """A new file next to `target`, under a name registry:2 ignores (`*.tmp`)."""
    temporary = _name_beside(target)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return _in_folder(os.path.dirname(target), lambda: os.open(temporary, flags, 0o666)), temporary


def _link_beside(original: str, target: str) -> str | None:
    """A second name for a file of this batch, next to `target`; None where the file system has no such thing."""
    temporary = _name_beside(target)
    try:
        _in_folder(os.path.dirname(target), lambda: os.link(original, temporary))
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EMLINK, errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS):
            return None
        raise
    return temporary


def _name_beside(target: str) -> str:
    return f"{target}.{_process_mark}{next(_numbers):x}.tmp"


def _in_folder(folder: str, create: Callable[[], T]) -> T:
    """Create something in a folder, which is made when it is missing, as it is for nearly every file here.

    Beginning at the nearest parent that was there before, each level costs one call; from below it would cost two.
    """
    missing = [folder]
    while (parent := os.path.dirname(missing[-1])) not in _seen and len(parent) > 1:
        missing.append(parent)
    if len(_seen) > _SEEN_FOLDERS:
        _seen.clear()
    if len(missing) < _DEEPEST:
        try:
            for path in reversed(missing):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path)
            _seen.update(missing[1:])
            return create()
        except FileNotFoundError:
            _seen.clear()  # somebody removed what we had seen
    os.makedirs(folder, exist_ok=True)
    _seen.update(missing[1:])
    return create()


def sync_folder_sync(folder: str) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
