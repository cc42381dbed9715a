"""Stand-ins for the kernel: interfaces, a driver and a firewall that only keep account of what was asked."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_interface
from typing import Any, TypeVar

from engine.kernel.namespaces import NetworkNamespace
from engine.kernel.netlink import Address, Link, Request, Route
from engine.networks.firewall import Firewall
from engine.networks.links import HostLinks
from engine.networks.model import EndpointState, Network

T = TypeVar("T")


class PlayedLinks(HostLinks):
    """A host with the interfaces, addresses and routes it was given."""

    def __init__(self, *, routes: list[Route] | None = None, bridge_address: str = "") -> None:
        super().__init__()
        self._routes = routes or []
        self._address = bridge_address
        self.sent: list[Request] = []

    async def open(self) -> None:
        return

    async def aclose(self) -> None:
        return

    async def call(self, fn_sync: Callable[[Any], T]) -> T:
        raise AssertionError("nothing talks to the kernel here")

    async def send(self, *requests: Request) -> None:
        self.sent += requests

    async def link(self, name: str) -> Link | None:
        return Link(9, name, "", 1500, 0, True, "bridge") if self._address else None

    async def addresses(self) -> list[Address]:
        return [Address(9, ip_interface(self._address))] if self._address else []

    async def routes(self) -> list[Route]:
        return self._routes


class PlayedDriver:
    """A driver whose networks exist when it was told so. Names in ``failing`` cannot be created."""

    def __init__(self) -> None:
        self.networks: dict[str, Network] = {}
        self.failing: set[str] = set()
        self.attached: dict[str, EndpointState] = {}

    def check(self, network: Network) -> None:
        if "bad" in network.options:
            raise ValueError("bad option")

    async def create(self, network: Network) -> None:
        if network.name in self.failing:
            raise OSError("the kernel says no")
        self.networks[network.name] = network

    async def remove(self, network: Network) -> None:
        self.networks.pop(network.name, None)

    async def attach(self, network: Network, endpoint: EndpointState, namespace: NetworkNamespace) -> None:
        self.attached[endpoint.endpoint_id] = endpoint

    async def detach(self, network: Network, endpoint: EndpointState, namespace: NetworkNamespace | None) -> None:
        self.attached.pop(endpoint.endpoint_id, None)


def absent_firewall() -> Firewall:
    """A firewall that is switched off."""
    return Firewall("played", is_enabled=False)
