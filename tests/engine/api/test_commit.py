"""What a commit request says, as the committer is told; docker's leniency about pause and the body."""

from __future__ import annotations

from typing import Any, cast

import aiohttp
import pytest
import pytest_asyncio

from engine.api.commit import CommitRoutes
from engine.containers.commit import CommitRequest, Committer
from engine.containers.settings import ContainerConfig
from tests.engine.api.conftest import Serve


class Recorder:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[CommitRequest] = []

    async def commit(self, request: CommitRequest) -> str:
        self.asked.append(request)
        return "sha256:made"


class Room:
    def __init__(self, session: aiohttp.ClientSession, committer: Recorder) -> None:
        self._session = session
        self._committer = committer

    async def commit(self, query: str, **body: Any) -> tuple[int, Any]:
        async with self._session.post(f"/v1.51/commit?{query}", **body) as response:
            return response.status, await response.json()

    @property
    def asked(self) -> CommitRequest:
        return self._committer.asked[-1]


@pytest_asyncio.fixture
async def room(serve: Serve) -> Room:
    committer = Recorder()
    routes = CommitRoutes(cast(Committer, committer)).table()
    return Room((await serve(routes)).session, committer)


async def test_everything_that_can_be_asked(room: Room) -> None:
    query = "container=c&repo=r&tag=t&comment=m&author=a&pause=0&changes=ENV%20A%3D1&changes=USER%20u"
    assert await room.commit(query, json={"Env": ["B=2"], "Cmd": "run"}) == (201, {"Id": "sha256:made"})
    assert room.asked == CommitRequest(
        container="c",
        repository="r",
        tag="t",
        comment="m",
        author="a",
        pause=False,
        changes=["ENV A=1", "USER u"],
        config=ContainerConfig(env=("B=2",), cmd=("run",)),
    )


@pytest.mark.parametrize(
    ("query", "pause"), [("", True), ("&pause=", True), ("&pause=1", True), ("&pause=false", False)]
)
async def test_containers_are_paused_unless_told_not_to(room: Room, query: str, pause: bool) -> None:
    await room.commit(f"container=c{query}")
    assert room.asked.pause is pause


@pytest.mark.parametrize("body", [b"", b"null", b"{}"])
async def test_no_settings_is_no_error(room: Room, body: bytes) -> None:
    status, _ = await room.commit("container=c", data=body, headers={"Content-Type": "application/json"})
    assert (status, room.asked.config) == (201, ContainerConfig())


async def test_settings_of_a_wrong_type(room: Room) -> None:
    status, answer = await room.commit("container=c", json={"Env": 5})
    assert status == 400
    assert "cannot unmarshal number into Go struct field ContainerConfig.Env" in answer["message"]
