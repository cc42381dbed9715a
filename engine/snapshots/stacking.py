"""Layers put on top of each other by copying, for hosts without overlayfs; worker side.

Overlay's rules by hand: a device 0/0 removes the name, an opaque folder first loses what is there, a folder merges
with a folder and replaces anything else. Every folder is entered only after it was seen to be a real one, so links in
an image lead nowhere.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from typing import Any

from engine.snapshots.compare import ADDED, DELETED, MODIFIED, Found
from engine.snapshots.pack import is_opaque, is_whiteout

_FICLONE = 0x40049409
_ATTRIBUTES_LEFT_OUT = ("trusted.overlay.",)
Facts = list[int]
"""[mode, uid, gid, device, size, mtime in ns] of an entry when its snapshot was made."""


class Stacker:
    """Copies one layer into ``dest``; hard links inside the layer stay linked."""

    def __init__(self, source: bytes, dest: bytes) -> None:
        self._source = source
        self._dest = dest
        self._links: dict[tuple[int, int], bytes] = {}

    def run(self, keep_root: bool) -> None:
        """Copy everything; the root's own attributes too unless ``keep_root``."""
        if is_opaque(self._source):
            for name in os.listdir(self._dest):
                remove(self._dest + b"/" + name)
        self._content(self._source, self._dest)
        if not keep_root:
            _copy_attributes(self._source, self._dest, os.lstat(self._source))

    def _content(self, source: bytes, dest: bytes) -> None:
        for name in os.listdir(source):
            self._entry(source + b"/" + name, dest + b"/" + name)

    def _entry(self, source: bytes, dest: bytes) -> None:
        info = os.lstat(source)
        if is_whiteout(info):
            remove(dest)
            return
        if stat.S_ISDIR(info.st_mode):
            if not _is_folder(dest) or is_opaque(source):
                remove(dest)
                os.mkdir(dest)
            self._content(source, dest)
        else:
            remove(dest)
            if self._linked(info, dest):
                return
            _make(source, dest, info)
        _copy_attributes(source, dest, info)

    def _linked(self, info: os.stat_result, dest: bytes) -> bool:
        first = self._links.setdefault((info.st_dev, info.st_ino), dest)
        if first != dest and info.st_nlink > 1:
            os.link(first, dest, follow_symlinks=False)
            return True
        return False


def _is_folder(path: bytes) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def remove(path: bytes) -> None:
    """Remove a tree, following no link; a missing one is fine."""
    try:
        os.unlink(path)
    except IsADirectoryError:
        for name in os.listdir(path):
            remove(path + b"/" + name)
        os.rmdir(path)
    except FileNotFoundError:
        pass


def _make(source: bytes, dest: bytes, info: os.stat_result) -> None:
    if stat.S_ISREG(info.st_mode):
        _copy_file(source, dest, info.st_size)
    elif stat.S_ISLNK(info.st_mode):
        os.symlink(os.readlink(source), dest)
    else:
        os.mknod(dest, info.st_mode, info.st_rdev)


def _copy_file(source: bytes, dest: bytes, size: int) -> None:
    """By reference where the file system can, else inside the kernel."""
    src = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    dst = os.open(dest, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.ioctl(dst, _FICLONE, src)
            return
        except OSError:
            pass
        while size:
            count = os.sendfile(dst, src, None, size)
            if not count:
                return
            size -= count
    finally:
        os.close(src)
        os.close(dst)


def _copy_attributes(source: bytes, dest: bytes, info: os.stat_result) -> None:
    os.chown(dest, info.st_uid, info.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(info.st_mode):
        os.chmod(dest, stat.S_IMODE(info.st_mode))
        for name in os.listxattr(source, follow_symlinks=False):
            if not name.startswith(_ATTRIBUTES_LEFT_OUT):
                os.setxattr(dest, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
    os.utime(dest, ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=False)


def facts_of(info: os.stat_result) -> Facts:
    """What a later comparison needs of an entry."""
    return [info.st_mode, info.st_uid, info.st_gid, info.st_rdev, info.st_size, info.st_mtime_ns]


def walk(folder: bytes, prefix: bytes = b"") -> Iterator[tuple[bytes, os.stat_result]]:
    """Every entry below ``folder`` with its path as the container sees it, a folder before its content."""
    for name in sorted(os.listdir(folder)):
        info = os.lstat(folder + b"/" + name)
        yield prefix + b"/" + name, info
        if stat.S_ISDIR(info.st_mode):
            yield from walk(folder + b"/" + name, prefix + b"/" + name)


def against_facts(folder: bytes, facts: dict[str, Any]) -> list[Found]:
    """The changes of ``folder`` since ``facts`` were taken, by docker's measure, sorted by path."""
    found: dict[bytes, int] = {}
    seen: set[str] = set()
    for path, info in walk(folder):
        name = os.fsdecode(path)
        seen.add(name)
        old = facts.get(name)
        if old is None:
            found[path] = ADDED
        elif _differs(facts_of(info), old):
            found[path] = MODIFIED
    gone = {name for name in facts if name not in seen}
    for name in gone:
        if os.path.dirname(name) not in gone and _was_folder(folder, os.path.dirname(name)):
            found[os.fsencode(name)] = DELETED
    for path in list(found):
        _mark_parents(path, found)
    return sorted(found.items())


def _differs(new: Facts, old: Facts) -> bool:
    return new[:3] != old[:3] or (not stat.S_ISDIR(new[0]) and new[3:] != old[3:])


def _was_folder(root: bytes, name: str) -> bool:
    """Whether the parent of what is gone still is a folder: else the change of its kind says all."""
    return name == "/" or _is_folder(root + os.fsencode(name))


def _mark_parents(path: bytes, found: dict[bytes, int]) -> None:
    parent = os.path.dirname(path)
    while parent not in (b"/", b""):
        found.setdefault(parent, MODIFIED)
        parent = os.path.dirname(parent)
