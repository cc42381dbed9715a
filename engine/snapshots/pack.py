"""Safe create: a tree below the current root becomes a tar.

Names come in byte order, folders before their content, hard links by inode, sockets left out; attributes kept are file
capabilities and ``user.*``. In diff mode overlay's whiteouts and opaque folders are written as image layers spell
them.
"""

from __future__ import annotations

import hashlib
import os
import stat

from engine.snapshots import tar
from engine.snapshots.extract import OPAQUE, OPAQUE_XATTR, WHITEOUT

_FLUSH = 1 << 20
_SMALL = 1 << 17
_ZEROS = bytes(tar.BLOCK)
_PRIVATE_XATTRS = ("trusted.overlay.", "user.overlay.", "security.selinux")


class Sink:
    """Bytes to a descriptor in large writes from one buffer, into which files are read; hashed on the way if asked."""

    def __init__(self, fd: int, *, digest: bool = False) -> None:
        self._fd = fd
        self._buffer = memoryview(bytearray(_FLUSH))
        self._held = 0
        self._sha = hashlib.sha256() if digest else None
        self.total = 0

    def write(self, data: bytes) -> None:
        end = self._held + len(data)
        if end > _FLUSH:
            self.flush()
            while len(data) > _FLUSH:
                self._out(memoryview(data)[:_FLUSH])
                data = data[_FLUSH:]
            end = len(data)
        self._buffer[self._held : end] = data
        self._held = end

    def flush(self) -> None:
        if self._held:
            self._out(self._buffer[: self._held])
            self._held = 0

    def _out(self, view: memoryview) -> None:
        if self._sha is not None:
            self._sha.update(view)
        self.total += len(view)
        while view:
            view = view[os.write(self._fd, view) :]

    def file(self, fd: int, size: int) -> None:
        """``size`` bytes of the file ``fd``; a file that shrinks meanwhile is filled up with zeros."""
        left = size
        if size <= _SMALL or self._sha is not None:
            left -= self._read(fd, size)
        else:
            self.flush()
            left -= self._send(fd, size)
        while left:
            step = min(left, _FLUSH)
            self.write(bytes(step))
            left -= step
        if padding := -size % tar.BLOCK:
            self.write(_ZEROS[:padding])

    def _read(self, fd: int, size: int) -> int:
        left = size
        while left:
            if self._held == _FLUSH:
                self.flush()
            count = os.readv(fd, (self._buffer[self._held : self._held + left],))
            if not count:
                break
            self._held += count
            left -= count
        return size - left

    def _send(self, fd: int, size: int) -> int:
        sent = 0
        while sent < size:
            count = os.sendfile(self._fd, fd, None, size - sent)
            if not count:
                break
            sent += count
        self.total += sent
        return sent

    def hex_digest(self) -> str:
        return self._sha.hexdigest() if self._sha is not None else ""


class Packer:
    """Writes entries of one archive."""

    def __init__(
        self, sink: Sink, *, diff: bool = False, every_xattr: bool = False, closed: frozenset[int] = frozenset()
    ) -> None:
        """``closed`` are devices (``st_dev``) whose folders are written as empty ones."""
        self._sink = sink
        self._closed = closed
        self._diff = diff
        self._every_xattr = every_xattr
        self._links: dict[tuple[int, int], bytes] = {}
        self.size_bytes = 0

    def tree(self, path: bytes, name: bytes) -> None:
        """The tree at ``path`` under the archive name ``name`` (``b""`` and ``b"./"`` keep a root's spelling)."""
        info = os.lstat(path)
        self.entry(path, name, info)
        if stat.S_ISDIR(info.st_mode):
            self.content(path, name if name.endswith(b"/") else name + b"/")

    def content(self, folder: bytes, prefix: bytes) -> None:
        """Everything below ``folder``, depth first, names in byte order, without recursion."""
        if self._closed and os.lstat(folder).st_dev in self._closed:
            return
        stack = [iter(_children(folder))]
        places: list[tuple[bytes, bytes]] = [(folder, prefix)]
        while stack:
            child = next(stack[-1], None)
            if child is None:
                stack.pop()
                places.pop()
                continue
            base, is_file = child
            parent, shown = places[-1]
            path, name = parent.rstrip(b"/") + b"/" + base, shown + base
            try:
                if is_file:
                    self._file(path, name)
                    continue
                info = os.lstat(path)
                self.entry(path, name, info)
            except FileNotFoundError:
                continue  # a running container removed it meanwhile
            if stat.S_ISDIR(info.st_mode) and info.st_dev not in self._closed:
                stack.append(iter(_children(path)))
                places.append((path, name + b"/"))

    def entry(self, path: bytes, name: bytes, info: os.stat_result) -> None:
        """One member, its content included."""
        mode = info.st_mode
        if stat.S_ISSOCK(mode):
            return
        if stat.S_ISREG(mode):
            self._file(path, name)
            return
        if self._diff and is_whiteout(info):
            self.whiteout(name)
            return
        item = self._described(path, name, info)
        self._sink.write(tar.header(item))
        if item.kind == tar.SYMLINK:
            self.size_bytes += len(item.link)
        if self._diff and item.kind == tar.FOLDER and is_opaque(path):
            self.marker(item.name + OPAQUE)

    def whiteout(self, name: bytes) -> None:
        """The deletion of ``name``."""
        folder, slash, base = name.rpartition(b"/")
        self.marker(folder + slash + WHITEOUT + base)

    def marker(self, name: bytes) -> None:
        """An empty file that only means something by its name."""
        item = tar.Entry(name, tar.REGULAR)
        item.mode = 0o600
        self._sink.write(tar.header(item))

    def _described(self, path: bytes, name: bytes, info: os.stat_result) -> tar.Entry:
        item = _entry_of(name, info)
        if item.kind == tar.FOLDER:
            item.name = name if name.endswith(b"/") else name + b"/"
            item.xattrs = kept_xattrs(path, self._every_xattr)
        elif item.kind == tar.SYMLINK:
            item.link = os.readlink(path)
        elif item.kind in (tar.CHAR, tar.BLOCK_DEVICE):
            item.devmajor, item.devminor = os.major(info.st_rdev), os.minor(info.st_rdev)
        return item

    def _file(self, path: bytes, name: bytes) -> None:
        """A regular file; everything is asked of the open file, which needs no second way to it."""
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):  # a running container put something else there
                self.entry(path, name, info)
                return
            item = _entry_of(name, info)
            item.xattrs = kept_xattrs(fd, self._every_xattr)
            if info.st_nlink > 1:
                first = self._links.setdefault((info.st_dev, info.st_ino), name)
                if first != name:
                    item.kind, item.link = tar.HARD_LINK, first
            if item.kind == tar.REGULAR:
                item.size = info.st_size
            self._sink.write(tar.header(item))
            if item.size:
                self._sink.file(fd, item.size)
                self.size_bytes += item.size
        finally:
            os.close(fd)

    def finish(self) -> None:
        self._sink.write(tar.TRAILER)
        self._sink.flush()


_KINDS = {
    stat.S_IFREG: tar.REGULAR,
    stat.S_IFDIR: tar.FOLDER,
    stat.S_IFLNK: tar.SYMLINK,
    stat.S_IFCHR: tar.CHAR,
    stat.S_IFBLK: tar.BLOCK_DEVICE,
    stat.S_IFIFO: tar.FIFO,
}


def _entry_of(name: bytes, info: os.stat_result) -> tar.Entry:
    item = tar.Entry(name, _KINDS[stat.S_IFMT(info.st_mode)])
    item.mode = stat.S_IMODE(info.st_mode)
    item.uid, item.gid = info.st_uid, info.st_gid
    item.mtime_ns = info.st_mtime_ns
    return item


def _children(folder: bytes) -> list[tuple[bytes, bool]]:
    """The names in byte order, and whether each is a regular file."""
    try:
        with os.scandir(folder) as found:
            return sorted((item.name, item.is_file(follow_symlinks=False)) for item in found)
    except FileNotFoundError:
        return []


def is_whiteout(info: os.stat_result) -> bool:
    """Whether an upper folder's entry is overlay's character device 0/0."""
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def is_opaque(path: bytes) -> bool:
    """Whether an upper folder hides all lower content."""
    try:
        return os.getxattr(path, OPAQUE_XATTR, follow_symlinks=False) == b"y"
    except OSError:
        return False


def kept_xattrs(place: bytes | int, every: bool = False) -> list[tuple[bytes, bytes]]:
    """The attributes an archive keeps: file capabilities and the user's own, or all but overlay's and labels. ``place``
    is an open file or a path whose last link is not followed."""
    follow = isinstance(place, int)
    try:
        names = os.listxattr(place, follow_symlinks=follow)
    except OSError:
        return []
    if not names:
        return []
    wanted = ("security.capability", "user.") if not every else ("",)
    kept = [n for n in names if n.startswith(wanted) and not n.startswith(_PRIVATE_XATTRS)]
    return [(os.fsencode(n), os.getxattr(place, n, follow_symlinks=follow)) for n in sorted(kept)]
