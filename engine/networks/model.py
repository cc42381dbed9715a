"""What networks, endpoints and sandboxes are: frozen values, the documents of the journal, and the requests of the
container room.

The journal keeps ``Network``. What a running container has (``SandboxDocument``) is kept in the container's own
record and handed back after a restart of the daemon, so addresses and ports have one truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Protocol

import msgspec

DEFAULT_NETWORKS = ("bridge", "host", "none")
OPTION_BRIDGE = "com.docker.network.bridge."
OPTION_MTU = "com.docker.network.driver.mtu"
OPTION_PREFIX = "com.docker.network.container_iface_prefix"

WAY_OUT = "DefaultGatewayIPv"
"""The auxiliary address by which docker knows a gateway beside the bridge."""


class IpamBlock(msgspec.Struct, frozen=True, kw_only=True):
    """One subnet of a network. All texts; ``ip_range`` and ``gateway`` may be empty."""

    subnet: str
    ip_range: str = ""
    gateway: str = ""
    aux: dict[str, str] = {}
    is_gateway_told: bool = True
    """False for a gateway that nobody named in a subnet that somebody did: as with dockerd it is not shown."""

    @property
    def way_out(self) -> str:
        """Where a bridge's containers send what goes elsewhere: another machine's address, or else the bridge's."""
        return self.aux.get(f"{WAY_OUT}{self.network.version}", self.gateway)

    @property
    def network(self) -> IPv4Network | IPv6Network:
        """The subnet parsed."""
        return ip_network(self.subnet)


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """A network as it was created; times in nanoseconds since the epoch."""

    id: str
    name: str
    driver: str
    created_ns: int = 0
    scope: str = "local"
    is_internal: bool = False
    is_attachable: bool = False
    is_ingress: bool = False
    is_config_only: bool = False
    config_from: str = ""
    has_ipv4: bool = True
    has_ipv6: bool = False
    ipam_driver: str = "default"
    ipam_options: dict[str, str] | None = None
    blocks: tuple[IpamBlock, ...] = ()
    has_own_subnets: bool = False
    """Whether the user chose a subnet: only then may a container ask for an address."""
    options: dict[str, str] = {}
    labels: dict[str, str] = {}

    @property
    def is_predefined(self) -> bool:
        """Whether it is one of the three networks that always exist."""
        return self.name in DEFAULT_NETWORKS

    @property
    def interface(self) -> str:
        """The bridge's interface name on the host."""
        return self.options.get(OPTION_BRIDGE + "name") or f"br-{self.id[:12]}"

    @property
    def resolves_names(self) -> bool:
        """Whether containers on it find each other by name: on all but the three predefined networks."""
        return not self.is_predefined

    def option(self, name: str, default: bool) -> bool:
        """A truth value among the bridge driver's options, by its last part (``enable_icc``)."""
        value = self.options.get(OPTION_BRIDGE + name)
        return default if value is None else value.strip().lower() in ("1", "t", "true")

    def gateway_mode(self, version: int) -> str:
        """How a bridge leads to the world with IP ``version``: ``nat``, ``nat-unprotected`` (every port of a container
        is open), ``routed`` (published ports are open at the container's own address) or ``isolated`` (the host is not
        on the network)."""
        return self.options.get(f"{OPTION_BRIDGE}gateway_mode_ipv{version}", "nat")

    @property
    def leads_outside(self) -> bool:
        """Whether containers reach the world through it: not if it is internal, or on no interface of the host."""
        return not self.is_internal and (self.driver not in ("macvlan", "ipvlan") or bool(self.options.get("parent")))

    @property
    def is_routed(self) -> bool:
        """Whether the kernel routes for containers without a gateway: ipvlan in its layer 3 modes."""
        return self.driver == "ipvlan" and self.options.get("ipvlan_mode", "") in ("l3", "l3s")

    @property
    def mtu(self) -> int:
        """The interfaces' MTU; 0 leaves it to the kernel."""
        value = self.options.get(OPTION_MTU, "")
        return int(value) if value.isdigit() else 0


class EndpointState(msgspec.Struct, frozen=True, kw_only=True):
    """A container's interface on one network. ``interface`` is its name inside, ``link`` the other end on the host, if
    there is one: only then the host can lead its published ports there."""

    network_id: str
    network_name: str
    endpoint_id: str
    interface: str = ""
    link: str = ""
    gateway: str = ""
    ip_address: str = ""
    ip_prefix_len: int = 0
    mac_address: str = ""
    ipv6_gateway: str = ""
    global_ipv6_address: str = ""
    global_ipv6_prefix_len: int = 0
    aliases: tuple[str, ...] = ()
    dns_names: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    gw_priority: int = 0
    is_routed: bool = False
    """Whether a default route leads into the interface as it is, without a gateway."""
    link_local: tuple[str, ...] = ()
    """Further addresses of 169.254.0.0/16 and fe80::/64 that were asked for."""
    sysctls: tuple[str, ...] = ()
    """Settings of the interface, ``net.X.Y.IFNAME.Z=V``."""


class PortState(msgspec.Struct, frozen=True, kw_only=True):
    """A published port of a running container; ``port`` is the container's, written ``80/tcp``.

    ``host_port`` 0 is no port of the host: the container's own is open.
    """

    port: str
    host_ip: str
    host_port: int


class SandboxDocument(msgspec.Struct, frozen=True, kw_only=True):
    """Everything needed to take over a running container's network after a restart of the daemon."""

    sandbox_id: str
    container_id: str
    name: str
    mode: str
    endpoints: dict[str, EndpointState] = {}
    ports: tuple[PortState, ...] = ()
    exposed: tuple[str, ...] = ()
    directory: str = ""
    hosts_path: str = ""
    hostname_path: str = ""
    resolv_path: str = ""
    hostname: str = ""
    domainname: str = ""
    extra_hosts: tuple[tuple[str, str], ...] = ()
    upstream: tuple[str, ...] = ()
    has_ipv6: bool = True


class AddressWish(Protocol):
    """The addresses asked for, as in the API's ``EndpointIPAMConfig``."""

    @property
    def ipv4_address(self) -> str: ...
    @property
    def ipv6_address(self) -> str: ...
    @property
    def link_local_ips(self) -> Sequence[str] | None: ...


class EndpointWish(Protocol):
    """What a container asks of one network: the asking half of the API's ``EndpointSettings``."""

    @property
    def ipam_config(self) -> AddressWish | None: ...
    @property
    def aliases(self) -> Sequence[str] | None: ...
    @property
    def links(self) -> Sequence[str] | None: ...
    @property
    def mac_address(self) -> str: ...
    @property
    def gw_priority(self) -> int: ...
    @property
    def driver_opts(self) -> Mapping[str, str] | None: ...


class BindingWish(Protocol):
    """A host address and port (or range of ports) asked for, as in the API's ``PortBinding``."""

    @property
    def host_ip(self) -> str: ...
    @property
    def host_port(self) -> str: ...


@dataclass(frozen=True, slots=True)
class PortsWish:
    """The ports a container exposes (``80/tcp``), and those of them that it wants published."""

    exposed: Sequence[str] = ()
    bindings: Mapping[str, Sequence[BindingWish] | None] = field(default_factory=dict)
    publish_all: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """A ``--link`` that was resolved: the other container's name, the alias here, and its address."""

    name: str
    alias: str
    ip: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxRequest:
    """All that a starting container says about its network. ``directory`` is where the three name files go.

    ``mode`` is ``HostConfig.NetworkMode``; with ``container:ID`` ``joined_id`` and ``joined_pid`` are that container's.
    ``endpoints`` maps the networks to join (name or id) to wishes: a container that has none has loopback only.
    """

    container_id: str
    name: str
    hostname: str
    directory: Path
    domainname: str = ""
    mode: str = "default"
    joined_id: str = ""
    joined_pid: int | None = None
    endpoints: Mapping[str, EndpointWish | None] = field(default_factory=dict)
    ports: PortsWish = PortsWish()
    dns: Sequence[str] = ()
    dns_search: Sequence[str] = ()
    dns_options: Sequence[str] = ()
    extra_hosts: Sequence[str] = ()
    links: Sequence[Link] = ()
    mac_address: str = ""
    has_ipv6: bool = True
    """Whether it may have IPv6 addresses: not when its settings (sysctls) turn IPv6 off."""
    is_mapped: bool = False
    """Whether its users are others on the host (userns-remap)."""
    userns_pid: int = 0
    """Then, the process whose user namespace it joins."""
