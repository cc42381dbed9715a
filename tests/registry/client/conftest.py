"""A small registry made of handlers, on a loopback port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from aiohttp import web
from pytest_aiohttp.plugin import AiohttpRawServer

from registry.client.credentials import AuthConfig
from registry.client.hosts import Endpoint, HostPolicy
from registry.client.session import RegistrySession, Transport

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Stage:
    """Plays a registry: set ``handler`` and look at ``requests``."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.handler: Handler | None = None
        self.host = ""
        self.transport = Transport(HostPolicy())

    def session(self, auth: AuthConfig | None = None) -> RegistrySession:
        endpoint = Endpoint(f"http://{self.host}", self.host)
        return RegistrySession(self.transport, endpoint, auth or AuthConfig())

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.rel_url}")
        self.headers.append(dict(request.headers))
        assert self.handler is not None
        return await self.handler(request)  # type: ignore[arg-type]


@pytest_asyncio.fixture
async def stage(aiohttp_raw_server: AiohttpRawServer) -> AsyncIterator[Stage]:
    made = Stage()
    server = await aiohttp_raw_server(made.handle, shutdown_timeout=0.1)  # type: ignore[arg-type]
    made.host = f"127.0.0.1:{server.port}"
    yield made
    await made.transport.aclose()


@pytest.fixture
def joe() -> AuthConfig:
    return AuthConfig(username="joe", password="secret")
