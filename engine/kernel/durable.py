"""What was written is made to survive a loss of power: fsync(2), syncfs(2).

A name is safe when its folder was synced, content when its file was. On ext4 and XFS the sync of one folder commits
every change of names before it as well; callers name all folders nevertheless.
"""

from __future__ import annotations

import ctypes
import os
import stat
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id_sync() -> str:
    """What tells this boot of the machine from all others (random(4))."""
    return _BOOT_ID.read_text().strip()


def sync_folders_sync(*folders: Path) -> None:
    """Make the names in these folders safe."""
    for folder in folders:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_tree_sync(root: str) -> None:
    """Make a folder safe with all that is in it, but for what is mounted there; links are not followed.

    The first pass has the kernel write everything at once, so that the second finds little left to wait for. Unlike a
    sync of the whole file system it does not wait for what others have written.
    """
    for is_last in (False, True):
        for _, _, names, folder in os.fwalk(root):
            for name in names:
                if stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
                    try:
                        _sync_sync(descriptor, is_last)
                    finally:
                        os.close(descriptor)
            if is_last:
                os.fsync(folder)


def _sync_sync(descriptor: int, wait: bool) -> None:
    if wait:
        os.fsync(descriptor)
    else:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # begins to write back


def sync_file_system_sync(path: Path) -> None:
    """Make everything safe that lies on the file system of ``path``, whoever wrote it. OSError when something of it
    could not be written (since Linux 5.8)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), os.fspath(path))
    finally:
        os.close(descriptor)
