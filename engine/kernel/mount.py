"""mount(2) and its relatives, for workers and probes.

Everything here acts on the calling process's mount namespace, so a caller that must not touch the host's mounts goes
through ``private_namespace_sync`` first. Errors are ``OSError`` with the target as file name.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from dataclasses import dataclass

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
MNT_DETACH = 2

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_MANDLOCK = 64
MS_DIRSYNC = 128
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_REC = 16384
MS_SILENT = 32768
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24

# Flag words of mount(8); what is not here is data for the file system.
_FLAGS = {
    "ro": MS_RDONLY,
    "nosuid": MS_NOSUID,
    "nodev": MS_NODEV,
    "noexec": MS_NOEXEC,
    "sync": MS_SYNCHRONOUS,
    "remount": MS_REMOUNT,
    "mand": MS_MANDLOCK,
    "dirsync": MS_DIRSYNC,
    "noatime": MS_NOATIME,
    "nodiratime": MS_NODIRATIME,
    "bind": MS_BIND,
    "rbind": MS_BIND | MS_REC,
    "silent": MS_SILENT,
    "relatime": MS_RELATIME,
    "strictatime": MS_STRICTATIME,
}
_CLEARED = {
    "rw": MS_RDONLY,
    "suid": MS_NOSUID,
    "dev": MS_NODEV,
    "exec": MS_NOEXEC,
    "async": MS_SYNCHRONOUS,
    "atime": MS_NOATIME,
    "diratime": MS_NODIRATIME,
    "norelatime": MS_RELATIME,
    "defaults": 0,
}
_PROPAGATION = {
    "private": MS_PRIVATE,
    "rprivate": MS_PRIVATE | MS_REC,
    "slave": MS_SLAVE,
    "rslave": MS_SLAVE | MS_REC,
    "shared": MS_SHARED,
    "rshared": MS_SHARED | MS_REC,
    "unbindable": MS_UNBINDABLE,
    "runbindable": MS_UNBINDABLE | MS_REC,
}

# The same on every architecture since Linux 5.2.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 0x04
_MOUNT_ATTR_RDONLY = 1
_MOUNT_ATTR_IDMAP = 0x00100000


@dataclass(frozen=True, slots=True)
class MountStep:
    """One mount(2) call in mount(8) words; ``cwd`` is entered first so that relative folders in ``options`` resolve.

    A shim binds what lies at ``subpath`` of the source, where it says one; links may not lead out of the source.
    """

    source: str
    target: str
    fstype: str
    options: tuple[str, ...]
    cwd: str | None = None
    subpath: str = ""
    mapping: str = ""
    """A user namespace. A shim binds the source with that namespace's ids, and mounts an overlay as its root would."""


def _check(result: int, target: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), target)
    return result


def split_options(options: Iterable[str]) -> tuple[int, int, str]:
    """Turn mount(8) words into (mount flags, propagation flags, file-system data)."""
    flags = propagation = 0
    data: list[str] = []
    for option in options:
        if option in _FLAGS:
            flags |= _FLAGS[option]
        elif option in _CLEARED:
            flags &= ~_CLEARED[option]
        elif option in _PROPAGATION:
            propagation |= _PROPAGATION[option]
        elif option:
            data.append(option)
    return flags, propagation, ",".join(data)


def mount_flags_sync(source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
    """mount(2) as it is."""
    _check(
        _libc.mount(
            os.fsencode(source), os.fsencode(target), os.fsencode(fstype) or None, ctypes.c_ulong(flags),
            os.fsencode(data) or None,
        ),
        target,
    )  # fmt: skip


def mount_sync(source: str, target: str, fstype: str, options: Iterable[str] = (), cwd: str | None = None) -> None:
    """Mount with mount(8) words; ``cwd`` is entered first, so that relative lower folders in the options resolve.

    A bind mount ignores all flags but MS_REC, so other flags are put on by a second, remounting call.
    """
    flags, propagation, data = split_options(options)
    back = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) if cwd is not None else -1
    try:
        if cwd is not None:
            os.chdir(cwd)
        mount_flags_sync(source, target, fstype, flags, data)
    finally:
        if back >= 0:
            os.fchdir(back)
            os.close(back)
    if flags & MS_BIND and flags & ~(MS_BIND | MS_REC) and not flags & MS_REMOUNT:
        mount_flags_sync(source, target, "", (flags & ~MS_REC) | MS_REMOUNT)
    if propagation:
        mount_flags_sync("", target, "", propagation)


def unmount_sync(target: str, flags: int = MNT_DETACH) -> None:
    """umount2(2); detaches by default, which cannot be refused as busy."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def private_namespace_sync() -> None:
    """Give the calling process a mount namespace of its own from which nothing propagates back."""
    _check(_libc.unshare(CLONE_NEWNS), "/")
    mount_flags_sync("", "/", "", MS_PRIVATE | MS_REC)


def enter_namespace_sync(fd: int) -> None:
    """setns(2) into the mount namespace open at ``fd``; the caller must be single-threaded."""
    _check(_libc.setns(fd, CLONE_NEWNS), "mnt")


def enter_user_namespace_sync(fd: int) -> None:
    """setns(2) into the user namespace open at ``fd`` and be its root; the caller must be single-threaded."""
    _check(_libc.setns(fd, CLONE_NEWUSER), "user")
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def clone_tree_sync(source: str, recursive: bool = True) -> int:
    """A detached copy of the mount tree at ``source`` as a descriptor (open_tree(2)), to attach elsewhere later."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return _check(_libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(source), flags), source)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def make_read_only_sync(tree: int) -> None:
    """Make the detached tree ``tree`` read-only with everything below (mount_setattr(2), Linux 5.12)."""
    attr = _MountAttr(attr_set=_MOUNT_ATTR_RDONLY)
    flags = _AT_EMPTY_PATH | _AT_RECURSIVE
    size = ctypes.c_size_t(ctypes.sizeof(attr))
    _check(_libc.syscall(_SYS_MOUNT_SETATTR, tree, b"", flags, ctypes.byref(attr), size), "")


def map_ids_sync(tree: int, namespace: int) -> None:
    """Show the files of the detached tree's top mount under the ids that a user namespace gives theirs (Linux 5.12)."""
    attr = _MountAttr(attr_set=_MOUNT_ATTR_IDMAP, userns_fd=namespace)
    size = ctypes.c_size_t(ctypes.sizeof(attr))
    _check(_libc.syscall(_SYS_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attr), size), "")


def attach_tree_sync(tree: int, target: str) -> None:
    """Attach a detached tree at ``target``, resolved in the caller's root at this moment (move_mount(2)).

    Cloning before a chroot and attaching after it keeps links inside an untrusted tree from leading a mount outside.
    """
    path = os.fsencode(target)
    _check(_libc.syscall(_SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, path, _MOVE_MOUNT_F_EMPTY_PATH), target)
