"""Safe apply: a tar's entries become files below the current root, which the worker entered by chroot before.

The chroot is what confines: names are cleaned as absolute paths, and whatever links an archive makes and then walks
through, no path leads out. On top of that come the rules of the three uses: a layer on its own (deletions become
overlay whiteouts), a layer over its parents (deletions delete), and a copy into a container (no deletions; a folder
and a file never replace each other if so asked).

Making files is nearly all there is to do, so it takes as few system calls for each as can be. A second thread would
only fight for the interpreter lock: the kernel makes the files of one folder one after another anyway.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable

from engine.snapshots import tar
from engine.snapshots.feed import Feed

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
OPAQUE_XATTR = "trusted.overlay.opaque"
_AUFS_PRIVATE = b".wh..wh."
# An archive that could set these would control how overlayfs resolves names.
_FORBIDDEN_XATTRS = (b"trusted.overlay.", b"user.overlay.", b"security.selinux")
_TOLERATED = (errno.EOPNOTSUPP, errno.EPERM)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PERMISSIONS = 0o777
_DEFAULT_RIGHTS = "system.posix_acl_default"


class NeedsParents(Exception):
    """An entry lies in a folder, or links to a file, that only a lower layer has."""


class Extractor:
    """Applies archives below the folder ``dest`` of the current root."""

    def __init__(
        self,
        dest: bytes = b"/",
        *,
        whiteouts: str = "none",
        keep_kinds: bool = False,
        owner: tuple[int, int] | None = None,
        alone: bool = False,
        root_attributes: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._base = b"" if dest == b"/" else dest.rstrip(b"/")
        self._dest = dest
        self._whiteouts = whiteouts
        self._keep_kinds = keep_kinds
        self._owner = owner
        self._alone = alone
        self._root_attributes = root_attributes or whiteouts != "none"
        self._progress = progress
        # Folders known to be there, with the path they resolve to: a name reached through a link is no second name.
        self._folders: dict[bytes, bytes] = {self._base: self._base}
        self._folder_times: dict[bytes, int] = {}
        self._made: set[bytes] = set()
        # Folders whose new files get the owner and mode they are made with, and those that give them something else.
        self._imposing: dict[bytes, bool] = {}
        self._hidden: set[bytes] = set()
        self.size_bytes = 0
        self.implied = False
        self.root_explicit = False

    def apply(self, feed: Feed) -> None:
        """Apply every entry of ``feed``, then read it to its end."""
        reader = tar.Reader(feed)
        for entry in reader:
            self._one(reader, entry)
            if self._progress is not None:
                self._progress(feed.source.count)
        for path, mtime_ns in self._folder_times.items():
            try:
                os.utime(path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)
            except FileNotFoundError:
                pass  # removed again by a later entry
        feed.drain()

    def _clean(self, name: bytes) -> bytes:
        """The entry's place as a path below dest, without a leading slash; empty for dest itself."""
        parts: list[bytes] = []
        for part in name.split(b"/"):
            if part == b"..":
                if not parts and self._base:
                    where = self._dest.decode("utf-8", "replace")
                    raise ValueError(f'"{name.decode("utf-8", "replace")}" is outside of "{where}"')
                del parts[-1:]
            elif part and part != b".":
                parts.append(part)
        return b"/".join(parts)

    def _one(self, reader: tar.Reader, entry: tar.Entry) -> None:
        name = self._clean(entry.name)
        if not name:
            self._root(entry)
            return
        path = self._base + b"/" + name
        folder, _, base = path.rpartition(b"/")
        parent = self._need_folder(folder)
        path = parent + b"/" + base
        if self._whiteouts != "none" and base.startswith(WHITEOUT):
            self._whiteout(parent, base)
            return
        if self._overlay_whiteout(entry):
            self._whiteout(parent, WHITEOUT + base)
            return
        if entry.kind == tar.REGULAR:
            self._file(reader, entry, path, parent)
        elif self._clear(path, entry):
            self._create(entry, path)
        if self._whiteouts != "none":
            self._made.add(path)

    def _overlay_whiteout(self, entry: tar.Entry) -> bool:
        """A device 0/0 in a layer is overlayfs's own spelling of a whiteout."""
        is_null = entry.kind == tar.CHAR and entry.devmajor == 0 and entry.devminor == 0
        return is_null and self._whiteouts != "none"

    def _root(self, entry: tar.Entry) -> None:
        """An entry for dest itself: sets owner and mode of a layer's root, nothing in a container."""
        if entry.kind == tar.FOLDER and self._root_attributes:
            self.root_explicit = True
            os.chown(self._dest, entry.uid, entry.gid)
            os.chmod(self._dest, entry.mode)
            self._set_xattrs(self._dest, entry)
            self._folder_times[self._dest] = entry.mtime_ns

    def _need_folder(self, folder: bytes) -> bytes:
        """Have the parent folder there, making up missing ones as docker does; returns what it resolves to."""
        found = self._folders.get(folder)
        if found is not None:
            return found
        try:
            present = stat.S_ISDIR(os.stat(folder).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            present = False
        if not present:
            upper, _, name = folder.rpartition(b"/")
            place = self._need_folder(upper) + b"/" + name
            if self._alone:
                raise NeedsParents(folder.decode("utf-8", "replace"))
            self.implied = True
            self._replace_by_folder(place)
        real = self._folders[folder] = os.path.realpath(folder).rstrip(b"/")
        if self._whiteouts == "apply":
            self._made.add(real)  # holds something of this layer, so it is only emptied, never removed
        return real

    def _replace_by_folder(self, folder: bytes) -> None:
        try:
            os.mkdir(folder, 0o755)
        except FileExistsError:  # a dangling link or a file: the archive says it is a folder
            os.unlink(folder)
            os.mkdir(folder, 0o755)
        if self._owner is not None:
            os.chown(folder, *self._owner)

    def _whiteout(self, parent: bytes, base: bytes) -> None:
        if base == OPAQUE:
            if self._whiteouts == "overlay":
                os.setxattr(parent or b"/", OPAQUE_XATTR, b"y", follow_symlinks=False)
            else:
                self._empty(parent or b"/")
            return
        if base.startswith(_AUFS_PRIVATE):
            return
        name = base[len(WHITEOUT) :]
        if name in (b"", b".", b".."):
            raise ValueError(f'invalid whiteout "{base.decode("utf-8", "replace")}"')
        path = parent + b"/" + name
        if path in self._made:  # a whiteout speaks of lower layers only
            if stat.S_ISDIR(os.lstat(path).st_mode):
                self._whiteout(path, OPAQUE)
            return
        if self._whiteouts == "apply":
            self._remove(path)
        elif path not in self._hidden:
            self._remove(path)
            os.mknod(path, stat.S_IFCHR, 0)
            self._hidden.add(path)

    def _empty(self, folder: bytes) -> None:
        """Remove what lower layers put into ``folder``; what this layer made stays."""
        for item in list(os.scandir(folder)):
            path = os.path.join(folder, item.name)
            if path not in self._made:
                self._remove(path)
            elif item.is_dir(follow_symlinks=False):
                self._empty(path)

    def _clear(self, path: bytes, entry: tar.Entry) -> bool:
        """Make room at ``path``; a folder entry over a folder keeps it. Returns whether to go on."""
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            return True
        is_folder = stat.S_ISDIR(mode)
        wants_folder = entry.kind == tar.FOLDER
        if self._keep_kinds and is_folder != wants_folder:
            shown, dest = path.decode("utf-8", "replace"), self._dest.decode("utf-8", "replace")
            if is_folder:
                raise ValueError(f'cannot overwrite directory "{shown}" with non-directory "{dest}"')
            raise ValueError(f'cannot overwrite non-directory "{shown}" with directory "{dest}"')
        if not (is_folder and wants_folder):
            if entry.kind == tar.HARD_LINK and self._link_target(entry) == path:
                return False  # a link to itself: removing it first would lose the file
            self._remove(path)
            self._hidden.add(path)
        return True

    def _remove(self, path: bytes) -> None:
        """Remove a tree without following links, and forget what was known below it."""
        try:
            mode = os.lstat(path).st_mode
            if stat.S_ISDIR(mode):
                for item in list(os.scandir(path)):
                    self._remove(os.path.join(path, item.name))
                os.rmdir(path)
            else:
                os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        if not stat.S_ISREG(mode):  # whatever resolved through this name may lead elsewhere now
            self._folders = {self._base: self._base}
            self._imposing.clear()
        self._folder_times.pop(path, None)
        self._made.discard(path)

    def _create(self, entry: tar.Entry, path: bytes) -> None:
        kind = entry.kind
        if kind == tar.FOLDER:
            self._folder(entry, path)
        elif kind == tar.SYMLINK:
            os.symlink(entry.link, path)
            self.size_bytes += len(entry.link)
        elif kind == tar.HARD_LINK:
            self._hard_link(entry, path)
            return
        elif kind in (tar.CHAR, tar.BLOCK_DEVICE):
            flag = stat.S_IFCHR if kind == tar.CHAR else stat.S_IFBLK
            os.mknod(path, flag | entry.mode, os.makedev(entry.devmajor, entry.devminor))
        elif kind == tar.FIFO:
            os.mkfifo(path, entry.mode)
        else:
            raise ValueError(f"unhandled tar header type {kind[0]}")
        uid, gid = self._owner or (entry.uid, entry.gid)
        os.chown(path, uid, gid, follow_symlinks=False)
        if kind != tar.SYMLINK:
            os.chmod(path, entry.mode)
        self._set_xattrs(path, entry)
        if kind != tar.FOLDER:
            os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)

    def _folder(self, entry: tar.Entry, path: bytes) -> None:
        try:
            os.mkdir(path, entry.mode)
            if path in self._hidden:  # it replaces a whiteout of this layer: nothing of the lower folder shows
                os.setxattr(path, OPAQUE_XATTR, b"y", follow_symlinks=False)
        except FileExistsError:
            pass
        self._folders[path] = path
        self._folder_times[path] = entry.mtime_ns
        self._imposing.pop(path, None)

    def _link_target(self, entry: tar.Entry) -> bytes:
        return self._base + b"/" + self._clean(entry.link)

    def _hard_link(self, entry: tar.Entry, path: bytes) -> None:
        target = self._link_target(entry)
        try:
            os.link(target, path, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            if self._alone:
                raise NeedsParents(target.decode("utf-8", "replace")) from None
            raise

    def _file(self, reader: tar.Reader, entry: tar.Entry, path: bytes, parent: bytes) -> None:
        self.size_bytes += entry.size
        mode = entry.mode & _PERMISSIONS
        try:
            fd = os.open(path, _CREATE, mode)
        except FileExistsError:
            self._clear(path, entry)
            fd = os.open(path, _CREATE, mode)
        try:
            reader.copy_to(entry, fd)
            owner, imposed = self._owner or (entry.uid, entry.gid), self._imposes(parent)
            if imposed or owner != (0, 0):
                os.fchown(fd, *owner)
            if imposed or mode != entry.mode:  # after the owner, whose change clears set-ID bits
                os.fchmod(fd, entry.mode)
            if entry.xattrs:
                self._set_xattrs(fd, entry)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _imposes(self, folder: bytes) -> bool:
        """Whether the folder gives its group or a default list of rights to what is made in it."""
        found = self._imposing.get(folder)
        if found is None:
            place = folder or b"/"
            found = bool(os.stat(place).st_mode & stat.S_ISGID)
            with contextlib.suppress(OSError):  # no such lists there
                found = found or _DEFAULT_RIGHTS in os.listxattr(place)
            self._imposing[folder] = found
        return found

    def _set_xattrs(self, place: bytes | int, entry: tar.Entry) -> None:
        for name, value in entry.xattrs:
            if name.startswith(_FORBIDDEN_XATTRS):
                continue
            try:
                if isinstance(place, int):
                    os.setxattr(place, name, value)
                else:
                    os.setxattr(place, name, value, follow_symlinks=False)
            except OSError as error:
                # Attributes that this file system cannot hold are dropped, as docker does.
                if error.errno != errno.EOPNOTSUPP and not (error.errno in _TOLERATED and name.startswith(b"user.")):
                    raise
