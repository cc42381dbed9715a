import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from registry.store import filesystem, paths
from registry.store.blobs import BlobStore
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
    set_aside = driver._set_aside_sync

    def taken(path: str) -> str | None:
        held = set_aside(path)
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "data").write_bytes(b"new")
        return held

    monkeypatch.setattr(driver, "_set_aside_sync", taken)
    assert not await driver.remove_old("b", "data", 0.0)
    assert await driver.read("b/data") == b"new" and await driver.names("berth/tmp") == []


async def test_what_may_only_be_read_counts_as_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FilesystemDriver(tmp_path)
    await driver.write("b/data", b"x")

    def refuse(path: str) -> None:
        raise PermissionError(errno.EPERM, "not the owner", path)

    monkeypatch.setattr(os, "utime", refuse)
    assert await driver.touch("b/data") and not await driver.touch("none/data")


def die_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Have the process killed at a call of `filesystem` that comes while something is judged."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(filesystem, name, killed)
    monkeypatch.setattr(filesystem, "_forget_origin_sync", lambda held: None)


async def test_what_was_being_judged_when_the_process_died_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = BlobStore(FilesystemDriver(tmp_path))
    digest = await blobs.put(b"renewed")
    os.utime(blobs.local_path(digest).parent, (1, 1))
    with monkeypatch.context() as dying:
        die_at(dying, "_modified_sync")
        with pytest.raises(KeyboardInterrupt):
            FilesystemDriver(tmp_path)._remove_old_sync(paths.blob_folder(digest), "data", 0.0)
    assert await blobs.stat(digest) is None
    assert await blobs.clear_temporary(3600) == 0
    assert await blobs.read(digest) == b"renewed" and not any(blobs.temp_dir().iterdir())


async def test_what_is_there_again_is_not_replaced_by_what_was_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FilesystemDriver(tmp_path)
    await driver.write("b/data", b"old")
    with monkeypatch.context() as dying:
        die_at(dying, "_modified_sync")
        with pytest.raises(KeyboardInterrupt):
            driver._remove_old_sync("b", "data", 0.0)
    await driver.write("b/data", b"new")
    assert await driver.restore(0.0) == 0 and await driver.read("b/data") == b"new"
    assert len(await driver.names(paths.TEMPORARY)) == 1
    assert await driver.restore(time.time() + 60) == 0 and await driver.names(paths.TEMPORARY) == []


@pytest.mark.parametrize("limit", [0.0, 1e12])
async def test_a_process_that_starts_while_another_one_judges_spares_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float
) -> None:
    driver, starting = FilesystemDriver(tmp_path), FilesystemDriver(tmp_path)
    await driver.write("b/data", b"x")
    set_aside = driver._set_aside_sync

    def restored(path: str) -> str | None:
        held = set_aside(path)
        assert starting._restore_sync(0.0) == 1
        return held

    monkeypatch.setattr(driver, "_set_aside_sync", restored)
    assert not await driver.remove_old("b", "data", limit)
    assert await driver.read("b/data") == b"x" and await driver.names(paths.TEMPORARY) == []


async def test_a_disk_without_symbolic_links_is_collected_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no such thing here")

    monkeypatch.setattr(os, "symlink", refuse)
    driver = FilesystemDriver(tmp_path)
    await driver.write("b/data", b"x")
    assert not await driver.remove_old("b", "data", 0.0) and await driver.remove_old("b", "data", 1e12)
    assert await driver.names(paths.TEMPORARY) == []


async def test_a_folder_that_cannot_be_removed_is_not_taken_for_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FilesystemDriver(tmp_path)
    await driver.write_new("u/startedat", b"now")

    def refuse(path: str) -> None:
        raise PermissionError(errno.EACCES, "not yours", path)

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(PermissionError):
        await driver.remove_folder("u", ["startedat"])
    monkeypatch.undo()
    assert await driver.names("u") == ["startedat"]
