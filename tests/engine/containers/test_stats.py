"""Counters are read as the kernel writes them; one collector serves everybody who listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest
import pytest_asyncio

from engine.containers import stats
from engine.containers.assembly import Assembly
from engine.containers.live import Exit, LiveTable
from engine.containers.model import Container
from engine.containers.settings import ContainerConfig, HostConfig
from engine.containers.stats import Collectors, Sample, Traffic, parse_cpu_time, parse_interfaces
from engine.containers.store import ContainerStore
from engine.runtime.cgroups import Cgroups
from engine.runtime.cgroupstats import NANOSECONDS_PER_TICK
from engine.tasks import Nursery

NET_DEV = """\
Inter-|   Receive                                      |  Transmit
 face |bytes packets errs drop fifo frame comp multi   |bytes packets errs drop fifo colls carrier comp
    lo:  500       5    0    0    0     0    0     0      500       5    0    0    0     0       0    0
  eth0: 1000      10    1    2    0     0    0     0     2000      20    3    4    0     0       0    0
"""


def test_interfaces_without_the_loopback() -> None:
    assert parse_interfaces(NET_DEV) == {"eth0": Traffic(1000, 10, 1, 2, 2000, 20, 3, 4)}
    assert parse_interfaces("") == {}


def test_the_machines_cpu_time_counts_the_first_seven_fields() -> None:
    assert parse_cpu_time("cpu  1 2 3 4 5 6 7 800 900 0\ncpu0 1 1 1\n") == 28 * NANOSECONDS_PER_TICK
    assert parse_cpu_time("") == 0


class Counting(Collectors):
    """Samples are numbered instead of read."""

    taken = 0

    async def sample(self, container: Container) -> Sample:
        self.taken += 1
        return Sample(read_at=self.taken)


class Store:
    """One container, until it is removed."""

    def __init__(self) -> None:
        self.container: Container | None = Container(
            id="c1",
            name="one",
            created_at=1,
            image="",
            image_id="",
            path="sh",
            args=(),
            config=ContainerConfig(),
            host_config=HostConfig(),
        )

    def get(self, container_id: str) -> Container | None:
        return self.container


class Room:
    def __init__(self, nursery: Nursery) -> None:
        self.store, self.live = Store(), LiveTable()
        self.collectors = Counting(
            cast(ContainerStore, self.store), self.live, cast(Assembly, None), Cgroups({}, ""), 0, nursery
        )

    def remove(self) -> None:
        self.store.container = None
        self.live["c1"].waiters.removed(Exit(0))


@pytest_asyncio.fixture
async def room() -> AsyncIterator[Room]:
    nursery = Nursery("test")
    yield Room(nursery)
    await nursery.aclose()


async def test_all_listeners_get_the_same_sample(room: Room) -> None:
    async with room.collectors.listen("c1") as first, room.collectors.listen("c1") as second:
        assert await anext(first) == await anext(second) == Sample(read_at=1)
    assert room.collectors.taken == 1


async def test_a_slow_listener_gets_the_newest_sample(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "PERIOD_SECONDS", 0.0)
    async with room.collectors.listen("c1") as slow, room.collectors.listen("c1") as quick:
        for _ in range(5):
            newest = await anext(quick)
        assert (await anext(slow)).read_at >= newest.read_at > 1


async def test_the_stream_ends_at_once_when_the_container_is_removed(room: Room) -> None:
    async with asyncio.timeout(stats.PERIOD_SECONDS / 2), room.collectors.listen("c1") as samples:
        await anext(samples)
        room.remove()
        assert [sample async for sample in samples] == []


async def test_nothing_is_sampled_for_nobody(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "PERIOD_SECONDS", 0.0)
    async with room.collectors.listen("c1") as samples:
        await anext(samples)
    await asyncio.sleep(0)
    taken = room.collectors.taken
    for _ in range(10):
        await asyncio.sleep(0)
    assert room.collectors.taken == taken
    async with room.collectors.listen("c1") as samples:
        assert (await anext(samples)).read_at == taken + 1
