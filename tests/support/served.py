"""An API on a unix socket, with a client session and plain sockets to talk to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from engine.api.app import Api, Route
from engine.api.listeners import Listeners
from engine.tasks import Nursery


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


@contextlib.asynccontextmanager
async def served(routes: Iterable[Route], root: Path) -> AsyncIterator[Served]:
    """Serve ``routes`` on a socket under ``root`` for the time of the block."""
    nursery = Nursery("api")
    listeners = Listeners(Api(routes, nursery), "root")
    path = f"{root}/s"
    await listeners.open([f"unix://{path}"], None)
    connector = aiohttp.UnixConnector(path=path)
    try:
        async with aiohttp.ClientSession("http://berth", connector=connector) as session:
            running = Served(path, session, nursery, listeners)
            try:
                yield running
            finally:
                running.hang_up()
    finally:
        await listeners.close(0.1)
        await nursery.aclose()
