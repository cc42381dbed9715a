# Paths are strings here: a Path costs more than the system call it is for.
"""Long walks through folders of the store, each in one thread.

A large tree is walked with pauses, so that whoever is served meanwhile does not wait for the interpreter.
"""

from __future__ import annotations

import contextlib
import os
import time

WALK_SECONDS = 0.001
PAUSE_SECONDS = 0.0005

# Ours (`placing.py`) and registry:2's: what is written beside its target, to be renamed when it is whole.
_UNFINISHED = ".tmp"
_SKELETON_LEVELS = 2


class _Stride:
    """When to pause on a walk."""

    def __init__(self) -> None:
        self._until = time.monotonic() + WALK_SECONDS

    def step_sync(self) -> None:
        """One step further."""
        if time.monotonic() > self._until:
            time.sleep(PAUSE_SECONDS)
            self._until = time.monotonic() + WALK_SECONDS


def find_folders_sync(top: str, marker: str) -> list[str]:
    """Every folder below `top` that has a child `marker`, relative to `top`, not looking into `_` folders."""
    found: list[str] = []
    pending = [""]
    stride = _Stride()
    while pending:
        stride.step_sync()
        relative = pending.pop()
        try:
            with os.scandir(f"{top}/{relative}") as entries:
                children = [entry.name for entry in entries if entry.is_dir(follow_symlinks=True)]
        except (FileNotFoundError, NotADirectoryError):
            continue
        if marker in children and relative:
            found.append(relative)
        inside = f"{relative}/" if relative else ""
        pending += [inside + name for name in children if not name.startswith(("_", "."))]
    return found


def names_sync(folder: str) -> list[str]:
    """The sorted names inside a folder; empty when there is none."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def split_names_sync(folder: str, holding: str) -> tuple[list[str], list[str]]:
    """The sorted names inside a folder: those below which `holding` lies, and the others."""
    names: tuple[list[str], list[str]] = [], []
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return names
    try:
        stride = _Stride()
        for name in sorted(os.listdir(descriptor)):
            stride.step_sync()
            # From here the kernel has a third of the way to go.
            is_without = not os.access(f"{name}/{holding}", os.F_OK, dir_fd=descriptor)
            names[is_without].append(name)
    finally:
        os.close(descriptor)
    return names


def tidy_sync(top: str, limit: float, with_folders: bool) -> int:
    """Remove the unfinished files below a folder that are older than `limit`; how many.

    `with_folders` also removes folders without content that are as old. `top` and what lies directly in it only go
    where an unfinished file was: that something was ever there, and all of it deleted, is told by these.
    """
    return _tidy_folder_sync(top, limit, with_folders, 0, _Stride())[0]


def _tidy_folder_sync(folder: str, limit: float, with_folders: bool, level: int, stride: _Stride) -> tuple[int, bool]:
    """How many unfinished files went, and whether the folder did."""
    removed, left = 0, 0
    try:
        # What is removed in it makes it young.
        modified = os.stat(folder).st_mtime
        with os.scandir(folder) as found:
            entries = list(found)
    except (FileNotFoundError, NotADirectoryError):
        return 0, False
    for entry in entries:
        stride.step_sync()
        if entry.is_dir(follow_symlinks=False):
            count, is_gone = _tidy_folder_sync(entry.path, limit, with_folders, level + 1, stride)
            removed += count
        else:
            is_gone = entry.name.endswith(_UNFINISHED) and _remove_old_file_sync(entry.path, limit)
            removed += is_gone
        left += not is_gone
    if not with_folders or left or modified > limit or (level < _SKELETON_LEVELS and not removed):
        return removed, False
    # Not empty any more: somebody is filling it.
    with contextlib.suppress(OSError):
        os.rmdir(folder)
        return removed, True
    return removed, False


def _remove_old_file_sync(path: str, limit: float) -> bool:
    try:
        if os.stat(path, follow_symlinks=False).st_mtime > limit:
            return False
        os.unlink(path)
    except FileNotFoundError:
        pass
    return True
