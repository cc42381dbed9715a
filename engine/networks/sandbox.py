"""One container's network while it runs, as values: endpoints, published ports, name files, and what follows from them.

Nothing of it survives the container: the namespace dies with its init, and the interfaces with the namespace.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engine.kernel.namespaces import NetworkNamespace
from engine.networks import namefiles
from engine.networks.model import EndpointState, PortState, SandboxDocument
from engine.networks.ports import HeldPort, parse_port
from engine.networks.ruleset import PublishedPort


@dataclass(slots=True)
class Sandbox:
    """What a running container has of the network. ``netns_path`` is for the runtime's specification; None is the
    host's.

    ``hold_fds`` must stay open (in the shim) as long as the container runs: they keep its host ports.
    """

    container_id: str
    name: str
    sandbox_id: str
    mode: str
    netns_path: str | None = None
    userns_path: str = ""
    """The user namespace that it belongs to; empty for the host's."""
    hold_fds: tuple[int, ...] = ()
    endpoints: dict[str, EndpointState] = field(default_factory=dict)
    ports: dict[str, list[dict[str, str]] | None] = field(default_factory=dict)
    hosts_path: str = ""
    hostname_path: str = ""
    resolv_path: str = ""
    directory: str = ""
    published: tuple[PortState, ...] = ()
    exposed: tuple[str, ...] = ()
    init_pid: int = 0
    hostname: str = ""
    domainname: str = ""
    extra_hosts: tuple[tuple[str, str], ...] = ()
    upstream: tuple[str, ...] = ()
    """The name servers it was given; none means the host's."""
    has_ipv6: bool = True
    """Whether it may have IPv6 addresses."""
    has_resolver: bool = False
    namespace: NetworkNamespace | None = None
    held: list[HeldPort] = field(default_factory=list)

    @property
    def owns_namespace(self) -> bool:
        """Whether the namespace is its own: neither the host's nor another container's."""
        return self.mode != "host" and not self.mode.startswith("container:")

    @property
    def resolves_names(self) -> bool:
        """Whether it is on a network whose containers find each other by name."""
        return any(endpoint.dns_names for endpoint in self.endpoints.values())

    def let_go(self) -> None:
        """Close our own copies of what its processes hold."""
        if self.namespace is not None:
            self.namespace.close()
            self.namespace = None
        for held in self.held:
            if held.socket is not None:
                held.socket.close()
        self.held, self.hold_fds = [], ()

    def lose_ports(self) -> None:
        """No port is published any more, all are exposed still."""
        self.held, self.hold_fds, self.published = [], (), ()
        self.ports = port_map(self.exposed, ())

    def document(self) -> SandboxDocument:
        """What the container's record keeps for ``adopt``."""
        return SandboxDocument(
            sandbox_id=self.sandbox_id,
            container_id=self.container_id,
            name=self.name,
            mode=self.mode,
            endpoints=self.endpoints,
            ports=self.published,
            exposed=self.exposed,
            directory=self.directory,
            hosts_path=self.hosts_path,
            hostname_path=self.hostname_path,
            resolv_path=self.resolv_path,
            hostname=self.hostname,
            domainname=self.domainname,
            extra_hosts=self.extra_hosts,
            upstream=self.upstream,
            has_ipv6=self.has_ipv6,
        )


def port_map(exposed: tuple[str, ...], published: tuple[PortState, ...]) -> dict[str, list[dict[str, str]] | None]:
    """``NetworkSettings.Ports``: every exposed port, with its host addresses or null."""
    found: dict[str, list[dict[str, str]] | None] = {}
    for text in exposed:
        for port, protocol in parse_port(text):
            found[f"{port}/{protocol}"] = None
    for one in published:
        entry = {"HostIp": one.host_ip, "HostPort": str(one.host_port or "")}
        found[one.port] = [*(found.get(one.port) or []), entry]
    return found


def shown_ports(sandbox: SandboxDocument | None) -> dict[str, list[dict[str, str]] | None]:
    """``NetworkSettings.Ports`` of a running container; only those that the host has a way to have any."""
    if sandbox is None or not any(endpoint.link for endpoint in sandbox.endpoints.values()):
        return {}
    return port_map(sandbox.exposed, sandbox.ports)


def gateway_endpoint(sandbox: Sandbox, version: int = 4) -> EndpointState | None:
    """The endpoint that carries the default route: highest priority first, then by network name."""
    having = [e for e in sandbox.endpoints.values() if _leads_outside(e, version)]
    return min(having, key=lambda e: (-e.gw_priority, e.network_name), default=None)


def _leads_outside(endpoint: EndpointState, version: int) -> bool:
    gateway, address = endpoint.gateway, endpoint.ip_address
    if version == 6:
        gateway, address = endpoint.ipv6_gateway, endpoint.global_ipv6_address
    return bool(gateway or (endpoint.is_routed and address))


def publishing_endpoint(sandbox: Sandbox) -> EndpointState | None:
    """The endpoint that published ports lead to: as for the default route, of those that the host has a way to."""
    reachable = [e for e in sandbox.endpoints.values() if e.link and (e.gateway or e.ipv6_gateway)]
    return min(reachable, key=lambda e: (not e.gateway, -e.gw_priority, e.network_name), default=None)


def translations(sandbox: Sandbox, endpoint: EndpointState) -> list[PublishedPort]:
    found = []
    for one in sandbox.published:
        number, _, protocol = one.port.partition("/")
        target = endpoint.global_ipv6_address if ":" in one.host_ip else endpoint.ip_address
        if target:
            found.append(PublishedPort(protocol, one.host_ip, one.host_port, target, int(number)))
    return list(dict.fromkeys(found))


def hosts_of(sandbox: Sandbox) -> str:
    names = namefiles.own_names(sandbox.hostname, sandbox.domainname)
    addresses = [a for e in sandbox.endpoints.values() for a in (e.ip_address, e.global_ipv6_address) if a]
    own = [(address, names) for address in addresses] if names else []
    return namefiles.hosts_text(sandbox.extra_hosts, own, has_ipv6=sandbox.has_ipv6)


def member_of(sandbox: Sandbox) -> dict[str, Any]:
    """What the name server must know of a container."""
    return {
        "id": sandbox.container_id,
        "places": [
            {
                "network": endpoint.network_id,
                "domain": endpoint.network_name,
                "addresses": [a for a in (endpoint.ip_address, endpoint.global_ipv6_address) if a],
                "names": endpoint.dns_names,
                "gateway": endpoint.gateway,
                "links": [_alias_and_name(link) for link in endpoint.links],
            }
            for endpoint in sandbox.endpoints.values()
            if endpoint.dns_names
        ],
        "upstream": sandbox.upstream or None,
        "outside": any(gateway_endpoint(sandbox, version) is not None for version in (4, 6)),
    }


def _alias_and_name(link: str) -> tuple[str, str]:
    name, _, alias = link.partition(":")
    return (alias or name).removeprefix("/"), name.removeprefix("/")
