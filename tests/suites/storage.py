"""What any storage driver of the registry must do; run on each implementation by its own test file."""

from __future__ import annotations

import hashlib
import os

import pytest

from registry.digest import new_hasher
from registry.store.driver import StorageDriver

BLOBS = "docker/registry/v2/blobs/sha256/aa"
REPOSITORIES = "docker/registry/v2/repositories"


class StorageSuite:
    """Inherit, and provide a `driver` fixture."""

    async def test_a_written_file_is_read_back_and_replaced(self, driver: StorageDriver) -> None:
        await driver.write("a/b/link", b"one")
        assert await driver.read("a/b/link") == b"one"
        await driver.write("a/b/link", b"two!")
        assert await driver.read("a/b/link") == b"two!"
        stat = await driver.stat("a/b/link")
        assert stat is not None and stat.size == 4

    async def test_what_is_missing_is_missing(self, driver: StorageDriver) -> None:
        with pytest.raises(FileNotFoundError):
            await driver.read("no/link")
        with pytest.raises(FileNotFoundError):
            [chunk async for chunk in driver.stream("no/data")]
        with pytest.raises(FileNotFoundError):
            await driver.append("no/data", beside="no/link")
        assert await driver.stat("no/link") is None
        assert await driver.names("no") == []
        assert not await driver.remove("no/link")
        assert not await driver.remove_tree("no")

    async def test_several_files_arrive_together(self, driver: StorageDriver) -> None:
        await driver.write_all([("x/1/link", b"1"), ("x/2/link", b"2")])
        await driver.write_all([("x/1/link", b"1"), ("x/3/link", b"3")], unless_same=True)
        assert await driver.names("x") == ["1", "2", "3"]
        stats = await driver.stat_all(["x/1/link", "x/9/link", "x/3/link"])
        assert [stat is not None for stat in stats] == [True, False, True]

    async def test_ranges_are_streamed(self, driver: StorageDriver) -> None:
        data = os.urandom(700_000)
        await driver.write(f"{BLOBS}/x/data", data)

        async def read(offset: int = 0, length: int | None = None) -> bytes:
            return b"".join([chunk async for chunk in driver.stream(f"{BLOBS}/x/data", offset, length)])

        assert await read() == data
        assert await read(5) == data[5:]
        assert await read(300_000, 300_001) == data[300_000:600_001]
        assert await read(0, 0) == b""

    async def test_a_folder_goes_with_what_was_known_of_it_and_what_was_not(self, driver: StorageDriver) -> None:
        for name in ("startedat", "more/link"):
            await driver.write(f"r/_uploads/u/{name}", b"1")
        await driver.write("r/_uploads/v/startedat", b"1")
        for upload in "uvw":
            folder = f"r/_uploads/{upload}"
            await driver.remove_folder(folder, ["startedat", "data"])
        assert await driver.names("r/_uploads") == []

    async def test_a_growing_file_can_be_continued_and_published(self, driver: StorageDriver) -> None:
        path, data = "r/_uploads/u/data", os.urandom(900_001)
        appender = await driver.append(path)
        hasher = new_hasher()
        await appender.write([data[:300_000], data[300_000:500_003]], hasher)
        await appender.write([data[500_003:600_000]], hasher)
        assert appender.size == 600_000
        await appender.close()
        stat = await driver.stat(path)
        assert stat is not None and stat.size == 600_000
        again = await driver.append(path)
        assert again.size == 600_000
        await again.write([data[600_000:]], hasher)
        await again.close()
        assert hasher.hexdigest() == hashlib.sha256(data).hexdigest()
        other = new_hasher()
        await driver.hash_into(path, other)
        assert other.hexdigest() == hasher.hexdigest()
        await driver.publish(path, f"{BLOBS}/y/data")
        assert await driver.read(f"{BLOBS}/y/data") == data
        assert await driver.stat(path) is None

    async def test_trees_go_as_a_whole(self, driver: StorageDriver) -> None:
        await driver.write("t/a/link", b"1")
        await driver.write("t/b/c/link", b"2")
        assert await driver.remove_tree("t")
        assert await driver.names("t") == [] and await driver.stat("t/a/link") is None

    async def test_repositories_are_found_at_any_depth(self, driver: StorageDriver) -> None:
        for name in ("a", "a/b", "c/d/e"):
            await driver.write(f"{REPOSITORIES}/{name}/_manifests/tags/x/current/link", b"1")
        await driver.write(f"{REPOSITORIES}/only/_layers/sha256/x/link", b"1")
        assert sorted(await driver.find_folders(REPOSITORIES, "_manifests")) == ["a", "a/b", "c/d/e"]
        assert await driver.find_folders(REPOSITORIES, "_layers") == ["only"]

    async def test_names_are_told_apart_by_what_lies_below(self, driver: StorageDriver) -> None:
        assert await driver.split_names("t", "current/link") == ([], [])
        for name in ("b", "a"):
            await driver.write(f"t/{name}/current/link", b"1")
        assert await driver.split_names("t", "current/link") == (["a", "b"], [])

    async def test_what_is_whole_is_tidy(self, driver: StorageDriver) -> None:
        await driver.write("t/a/b/c/link", b"1")
        assert await driver.tidy("t", 1e12, with_folders=True) == 0
        assert await driver.restore(1e12) == 0
        assert await driver.read("t/a/b/c/link") == b"1"

    async def test_touch_makes_content_no_older(self, driver: StorageDriver) -> None:
        await driver.write(f"{BLOBS}/z/data", b"1")
        before = await driver.stat(f"{BLOBS}/z/data")
        assert await driver.touch(f"{BLOBS}/z/data")
        after = await driver.stat(f"{BLOBS}/z/data")
        assert before is not None and after is not None and after.modified >= before.modified
        assert not await driver.touch(f"{BLOBS}/missing/data")

    @pytest.mark.parametrize(
        ("folder", "judge"),
        [(f"{BLOBS}/a", "data"), (f"{REPOSITORIES}/r/_layers/sha256/a", "link")],
    )
    async def test_old_is_what_was_not_touched_since(self, driver: StorageDriver, folder: str, judge: str) -> None:
        path = f"{folder}/{judge}"
        await driver.write(path, b"1")
        found = await driver.stat(path)
        assert found is not None
        assert not await driver.remove_old(folder, judge, found.modified - 3600)
        assert await driver.read(path) == b"1"
        assert await driver.remove_old(folder, judge, found.modified + 3600)
        assert await driver.stat(path) is None
        assert not await driver.remove_old(folder, judge, found.modified + 3600)
        assert not await driver.touch(path)
