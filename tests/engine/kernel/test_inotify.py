"""A folder's changes wake the waiter."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.kernel.inotify import FolderWatch


async def woken(watch: FolderWatch) -> bool:
    try:
        await asyncio.wait_for(watch.changed.wait(), 0.5)
    except TimeoutError:
        return False
    watch.changed.clear()
    return True


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "x.log"
    path.write_text("one\n")
    yield path


async def test_writing_making_and_renaming_wake(log_file: Path) -> None:
    watch = FolderWatch(log_file.parent)
    try:
        with log_file.open("a") as file:
            file.write("two\n")
        assert await woken(watch)
        log_file.rename(f"{log_file}.1")
        assert await woken(watch)
        log_file.touch()
        assert await woken(watch)
    finally:
        watch.close()


async def test_reading_does_not_wake(log_file: Path) -> None:
    watch = FolderWatch(log_file.parent)
    try:
        log_file.read_text()
        await asyncio.sleep(0.002)
        assert not watch.changed.is_set()
    finally:
        watch.close()


async def test_a_closed_watch_leaves_nothing_open(log_file: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    FolderWatch(log_file.parent).close()
    assert set(os.listdir("/proc/self/fd")) == before


async def test_an_absent_folder_is_an_error_and_leaves_nothing_open(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError, match="absent"):
        FolderWatch(tmp_path / "absent")
    assert set(os.listdir("/proc/self/fd")) == before
