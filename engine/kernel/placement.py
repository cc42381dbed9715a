"""Where a file system puts what is made: folders whose subfolders have nothing to do with each other.

ext4 keeps what is made below a folder near to it, and does not use the inodes of files again that were deleted a moment
ago: it looks at each of them for every new file there, so that files come 20 times slower where thousands have just
gone. Below a folder with the T attribute (chattr(1), ioctl_iflags(2)) each subfolder counts as a hierarchy of its own
and gets a part of the disk of its own, away from what was deleted of others.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from pathlib import Path

_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602
_TOPDIR = 0x00020000
_FLAGS = struct.Struct("=l4x")


def unrelated_sync(folder: Path) -> None:
    """Tell that the subfolders of ``folder`` are unrelated; nothing where the file system does not want to know."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            (flags,) = _FLAGS.unpack(fcntl.ioctl(fd, _GETFLAGS, bytes(_FLAGS.size)))
            if not flags & _TOPDIR:
                fcntl.ioctl(fd, _SETFLAGS, _FLAGS.pack(flags | _TOPDIR))
        finally:
            os.close(fd)
