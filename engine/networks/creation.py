"""From a request to a checked network: names, drivers, subnets, gateways.

Pure; errors are those docker's clients know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

import msgspec

from engine.errors import Conflict, EngineError, Forbidden, InvalidParameter, NotFound
from engine.networks import ipam
from engine.networks.ipam import Subnet
from engine.networks.model import DEFAULT_NETWORKS, OPTION_BRIDGE, IpamBlock, Network

DRIVERS = ("bridge", "host", "null", "macvlan", "ipvlan")


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateNetwork:
    """A request for a network. ``blocks`` may lack gateways, or be empty for a default subnet."""

    name: str
    driver: str = "bridge"
    scope: str = ""
    is_internal: bool = False
    is_attachable: bool = False
    is_ingress: bool = False
    is_config_only: bool = False
    config_from: str = ""
    has_ipv4: bool = True
    has_ipv6: bool = False
    ipam_driver: str = "default"
    ipam_options: Mapping[str, str] | None = None
    blocks: Sequence[IpamBlock] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


def check_name(request: CreateNetwork) -> None:
    """Raise what dockerd raises for the name, the driver and the scope."""
    if not request.name.strip():
        raise InvalidParameter("invalid name: name is empty")
    if request.name in DEFAULT_NETWORKS or request.name == "default":
        raise Forbidden(f"operation is not permitted on predefined {request.name} network")
    if request.driver in ("host", "null"):
        shown = "host" if request.driver == "host" else "null"
        raise Forbidden(f'only one instance of "{shown}" network is allowed')
    if request.driver == "overlay" or request.scope in ("swarm", "global") or request.is_ingress:
        raise Forbidden(
            'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to '
            "swarm and try again."
        )
    if request.driver not in DRIVERS:
        raise NotFound(f'plugin "{request.driver}" not found')
    if request.ipam_driver not in ("default", "", "null"):
        raise NotFound(f'plugin "{request.ipam_driver}" not found')
    if request.is_config_only and request.config_from:
        raise Forbidden("configuration-only networks cannot depend on other configuration-only networks")
    if not (request.has_ipv4 or request.has_ipv6):
        raise InvalidParameter("IPv4 or IPv6 must be enabled")


def plan_blocks(
    request: CreateNetwork,
    network_id: str,
    pools: Sequence[tuple[str, int]],
    networks: Sequence[tuple[Subnet, Network]],
    host_subnets: Sequence[Subnet],
) -> tuple[IpamBlock, ...]:
    """The subnets with gateways: those asked for, checked, and default ones where none was.

    Raises an ``EngineError``.
    """
    given = [_checked(block) for block in request.blocks if block.subnet]
    orphans = [block for block in request.blocks if not block.subnet]
    taken = [subnet for subnet, _ in networks]
    for block in given:
        _refuse_overlap(block.network, networks, [b.network for b in given if b is not block])
    found = list(given)
    versions = {block.network.version for block in given}
    if request.has_ipv4 and 4 not in versions and request.ipam_driver != "null":
        try:
            subnet = ipam.choose_subnet(pools, [*taken, *host_subnets])
        except ipam.PoolExhausted as error:
            raise EngineError("all predefined address pools have been fully subnetted") from error
        found.append(_with_hints(IpamBlock(subnet=str(subnet)), orphans))
    elif orphans:
        raise InvalidParameter(_no_match(orphans[0]))
    if request.has_ipv6 and 6 not in versions:
        try:
            six = ipam.choose_ipv6_subnet(pools, network_id, [*taken, *host_subnets])
        except ipam.PoolExhausted as error:
            raise EngineError("all predefined address pools have been fully subnetted") from error
        found.append(IpamBlock(subnet=str(six)))
    isolated = {option for option, value in request.options.items() if value == "isolated"}
    wanted = [block for block in found if request.has_ipv6 or block.network.version == 4]
    return tuple(
        block
        if f"{OPTION_BRIDGE}gateway_mode_ipv{block.network.version}" in isolated
        else _with_gateway(block, is_shown=block not in given)
        for block in sorted(wanted, key=lambda block: block.network.version)
    )


def _no_match(block: IpamBlock) -> str:
    if block.gateway:
        return f"no matching subnet for gateway {block.gateway}"
    return f"no matching subnet for range {block.ip_range}"


def _with_hints(block: IpamBlock, orphans: Iterable[IpamBlock]) -> IpamBlock:
    for orphan in orphans:
        if orphan.gateway and ip_address(orphan.gateway) not in block.network:
            raise InvalidParameter(_no_match(orphan))
        block = IpamBlock(subnet=block.subnet, gateway=orphan.gateway, aux=orphan.aux)
    return block


def _checked(block: IpamBlock) -> IpamBlock:
    problems = []
    try:
        subnet = ip_network(block.subnet)
    except ValueError as error:
        raise InvalidParameter(f"invalid network config:\ninvalid subnet {_why_not(block.subnet)}") from error
    if block.ip_range:
        try:
            inner = ip_network(block.ip_range)
            if inner.version != subnet.version or not inner.subnet_of(subnet):  # type: ignore[arg-type]
                problems.append(f"invalid ip-range {inner}: parent subnet {subnet} doesn't contain ip-range")
        except ValueError:
            problems.append(f"invalid ip-range {block.ip_range}: invalid CIDR block notation")
    for what, address in (("gateway", block.gateway), *(("auxiliary address", a) for a in block.aux.values())):
        if not address:
            continue
        try:
            inside = ip_address(address.partition("/")[0]) in subnet
        except ValueError:
            problems.append(f"invalid {what} {address}: invalid address")
            continue
        if not inside:
            problems.append(f"invalid {what} {address}: parent subnet {subnet} doesn't contain this address")
    if problems:
        raise InvalidParameter("invalid network config:\n" + "\n".join(problems))
    return block


def _why_not(subnet: str) -> str:
    try:
        return f"{subnet}: it should be {ip_network(subnet, strict=False)}"
    except ValueError:
        return f"{subnet}: invalid CIDR block notation"


def _refuse_overlap(subnet: Subnet, networks: Sequence[tuple[Subnet, Network]], own: Sequence[Subnet]) -> None:
    if ipam.overlaps(subnet, own) is not None:
        raise InvalidParameter("invalid network config:\nsubnets of one network must not overlap")
    for other, network in networks:
        if ipam.overlaps(subnet, [other]) is not None:
            raise Forbidden(
                "invalid pool request: Pool overlaps with other one on this address space "
                f"({subnet} and {other} of network {network.name})"
            )


def _with_gateway(block: IpamBlock, *, is_shown: bool) -> IpamBlock:
    if block.gateway:
        return block
    inside = ip_network(block.ip_range) if block.ip_range else block.network
    used = set(block.aux.values())
    for address in inside.hosts():
        if str(address) not in used:
            return msgspec.structs.replace(block, gateway=str(address), is_gateway_told=is_shown)
    return block


def refuse_duplicate_bridge(network: Network, others: Iterable[Network]) -> None:
    """Two networks cannot share one bridge interface. Raises ``Conflict``."""
    for other in others:
        if other.driver == "bridge" and other.interface == network.interface:
            raise Conflict(
                f"cannot create network {network.id} ({network.interface}): "
                f"conflicts with network {other.id} ({other.interface}): networks have same bridge name"
            )
