"""Every API test speaks to its routes over a unix socket, by pytest-aiohttp's client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest
from pytest_aiohttp.plugin import AiohttpClient

from engine.api.app import Route
from engine.tasks import Nursery
from tests.support.served import Served, serve_api

Serve = Callable[..., Awaitable[Served]]


@pytest.fixture
def serve(short_root: Path, aiohttp_client: AiohttpClient) -> Serve:
    """``await serve(routes)``: an API that ends with the test, after the fixtures that use it."""

    async def begin(routes: Iterable[Route], nursery: Nursery | None = None) -> Served:
        return await serve_api(routes, short_root, aiohttp_client, nursery)

    return begin
