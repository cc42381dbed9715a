"""Macvlan and ipvlan networks: the container's interface is a child of one of the host's, with an address of the
outer network.

``parent=eth0`` names the host's interface; ``eth0.42`` is made as VLAN 42 of eth0; without a parent a dummy interface
is made, which gives a network inside this host only. What was made is removed with the network.
"""

from __future__ import annotations

import errno

from engine.kernel import netlink
from engine.kernel.namespaces import NetworkNamespace
from engine.kernel.netlink import RouteSocket
from engine.networks.bridge import configure_inside_sync
from engine.networks.links import HostLinks
from engine.networks.model import EndpointState, Network

_DEFAULT_MODES = {"macvlan": "bridge", "ipvlan": "l2"}
_MODES = {"macvlan": ("bridge", "private", "vepa", "passthru"), "ipvlan": ("l2", "l3", "l3s")}


class MacvlanDriver:
    """See ``Driver``; ``kind`` is ``macvlan`` or ``ipvlan``."""

    def __init__(self, links: HostLinks, kind: str) -> None:
        self._links = links
        self._kind = kind

    def _mode(self, network: Network) -> str:
        return network.options.get(f"{self._kind}_mode") or _DEFAULT_MODES[self._kind]

    @staticmethod
    def _parent(network: Network) -> str:
        return network.options.get("parent") or f"dm-{network.id[:12]}"

    def check(self, network: Network) -> None:
        """See ``Driver``."""
        if self._mode(network) not in _MODES[self._kind]:
            raise ValueError(
                f"requested {self._kind} mode '{self._mode(network)}' is not valid, 'bridge' mode is the default"
            )

    async def create(self, network: Network) -> None:
        """See ``Driver``."""
        name = self._parent(network)
        if await self._links.link(name) is not None:
            return
        if "parent" not in network.options or not network.options["parent"]:
            try:
                await self._links.send(netlink.add_dummy(name))
            except OSError as error:
                if error.errno == errno.EOPNOTSUPP:
                    raise ValueError("this kernel has no dummy interfaces, name the host's with -o parent") from error
                raise
            return
        base, dot, tag = name.rpartition(".")
        parent = await self._links.link(base) if dot and tag.isdigit() else None
        if parent is None:
            raise ValueError(f"-o parent interface was not found on the host: {name}")
        await self._links.send(netlink.add_vlan(name, parent.index, int(tag)))

    async def remove(self, network: Network) -> None:
        """See ``Driver``."""
        name = self._parent(network)
        link = await self._links.link(name)
        if link is not None and link.kind in ("dummy", "vlan") and (name.startswith("dm-") or "." in name):
            await self._links.remove(name)

    async def attach(self, network: Network, endpoint: EndpointState, namespace: NetworkNamespace) -> None:
        """See ``Driver``."""

        def attach_sync(route: RouteSocket) -> None:
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
            configure_inside_sync(endpoint, namespace)

        await self._links.call(attach_sync)

    async def detach(self, network: Network, endpoint: EndpointState, *, is_live: bool) -> None:
        """See ``Driver``: the interface is only in the container's namespace and goes with it."""
