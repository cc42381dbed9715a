"""Name resolution for containers on user-defined networks: who has a resolver, and that a lost one comes back."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from engine.kernel import namespaces
from engine.kernel.namespaces import NetworkNamespace
from engine.names import short
from engine.networks.namefiles import ResolvConf
from engine.networks.nameserver import NameServer
from engine.networks.sandbox import Sandbox, member_of
from engine.tasks import Nursery, run_blocking, run_in

log = logging.getLogger(__name__)


class Resolver:
    """Gives sandboxes their resolver and keeps the name server informed. Sandboxes without names are left alone."""

    def __init__(self, server: NameServer, sandboxes: Mapping[str, Sandbox]) -> None:
        self._server = server
        self._sandboxes = sandboxes
        self._nursery = Nursery("resolver")
        server.on_lost = self._on_lost

    async def open(self, sandbox: Sandbox, namespace: NetworkNamespace) -> None:
        """Sockets inside the namespace and names in the zones. Raises ``OSError``."""
        if sandbox.resolves_names and not sandbox.has_resolver:
            sockets = await self._server.open_sockets(namespace.fd, is_fresh=not sandbox.init_pid)
            await self._server.put(member_of(sandbox), sockets)
            sandbox.has_resolver = True

    async def update(self, sandbox: Sandbox, namespace: NetworkNamespace | None = None) -> None:
        """Networks or names of a running container have changed. Raises ``OSError``."""
        if sandbox.has_resolver:
            await self._server.put(member_of(sandbox))
        elif sandbox.resolves_names and namespace is not None:
            await self.open(sandbox, namespace)
            if sandbox.init_pid:
                await self._server.watch(sandbox.container_id, sandbox.init_pid)
            await run_blocking(_ask_embedded_sync, Path(sandbox.resolv_path))

    def started(self, sandbox: Sandbox) -> None:
        """Init runs: from now on its end ends the resolver too, with or without a daemon."""
        if sandbox.has_resolver and sandbox.init_pid:
            self._nursery.start(self._watch(sandbox), name=f"watch-{short(sandbox.container_id)}")

    async def _watch(self, sandbox: Sandbox) -> None:
        try:
            await self._server.watch(sandbox.container_id, sandbox.init_pid)
        except OSError as error:
            log.warning("the resolver of container %s: %s", short(sandbox.container_id), error)

    async def close(self, sandbox: Sandbox) -> None:
        """The container has ended, or did not come to be: let go of its namespace."""
        if sandbox.has_resolver:
            sandbox.has_resolver = False
            await self._server.drop(sandbox.container_id)

    async def adopt(self) -> None:
        """After a start of the daemon: what the running name server has is kept, what it lacks is made again."""
        wanted = {ident: sandbox for ident, sandbox in self._sandboxes.items() if sandbox.resolves_names}
        having = await self._server.find(set(wanted))
        for ident in having & set(wanted):
            wanted[ident].has_resolver = True
        await self._restore(sandbox for ident, sandbox in wanted.items() if ident not in having)

    async def _on_lost(self) -> None:
        log.warning("the name server has ended; it is started again")
        lost = [sandbox for sandbox in self._sandboxes.values() if sandbox.has_resolver]
        for sandbox in lost:
            sandbox.has_resolver = False
        await self._restore(lost)

    async def _restore(self, sandboxes: Iterable[Sandbox]) -> None:
        for sandbox in sandboxes:
            try:
                namespace = await run_in("net", namespaces.open_namespace_sync, sandbox.init_pid)
            except OSError:
                continue  # it has just ended
            with contextlib.closing(namespace):
                try:
                    await self.open(sandbox, namespace)
                    await self._server.watch(sandbox.container_id, sandbox.init_pid)
                except OSError as error:
                    log.error("container %s has no name server: %s", short(sandbox.container_id), error)

    async def aclose(self) -> None:
        """Hang up; names go on being answered."""
        await self._nursery.aclose()
        await self._server.aclose()


def _ask_embedded_sync(path: Path) -> None:
    path.write_text(ResolvConf.parse(path.read_text()).for_embedded().text())
