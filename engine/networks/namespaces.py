"""Namespaces made in advance: the millisecond that the kernel takes for one is spent before somebody waits for it."""

from __future__ import annotations

import asyncio

from engine.kernel import namespaces, netlink
from engine.kernel.namespaces import NetworkNamespace
from engine.kernel.netlink import RouteSocket
from engine.tasks import Nursery, run_in

POOL_SIZE = 3


class NamespacePool:
    """A few namespaces made in advance with loopback up, so that a start does not wait for the kernel to make one."""

    def __init__(self, size: int = POOL_SIZE) -> None:
        self._size = size
        self._ready: list[NetworkNamespace] = []
        self._nursery = Nursery("namespaces")
        self._filling: asyncio.Task[None] | None = None

    async def take(self) -> NetworkNamespace:
        """A fresh namespace with loopback up. Raises ``OSError``."""
        while not self._ready:
            # Shielded: a start that is cancelled must not lose the namespace that is being made for it.
            await asyncio.shield(self._fill_up())
        namespace = self._ready.pop()
        self._fill_up()
        return namespace

    def _fill_up(self) -> asyncio.Task[None]:
        if self._filling is None or self._filling.done():
            self._filling = self._nursery.start(self._fill(), name="fill")
        return self._filling

    async def _fill(self) -> None:
        while len(self._ready) < self._size:
            self._ready.append(await run_in("net", _prepare_sync))

    async def aclose(self) -> None:
        """Let the unused ones go."""
        self._size = 0
        if self._filling is not None:
            await asyncio.wait([self._filling])
        await self._nursery.aclose()
        while self._ready:
            self._ready.pop().close()


def _prepare_sync() -> NetworkNamespace:
    namespace = namespaces.create_namespace_sync()
    try:
        RouteSocket(namespace.socket).send_sync(netlink.set_up(1))
    except OSError:
        namespace.close()
        raise
    return namespace
