"""Searching an index."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio
from aiohttp import web

from engine.errors import InvalidParameter, SystemFailure
from engine.filters import Filters
from engine.images.search import search
from registry.client.credentials import ANONYMOUS
from registry.client.hosts import HostPolicy
from registry.client.session import Transport

ROWS = [
    {"name": "busybox", "description": "tools", "is_official": True, "is_automated": False, "star_count": 3000},
    {"name": "joe/busybox", "description": "", "is_official": False, "is_automated": True, "star_count": 2},
]  # fmt: skip


@pytest_asyncio.fixture
async def index() -> AsyncIterator[tuple[str, list[str]]]:
    asked: list[str] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        asked.append(str(request.rel_url))
        if request.path != "/v1/search":
            return web.Response(status=404)
        return web.json_response({"num_results": 2, "results": ROWS})

    runner = web.ServerRunner(web.Server(handle), shutdown_timeout=0.1)  # type: ignore[arg-type]
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"127.0.0.1:{runner.addresses[0][1]}", asked
    await runner.cleanup()


def filters(**values: str) -> Filters:
    raw = msgspec.json.encode({key.replace("_", "-"): [value] for key, value in values.items()}).decode()
    return Filters.parse(raw, {"is-official", "is-automated", "stars"})


async def test_rows_and_filters(index: tuple[str, list[str]]) -> None:
    host, asked = index
    transport = Transport(HostPolicy())
    try:

        async def names(chosen: Filters, limit: int = 0) -> list[str]:
            return [row["name"] for row in await search(transport, f"{host}/busybox", limit, chosen, ANONYMOUS)]

        assert await names(Filters()) == ["busybox", "joe/busybox"]
        assert asked[-1] == "/v1/search?q=busybox&n=25"
        assert await names(filters(is_official="true"), 5) == ["busybox"]
        assert asked[-1].endswith("&n=5")
        assert await names(filters(is_automated="true")) == ["joe/busybox"]
        assert await names(filters(stars="10")) == ["busybox"]
        with pytest.raises(InvalidParameter, match="stars"):
            await names(filters(stars="many"))
        with pytest.raises(InvalidParameter, match="outside the range"):
            await names(Filters(), 101)
    finally:
        await transport.aclose()


async def test_nobody_there(unused_tcp_port: int) -> None:
    transport = Transport(HostPolicy())
    try:
        with pytest.raises(SystemFailure, match="connection refused"):
            await search(transport, f"127.0.0.1:{unused_tcp_port}/x", 0, Filters(), ANONYMOUS)
    finally:
        await transport.aclose()
