"""Macvlan and ipvlan networks: the container's interface is a child of one of the host's, with an address of the
outer network.

``parent=eth0`` names the host's interface; ``eth0.42`` is made as VLAN 42 of eth0; without a parent a dummy interface
is made, which gives a network inside this host only. What was made is removed with the network.
"""

from __future__ import annotations

import asyncio
import errno
from time import monotonic

from engine.kernel import netlink
from engine.kernel.namespaces import NetworkNamespace
from engine.kernel.netlink import RouteSocket
from engine.networks.bridge import ALIAS, configure_inside_sync
from engine.networks.links import HostLinks
from engine.networks.model import EndpointState, Network
from engine.tasks import run_in

_DEFAULT_MODES = {"macvlan": "bridge", "ipvlan": "l2"}
_MODES = {"macvlan": ("bridge", "private", "vepa", "passthru"), "ipvlan": ("l2", "l3", "l3s")}
_BUSY_SECONDS = 2.0
"""How long the kernel may take to let go of an ended container's hardware address."""
_BUSY_STEP_SECONDS = 0.02


class MacvlanDriver:
    """See ``Driver``; ``kind`` is ``macvlan`` or ``ipvlan``."""

    def __init__(self, links: HostLinks, kind: str) -> None:
        self._links = links
        self._kind = kind
        self._networks: dict[str, Network] = {}

    def _mode(self, network: Network) -> str:
        return network.options.get(f"{self._kind}_mode") or _DEFAULT_MODES[self._kind]

    @staticmethod
    def _parent(network: Network) -> str:
        return network.options.get("parent") or f"dm-{network.id[:12]}"

    def check(self, network: Network) -> None:
        """See ``Driver``."""
        if self._mode(network) not in _MODES[self._kind]:
            raise ValueError(
                f"requested {self._kind} mode '{self._mode(network)}' is not valid, "
                f"'{_DEFAULT_MODES[self._kind]}' mode is the {self._kind} driver default"
            )
        flag = network.options.get("ipvlan_flag", "")
        if flag in ("private", "vepa"):
            raise ValueError(f"ipvlan flag '{flag}' is not offered, use a macvlan network in {flag} mode")
        if flag not in ("", "bridge"):
            raise ValueError(f"requested ipvlan flag '{flag}' is not valid, 'bridge' is the ipvlan driver default")
        if self._parent(network) == "lo":
            raise ValueError(f"loopback interface is not a valid {self._kind} parent link")

    async def create(self, network: Network) -> None:
        """See ``Driver``."""
        self._refuse_sharing(network)
        name = self._parent(network)
        if await self._links.link(name) is None:
            await self._create_parent(network, name)
            await self._links.send(netlink.set_alias(name, ALIAS))
        self._networks[network.id] = network

    def _refuse_sharing(self, network: Network) -> None:
        """An interface carries several macvlan networks unless one is in mode passthru, and one ipvlan network."""
        name = self._parent(network)
        for other in self._networks.values():
            if other.id == network.id or self._parent(other) != name:
                continue
            if self._kind == "ipvlan":
                raise ValueError(f"network {other.id} is already using parent interface {name}")
            if self._mode(network) == "passthru":
                raise ValueError(
                    f"cannot use mode passthru, macvlan network {other.id} is already using parent interface {name}"
                )
            if self._mode(other) == "passthru":
                raise ValueError(
                    f"macvlan network {other.id} is already using parent interface {name} in mode passthru"
                )

    async def _create_parent(self, network: Network, name: str) -> None:
        if not network.options.get("parent"):
            try:
                await self._links.send(netlink.add_dummy(name))
            except OSError as error:
                if error.errno == errno.EOPNOTSUPP:
                    raise ValueError("this kernel has no dummy interfaces, name the host's with -o parent") from error
                raise
            return
        base, _, tag = name.rpartition(".")
        if not base or not tag.isdigit():
            raise ValueError(f"invalid subinterface vlan name {name}, example formatting is eth0.10")
        if not 1 <= int(tag) <= 4094:
            raise ValueError(f"vlan id must be between 1-4094, received: {tag}")
        parent = await self._links.link(base)
        if parent is None:
            raise ValueError(f"-o parent interface was not found on the host: {base}")
        await self._links.send(netlink.add_vlan(name, parent.index, int(tag)))

    async def remove(self, network: Network) -> None:
        """See ``Driver``."""
        if self._networks.pop(network.id, None) is None:
            return
        name = self._parent(network)
        if any(self._parent(other) == name for other in self._networks.values()):
            return
        link = await self._links.link(name)
        if link is not None and link.kind in ("dummy", "vlan") and link.alias == ALIAS:
            await self._links.remove(name)

    async def attach(self, network: Network, endpoint: EndpointState, namespace: NetworkNamespace) -> None:
        """See ``Driver``."""

        def create_sync(route: RouteSocket) -> None:
            parent = route.link_sync(self._parent(network))
            if parent is None:
                raise OSError(f"parent interface {self._parent(network)} is gone")
            child = netlink.add_child(
                endpoint.interface,
                self._kind,
                self._mode(network),
                parent=parent.index,
                mac=endpoint.mac_address,
                netns=namespace.fd,
            )
            route.send_sync(child)

        await self._links.call(create_sync)
        # A container that has just ended may still have the address: its interface goes when the kernel has the time.
        end = monotonic() + _BUSY_SECONDS
        while True:
            try:
                await run_in("net", configure_inside_sync, endpoint, namespace)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or monotonic() > end:
                    raise
            else:
                return
            await asyncio.sleep(_BUSY_STEP_SECONDS)

    async def detach(self, network: Network, endpoint: EndpointState, namespace: NetworkNamespace | None) -> None:
        """See ``Driver``. Nothing of the interface is on the host: that of an ended container goes by itself."""
        if namespace is not None:
            try:
                await run_in("net", RouteSocket(namespace.socket).send_sync, netlink.delete_link(endpoint.interface))
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise
