"""The host's interfaces, from the event loop: one conversation with the kernel, off the loop, and news of what
vanished.

A veth pair goes when its container's namespace goes, which the kernel does in its own time. Whoever gives an address
out again waits for that here: two interfaces with one hardware address on a bridge would steal each other's packets.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from engine.kernel import netlink
from engine.kernel.netlink import Address, Link, Request, Route, RouteSocket
from engine.tasks import run_in

T = TypeVar("T")

_SYSCTL = Path("/proc/sys/net")


class HostLinks:
    """The interfaces of the daemon's own namespace."""

    def __init__(self) -> None:
        self._route: RouteSocket | None = None
        self._watch: socket.socket | None = None
        self._lock = asyncio.Lock()
        self._waiting: dict[str, asyncio.Event] = {}

    async def open(self) -> None:
        """Open the sockets. Raises ``OSError``."""
        self._route = RouteSocket()
        self._watch = netlink.open_watch()
        asyncio.get_running_loop().add_reader(self._watch.fileno(), self._on_notice)

    async def aclose(self) -> None:
        """Close the sockets; the interfaces stay."""
        if self._watch is not None:
            asyncio.get_running_loop().remove_reader(self._watch.fileno())
            self._watch.close()
        if self._route is not None:
            self._route.close()

    def _on_notice(self) -> None:
        assert self._watch is not None
        gone = netlink.removed_links(self._watch)
        for name, event in self._waiting.items():
            if name in gone or "*" in gone:
                event.set()

    async def call(self, fn_sync: Callable[[RouteSocket], T]) -> T:
        """Run one blocking conversation with the kernel off the loop, alone on the socket."""
        assert self._route is not None
        async with self._lock:
            return await run_in("net", fn_sync, self._route)

    async def send(self, *requests: Request) -> None:
        """Carry out requests. Raises ``OSError`` for the first that failed."""
        await self.call(lambda route: route.send_sync(*requests))

    async def link(self, name: str) -> Link | None:
        """The interface of that name."""
        return await self.call(lambda route: route.link_sync(name))

    async def addresses(self) -> list[Address]:
        """Every address of the host."""
        return await self.call(RouteSocket.addresses_sync)

    async def routes(self) -> list[Route]:
        """Every route of the host's main table."""
        return await self.call(RouteSocket.routes_sync)

    async def remove(self, name: str) -> None:
        """Remove an interface; one that is gone already is fine."""
        try:
            await self.send(netlink.delete_link(name))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise

    async def vanished(self, name: str, *, timeout: float = 1.0) -> None:
        """Wait until an interface is gone by itself; after ``timeout`` seconds remove it."""
        event = self._waiting.setdefault(name, asyncio.Event())
        try:
            if await self.link(name) is None:
                return
            await asyncio.wait_for(event.wait(), timeout)
            if await self.link(name) is None:
                return
        except TimeoutError:
            pass
        finally:
            self._waiting.pop(name, None)
        await self.remove(name)


def write_sysctl_sync(path: str, value: str) -> None:
    """Set ``/proc/sys/net/<path>`` unless it has the value already. Raises ``OSError``."""
    file = _SYSCTL / path
    if file.read_text().strip() != value:
        file.write_text(value)
