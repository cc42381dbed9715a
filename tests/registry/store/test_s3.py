"""The driver without a server: what callers see when the object store fails. tests/system has the rest."""

import asyncio
import errno
from collections.abc import AsyncIterator
from typing import Any

import obstore
import pytest
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from registry.config import S3
from registry.store.s3 import S3Driver


@pytest.fixture
def driver() -> S3Driver:
    store: Any = MemoryStore()
    return S3Driver(store, S3("bucket"))


async def test_a_store_that_fails_is_like_a_disk_that_fails(driver: S3Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    await driver.write("berth/a", b"x")

    async def fail(*_: Any, **__: Any) -> None:
        raise GenericError("connection refused\n\nDebug source: much")

    async def fail_later(*_: Any, **__: Any) -> AsyncIterator[Any]:
        raise GenericError("connection refused")
        yield

    for name in ("get_async", "put_async", "head_async", "list_with_delimiter_async"):
        monkeypatch.setattr(obstore, name, fail)
    monkeypatch.setattr(obstore, "list", fail_later)
    for work in (
        driver.read("berth/a"),
        driver.write("berth/a", b"y"),
        driver.stat("berth/a"),
        driver.names("berth"),
        driver.find_folders("berth", "x"),
    ):
        with pytest.raises(OSError, match="object store failed: connection refused$") as caught:
            await work
        assert caught.value.errno == errno.EIO


async def test_what_is_missing_is_missing(driver: S3Driver) -> None:
    with pytest.raises(FileNotFoundError):
        await driver.read("berth/none")
    assert await driver.stat("berth/none") is None


async def test_a_mark_makes_content_young_and_goes_with_it() -> None:
    store: Any = MemoryStore()
    driver = S3Driver(store, S3("bucket"), mark_worth_seconds=0.0)
    folder = "docker/registry/v2/repositories/r/_layers/sha256/a"
    path = f"{folder}/link"
    await driver.write(path, b"x")
    written = await driver.stat(path)
    assert written is not None
    await asyncio.sleep(0.01)
    await driver.write_all([(path, b"x")], unless_same=True)
    touched = await driver.stat(path)
    assert touched is not None and touched.modified > written.modified
    assert not await driver.remove_old(folder, "link", written.modified)
    assert await driver.remove_old(folder, "link", touched.modified)
    assert not obstore.list(store).collect()


async def test_a_tag_keeps_its_age_when_it_is_pushed_again() -> None:
    store: Any = MemoryStore()
    driver = S3Driver(store, S3("bucket"), mark_worth_seconds=0.0)
    path = "docker/registry/v2/repositories/r/_manifests/tags/v1/current/link"
    await driver.write(path, b"x")
    before = await driver.stat(path)
    await driver.write_all([(path, b"x")], unless_same=True)
    assert await driver.stat(path) == before


async def test_many_are_asked_about_at_once_and_answered_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    store: Any = MemoryStore()
    driver = S3Driver(store, S3("bucket"))
    for number in range(0, 40, 2):
        await driver.write(f"berth/{number}/link", b"x" * number)
    asking, most = 0, 0
    head = obstore.head_async

    async def slow(*arguments: Any) -> Any:
        nonlocal asking, most
        asking += 1
        most = max(most, asking)
        try:
            await asyncio.sleep(0.001)
            return await head(*arguments)
        finally:
            asking -= 1

    monkeypatch.setattr(obstore, "head_async", slow)
    found = await driver.stat_all([f"berth/{number}/link" for number in range(40)])
    assert [None if stat is None else stat.size for stat in found] == [n if n % 2 == 0 else None for n in range(40)]
    assert 1 < most <= 16
