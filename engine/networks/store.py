"""Networks as they are kept: in the journal (kind ``network``), in memory by id and name, each with its addresses."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

import msgspec

from engine.errors import InvalidParameter, no_such_network
from engine.journal import Journal
from engine.names import PrefixIndex
from engine.networks.ipam import AddressPool, Subnet
from engine.networks.model import Network

KIND = "network"


class NetworkStore:
    """The truth about which networks there are."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._networks: dict[str, Network] = {}
        self._names: dict[str, str] = {}
        self._prefixes = PrefixIndex()
        self._pools: dict[str, list[AddressPool]] = {}

    def load(self) -> None:
        """Read the journal. Called once, before anything else."""
        for body in self._journal.load(KIND).values():
            self._remember(msgspec.json.decode(body, type=Network))

    def _remember(self, network: Network) -> None:
        self._networks[network.id] = network
        self._names[network.name] = network.id
        self._prefixes.add(network.id)
        self._pools[network.id] = [AddressPool(block) for block in network.blocks]

    async def put(self, network: Network) -> None:
        """Keep a new or changed network; its address pools start empty."""
        self._remember(network)
        try:
            await self._journal.put(KIND, network.id, msgspec.json.encode(network))
        except BaseException:
            self._forget(network)
            raise

    async def delete(self, network: Network) -> None:
        """Forget a network."""
        await self._journal.delete(KIND, network.id)
        self._forget(network)

    def _forget(self, network: Network) -> None:
        self._networks.pop(network.id, None)
        self._names.pop(network.name, None)
        self._prefixes.discard(network.id)
        self._pools.pop(network.id, None)

    def __iter__(self) -> Iterator[Network]:
        return iter(tuple(self._networks.values()))

    def by_id(self, network_id: str) -> Network | None:
        """The network with exactly this id."""
        return self._networks.get(network_id)

    def by_name(self, name: str) -> Network | None:
        """The network with exactly this name."""
        return self._networks.get(self._names.get(name, ""))

    def find(self, reference: str) -> Network:
        """By id, name or unique prefix of an id, in this order.

        Raises ``NotFound`` or ``InvalidParameter`` (ambiguous).
        """
        exact = self.by_id(reference) or self.by_name(reference)
        if exact is not None:
            return exact
        found = self._prefixes.find(reference)
        if len(found) > 1:
            raise InvalidParameter(f"network {reference} is ambiguous (more than one match found on ID prefix)")
        if not found:
            raise no_such_network(reference)
        return self._networks[found[0]]

    def subnets(self) -> list[tuple[Subnet, Network]]:
        """Every subnet that a network has."""
        return [(block.network, network) for network in self for block in network.blocks]

    def lease(self, network: Network, version: int, wanted: str = "") -> tuple[IPv4Address | IPv6Address, int]:
        """An address and its prefix length. Raises ``AddressTaken`` or ``PoolExhausted``."""
        pools = [p for p in self._pools[network.id] if p.subnet.version == version]
        if wanted:
            pools = [p for p in pools if wanted in p] or pools[:1]
        failed: ValueError | None = None
        for pool in pools:
            try:
                return pool.lease(wanted), pool.subnet.prefixlen
            except ValueError as error:
                failed = error
        raise failed or ValueError(f"network {network.name} has no IPv{version} subnet")

    def release(self, network_id: str, address: str) -> None:
        """Take an address back."""
        for pool in self._pools.get(network_id, ()):
            if address in pool:
                pool.release(address)
