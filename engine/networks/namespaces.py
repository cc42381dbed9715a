"""Namespaces made in advance: the millisecond that the kernel takes for one is spent before somebody waits for it."""

from __future__ import annotations

import asyncio

from engine.kernel import namespaces, netlink
from engine.kernel.idmap import IdMap
from engine.kernel.namespaces import NetworkNamespace
from engine.kernel.netlink import RouteSocket
from engine.tasks import Nursery, run_in

POOL_SIZE = 3


class NamespacePool:
    """A few namespaces made in advance with loopback up, so that a start does not wait for the kernel to make one."""

    def __init__(self, size: int = POOL_SIZE, ids: IdMap | None = None) -> None:
        """With ``ids``, each belongs to a user namespace of its own that has them."""
        self._size = size
        self._ids = ids
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

    async def make(self, owner_pid: int) -> NetworkNamespace:
        """A fresh one that belongs to a process's user namespace, which has this pool's ids. Raises ``OSError``."""
        return await run_in("net", _prepare_sync, self._ids, owner_pid)

    def _fill_up(self) -> asyncio.Task[None]:
        if self._filling is None or self._filling.done():
            self._filling = self._nursery.start(self._fill(), name="fill")
        return self._filling

    async def _fill(self) -> None:
        while len(self._ready) < self._size:
            self._ready.append(await run_in("net", _prepare_sync, self._ids))

    async def aclose(self) -> None:
        """Let the unused ones go."""
        self._size = 0
        if self._filling is not None:
            await asyncio.wait([self._filling])
        await self._nursery.aclose()
        while self._ready:
            self._ready.pop().close()


def _prepare_sync(ids: IdMap | None, owner_pid: int = 0) -> NetworkNamespace:
    if ids is None:
        namespace = namespaces.create_namespace_sync()
    else:
        namespace = namespaces.create_mapped_sync(ids, owner_pid)
    try:
        RouteSocket(namespace.socket).send_sync(netlink.set_up(1))
    except OSError:
        namespace.close()
        raise
    return namespace
