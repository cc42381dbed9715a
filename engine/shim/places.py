"""The folder or file that a mount covers, made where the root has none, with the modes that runc gives it.

crun would make it, too: folders with the sticky bit (01755), files that only their owner may read, and both stay behind
in the writable layer. No link is followed: what has become one since it was looked at is left to the runtime.
"""

import contextlib
import os

_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE = 0o755


def make(base: str, place: str, *, is_file: bool) -> None:
    """Make `place`, a path below `base` without links, and the folders on the way to it.

    What cannot be made is the runtime's to find words for.
    """
    if not os.path.lexists(base + place):
        with contextlib.suppress(OSError):
            _make(base, [name for name in place.split("/") if name], is_file)


def _make(base: str, names: list[str], is_file: bool) -> None:
    folder = os.open(base, _FOLDER)
    try:
        for number, name in enumerate(names, 1):
            if is_file and number == len(names):
                os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE, dir_fd=folder))
                return
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, _MODE, dir_fd=folder)
            inner = os.open(name, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = inner
    finally:
        os.close(folder)
