"""What an update request says, as the updater is told."""

from __future__ import annotations

from typing import Any, cast

import aiohttp
import pytest
import pytest_asyncio

from engine.api.update import UpdateRoutes
from engine.containers.settings import RestartPolicy
from engine.containers.update import UpdateConfig, Updater
from tests.engine.api.conftest import Serve


class Recorder:
    """Remembers what it was asked; warns of CPU shares."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, UpdateConfig]] = []

    async def update(self, reference: str, change: UpdateConfig) -> list[str]:
        self.asked.append((reference, change))
        return ["no shares here"] if change.cpu_shares else []


@pytest.fixture
def updater() -> Recorder:
    return Recorder()


@pytest_asyncio.fixture
async def client(serve: Serve, updater: Recorder) -> aiohttp.ClientSession:
    return (await serve(UpdateRoutes(cast(Updater, updater)).table())).session


async def post(client: aiohttp.ClientSession, path: str, **body: Any) -> tuple[int, Any]:
    async with client.post(path, **body) as response:
        return response.status, await response.json()


async def test_limits_and_policy(client: aiohttp.ClientSession, updater: Recorder) -> None:
    body = {"Memory": 5, "NanoCpus": 7, "PidsLimit": 9, "RestartPolicy": {"Name": "always"}, "Unknown": 1}
    assert await post(client, "/containers/c1/update", json=body) == (200, {"Warnings": None})
    policy = RestartPolicy(name="always")
    assert updater.asked == [("c1", UpdateConfig(memory=5, nano_cpus=7, pids_limit=9, restart_policy=policy))]


async def test_warnings_are_told(client: aiohttp.ClientSession) -> None:
    _, answer = await post(client, "/containers/c1/update", json={"CpuShares": 2})
    assert answer == {"Warnings": ["no shares here"]}


async def test_a_body_must_be_json(client: aiohttp.ClientSession, updater: Recorder) -> None:
    status, answer = await post(client, "/containers/c1/update", data={"Memory": "5"})
    assert (status, updater.asked) == (400, [])
    assert answer["message"].startswith("unsupported Content-Type header")
    status, answer = await post(client, "/containers/c1/update", json={"Memory": "5"})
    assert (status, updater.asked) == (400, [])
    assert "cannot unmarshal string into Go struct field UpdateConfig.Memory of type int64" in answer["message"]
