import asyncio
import os
from pathlib import Path

import pytest

from registry.server import spool
from registry.server.spool import Spool
from registry.store.filesystem import FilesystemDriver

EVENTS = [{"id": "1"}, {"id": "2"}]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "SETTLE_SECONDS", 0.01)


@pytest.fixture
def driver(tmp_path: Path) -> FilesystemDriver:
    return FilesystemDriver(tmp_path)


def age(driver: FilesystemDriver) -> None:
    """Nobody has shown a sign of life for long."""
    for path in driver.local_path("notices").iterdir():
        os.utime(path, (1000, 1000))


def names(driver: FilesystemDriver) -> set[str]:
    """What lies there beside the time."""
    return {path.name for path in driver.local_path("notices").iterdir()} - {"now"}


async def test_a_living_ones_files_are_its_own(driver: FilesystemDriver) -> None:
    one, two = Spool(driver, "notices"), Spool(driver, "notices")
    await one.write(EVENTS)
    assert not await two.take_over() and not two.files
    age(driver)
    await one.show_life()
    assert not await two.take_over()
    (name,) = one.files
    assert await one.read(name) == EVENTS and one.waiting == 2


async def test_a_dead_ones_files_go_to_one_of_those_who_look(driver: FilesystemDriver) -> None:
    dead, others = Spool(driver, "notices"), [Spool(driver, "notices") for _ in range(4)]
    await dead.write(EVENTS)
    await dead.write(EVENTS)
    age(driver)
    taken = await asyncio.gather(*(other.take_over() for other in others))
    assert sorted(taken) == [False, False, False, True]
    heir = others[taken.index(True)]
    assert heir.waiting == 4 and sorted(heir.files) == sorted(dead.files)
    for name in tuple(heir.files):
        await heir.done(name)
    assert not names(driver)


async def test_what_was_let_go_is_taken_at_once(driver: FilesystemDriver) -> None:
    one, two = Spool(driver, "notices"), Spool(driver, "notices")
    await one.write(EVENTS)
    await one.release()
    assert await two.take_over() and two.waiting == 2
    assert not await one.take_over()


async def test_who_slept_lets_go_and_loses_nothing(driver: FilesystemDriver) -> None:
    sleeper, heir = Spool(driver, "notices"), Spool(driver, "notices")
    await sleeper.write(EVENTS)
    age(driver)
    assert await heir.take_over()
    # It does not know yet, and writes once more under the old name.
    await sleeper.write([{"id": "3"}])
    await sleeper.show_life()
    assert not sleeper.files and heir.waiting == 2
    await sleeper.write([{"id": "4"}])
    assert sleeper.waiting == 1 and not await heir.take_over()
    for name in tuple(heir.files):
        await heir.done(name)
    assert await heir.take_over()
    (late,) = heir.files
    assert await heir.read(late) == [{"id": "3"}]


async def test_a_sign_of_life_without_files_is_cleared_away(driver: FilesystemDriver) -> None:
    one, two = Spool(driver, "notices"), Spool(driver, "notices")
    await one.write(EVENTS)
    (name,) = one.files
    await one.done(name)
    age(driver)
    assert not await two.take_over() and not names(driver)
    await one.write(EVENTS)
    await one.show_life()
    assert not await two.take_over() and one.waiting == 2


async def test_what_is_no_file_of_ours_is_left_alone(driver: FilesystemDriver) -> None:
    one = Spool(driver, "notices")
    for name in ("x.json", "00000000000000000001.json", "y.tmp", "z.alive"):
        await driver.write(f"notices/{name}", b"[]")
    assert not await one.take_over() and not one.files
    await driver.write("notices/" + "0" * 20 + "." + "a" * 32 + ".json", b"{damaged")
    assert await one.take_over() and one.waiting == 0
