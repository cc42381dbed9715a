# Paths are strings here: a Path costs more than the system call it is for.
"""Putting a batch of files in place, so that a crash finds each whole or not at all.

The order: write each small file beside its target, sync all, rename in order, sync the folders. A large file lies
somewhere already, whole, and is only synced and renamed, before the small ones. So no name ever shows unfinished
content. Where the file system has one journal, one sync of the last change stands for all before it. Links that say the
same and can never change are one file with several names, which is synced once. What the moved files lay in goes last.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from registry.store import paths
from registry.store.driver import Files, Spent

T = TypeVar("T")

# Whoever wrote a file that we need not write again (registry:2, or one of us a moment ago) may not have synced it; what
# is older than this the kernel has written by itself.
_YOUNG_SECONDS = 120.0
_SYS = "/sys"
# For whoever goes by age, what was written since is as good as written now.
_FRESH_SECONDS = 1.0
Moves = Sequence[tuple[str, str]]


@dataclass(slots=True)
class Outcome:
    """What has come of placing, also when it failed on its way."""

    # Devices whose earlier changes are safe now.
    settled: set[int] = field(default_factory=set)
    # A folder for each device where a sync has to follow: a crash may still lose names.
    unsettled: dict[int, str] = field(default_factory=dict)
    # What was renamed.
    moved: set[str] = field(default_factory=set)


def place_sync(files: Files, present: Iterable[str], moves: Moves, outcome: Outcome, spent: Spent = ()) -> None:
    """Rename what `moves` says and write `files`; `present` are files that are right already, and need to be safe too.
    Remove what is `spent` by that.

    Whatever fails, no unfinished file stays, but for those that were to be moved: they are their owners'.
    """
    batch = _Batch()
    try:
        for target in present:
            batch.keep_sync(target)
        for source, target in moves:
            batch.take_sync(source, target)
        # Twice the same link would be two names of one file, and a rename between those does nothing.
        written = {batch.write_sync(target, data) for target, data in dict.fromkeys(files)}
        for descriptor in batch.descriptors:
            os.fdatasync(descriptor)
        outcome.settled.update(filter(_has_one_journal, written))
        for source, target in moves:
            os.rename(source, target)
            outcome.moved.add(source)
        for temporary, target in batch.written:
            os.rename(temporary, target)
        for folder, names in spent:
            with contextlib.suppress(OSError):  # a purge will find it
                if not remove_folder_sync(folder, names):
                    shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        batch.discard_sync()
        raise
    finally:
        batch.close_sync()
    for device, folders in batch.devices.items():
        if _has_one_journal(device) and device in batch.changed and folders:
            outcome.unsettled[device] = folders[-1]
            continue
        for folder in dict.fromkeys(folders):
            sync_folder_sync(folder)


class _Batch:
    """Files on their way to their places."""

    def __init__(self) -> None:
        self.descriptors: list[int] = []
        self.written: list[tuple[str, str]] = []
        # The folders that names appear in, in the order in which they will.
        self.devices: dict[int, list[str]] = {}
        # The devices where any do. Elsewhere no change of ours follows that of another lane, which may have named a
        # moment ago what we found right already.
        self.changed: set[int] = set()
        self._originals: dict[bytes, tuple[str, int]] = {}

    def write_sync(self, target: str, data: bytes) -> int:
        """A small file, beside its target so far; its device."""
        is_fixed = _is_fixed(target, data)
        original, device = self._originals.get(data, ("", 0)) if is_fixed else ("", 0)
        temporary = _link_beside(original, target) if original else None
        if temporary is None:
            descriptor, temporary = _create_beside(target)
            self.written.append((temporary, target))
            device = self._will_sync(descriptor).st_dev
            if is_fixed:
                self._originals[data] = temporary, device
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            _begin_writing_back(descriptor)
        else:
            self.written.append((temporary, target))
        folders = self.devices.setdefault(device, [])
        if not paths.is_history(target):  # nobody waits for its name
            folders.append(os.path.dirname(target))
        self.changed.add(device)
        return device

    def take_sync(self, source: str, target: str) -> None:
        """A finished file."""
        folder = os.path.dirname(target)
        status = self._will_sync(in_folder_sync(folder, lambda: os.open(source, os.O_RDONLY | os.O_CLOEXEC)))
        if paths.is_kept_by_age(target) and time.time() - status.st_mtime > _FRESH_SECONDS:
            os.utime(self.descriptors[-1])  # its last byte has come long ago
        _begin_writing_back(self.descriptors[-1])
        self.devices.setdefault(status.st_dev, []).append(folder)
        self.changed.add(status.st_dev)

    def keep_sync(self, target: str) -> None:
        """A file that is right already, but that nobody may have synced so far."""
        try:
            descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        status = self._will_sync(descriptor)
        if paths.is_kept_by_age(target):
            # What somebody pushed again is young for the collector. Tags keep their age: retention goes by it.
            os.utime(descriptor)
        if time.time() - max(status.st_mtime, status.st_ctime) < _YOUNG_SECONDS:
            self.devices.setdefault(status.st_dev, []).append(os.path.dirname(target))
        else:
            os.close(self.descriptors.pop())

    def _will_sync(self, descriptor: int) -> os.stat_result:
        self.descriptors.append(descriptor)
        return os.fstat(descriptor)

    def discard_sync(self) -> None:
        """Remove what is unfinished."""
        for temporary, _ in self.written:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)

    def close_sync(self) -> None:
        """Let go of everything."""
        for descriptor in self.descriptors:
            os.close(descriptor)


def _begin_writing_back(descriptor: int) -> None:
    """So that the first sync of a batch finds the others under way and commits them along."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


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
                kind = rest.split()[0]
                return kind == "xfs" or (kind == "ext4" and _has_journal(wanted))
    return False


def _has_journal(device: str) -> bool:
    """Whether an ext4 file system, by its device's numbers, is known to have a journal, as nearly all do."""
    with contextlib.suppress(OSError):
        name = os.path.basename(os.readlink(f"{_SYS}/dev/block/{device}"))
        with open(f"{_SYS}/fs/ext4/{name}/journal_task", encoding="ascii") as file:
            return file.read().strip() != "<none>"
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
    return in_folder_sync(os.path.dirname(target), lambda: os.open(temporary, flags, 0o666)), temporary


def _link_beside(original: str, target: str) -> str | None:
    """A second name for a file of this batch, next to `target`; None where the file system has no such thing."""
    temporary = _name_beside(target)
    try:
        in_folder_sync(os.path.dirname(target), lambda: os.link(original, temporary))
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EMLINK, errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS):
            return None
        raise
    return temporary


def _name_beside(target: str) -> str:
    return f"{target}.{_process_mark}{next(_numbers):x}.tmp"


def in_folder_sync(folder: str, create: Callable[[], T]) -> T:
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


def remove_folder_sync(folder: str, names: Sequence[str]) -> bool:
    """Remove these files, one after the other, and their folder; whether it is gone. registry:2 may have left more in
    it."""
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{folder}/{name}")
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def sync_folder_sync(folder: str) -> None:
    """Make the names in a folder durable."""
    _sync_sync(folder, os.fsync)


def sync_file_sync(path: str) -> None:
    """Make the bytes of a file durable."""
    _sync_sync(path, os.fdatasync)


def _sync_sync(path: str, sync: Callable[[int], None]) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)
