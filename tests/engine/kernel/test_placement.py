"""Folders marked for ext4's allocator; other file systems do not mind."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from engine.kernel.placement import unrelated_sync


def attributes(folder: Path) -> str:
    done = subprocess.run(["lsattr", "-d", folder], capture_output=True, text=True, check=False)
    return done.stdout.split()[0] if done.returncode == 0 else ""


def test_the_mark_is_set_once_and_is_not_inherited(tmp_path: Path) -> None:
    before = attributes(tmp_path)
    if not before or subprocess.run(["chattr", "+T", tmp_path], check=False, capture_output=True).returncode:
        pytest.skip("this file system has no T attribute, or lsattr is not there")
    subprocess.run(["chattr", "-T", tmp_path], check=True)
    for _ in range(2):
        unrelated_sync(tmp_path)
        assert "T" in attributes(tmp_path)
    (tmp_path / "below").mkdir()
    assert "T" not in attributes(tmp_path / "below")
    assert set(attributes(tmp_path)) - set(before) == {"T"}


def test_where_there_is_no_such_mark_nothing_happens(tmp_path: Path) -> None:
    unrelated_sync(Path("/proc/self"))
    unrelated_sync(tmp_path / "missing")
