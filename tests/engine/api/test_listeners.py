"""Where clients connect."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from engine.api import listeners as module
from engine.api.app import Api, Route
from engine.api.listeners import Listeners
from engine.tasks import Nursery


class Bench:
    """Listeners on an API with one quick and one slow handler."""

    def __init__(self) -> None:
        self.nursery = Nursery("api")
        self.go = asyncio.Event()
        self.entered = asyncio.Event()
        self.api = Api([Route("GET", "/quick", self.quick), Route("GET", "/slow", self.slow)], self.nursery)
        self.opened: list[Listeners] = []

    async def quick(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text="here")

    async def slow(self, request: web.Request) -> web.StreamResponse:
        self.entered.set()
        await self.go.wait()
        return web.Response(text="late")

    async def open(self, *hosts: str, group: str = "root") -> Listeners:
        listeners = Listeners(self.api, group)
        self.opened.append(listeners)
        await listeners.open(hosts, None)
        return listeners

    async def aclose(self) -> None:
        for listeners in self.opened:
            await listeners.close(0.01)
        await self.nursery.aclose()


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    await made.aclose()


async def answer(path: Path, page: str = "/quick") -> str:
    async with (
        aiohttp.ClientSession("http://x", connector=aiohttp.UnixConnector(path=str(path))) as session,
        session.get(page) as response,
    ):
        return await response.text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_the_unix_socket_is_for_its_group_alone(bench: Bench, short_root: Path) -> None:
    path = short_root / "deep" / "d.sock"
    await bench.open(f"unix://{path}", group="12345" if os.geteuid() == 0 else str(os.getgid()))
    found = path.stat()
    assert stat.S_IMODE(found.st_mode) == 0o660
    assert found.st_gid == (12345 if os.geteuid() == 0 else os.getgid())
    assert await answer(path) == "here"


async def test_an_unknown_group_is_left_out(bench: Bench, short_root: Path) -> None:
    await bench.open(f"unix://{short_root}/s", group="no-such-group")
    assert await answer(short_root / "s") == "here"


async def test_a_stale_socket_is_replaced(bench: Bench, short_root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(f"{short_root}/s")
    await bench.open(f"unix://{short_root}/s")
    assert await answer(short_root / "s") == "here"


async def test_a_living_one_is_not(bench: Bench, short_root: Path) -> None:
    await bench.open(f"unix://{short_root}/s")
    with pytest.raises(FileExistsError, match="another daemon listens"):
        await bench.open(f"unix://{short_root}/s")
    assert await answer(short_root / "s") == "here"


async def test_what_is_no_socket_is_not_touched(bench: Bench, short_root: Path) -> None:
    (short_root / "s").write_text("precious")
    with pytest.raises(FileExistsError, match="is not a socket"):
        await bench.open(f"unix://{short_root}/s")
    assert (short_root / "s").read_text() == "precious"


async def test_tcp_and_several_at_once(bench: Bench, short_root: Path) -> None:
    port = free_port()
    await bench.open(f"unix://{short_root}/s", f"tcp://127.0.0.1:{port}")
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/quick") as response:
        assert await response.text() == "here"
    assert await answer(short_root / "s") == "here"


async def test_open_tcp_without_tls_is_warned_of(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    await bench.open(f"tcp://localhost:{free_port()}")
    await bench.open(f"tcp://[::1]:{free_port()}") if socket.has_ipv6 and Path("/proc/net/if_inet6").exists() else None
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]
    await bench.open(f"tcp://0.0.0.0:{free_port()}")
    assert [r.getMessage() for r in caplog.records if "without TLS" in r.getMessage()]


@pytest.mark.parametrize("host", ["http://x", "x", "tcp://127.0.0.1:http", "fd://"])
async def test_unknown_addresses_are_named(bench: Bench, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISTEN_PID", raising=False)
    with pytest.raises(ValueError, match="cannot listen on|no sockets found"):
        await bench.open(host)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1", "tcp://"])
async def test_the_port_is_dockers_where_none_is_given(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    port = free_port()
    monkeypatch.setattr("engine.config.TCP_PORT", str(port))
    await bench.open(address)
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
async def test_sockets_handed_over_are_served(
    bench: Bench, short_root: Path, monkeypatch: pytest.MonkeyPatch, family: socket.AddressFamily
) -> None:
    given = socket.socket(family)
    given.bind(f"{short_root}/s" if family == socket.AF_UNIX else ("127.0.0.1", 0))
    given.listen()
    address = given.getsockname()
    monkeypatch.setattr(module, "FIRST_SYSTEMD_FD", given.detach())
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    await bench.open("fd://")
    if family == socket.AF_UNIX:
        assert await answer(short_root / "s") == "here"
        return
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{address[1]}/quick") as response:
        assert await response.text() == "here"


async def test_closing_waits_for_running_requests_and_removes_the_socket(bench: Bench, short_root: Path) -> None:
    listeners = await bench.open(f"unix://{short_root}/s")
    slow = asyncio.ensure_future(answer(short_root / "s", "/slow"))
    await asyncio.wait_for(bench.entered.wait(), 5)
    closing = asyncio.ensure_future(listeners.close(5))
    await asyncio.sleep(0.002)
    assert not (short_root / "s").exists()
    bench.go.set()
    assert await asyncio.wait_for(slow, 5) == "late"
    await asyncio.wait_for(closing, 5)


async def test_closing_cuts_off_who_takes_too_long(bench: Bench, short_root: Path) -> None:
    listeners = await bench.open(f"unix://{short_root}/s")
    slow = asyncio.ensure_future(answer(short_root / "s", "/slow"))
    await asyncio.wait_for(bench.entered.wait(), 5)
    await asyncio.wait_for(listeners.close(0.005), 5)
    with pytest.raises(aiohttp.ClientError):
        await asyncio.wait_for(slow, 5)


async def test_closing_leaves_anothers_socket(bench: Bench, short_root: Path) -> None:
    path = short_root / "s"
    listeners = await bench.open(f"unix://{path}")
    path.unlink()
    path.write_text("somebody else's")
    await listeners.close(0.01)
    assert path.read_text() == "somebody else's"
