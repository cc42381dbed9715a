"""Two trees compared as docker compares a container with its image, and a tree measured; worker side."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from engine.snapshots.pack import is_opaque, is_whiteout

MODIFIED, ADDED, DELETED = 0, 1, 2
Found = tuple[bytes, int]


def _lstat(path: bytes | None) -> os.stat_result | None:
    try:
        return os.lstat(path) if path is not None else None
    except (FileNotFoundError, NotADirectoryError):
        return None


def _capability(path: bytes) -> bytes:
    try:
        return os.getxattr(path, "security.capability", follow_symlinks=False)
    except OSError:
        return b""


def is_modified(new: os.stat_result, old: os.stat_result) -> bool:
    """Whether two entries of a path differ by docker's measure: mode, owner, and for files size and time."""
    if (new.st_mode, new.st_uid, new.st_gid) != (old.st_mode, old.st_uid, old.st_gid):
        return True
    if stat.S_ISDIR(new.st_mode):
        return False
    return (new.st_rdev, new.st_size, new.st_mtime_ns) != (old.st_rdev, old.st_size, old.st_mtime_ns)


def against_lower(upper: bytes, lower: bytes) -> list[Found]:
    """What the overlay upper folder ``upper`` changes in the merged tree ``lower``, sorted by path."""
    found = list(_folder(upper, lower, b"", opaque=False))
    found.sort()
    return found


def _folder(upper: bytes, lower: bytes | None, prefix: bytes, opaque: bool) -> Iterator[Found]:
    """``lower`` is None where the lower tree has no folder here: a link there must not be walked through."""
    here = os.listdir(upper)
    if opaque and lower is not None:
        yield from ((prefix + b"/" + name, DELETED) for name in set(os.listdir(lower)) - set(here))
    for name in here:
        below = lower + b"/" + name if lower is not None else None
        yield from _entry(upper + b"/" + name, below, prefix + b"/" + name)


def _entry(upper: bytes, lower: bytes | None, shown: bytes) -> Iterator[Found]:
    new, old = os.lstat(upper), _lstat(lower)
    if is_whiteout(new):
        if old is not None:
            yield shown, DELETED
        return
    if old is None or lower is None:
        yield shown, ADDED
        if stat.S_ISDIR(new.st_mode):
            yield from _folder(upper, None, shown, opaque=False)
        return
    if not stat.S_ISDIR(new.st_mode):
        if is_modified(new, old) or _capability(upper) != _capability(lower):
            yield shown, MODIFIED
        return
    below = lower if stat.S_ISDIR(old.st_mode) else None
    inside = list(_folder(upper, below, shown, opaque=is_opaque(upper)))
    # A folder with changes inside is itself listed, so that its owner and mode are saved with them.
    if inside or is_modified(new, old):
        yield shown, MODIFIED
    yield from inside


def usage(folder: bytes) -> tuple[int, int]:
    """(bytes, inodes) of the content of a tree; files with several names count once."""
    total = inodes = 0
    seen: set[tuple[int, int]] = set()
    stack = [folder]
    while stack:
        try:
            items = list(os.scandir(stack.pop()))
        except FileNotFoundError:
            continue
        for item in items:
            info = _lstat(item.path)
            if info is None or (info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode) and _again(seen, info)):
                continue
            inodes += 1
            if stat.S_ISDIR(info.st_mode):
                stack.append(item.path)
            else:
                total += info.st_size  # of a link: its target, as docker counts
    return total, inodes


def _again(seen: set[tuple[int, int]], info: os.stat_result) -> bool:
    key = (info.st_dev, info.st_ino)
    if key in seen:
        return True
    seen.add(key)
    return False
