"""The volumes resource over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest_asyncio

from engine.api.volumes import VolumeRoutes
from engine.events import EventBus
from engine.journal import Journal
from engine.tasks import Nursery, run_blocking
from engine.volumes.service import VolumeService
from engine.volumes.store import VolumeStore
from tests.engine.api.conftest import Serve


class NoUsers:
    """No container uses any volume."""

    def users_of_volume(self, name: str) -> tuple[str, ...]:
        return ("c1",) if name == "used" else ()


@pytest_asyncio.fixture
async def client(short_root: Path, serve: Serve) -> AsyncIterator[aiohttp.ClientSession]:
    nursery, journal = Nursery("api"), Journal(short_root / "journal")
    await run_blocking(journal.open_sync)
    service = VolumeService(short_root / "volumes", VolumeStore(journal), EventBus(), nursery, NoUsers())
    await service.restore({})
    yield (await serve(VolumeRoutes(service).table())).session
    await nursery.aclose()
    await journal.aclose()


async def post(client: aiohttp.ClientSession, path: str, body: object = None) -> tuple[int, Any]:
    async with client.post(path, json=body) as response:
        return response.status, await response.json()


async def get(client: aiohttp.ClientSession, path: str) -> tuple[int, Any]:
    async with client.get(path) as response:
        return response.status, await response.json()


async def test_a_volumes_life(client: aiohttp.ClientSession) -> None:
    status, made = await post(client, "/v1.51/volumes/create", {"Name": "data", "Labels": {"a": "b"}})
    assert (status, made["Name"], made["Driver"], made["Scope"]) == (201, "data", "local", "local")
    assert Path(made["Mountpoint"]).is_dir()
    assert await get(client, "/volumes/data") == (200, made)
    assert await get(client, "/v1.40/volumes") == (200, {"Volumes": [made], "Warnings": None})
    async with client.delete("/volumes/data") as response:
        assert response.status == 204
    assert await get(client, "/volumes/data") == (404, {"message": "get data: no such volume"})


async def test_words_of_refusal(client: aiohttp.ClientSession) -> None:
    status, answer = await post(client, "/volumes/create", {"Name": "/x"})
    assert status == 400
    assert answer["message"].startswith('create /x: "/x" includes invalid characters for a local volume name')
    assert (await post(client, "/volumes/create", {"Name": 5}))[0] == 400
    assert (await post(client, "/volumes/create", {"Name": "ab", "Driver": "foo"}))[0] == 404
    assert (await post(client, "/volumes/create", {"Name": "ab", "ClusterVolumeSpec": {"Group": "g"}}))[0] == 503
    await post(client, "/volumes/create", {"Name": "used"})
    async with client.delete("/volumes/used") as response:
        assert response.status == 409
        assert (await response.json())["message"] == "remove used: volume is in use - [c1]"
    async with client.delete("/volumes/never", params={"force": "1"}) as response:
        assert response.status == 204
    async with client.put("/volumes/used", params={"version": "1"}, json={}) as response:
        assert response.status == 503
    assert (await get(client, '/volumes?filters={"foo":["1"]}'))[0] == 400


async def test_what_prune_takes_depends_on_the_version(client: aiohttp.ClientSession) -> None:
    await post(client, "/volumes/create", {"Name": "named"})
    _, anonymous = await post(client, "/volumes/create", {})
    assert await post(client, "/v1.51/volumes/prune") == (
        200,
        {"VolumesDeleted": [anonymous["Name"]], "SpaceReclaimed": 0},
    )
    assert await post(client, "/v1.41/volumes/prune") == (200, {"VolumesDeleted": ["named"], "SpaceReclaimed": 0})


async def test_bodies_are_checked_as_dockerd_does(client: aiohttp.ClientSession) -> None:
    async def refused(body: bytes, content_type: str = "application/json") -> str:
        async with client.post("/volumes/create", data=body, headers={"Content-Type": content_type}) as response:
            assert response.status == 400
            return str((await response.json())["message"])

    assert (
        await refused(b"{}", "text/plain") == "unsupported Content-Type header (text/plain): must be 'application/json'"
    )
    assert await refused(b"{bad") == "invalid JSON: invalid character 'b' looking for beginning of object key string"
    assert await refused(b"{} more") == "unexpected content after JSON"
    assert (await post(client, "/volumes/create"))[0] == 201
