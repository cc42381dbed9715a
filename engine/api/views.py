"""What list and inspect show of a container beyond its record: endpoints, ports, sizes, the layers' folders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.api.shapes.inspect import InspectFacts
from engine.api.shapes.summary import summary
from engine.clock import now_ns
from engine.containers.model import Container, Status
from engine.containers.service import ContainerService
from engine.containers.settings import EndpointSettings
from engine.errors import NotFound
from engine.images.store import ImageStore
from engine.networks.model import EndpointState
from engine.networks.sandbox import shown_ports
from engine.networks.service import NetworkService


class ContainerViews:
    """Gathers facts from networks, images and snapshots."""

    def __init__(
        self, service: ContainerService, networks: NetworkService, images: ImageStore, data_root: Path
    ) -> None:
        self._service = service
        self._networks = networks
        self._images = images
        self._data_root = data_root

    def endpoints(self, container: Container) -> dict[str, Any]:
        """``NetworkSettings.Networks``: by network name, wish and fact together."""
        facts: Mapping[str, EndpointState] = container.sandbox.endpoints if container.sandbox is not None else {}
        names = dict.fromkeys([*container.networks, *facts])
        return {
            name: endpoint_view(container.networks.get(name), facts.get(name), self._network_id(name)) for name in names
        }

    def _network_id(self, name: str) -> str:
        try:
            return self._networks.find(name).id
        except NotFound:
            return ""

    def ports(self, container: Container) -> dict[str, Any]:
        """``NetworkSettings.Ports``."""
        return shown_ports(container.sandbox)

    def rows(
        self,
        containers: Sequence[Container],
        sizes: Mapping[str, Mapping[str, int]] | None = None,
        *,
        annotations: bool = True,
    ) -> list[dict[str, Any]]:
        """The elements of ``GET /containers/json``; the containers' ``annotations`` are known since API 1.46."""
        now, names = now_ns(), self._service.image_names(containers)
        link_names = self._service.link_names()
        return [
            summary(
                container,
                now,
                names[container.image, container.image_id],
                self.endpoints(container),
                self.ports(container),
                sizes[container.id] if sizes is not None else None,
                link_names.get(container.id, ()),
                annotations=annotations,
            )
            for container in containers
        ]

    async def sizes(self, containers: Iterable[Container]) -> dict[str, dict[str, int]]:
        """``SizeRw`` and ``SizeRootFs`` by container id."""
        return {c.id: await self._size(c) for c in containers}

    async def _size(self, container: Container) -> dict[str, int]:
        writable = await self._service.assembly.writable_size(container.id)
        image = self._images.get(container.image_id)
        return {"SizeRw": writable, "SizeRootFs": writable + (image.size if image is not None else 0)}

    async def inspect_facts(self, container: Container, *, with_size: bool) -> InspectFacts:
        """Everything ``inspect_view`` needs."""
        size = await self._size(container) if with_size else {}
        sandbox = container.sandbox
        sandbox_key = self._networks.sandbox_key(sandbox) if sandbox is not None else ""
        return InspectFacts(
            directory=str(self._service.assembly.directory(container.id)),
            exec_ids=self._service.execs.of_container(container.id),
            networks=self.endpoints(container),
            ports=self.ports(container),
            sandbox_id=sandbox.sandbox_id if sandbox is not None and sandbox_key else "",
            sandbox_key=sandbox_key,
            graph=self._graph(container),
            links=self._service.shown_links(container),
            apparmor=self._service.assembly.apparmor_profile(container),
            has_log=container.host_config.log_config.type == "json-file",
            size_rw=size.get("SizeRw"),
            size_root=size.get("SizeRootFs"),
        )

    def _graph(self, container: Container) -> dict[str, str]:
        if container.state.status is Status.REMOVING:
            return {}
        place = self._data_root / "snapshots" / container.id
        lower = ":".join(str(self._data_root / "layers" / key / "fs") for key in reversed(container.layers))
        merged = self._service.assembly.run_dir(container.id) / "rootfs"
        return {
            "ID": container.id,
            "LowerDir": lower,
            "MergedDir": str(merged),
            "UpperDir": str(place / "diff"),
            "WorkDir": str(place / "work"),
        }


def endpoint_view(wish: EndpointSettings | None, fact: EndpointState | None, network_id: str) -> dict[str, Any]:
    """One ``EndpointSettings`` document."""
    wish = wish or EndpointSettings()
    ipam = wish.ipam_config
    shown: dict[str, Any] = {
        "IPAMConfig": None,
        "Links": list(wish.links) if wish.links else None,
        "Aliases": list(wish.aliases) if wish.aliases else None,
        "DriverOpts": wish.driver_opts,
        "GwPriority": wish.gw_priority,
        "NetworkID": network_id,
        "MacAddress": fact.mac_address if fact else wish.mac_address,
        "EndpointID": fact.endpoint_id if fact else "",
        "Gateway": fact.gateway if fact else "",
        "IPAddress": fact.ip_address if fact else "",
        "IPPrefixLen": fact.ip_prefix_len if fact else 0,
        "IPv6Gateway": fact.ipv6_gateway if fact else "",
        "GlobalIPv6Address": fact.global_ipv6_address if fact else "",
        "GlobalIPv6PrefixLen": fact.global_ipv6_prefix_len if fact else 0,
        "DNSNames": list(fact.dns_names) if fact and fact.dns_names else None,
    }
    if ipam is not None:
        pairs = {
            "IPv4Address": ipam.ipv4_address,
            "IPv6Address": ipam.ipv6_address,
            "LinkLocalIPs": ipam.link_local_ips,
        }
        shown["IPAMConfig"] = {key: value for key, value in pairs.items() if value}
    return shown
