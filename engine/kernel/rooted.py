"""Read a file below a folder whose content nobody trusts: openat2(2) with RESOLVE_IN_ROOT, so no link leads out of
it."""

from __future__ import annotations

import ctypes
import os
import stat
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10
_HOW = struct.Struct("QQQ")


def read_in_root_sync(root: str, path: str, limit: int = 1 << 20) -> bytes | None:
    """The first ``limit`` bytes of the regular file ``path`` (links resolved as inside ``root``), or None where there
    is none.

    Raises ``OSError`` for failures other than absence.
    """
    fd = _open_in_root_sync(root, path, os.O_RDONLY | os.O_NONBLOCK)
    if fd is None:
        return None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    with os.fdopen(fd, "rb") as file:
        return file.read(limit)


def mode_in_root_sync(root: str, path: str) -> int | None:
    """``st_mode`` of what lies at ``path`` (links resolved as inside ``root``), or None. Raises as the one above."""
    fd = _open_in_root_sync(root, path, os.O_PATH)
    if fd is None:
        return None
    try:
        return os.fstat(fd).st_mode
    finally:
        os.close(fd)


def _open_in_root_sync(root: str, path: str, flags: int) -> int | None:
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = _HOW.pack(flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
        fd: int = _libc.syscall(_SYS_OPENAT2, folder, os.fsencode(path.lstrip("/")), how, len(how))
        if fd < 0:
            error = ctypes.get_errno()
            if error in _ABSENT:
                return None
            raise OSError(error, os.strerror(error), path)
        return fd
    finally:
        os.close(folder)


_ABSENT = frozenset({2, 6, 20, 40})  # ENOENT, ENXIO (a socket or whiteout), ENOTDIR, ELOOP
