"""Servers that open their own sockets, for pytest-aiohttp's client, which wants to start and stop what it talks to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp.test_utils import BaseTestServer
from aiohttp.web import BaseRunner
from yarl import URL

Stop = Callable[[], Awaitable[None]]


class RunningServer(BaseTestServer):
    """A server that runs already, under ``root``; ``stop`` is awaited once, when the client of the test is closed."""

    def __init__(self, root: str, stop: Stop) -> None:
        super().__init__(skip_url_asserts=True)
        self._root = URL(root)
        self._stop = stop

    async def start_server(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: it runs."""

    async def _make_runner(self, **kwargs: Any) -> BaseRunner[Any]:
        raise AssertionError("the server has a runner of its own")

    async def close(self) -> None:
        """Stop the server."""
        if not self._closed:
            self._closed = True
            await self._stop()
