"""The default bridge's subnets: from what the daemon was told and the addresses that the bridge has already. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv6Interface, IPv6Network, ip_address, ip_interface

import msgspec

from engine.networks.ipam import first_host
from engine.networks.model import WAY_OUT, IpamBlock

Interface = IPv4Interface | IPv6Interface

_AUTOMATIC = IPv6Network("fe80::/64")
"""Where the kernel's own link-local addresses are."""


def told_block(told: str, inner: str, present: Sequence[Interface], *, is_users: bool) -> IpamBlock | None:
    """One IP version's subnet: ``told`` is the bridge's address (``bip``), ``inner`` the range to give out
    (``fixed-cidr``); both may be empty. ``present`` are the addresses of that version on the bridge, which dockerd
    takes over where they agree with the range, and from a bridge of the user's (``is_users``) in any case.

    None leaves the choice to the pools. Raises ``ValueError`` where the two contradict each other.
    """
    given = ip_interface(inner) if inner else None
    own = ip_interface(told) if told else _own_address(present, given, is_users=is_users)
    if own is None:
        if given is None:
            return None
        subnet = str(given.network)
        return IpamBlock(subnet=subnet, ip_range=subnet, gateway=first_host(given.network), is_gateway_told=False)
    if given is None:
        return IpamBlock(subnet=str(own.network), gateway=str(own.ip))
    if is_users and not told and (given.ip not in own.network or given.network.prefixlen < own.network.prefixlen):
        if own.version == 6:
            raise ValueError(
                f"fixed-cidr-v6={inner} is outside any subnet implied by addresses on the user-managed default bridge"
            )
        return IpamBlock(subnet=str(own.network), gateway=str(own.ip))
    return IpamBlock(subnet=str(own.network), ip_range=str(given.network), gateway=str(own.ip))


def with_way_out(block: IpamBlock, *gateways: str) -> IpamBlock:
    """``block`` with that of the addresses, which may be empty, that is of its version (``default-gateway``).

    Raises ``ValueError`` for one that is outside the subnet.
    """
    for text in gateways:
        if text and ip_address(text).version == block.network.version:
            name = f"{WAY_OUT}{block.network.version}"
            if ip_address(text) not in block.network:
                raise ValueError(f"auxiliary address: ({name}:{text}) must belong to the master pool: {block.subnet}")
            block = msgspec.structs.replace(block, aux={name: text})
    return block


def _own_address(present: Sequence[Interface], given: Interface | None, *, is_users: bool) -> Interface | None:
    """The address that the bridge keeps, with its subnet."""
    if given is None or given.ip not in _AUTOMATIC:
        present = [one for one in present if one.ip not in _AUTOMATIC]
    if not present:
        return None
    own = present[0]
    if given is None:
        return own
    for one in present:
        if given.ip in one.network:
            own = one
            break
        if one.ip in given.network and own.ip not in given.network:
            own = one
    if is_users:
        return own
    if given.ip not in own.network:
        return None  # the range has changed, and the bridge is to follow it
    return ip_interface(f"{own.ip}/{min(own.network.prefixlen, given.network.prefixlen)}")
