"""Addresses: which subnet a network gets, which address a container gets. Pure.

A pool hands out the lowest free address, as people expect of docker, and never the network's, the gateway's, an
auxiliary or the broadcast address. A default subnet is one that collides with no route of the host and no other
network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from engine.networks.model import IpamBlock

Subnet = IPv4Network | IPv6Network
Ip = IPv4Address | IPv6Address

DEFAULT_POOLS: tuple[tuple[str, int], ...] = (
    ("172.17.0.0/16", 16),
    ("172.18.0.0/16", 16),
    ("172.19.0.0/16", 16),
    ("172.20.0.0/14", 16),
    ("172.24.0.0/14", 16),
    ("172.28.0.0/14", 16),
    ("192.168.0.0/16", 20),
)
"""Docker's own (base, size of one network) list."""

OVERFLOW_POOLS: tuple[tuple[str, int], ...] = (("10.200.0.0/13", 24), ("10.208.0.0/12", 24))
"""Where docker gives up after 31 networks, these go on: thousands of small ones at the quiet end of 10/8."""


class PoolExhausted(ValueError):
    """No free subnet, or no free address in a subnet."""


class AddressTaken(ValueError):
    """The address asked for is in use or may not be used."""


class AddressPool:
    """The addresses of one subnet. Leases are in memory; their truth is the record of who holds them."""

    def __init__(self, block: IpamBlock) -> None:
        self.subnet = block.network
        self.range = ip_network(block.ip_range) if block.ip_range else self.subnet
        if self.range.network_address not in self.subnet or self.range.prefixlen < self.subnet.prefixlen:
            raise ValueError(f"range {self.range} is not inside subnet {self.subnet}")
        self._reserved: set[Ip] = {ip_address(v.partition("/")[0]) for v in block.aux.values()}
        self._leased: set[Ip] = set()
        self._next = 0
        if self.subnet.version == 6 or self.subnet.prefixlen < 31:
            self._reserved.add(self.subnet.network_address)
        if self.subnet.version == 4 and self.subnet.prefixlen < 31:
            self._reserved.add(self.subnet.broadcast_address)
        if block.gateway:
            self._reserved.add(ip_address(block.gateway.partition("/")[0]))

    def __contains__(self, address: str) -> bool:
        return is_address_in(address, str(self.subnet))

    @property
    def leased(self) -> frozenset[Ip]:
        """The addresses that are given out."""
        return frozenset(self._leased)

    def lease(self, wanted: str = "") -> Ip:
        """Give out ``wanted``, or the lowest free address of the range.

        Raises ``AddressTaken`` or ``PoolExhausted``.
        """
        if wanted:
            return self._lease_exactly(wanted)
        # Everything below _next is taken; release moves it back. This keeps a full /16 from being searched each time.
        for offset in range(self._next, self.range.num_addresses):
            candidate = self.range[offset]
            if candidate not in self._reserved and candidate not in self._leased:
                self._leased.add(candidate)
                self._next = offset + 1
                return candidate
        raise PoolExhausted(f"no free address in {self.range}")

    def _lease_exactly(self, wanted: str) -> Ip:
        try:
            address = ip_address(wanted)
        except ValueError as error:
            raise AddressTaken(f"invalid address: {wanted}") from error
        if address not in self.subnet:
            raise AddressTaken(f"address {wanted} is not in subnet {self.subnet}")
        if address in self._reserved or address in self._leased:
            raise AddressTaken("Address already in use")
        self._leased.add(address)
        return address

    def release(self, address: str) -> None:
        """Take an address back; one that was not leased is fine."""
        ip = ip_address(address)
        self._leased.discard(ip)
        if ip in self.range:
            self._next = min(self._next, int(ip) - int(self.range.network_address))


def first_host(subnet: Subnet) -> str:
    """The usual gateway: the first usable address."""
    return str(subnet[1] if subnet.num_addresses > 1 else subnet[0])


def overlaps(subnet: Subnet, taken: Iterable[Subnet]) -> Subnet | None:
    """The first of ``taken`` that shares addresses with ``subnet``. A default route is not in anybody's way."""
    for other in taken:
        if other.version == subnet.version and other.prefixlen > 0 and subnet.overlaps(other):
            return other
    return None


def candidates(pools: Sequence[tuple[str, int]]) -> Iterator[Subnet]:
    """Every subnet of the pools in order."""
    for base, size in pools:
        yield from ip_network(base).subnets(new_prefix=size)


def choose_subnet(pools: Sequence[tuple[str, int]], taken: Sequence[Subnet], version: int = 4) -> Subnet:
    """The first subnet of the pools that overlaps none of ``taken``. Raises ``PoolExhausted``."""
    for subnet in candidates([p for p in pools if ip_network(p[0]).version == version]):
        if overlaps(subnet, taken) is None:
            return subnet
    raise PoolExhausted("could not find an available, non-overlapping address pool among the defaults")


def choose_ipv6_subnet(pools: Sequence[tuple[str, int]], seed: str, taken: Sequence[Subnet]) -> Subnet:
    """A free IPv6 subnet: from the pools if any is of that version, else a private one that goes with ``seed``."""
    if any(ip_network(base).version == 6 for base, _ in pools):
        return choose_subnet(pools, taken, version=6)
    return unique_local_subnet(seed, taken)


def unique_local_subnet(seed: str, taken: Sequence[Subnet]) -> IPv6Network:
    """A private IPv6 /64 (RFC 4193) for a network whose id is ``seed`` (hexadecimal)."""
    for start in range(len(seed) - 14):
        prefix = (0xFD << 120) | (int(seed[start : start + 14], 16) << 64)
        subnet = IPv6Network((prefix, 64))
        if overlaps(subnet, taken) is None:
            return subnet
    raise PoolExhausted("could not find an available, non-overlapping IPv6 address pool")


def is_usable(address: str, version: int) -> bool:
    """Whether ``address`` is one of that IP version that an interface can have; IPv4 in IPv6's clothes is neither."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    is_mapped = isinstance(ip, IPv6Address) and (ip.ipv4_mapped is not None or ip.scope_id is not None)
    return ip.version == version and not ip.is_unspecified and not is_mapped


def is_link_local(address: str) -> bool:
    """Whether ``address`` is one that is valid on one link only: of 169.254.0.0/16 or fe80::/10."""
    try:
        return ip_address(address).is_link_local
    except ValueError:
        return False


def is_address_in(address: str, subnet: str) -> bool:
    """Whether ``address`` is one, and inside ``subnet``."""
    try:
        return ip_address(address) in ip_network(subnet)
    except ValueError:
        return False
