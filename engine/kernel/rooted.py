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
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = _HOW.pack(os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
        fd = _libc.syscall(_SYS_OPENAT2, folder, os.fsencode(path.lstrip("/")), how, len(how))
        if fd < 0:
            error = ctypes.get_errno()
            if error in _ABSENT:
                return None
            raise OSError(error, os.strerror(error), path)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    with os.fdopen(fd, "rb") as file:
        return file.read(limit)


_ABSENT = frozenset({2, 6, 20, 40})  # ENOENT, ENXIO (a socket or whiteout), ENOTDIR, ELOOP
