"""Keeps the kernel's table equal to the model: publishes ports, adds networks, and repairs what others flush.

Publishing is one small transaction (0.4 ms). Unpublishing costs the kernel a grace period of some 10 ms, so removals
are gathered and done in the background; until then the address behind a removed port is not given out again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterable
from dataclasses import replace

from engine.kernel import conntrack, nft
from engine.networks import ruleset
from engine.networks.ruleset import BridgeRules, FirewallModel, Passage, PublishedPort
from engine.tasks import Nursery, run_in

log = logging.getLogger(__name__)

GATHER_SECONDS = 0.02
REPAIR_SECONDS = 0.05


class Firewall:
    """The engine's table. Off (every call does nothing) where the daemon was told not to touch the firewall."""

    def __init__(
        self,
        table: str,
        *,
        is_enabled: bool = True,
        has_ipv6: bool = True,
        open_nft: Callable[[], nft.Nft] = nft.open_nft,
    ) -> None:
        self._table = table
        self._is_enabled = is_enabled
        self._has_ipv6 = has_ipv6
        self._open = open_nft
        self._nft: nft.Nft | None = None
        self._bridges: dict[str, BridgeRules] = {}
        self._ports: dict[str, tuple[PublishedPort, ...]] = {}
        self._passages: dict[str, tuple[Passage, ...]] = {}
        self._stale: dict[PublishedPort, None] = {}
        self._told: FirewallModel | None = None
        self._told_ports: dict[PublishedPort, None] = {}
        self._lock = asyncio.Lock()
        self._nursery = Nursery("firewall")
        self._removal: asyncio.Task[None] | None = None
        self._watch: socket.socket | None = None
        self._repair: asyncio.Task[None] | None = None
        self._applied = False

    @property
    def model(self) -> FirewallModel:
        """What the table must say now."""
        ports = tuple(port for ports in self._ports.values() for port in ports)
        passages = tuple(passage for some in self._passages.values() for passage in some)
        return FirewallModel(self._table, tuple(self._bridges.values()), ports, passages, self._has_ipv6)

    async def apply(self) -> None:
        """Make the whole table right in one transaction, and from now on keep it so. Raises ``OSError``."""
        if not self._is_enabled:
            return
        async with self._lock:
            await self._apply_all()
        if self._watch is None:
            self._watch = nft.open_watch()
            asyncio.get_running_loop().add_reader(self._watch.fileno(), self._on_notice)

    async def _apply_all(self) -> None:
        self._stale.clear()
        model = self.model
        await self._run(ruleset.render(model))
        self._told, self._told_ports = model, dict.fromkeys(model.ports)
        self._applied = True

    async def _change_ports(self, *, add: Iterable[PublishedPort] = (), remove: Iterable[PublishedPort] = ()) -> None:
        add, remove = tuple(add), tuple(remove)
        try:
            await self._run(ruleset.render_ports(self._table, add=add, remove=remove))
        except OSError:
            # The table is not what we think it is (flushed a moment ago): the whole text does not mind.
            await self._apply_all()
            return
        for port in remove:
            self._told_ports.pop(port, None)
        self._told_ports.update(dict.fromkeys(add))

    async def _run(self, script: str) -> None:
        if self._nft is None:
            self._nft = await run_in("net", self._open)
        await run_in("net", self._nft.run_sync, script)

    async def set_bridge(self, network_id: str, rules: BridgeRules) -> None:
        """Add or change a network. Before the first ``apply`` it is only noted."""
        self._bridges[network_id] = rules
        await self._update()

    async def remove_bridge(self, network_id: str) -> None:
        """Forget a network."""
        if self._bridges.pop(network_id, None) is not None:
            await self._update()

    async def set_passages(self, owner: str, passages: Iterable[Passage]) -> None:
        """What links of one container may pass although its network forbids talking; none forgets them."""
        wanted = tuple(passages)
        if self._passages.get(owner, ()) == wanted:
            return
        self._passages[owner] = wanted
        if not wanted:
            del self._passages[owner]
        await self._update()

    async def _update(self) -> None:
        if self._is_enabled and self._applied:
            async with self._lock:
                await self._apply_all()

    def adopt(self, owner: str, ports: Iterable[PublishedPort]) -> None:
        """Note ports that the kernel's table has already; ``apply`` makes sure of it."""
        self._ports[owner] = tuple(ports)

    async def publish(self, owner: str, ports: Iterable[PublishedPort]) -> None:
        """Make these the ports of ``owner``. Raises ``OSError``; then ``owner`` has none."""
        wanted = tuple(ports)
        self._retire(self._ports.pop(owner, ()))
        if not wanted:
            return
        self._ports[owner] = wanted
        if not self._is_enabled:
            return
        try:
            async with self._lock:
                await self._publish(wanted)
        except OSError:
            self._ports.pop(owner, None)
            raise
        await _forget_flows(wanted)

    async def _publish(self, wanted: tuple[PublishedPort, ...]) -> None:
        keys = {(p.protocol, p.host_ip, p.host_port, p.version) for p in wanted}
        # A port that was just given up by another container is taken over in the same transaction.
        replaced = [p for p in self._stale if (p.protocol, p.host_ip, p.host_port, p.version) in keys]
        for port in replaced:
            del self._stale[port]
        await self._change_ports(add=wanted, remove=replaced)

    def _retire(self, ports: Iterable[PublishedPort]) -> None:
        if self._is_enabled:
            self._stale.update(dict.fromkeys(ports))

    async def unpublish(self, owner: str) -> None:
        """Take the ports of ``owner`` away; returns when the kernel no longer has them."""
        ports = self._ports.pop(owner, ())
        if not ports or not self._is_enabled:
            return
        self._retire(ports)
        if self._removal is None or self._removal.done():
            self._removal = self._nursery.start(self._remove_stale(), name="remove-stale")
        await asyncio.shield(self._removal)
        if any(port in self._stale for port in ports):
            await self._remove_stale()
        await _forget_flows(ports)

    async def _remove_stale(self) -> None:
        await asyncio.sleep(GATHER_SECONDS)
        async with self._lock:
            if not self._stale:
                return
            stale = tuple(self._stale)
            self._stale.clear()
            await self._change_ports(remove=stale)

    def _on_notice(self) -> None:
        assert self._watch is not None
        if not nft.tables_with_losses(self._watch) & {self._table, "*"}:
            return
        if self._repair is None or self._repair.done():
            self._repair = self._nursery.start(self._repair_if_needed(), name="repair")

    async def _repair_if_needed(self) -> None:
        # Our own whole-table transactions are heard here too; looking is cheaper than telling them apart.
        await asyncio.sleep(REPAIR_SECONDS)
        async with self._lock:
            assert self._nft is not None and self._told is not None
            listing = await run_in("net", self._nft.list_sync, "inet", self._table)
            # What the kernel was told, not the model: that may have changed while somebody waits for the lock.
            expected = ruleset.count(replace(self._told, ports=tuple(self._told_ports)))
            found = ruleset.count_listing(listing) if listing is not None else {}
            if any(found.get(name) != number for name, number in expected.items()):
                log.warning("the firewall table %s was changed from outside; it is restored", self._table)
                await self._apply_all()

    async def aclose(self, *, remove: bool = False) -> None:
        """Stop watching. The table stays, published ports go on; with ``remove`` it goes too."""
        if self._watch is not None:
            asyncio.get_running_loop().remove_reader(self._watch.fileno())
            self._watch.close()
            self._watch = None
        if self._removal is not None and not self._removal.done():
            await asyncio.shield(self._removal)
        await self._nursery.aclose()
        if remove and self._is_enabled:
            with contextlib.suppress(OSError):
                await self._run(ruleset.render_removal(self._table))


async def _forget_flows(ports: Iterable[PublishedPort]) -> None:
    """A UDP client that goes on sending must find the container that has the port now, and no other."""
    numbers = {port.host_port for port in ports if port.protocol == "udp" and port.host_port}
    if numbers:
        try:
            await run_in("net", conntrack.forget_sync, numbers)
        except OSError as error:
            log.warning("tracked UDP flows to ports %s are left as they are: %s", sorted(numbers), error)
