"""A container's endpoint on a network as values: the addresses it leases, the names it answers to.

Nothing of it is in the kernel yet; the driver puts it there.
"""

from __future__ import annotations

import re
import secrets

from engine.errors import Forbidden, InvalidParameter
from engine.names import new_id, short
from engine.networks import ipam
from engine.networks.model import AddressWish, EndpointState, EndpointWish, Network
from engine.networks.sandbox import Sandbox
from engine.networks.store import NetworkStore
from engine.networks.wishes import plain_mac, wished_sysctls

_TURNS_IPV6_OFF = re.compile(r"net\.ipv6\.conf\.(?i:ifname)\.disable_ipv6=\s*1\s*")


def lease_endpoint(
    store: NetworkStore, sandbox: Sandbox, network: Network, wish: EndpointWish | None, interface: str, mac: str
) -> EndpointState:
    """Addresses and names for a container's endpoint; ``mac`` counts where the wish names none.

    Raises ``Forbidden`` when an address is not to be had, ``InvalidParameter`` when it makes no sense.
    """
    asked = wish.ipam_config if wish is not None else None
    ip = ip6 = ""
    prefix = prefix6 = 0
    link_local = _link_local(asked)
    try:
        if network.has_ipv4 and network.ipam_driver != "null":
            address, prefix = store.lease(network, 4, asked.ipv4_address if asked else "")
            ip = str(address)
        sysctls = wished_sysctls(wish)
        if network.has_ipv6 and sandbox.has_ipv6 and not any(_TURNS_IPV6_OFF.fullmatch(s) for s in sysctls):
            address, prefix6 = store.lease(network, 6, asked.ipv6_address if asked else "")
            ip6 = str(address)
    except ipam.PoolExhausted as error:
        _release(store, network.id, ip)
        raise Forbidden(
            f"no available IPv4 addresses on this network's address pools: {network.name} ({network.id})"
        ) from error
    except ValueError as error:
        _release(store, network.id, ip)
        raise Forbidden(str(error)) from error
    aliases = tuple(wish.aliases or ()) if wish is not None else ()
    wished_mac = (wish.mac_address if wish is not None else "") or mac
    names = (sandbox.name, *aliases, short(sandbox.container_id), sandbox.hostname)
    has_gateway = network.leads_outside and not network.is_routed
    gateways = {
        block.network.version: block.way_out if network.driver == "bridge" else block.gateway
        for block in reversed(network.blocks)
    }
    return EndpointState(
        network_id=network.id,
        network_name=network.name,
        endpoint_id=new_id(),
        interface=interface,
        link=f"veth{secrets.token_hex(4)[:7]}" if network.driver == "bridge" else "",
        gateway=gateways.get(4, "") if has_gateway else "",
        ip_address=ip,
        ip_prefix_len=prefix,
        mac_address=plain_mac(wished_mac) if wished_mac else random_mac(),
        ipv6_gateway=gateways.get(6, "") if has_gateway and ip6 else "",
        global_ipv6_address=ip6,
        global_ipv6_prefix_len=prefix6,
        aliases=aliases,
        dns_names=tuple(dict.fromkeys(n for n in names if n)) if network.resolves_names else (),
        links=tuple(wish.links or ()) if wish is not None else (),
        gw_priority=wish.gw_priority if wish is not None else 0,
        is_routed=network.leads_outside and network.is_routed,
        link_local=link_local,
        sysctls=sysctls,
    )


def random_mac() -> str:
    """A hardware address of its own for every start: what the last run's still has in a switch or cache is not met."""
    return "02:42:" + secrets.token_bytes(4).hex(":")


def give_back(store: NetworkStore, endpoint: EndpointState) -> None:
    """The endpoint's addresses are free again."""
    for address in (endpoint.ip_address, endpoint.global_ipv6_address):
        _release(store, endpoint.network_id, address)


def _release(store: NetworkStore, network_id: str, address: str) -> None:
    if address:
        store.release(network_id, address)


def _link_local(asked: AddressWish | None) -> tuple[str, ...]:
    wanted = tuple(asked.link_local_ips or ()) if asked is not None else ()
    for address in wanted:
        if not ipam.is_link_local(address):
            raise InvalidParameter(f"invalid link local IP address: {address}")
    return wanted
