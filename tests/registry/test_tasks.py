"""What is opened for somebody who has gone meanwhile is closed again."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from registry.store.filesystem import FilesystemDriver
from registry.store.growing import GrowingFile
from registry.tasks import acquire


async def test_who_is_cancelled_while_something_is_opened_leaves_nothing_open() -> None:
    go, released = threading.Event(), []

    def open_slowly() -> str:
        go.wait(5)
        return "opened"

    task = asyncio.create_task(acquire(open_slowly, release=released.append))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done() and not released
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert released == ["opened"]


async def test_a_failure_is_nobodys_once_the_caller_has_gone() -> None:
    go = threading.Event()

    def fail() -> int:
        go.wait(5)
        raise OSError("cannot be opened")

    task = asyncio.create_task(acquire(fail, release=os.close))
    await asyncio.sleep(0.01)
    task.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_upload_whose_client_left_at_its_opening_can_be_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, go, opened = FilesystemDriver(tmp_path), threading.Event(), GrowingFile.open_sync

    def open_slowly(path: str, beside: str) -> GrowingFile:
        go.wait(5)
        return opened(path, beside)

    monkeypatch.setattr(GrowingFile, "open_sync", open_slowly)
    task = asyncio.create_task(driver.append("uploads/one"))
    await asyncio.sleep(0.01)
    task.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    again = await driver.append("uploads/one")  # BlockingIOError while somebody still has it
    await again.close()
