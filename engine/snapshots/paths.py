"""One path of a view as docker's copy endpoints see it: resolution, the path stat, and archive naming; worker side.

The last element of a path is not followed when it is read, unless a trailing slash asks for the folder behind it, and
is followed when something is extracted to it; ``.`` and a trailing slash are kept because they change the names in the
archive.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from typing import Any

from engine.snapshots import pack

# Go's os.FileMode bits beyond the permissions.
_DIR, _SYMLINK, _DEVICE, _PIPE, _SOCKET = 1 << 31, 1 << 27, 1 << 26, 1 << 25, 1 << 24
_SETUID, _SETGID, _CHAR, _STICKY = 1 << 23, 1 << 22, 1 << 21, 1 << 20


def go_mode(mode: int) -> int:
    """A file's mode in Go's ``os.FileMode`` bits, as ``X-Docker-Container-Path-Stat`` holds it."""
    value = mode & 0o777
    kind = stat.S_IFMT(mode)
    value |= {
        stat.S_IFDIR: _DIR,
        stat.S_IFLNK: _SYMLINK,
        stat.S_IFBLK: _DEVICE,
        stat.S_IFCHR: _DEVICE | _CHAR,
        stat.S_IFIFO: _PIPE,
        stat.S_IFSOCK: _SOCKET,
    }.get(kind, 0)
    for bit, go in ((stat.S_ISUID, _SETUID), (stat.S_ISGID, _SETGID), (stat.S_ISVTX, _STICKY)):
        value |= go if mode & bit else 0
    return value


def absolute(path: str) -> str:
    """``path`` cleaned as an absolute one, with its trailing ``/`` or ``/.`` kept."""
    cleaned = posixpath.normpath("/" + path)
    cleaned = "/" + cleaned.lstrip("/")
    stripped = path.rstrip("/")
    current = path != "" and posixpath.basename(stripped) == "."
    if current and posixpath.basename(cleaned) != ".":
        cleaned = cleaned.rstrip("/") + "/."
    if path.endswith("/") and not cleaned.endswith("/"):
        cleaned += "/"
    return cleaned


def base_name(path: str) -> str:
    """Go's ``filepath.Base``."""
    stripped = path.rstrip("/")
    return posixpath.basename(stripped) if stripped else "/"


class Place:
    """A requested path resolved in the current root."""

    def __init__(self, path: str, kernels: frozenset[int] = frozenset()) -> None:
        """``kernels`` are devices whose content counts as missing. OSError when there is nothing at the path."""
        self.absolute = absolute(path)
        folder, _, base = self.absolute.rpartition("/")
        self.path = os.path.realpath(folder or "/").rstrip("/") + "/" + base
        self.info = os.lstat(self.path)
        if self.info.st_dev in kernels and os.lstat(os.path.dirname(self.path)).st_dev == self.info.st_dev:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def stat(self) -> dict[str, Any]:
        """The fields of the path stat header; ``mtime_ns`` instead of a formatted time."""
        link = ""
        if stat.S_ISLNK(self.info.st_mode):
            link = os.path.realpath(self.absolute)
        return {
            "name": base_name(self.absolute),
            "size": self.info.st_size,
            "mode": go_mode(self.info.st_mode),
            "mtime_ns": self.info.st_mtime_ns,
            "link_target": link,
        }

    def pack(self, packer: pack.Packer) -> None:
        """The path and all below it, named after what was asked for, not after where links led."""
        name = base_name(self.absolute)
        shown = b"" if name == "/" else os.fsencode(name)
        source = os.fsencode(os.path.normpath(self.path))
        if stat.S_ISDIR(self.info.st_mode):
            packer.entry(source, shown or b"/", self.info)
            packer.content(source, shown + b"/")
        else:
            packer.entry(source, shown, self.info)


def extraction_point(path: str, read_only: bool, binds: list[list[Any]]) -> bytes:
    """The folder that ``path`` resolves to, all links followed, if it may be written.

    ``binds`` are [target, read-only] of what is mounted there; the longest one that holds the folder decides.
    """
    place = os.path.realpath(absolute(path))
    if not stat.S_ISDIR(os.lstat(place).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "extraction point is not a directory")
    places = [(os.path.realpath(target).rstrip("/") + "/", ro) for target, ro in binds]
    holding = [(len(target), ro) for target, ro in places if (place + "/").startswith(target)]
    if holding:
        if max(holding)[1]:
            raise OSError(errno.EROFS, "mounted volume is marked read-only")
    elif read_only:
        raise OSError(errno.EROFS, "container rootfs is marked read-only")
    return os.fsencode(place)
