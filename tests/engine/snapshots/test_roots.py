"""What a worker does before it touches content."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.snapshots.roots import kernel_trees, make_folders

MOUNTINFO = """\
1 0 0:50 / / rw - overlay overlay rw
2 1 0:51 / /proc rw - proc proc rw
3 1 0:52 / /dev rw - tmpfs tmpfs rw
4 3 0:53 / /dev/shm rw - tmpfs shm rw
5 3 0:54 / /dev/pts rw - devpts devpts rw
6 1 0:55 / /sys ro - sysfs sysfs ro
7 1 8:1 /v /data rw - ext4 /dev/a rw
8 1 0:56 / /process rw - tmpfs tmpfs rw
"""


def test_the_kernels_own_trees() -> None:
    assert kernel_trees(MOUNTINFO) == {os.makedev(0, minor) for minor in (51, 52, 54, 55)}


def test_folders_are_made_with_one_mode_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_folders(f"{tmp_path}/a/b/c")
        make_folders(f"{tmp_path}/a/b")
    finally:
        os.umask(before)
    assert {(tmp_path / part).stat().st_mode & 0o7777 for part in ("a", "a/b", "a/b/c")} == {0o755}
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        make_folders(f"{tmp_path}/file/x")
