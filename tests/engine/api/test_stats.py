"""The three ways to ask for stats, and top, over a real socket."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import aiohttp
import pytest_asyncio

from engine.api.stats import StatsRoutes
from engine.containers.model import Container, State, Status
from engine.containers.processes import Processes, ProcessTable
from engine.containers.service import ContainerService
from engine.containers.settings import ContainerConfig, HostConfig
from engine.containers.stats import NOTHING, Collectors, Sample
from engine.errors import no_such_container
from engine.runtime.cgroupstats import CgroupStats
from tests.engine.api.conftest import Serve

SECOND = 1_000_000_000


def container(name: str, status: Status) -> Container:
    return Container(
        id=name * 64,
        name=name,
        created_at=1,
        image="",
        image_id="",
        path="sh",
        args=(),
        config=ContainerConfig(),
        host_config=HostConfig(),
        state=State(status=status),
    )


class Service:
    """Container ``r`` runs, container ``s`` does not."""

    def __init__(self) -> None:
        self.known = {"r": container("r", Status.RUNNING), "s": container("s", Status.EXITED)}

    def find(self, reference: str) -> Container:
        if reference not in self.known:
            raise no_such_container(reference)
        return self.known[reference]


class Three:
    """Three samples, a second apart; then the container is gone."""

    cgroup_version = 1

    async def sample(self, container: Container) -> Sample:
        return self.at(9) if container.is_running else NOTHING

    @contextlib.asynccontextmanager
    async def listen(self, container_id: str) -> AsyncIterator[AsyncIterator[Sample]]:
        yield self.samples()

    async def samples(self) -> AsyncIterator[Sample]:
        for number in (1, 2, 3):
            yield self.at(number)

    def at(self, number: int) -> Sample:
        return Sample(read_at=number * SECOND, cgroup=CgroupStats(cpu_total=number))


class Lister:
    async def table(self, reference: str, arguments: str) -> ProcessTable:
        return ProcessTable(["PID", "CMD"], [["7", f"{reference} {arguments}"]])


@pytest_asyncio.fixture
async def client(serve: Serve) -> aiohttp.ClientSession:
    routes = StatsRoutes(
        cast(ContainerService, Service()), cast(Collectors, Three()), cast(Processes, Lister())
    ).table()
    return (await serve(routes)).session


async def get(client: aiohttp.ClientSession, path: str) -> tuple[int, list[Any]]:
    async with client.get(path) as response:
        return response.status, [json.loads(line) for line in (await response.text()).splitlines()]


def seconds(document: Any) -> tuple[int, int]:
    return document["precpu_stats"]["cpu_usage"]["total_usage"], document["cpu_stats"]["cpu_usage"]["total_usage"]


async def test_a_stream_pairs_each_sample_with_the_one_before(client: aiohttp.ClientSession) -> None:
    status, documents = await get(client, "/containers/r/stats")
    assert status == 200
    assert [seconds(d) for d in documents] == [(0, 1), (1, 2), (2, 3)]
    assert documents[1]["preread"] == documents[0]["read"] == "1970-01-01T00:00:01Z"


async def test_one_document_spans_a_period(client: aiohttp.ClientSession) -> None:
    _, documents = await get(client, "/containers/r/stats?stream=0")
    assert [seconds(d) for d in documents] == [(1, 2)]


async def test_one_shot_is_taken_at_once(client: aiohttp.ClientSession) -> None:
    _, documents = await get(client, "/containers/r/stats?stream=false&one-shot=true")
    assert [seconds(d) for d in documents] == [(0, 9)]
    status, documents = await get(client, "/containers/r/stats?one-shot=true")
    assert (status, documents[0]["message"]) == (400, "cannot have stream=true and one-shot=true")


async def test_a_stopped_container_is_not_waited_for(client: aiohttp.ClientSession) -> None:
    _, documents = await get(client, "/containers/s/stats?stream=0")
    assert [seconds(d) for d in documents] == [(0, 0)]
    assert (documents[0]["name"], documents[0]["read"]) == ("/s", "0001-01-01T00:00:00Z")
    assert (await get(client, "/containers/none/stats?stream=0"))[0] == 404


async def test_top(client: aiohttp.ClientSession) -> None:
    _, documents = await get(client, "/containers/r/top?ps_args=-o%20pid")
    assert documents == [{"Titles": ["PID", "CMD"], "Processes": [["7", "r -o pid"]]}]
