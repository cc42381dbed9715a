"""An API on a unix socket, with pytest-aiohttp's client and plain sockets to talk to it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from pytest_aiohttp.plugin import AiohttpClient

from engine.api.app import Api, Route
from engine.api.listeners import Listeners
from engine.tasks import Nursery
from tests.support.running import RunningServer


@dataclass(slots=True)
class Served:
    """A running API."""

    path: str
    session: aiohttp.ClientSession
    nursery: Nursery
    listeners: Listeners
    _connections: list[asyncio.StreamWriter] = field(default_factory=list)

    async def get(self, path: str, **options: object) -> tuple[int, str]:
        """Status and body."""
        async with self.session.get(path, **options) as response:  # type: ignore[arg-type]
            return response.status, await response.text()

    async def raw(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A plain connection, closed at the latest with the API."""
        reader, writer = await asyncio.open_unix_connection(self.path)
        self._connections.append(writer)
        return reader, writer

    def hang_up(self) -> None:
        """Close every plain connection."""
        for writer in self._connections:
            writer.close()


async def serve_api(
    routes: Iterable[Route], root: Path, aiohttp_client: AiohttpClient, nursery: Nursery | None = None
) -> Served:
    """Serve ``routes`` on a socket under ``root`` until the end of the test; a ``nursery`` given is its giver's."""
    own = nursery or Nursery("api")
    listeners = Listeners(Api(routes, own), "root")
    path = f"{root}/s"
    await listeners.open([f"unix://{path}"], None)

    async def stop() -> None:
        running.hang_up()
        await listeners.close(0.01)
        if nursery is None:
            await own.aclose()

    connector = aiohttp.UnixConnector(path=path)
    client = await aiohttp_client(RunningServer("http://berth", stop), base_url="http://berth", connector=connector)
    running = Served(path, client.session, own, listeners)
    return running
