"""Notice that a file grew or was renamed: inotify(7) as an awaitable, for log followers."""

from __future__ import annotations

import asyncio
import ctypes
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_IN_NONBLOCK = os.O_NONBLOCK
_IN_CLOEXEC = os.O_CLOEXEC
_IN_MODIFY = 0x2
_IN_MOVED = 0xC0
_IN_CREATE = 0x100


class FolderWatch:
    """Wakes its waiter when a file of one folder is written, made or renamed. Close it when done."""

    def __init__(self, folder: Path) -> None:
        self._fd = _libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        if _libc.inotify_add_watch(self._fd, os.fsencode(folder), _IN_MODIFY | _IN_MOVED | _IN_CREATE) < 0:
            error = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(error, os.strerror(error), str(folder))
        self.changed = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._fd, self._drain)

    def _drain(self) -> None:
        try:
            while os.read(self._fd, 65536):
                self.changed.set()
        except BlockingIOError:
            return

    def close(self) -> None:
        """Stop watching."""
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
