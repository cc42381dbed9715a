"""The exec resource over a real socket."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from engine.api.exec import ExecRoutes, exec_view
from engine.containers.exec import Exec
from engine.containers.model import Container
from engine.containers.settings import ExecSettings
from engine.errors import SystemFailure
from tests.engine.api.conftest import Serve
from tests.support.containers import container, running
from tests.support.runs import FakeShim, refused, until
from tests.support.served import Served
from tests.support.services import ServiceBench

BOX = running(2, name="box")
LS = {"Cmd": ["ls", "-l"], "AttachStdout": True, "AttachStderr": True}


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[ServiceBench]:
    made = ServiceBench(tmp_path, BOX, container(1, name="new"))
    yield made
    await made.aclose()


@pytest_asyncio.fixture
async def shim(bench: ServiceBench) -> FakeShim:
    return bench.adopt(BOX)


@pytest_asyncio.fixture
async def api(bench: ServiceBench, serve: Serve) -> Served:
    return await serve(ExecRoutes(bench.service).table())


async def ask(api: Served, method: str, path: str, body: object = None, **params: str) -> tuple[int, Any]:
    async with api.session.request(method, path, params=params, json=body) as response:
        text = await response.text()
        return response.status, json.loads(text) if text else None


async def created(api: Served, **settings: object) -> str:
    status, answer = await ask(api, "POST", "/containers/box/exec", {**LS, **settings})
    assert status == 201
    exec_id: str = answer["Id"]
    return exec_id


async def started(
    api: Served, exec_id: str, body: bytes = b"{}"
) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await api.raw()
    head = f"POST /exec/{exec_id}/start HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5), reader, writer


async def test_an_attached_exec(api: Served, shim: FakeShim) -> None:
    exec_id = await created(api, AttachStdin=True)
    head, reader, writer = await started(api, exec_id)
    assert head.startswith(b"HTTP/1.1 101 UPGRADED")
    assert b"application/vnd.docker.multiplexed-stream" in head
    peer = shim.peers[0]
    peer.setblocking(False)
    writer.write(b"in\x10\x11")
    assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(peer, 100), 5) == b"in\x10\x11"
    peer.sendall(b"out")
    assert (await ask(api, "GET", f"/exec/{exec_id}/json"))[1]["Running"] is True
    peer.close()
    assert await asyncio.wait_for(reader.readexactly(3), 5) == b"out"
    rest = asyncio.ensure_future(reader.read())
    await asyncio.sleep(0.01)
    assert not rest.done()  # the end is told when the exit code can be asked for
    shim.end_exec(exec_id, 3)
    assert await asyncio.wait_for(rest, 5) == b""
    status, view = await ask(api, "GET", f"/exec/{exec_id}/json")
    assert (status, view["Running"], view["ExitCode"], view["Pid"]) == (200, False, 3, 77)


async def test_a_terminal_detaches(api: Served, bench: ServiceBench, shim: FakeShim) -> None:
    exec_id = await created(api, AttachStdin=True, Tty=True, DetachKeys="ctrl-x")
    head, reader, writer = await started(api, exec_id, b'{"Tty": true, "ConsoleSize": [24, 80]}')
    assert b"application/vnd.docker.raw-stream" in head
    assert shim.prepared[0].console_size == (24, 80)
    writer.write(b"\x18")
    assert await asyncio.wait_for(reader.read(), 5) == b""
    await until(lambda: bench.actions()[-1] == "detach")


async def test_what_cannot_run_is_said_on_the_stream(api: Served, shim: FakeShim) -> None:
    shim.exec_failure = refused("no such program", 127)
    exec_id = await created(api)
    head, reader, _ = await started(api, exec_id)
    assert head.startswith(b"HTTP/1.1 101 ")
    assert await asyncio.wait_for(reader.read(), 5) == b"\x01\x00\x00\x00\x00\x00\x00\x11no such program\r\n"
    assert (await ask(api, "GET", f"/exec/{exec_id}/json"))[1]["ExitCode"] == 127
    terminal = await created(api, Tty=True)
    _, reader, _ = await started(api, terminal, b'{"Tty": true}')
    assert await asyncio.wait_for(reader.read(), 5) == b"no such program\r\n"


async def test_an_unknown_user_is_said_on_the_stream(
    api: Served, bench: ServiceBench, shim: FakeShim, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuses(record: Container, settings: ExecSettings) -> dict[str, object]:
        raise SystemFailure(f"unable to find user {settings.user}")

    monkeypatch.setattr(bench.assembly, "exec_process", refuses)
    exec_id = await created(api, User="ghost")
    head, reader, _ = await started(api, exec_id)
    assert head.startswith(b"HTTP/1.1 101 ")
    assert (await asyncio.wait_for(reader.read(), 5))[8:] == b"unable to find user ghost\r\n"
    assert (await ask(api, "GET", f"/exec/{exec_id}/json"))[1]["ExitCode"] == 126


async def test_a_detached_exec(api: Served, shim: FakeShim) -> None:
    exec_id = await created(api)
    assert await ask(api, "POST", f"/exec/{exec_id}/start", {"Detach": True}) == (200, None)
    assert shim.attached == []
    assert (await ask(api, "POST", f"/exec/{exec_id}/start", {"Detach": True}))[0] == 409
    assert await ask(api, "POST", f"/exec/{exec_id}/resize", h="5", w="6") == (200, None)
    assert shim.sizes == [(5, 6, exec_id)]
    assert await ask(api, "POST", f"/exec/{exec_id}/kill", signal="TERM") == (204, None)
    assert shim.exec_signals == [(exec_id, 15)]


async def test_what_an_exec_left_behind_is_listed_and_killed(api: Served, shim: FakeShim) -> None:
    exec_id = await created(api)
    nothing = (409, {"message": f"exec {exec_id} is not running"})
    for call, method in (("top", "GET"), ("kill", "POST")):
        assert await ask(api, method, f"/exec/{exec_id}/{call}") == nothing
    assert await ask(api, "POST", f"/exec/{exec_id}/start", {"Detach": True}) == (200, None)
    shim.end_exec(exec_id, 0)
    await asyncio.sleep(0)
    shim.exec_processes = [os.getpid()]
    status, table = await ask(api, "GET", f"/exec/{exec_id}/top", ps_args="-o pid,args")
    assert (status, table["Titles"], [row[0] for row in table["Processes"]]) == (
        200,
        ["PID", "COMMAND"],
        [str(os.getpid())],
    )
    assert await ask(api, "POST", f"/exec/{exec_id}/kill") == nothing
    assert await ask(api, "POST", f"/exec/{exec_id}/kill", all="1", signal="HUP") == (204, None)
    assert shim.exec_signals == [(exec_id, 1)]
    shim.exec_processes = []
    assert await ask(api, "POST", f"/exec/{exec_id}/kill", all="1") == nothing
    assert await ask(api, "GET", f"/exec/{exec_id}/top") == nothing


async def test_refusals(api: Served, shim: FakeShim) -> None:
    assert await ask(api, "POST", "/containers/box/exec", {}) == (400, {"message": "No exec command specified"})
    assert (await ask(api, "POST", "/containers/nobody/exec", LS))[0] == 404
    assert (await ask(api, "POST", "/containers/new/exec", LS))[0] == 409
    assert (await ask(api, "POST", "/containers/box/exec", {**LS, "DetachKeys": "foo"}))[0] == 400
    assert (await ask(api, "POST", "/containers/box/exec", {**LS, "Tty": "maybe"}))[0] == 400
    assert await ask(api, "GET", "/exec/e1/json") == (404, {"message": "No such exec instance: e1"})
    head, _, _ = await started(api, "e1")
    assert head.startswith(b"HTTP/1.1 404 ")
    exec_id = await created(api)
    assert (await ask(api, "POST", f"/exec/{exec_id}/resize", h="x", w="1"))[0] == 400
    assert (await ask(api, "POST", f"/exec/{exec_id}/kill"))[0] == 409


def test_the_document() -> None:
    settings = ExecSettings(cmd=("sh", "-c", "x"), tty=True, user="www", attach_stdin=True, privileged=True)
    view = exec_view(Exec("e1", "c1", settings))
    assert view["ProcessConfig"] == {
        "tty": True,
        "entrypoint": "sh",
        "arguments": ["-c", "x"],
        "privileged": True,
        "user": "www",
    }
    assert (view["ID"], view["ContainerID"], view["ExitCode"], view["CanRemove"]) == ("e1", "c1", None, False)
    assert (view["OpenStdin"], view["OpenStdout"], view["OpenStderr"]) == (True, False, False)
    ended = exec_view(Exec("e1", "c1", ExecSettings(cmd=("ls",)), exit_code=0))
    assert ended["CanRemove"] is True
    process = ended["ProcessConfig"]
    assert isinstance(process, dict)
    assert "user" not in process
