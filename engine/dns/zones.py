"""Who is called what on which network, and what one container may see of it. Pure.

A container sees the names of the containers on its own networks, plain or with the network's name as domain; the
aliases that only it was given; and ``host.docker.internal``, its gateway.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

HOST_NAMES = ("host.docker.internal", "gateway.docker.internal")


@dataclass(frozen=True, slots=True)
class Place:
    """A container on one network."""

    network: str
    domain: str
    addresses: tuple[str, ...]
    names: tuple[str, ...]
    gateway: str = ""
    links: tuple[tuple[str, str], ...] = ()
    """(alias, name) pairs that only this container sees."""


@dataclass(frozen=True, slots=True)
class Member:
    """A container. ``upstream`` are the servers for other names (None: the host's), in order."""

    ident: str
    places: tuple[Place, ...] = ()
    upstream: tuple[str, ...] | None = None
    has_outside: bool = True
    """Whether names that are not ours may be asked outside: not on internal networks."""

    @classmethod
    def parse(cls, document: dict[str, Any]) -> Member:
        """From the daemon's message."""
        upstream = document.get("upstream")
        return cls(
            ident=document["id"],
            places=tuple(
                Place(
                    network=place["network"],
                    domain=place["domain"].lower(),
                    addresses=tuple(place["addresses"]),
                    names=tuple(place["names"]),
                    gateway=place.get("gateway", ""),
                    links=tuple((alias.lower(), name.lower()) for alias, name in place.get("links", ())),
                )
                for place in document.get("places", ())
            ),
            upstream=None if upstream is None else tuple(upstream),
            has_outside=document.get("outside", True),
        )


@dataclass(slots=True)
class _Network:
    names: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    """Name to container to addresses: a name may belong to many."""
    addresses: dict[str, str] = field(default_factory=dict)


class Zones:
    """All members and the names of their networks."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self._networks: dict[str, _Network] = {}

    def put(self, member: Member) -> None:
        """Add or replace a member."""
        self.drop(member.ident)
        self.members[member.ident] = member
        for place in member.places:
            network = self._networks.setdefault(place.network, _Network())
            for name in place.names:
                network.names.setdefault(name.lower(), {})[member.ident] = place.addresses
            for address in place.addresses:
                if place.names:
                    network.addresses[address] = f"{place.names[0]}.{place.domain}"

    def drop(self, ident: str) -> None:
        """Forget a member; an unknown one is fine."""
        member = self.members.pop(ident, None)
        for place in member.places if member is not None else ():
            network = self._networks[place.network]
            for name in place.names:
                holders = network.names.get(name.lower(), {})
                holders.pop(ident, None)
                if not holders:
                    network.names.pop(name.lower(), None)
            for address in place.addresses:
                network.addresses.pop(address, None)
            if not network.names and not network.addresses:
                del self._networks[place.network]

    def resolve(self, ident: str, name: str) -> list[str] | None:
        """The addresses, in random order, that ``name`` has for this member; None when it is not a name of ours."""
        member = self.members.get(ident)
        if member is None:
            return None
        for place in member.places:
            found = self._on(place, name)
            if found is not None:
                random.shuffle(found)
                return found
        if name in HOST_NAMES:
            gateways = [place.gateway for place in member.places if place.gateway]
            return gateways[:1] or None
        return None

    def _on(self, place: Place, name: str) -> list[str] | None:
        names = self._networks[place.network].names
        plain = name.removesuffix(f".{place.domain}")
        for candidate in dict.fromkeys((name, plain)):
            target = dict(place.links).get(candidate, candidate)
            holders = names.get(target)
            if holders:
                return [address for addresses in holders.values() for address in addresses]
        return None

    def reverse(self, ident: str, address: str) -> str | None:
        """The full name of an address on one of this member's networks."""
        member = self.members.get(ident)
        for place in member.places if member is not None else ():
            name = self._networks[place.network].addresses.get(address)
            if name is not None:
                return name
        return None
