"""What a container asks of one network: whether it makes sense, and what its driver options say. Pure."""

from __future__ import annotations

import re
from collections.abc import Container

from engine.errors import InvalidParameter, SystemFailure
from engine.networks import ipam
from engine.networks.ipam import is_address_in
from engine.networks.model import OPTION_PREFIX, AddressWish, EndpointWish, Network

OPTION_INTERFACE = "com.docker.network.endpoint.ifname"
OPTION_SYSCTLS = "com.docker.network.endpoint.sysctls"
_MAC = re.compile(r"[0-9a-f]{2}([:-])(?:[0-9a-f]{2}\1){4}[0-9a-f]{2}|(?:[0-9a-f]{4}\.){2}[0-9a-f]{4}", re.IGNORECASE)
_SYSCTL = re.compile(r"net\.(?:ipv4|ipv6|mpls)\.[^./]+\.(?:IFNAME|ifname)\.[^./=]+(?:=.*)?")


def wished_interface(wish: EndpointWish | None) -> str:
    """The name that the interface is to have inside; empty for one of the engine's choice."""
    return (wish.driver_opts or {}).get(OPTION_INTERFACE, "") if wish is not None else ""


def choose_interface(network: Network, wish: EndpointWish | None, taken: Container[str]) -> str:
    """The endpoint's interface: as wished, else the first free number. Raises ``SystemFailure`` for a taken name."""
    if name := wished_interface(wish):
        if name in taken or name == "lo":
            raise SystemFailure(f'error renaming interface to "{name}": file exists')
        return name
    prefix, number = network.options.get(OPTION_PREFIX) or "eth", 0
    while f"{prefix}{number}" in taken:
        number += 1
    return f"{prefix}{number}"


def wished_sysctls(wish: EndpointWish | None) -> tuple[str, ...]:
    """Settings of the interface as ``net.X.Y.IFNAME.Z=V``."""
    text = (wish.driver_opts or {}).get(OPTION_SYSCTLS, "") if wish is not None else ""
    return tuple(text.split(",")) if text else ()


def sysctl_of(text: str, interface: str) -> tuple[str, str]:
    """A checked setting as a path below ``/proc/sys`` and a value. Raises ``ValueError`` where there is no value."""
    name, found, value = text.partition("=")
    if not found:
        raise ValueError(f"expected sysctl '{text}' to have format name=value")
    parts = name.split(".")
    return "/".join((*parts[:3], interface, parts[4])), value


def plain_mac(text: str) -> str:
    """A checked hardware address in the kernel's spelling."""
    return bytes.fromhex(re.sub("[:.-]", "", text)).hex(":")


def check_wish(network: Network | None, wish: EndpointWish) -> None:
    """What a network can grant at all, as dockerd checks it when a container is created or connected.

    Of a network that is not there (``None``) only the spelling is known. Raises ``InvalidParameter``.
    """
    if wish.mac_address and not _MAC.fullmatch(wish.mac_address):
        raise InvalidParameter(f"invalid MAC address {wish.mac_address}")
    asked = wish.ipam_config
    problems = _misspelt(asked) if asked is not None else []
    problems += [
        f"unrecognised network interface sysctl '{sysctl}'; represent 'net.X.Y.ethN.Z=V' as 'net.X.Y.IFNAME.Z=V', "
        "'X' must be 'ipv4', 'ipv6' or 'mpls'"
        for sysctl in wished_sysctls(wish)
        if _SYSCTL.fullmatch(sysctl) is None
    ]
    addresses = [a for a in (asked.ipv4_address, asked.ipv6_address) if a] if asked is not None else []
    if network is None or problems:
        pass
    elif network.is_predefined:
        if addresses:
            problems.append("user specified IP address is supported on user defined networks only")
        if wish.aliases:
            problems.append("network-scoped alias is supported only for containers in user defined networks")
    elif addresses and not network.has_own_subnets:
        problems.append(
            "user specified IP address is supported only when connecting to networks with user configured subnets"
        )
    else:
        problems += [
            f"no configured subnet or ip-range contain the IP address {address}"
            for address in addresses
            if not any(is_address_in(address, block.subnet) for block in network.blocks)
        ]
    if problems:
        text = "\n".join(problems)
        raise InvalidParameter(f"invalid endpoint settings:\n{text}")


def _misspelt(asked: AddressWish) -> list[str]:
    """What is no address, or none of its kind, in dockerd's words."""
    problems = []
    if asked.ipv4_address and not ipam.is_usable(asked.ipv4_address, 4):
        problems.append(f"invalid IPv4 address: {asked.ipv4_address}")
    if asked.ipv6_address and not ipam.is_usable(asked.ipv6_address, 6):
        problems.append(f"invalid IPv6 address: {asked.ipv6_address}")
    unusable = [a for a in asked.link_local_ips or () if not (ipam.is_usable(a, 4) or ipam.is_usable(a, 6))]
    return [*problems, *(f"invalid link-local IP address: {address}" for address in unusable)]
