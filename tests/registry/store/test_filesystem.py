import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from registry.store.filesystem import FilesystemDriver
from tests.suites.storage import StorageSuite


class TestFilesystem(StorageSuite):
    @pytest_asyncio.fixture
    async def driver(self, tmp_path: Path) -> AsyncIterator[FilesystemDriver]:
        driver = FilesystemDriver(tmp_path)
        yield driver
        await driver.close()


async def test_fingerprints_change_with_the_file(tmp_path: Path) -> None:
    driver = FilesystemDriver(tmp_path)
    assert driver.fingerprint("f/link") is None
    await driver.write("f/link", b"1")
    first = driver.fingerprint("f/link")
    assert first == driver.fingerprint("f/link")
    await driver.write("f/link", b"2")
    assert driver.fingerprint("f/link") != first


async def test_no_unfinished_file_stays(tmp_path: Path) -> None:
    driver = FilesystemDriver(tmp_path)
    (tmp_path / "dir" / "link").mkdir(parents=True)
    with pytest.raises(OSError):
        await driver.write("dir/link", b"a folder is in the way")
    assert [path.name for path in (tmp_path / "dir").iterdir()] == ["link"]


async def test_one_failing_write_does_not_spoil_its_batch(tmp_path: Path) -> None:
    driver = FilesystemDriver(tmp_path)
    (tmp_path / "bad" / "link").mkdir(parents=True)
    results = await asyncio.gather(
        *(driver.write(f"good/{n}/link", b"%d" % n) for n in range(10)),
        driver.write("bad/link", b"x"),
        return_exceptions=True,
    )
    assert isinstance(results[-1], OSError) and results[:-1] == [None] * 10
    assert await driver.read("good/9/link") == b"9"


async def test_a_second_process_cannot_append_to_the_same_upload(tmp_path: Path) -> None:
    driver = FilesystemDriver(tmp_path)
    appender = await driver.append("u/data")
    with pytest.raises(BlockingIOError):
        await driver.append("u/data")
    await appender.close()
    second = await driver.append("u/data")
    await second.close()


async def test_what_is_written_while_its_old_folder_is_out_of_reach_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FilesystemDriver(tmp_path)
    await driver.write("b/data", b"old")
    take_away = driver._take_away_sync

    def taken(path: str) -> str | None:
        trash = take_away(path)
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "data").write_bytes(b"new")
        return trash

    monkeypatch.setattr(driver, "_take_away_sync", taken)
    assert not await driver.remove_old("b", "data", 0.0)
    assert await driver.read("b/data") == b"new" and await driver.names("berth/tmp") == []


async def test_what_may_only_be_read_counts_as_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FilesystemDriver(tmp_path)
    await driver.write("b/data", b"x")

    def refuse(path: str) -> None:
        raise PermissionError(errno.EPERM, "not the owner", path)

    monkeypatch.setattr(os, "utime", refuse)
    assert await driver.touch("b/data") and not await driver.touch("none/data")
