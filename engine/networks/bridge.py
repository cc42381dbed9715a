"""Bridge networks: a bridge on the host that is the containers' gateway, and a veth pair for each endpoint.

A bridge that the engine made carries an alias by which it is known again after a restart; one that the administrator
made is used as it is and never removed.
"""

from __future__ import annotations

import secrets
from ipaddress import ip_address, ip_interface
from pathlib import Path

from engine.kernel import namespaces, netlink
from engine.kernel.namespaces import NetworkNamespace
from engine.kernel.netlink import RouteSocket
from engine.networks.firewall import Firewall
from engine.networks.links import HostLinks, write_sysctl_sync
from engine.networks.model import OPTION_BRIDGE, OPTION_MTU, EndpointState, Network
from engine.networks.ruleset import BridgeRules
from engine.networks.wishes import sysctl_of
from engine.tasks import run_in

ALIAS = "berth"
_GATEWAY_MODES = ("nat", "nat-unprotected", "routed", "isolated")


class BridgeDriver:
    """See ``Driver``."""

    def __init__(self, links: HostLinks, firewall: Firewall, *, forwards: bool = True) -> None:
        self._links = links
        self._firewall = firewall
        self._forwards = forwards

    def check(self, network: Network) -> None:
        """See ``Driver``."""
        mtu = network.options.get(OPTION_MTU, "")
        if mtu and not (mtu.isdigit() and 0 <= int(mtu) <= 65535):
            raise ValueError(f"invalid MTU: {mtu}")
        name = network.options.get(OPTION_BRIDGE + "name", "")
        if name and (
            len(name) > 15 or "/" in name or name in (".", "..") or any(c.isspace() or c in '":' for c in name)
        ):
            raise ValueError(f"invalid bridge name: {name}")
        for version in (4, 6):
            mode = network.gateway_mode(version)
            if mode not in _GATEWAY_MODES:
                option = f"{OPTION_BRIDGE}gateway_mode_ipv{version}"
                raise ValueError(f"failed to parse {option} value: {mode} (unknown gateway mode {mode})")
            if mode == "isolated" and not network.is_internal:
                raise ValueError("gateway mode 'isolated' can only be used for an internal network")
        binding = network.options.get(OPTION_BRIDGE + "host_binding_ipv4", "")
        if binding:
            ip_address(binding)

    async def create(self, network: Network) -> None:
        """See ``Driver``."""
        name = network.interface
        link = await self._links.link(name)
        if link is None:
            mac = "02:42:" + secrets.token_bytes(4).hex(":")
            await self._links.send(netlink.add_bridge(name, mtu=network.mtu, mac=mac), netlink.set_alias(name, ALIAS))
            link = await self._links.link(name)
        if link is None or link.kind != "bridge":
            raise ValueError(f"existing interface {name} is not a bridge")
        await run_in("net", self._configure_sync, name, network)
        addresses = [
            netlink.add_address(link.index, ip_interface(f"{block.gateway}/{block.network.prefixlen}"))
            for block in network.blocks
            if block.gateway
            and not network.option("inhibit_ipv4", False)
            and network.gateway_mode(block.network.version) != "isolated"
        ]
        await self._links.send(*addresses, netlink.set_up(link.index))
        await self._firewall.set_bridge(network.id, self._rules(network))

    def _configure_sync(self, name: str, network: Network) -> None:
        # Without this the kernel takes an answer to 127.0.0.1 that comes over the bridge for a forgery.
        write_sysctl_sync(f"ipv4/conf/{name}/route_localnet", "1")
        if self._forwards:
            write_sysctl_sync("ipv4/ip_forward", "1")
        if not network.option("enable_icc", True):
            # What one container may say to another (a link) goes through the host's rules: the host answers ARP for
            # all of them, and does not tell them that they are neighbours.
            write_sysctl_sync(f"ipv4/conf/{name}/proxy_arp_pvlan", "1")
            write_sysctl_sync(f"ipv4/conf/{name}/send_redirects", "0")
        if network.gateway_mode(6) == "isolated":
            write_sysctl_sync(f"ipv6/conf/{name}/disable_ipv6", "1")
        elif network.has_ipv6:
            write_sysctl_sync(f"ipv6/conf/{name}/disable_ipv6", "0")
            write_sysctl_sync(f"ipv6/conf/{name}/accept_dad", "0")
            if self._forwards:
                _forward_ipv6_sync()

    def _rules(self, network: Network) -> BridgeRules:
        return BridgeRules(
            interface=network.interface,
            subnets=tuple(block.network for block in network.blocks),
            is_internal=network.is_internal,
            can_talk=network.option("enable_icc", True),
            masquerades=network.option("enable_ip_masquerade", True),
            unprotected=frozenset(v for v in (4, 6) if network.gateway_mode(v) == "nat-unprotected"),
            routed=frozenset(v for v in (4, 6) if network.gateway_mode(v) == "routed"),
            source_address=network.options.get("com.docker.network.host_ipv4", ""),
        )

    async def remove(self, network: Network) -> None:
        """See ``Driver``."""
        await self._firewall.remove_bridge(network.id)
        link = await self._links.link(network.interface)
        if link is not None and link.alias == ALIAS:
            await self._links.remove(network.interface)

    async def attach(self, network: Network, endpoint: EndpointState, namespace: NetworkNamespace) -> None:
        """See ``Driver``."""

        def attach_sync(route: RouteSocket) -> None:
            bridge = route.link_sync(network.interface)
            if bridge is None:
                raise OSError(f"bridge {network.interface} of network {network.name} is gone")
            pair = netlink.add_veth(
                endpoint.link,
                master=bridge.index,
                mtu=network.mtu or bridge.mtu,
                peer=endpoint.interface,
                peer_mac=endpoint.mac_address,
                peer_netns=namespace.fd,
            )
            is_isolated = not network.option("enable_icc", True) and not _filters_frames_sync()
            route.send_sync(pair, netlink.configure_port(endpoint.link, is_isolated=is_isolated))
            configure_inside_sync(endpoint, namespace)

        await self._links.call(attach_sync)

    async def detach(self, network: Network, endpoint: EndpointState, namespace: NetworkNamespace | None) -> None:
        """See ``Driver``."""
        if namespace is not None:
            await self._links.remove(endpoint.link)
        else:
            await self._links.vanished(endpoint.link)


def configure_inside_sync(endpoint: EndpointState, namespace: NetworkNamespace) -> None:
    """Give the endpoint's interface, which is in the namespace already, its addresses, and bring it up."""
    inside = RouteSocket(namespace.socket)
    link = inside.link_sync(endpoint.interface)
    if link is None:
        raise OSError(f"interface {endpoint.interface} is not in the container's namespace")
    if endpoint.global_ipv6_address or any(":" in address for address in endpoint.link_local):
        namespaces.set_ipv6_sync(namespace.fd, endpoint.interface, True)
    if endpoint.sysctls:
        namespaces.write_sysctls_sync(namespace.fd, [sysctl_of(s, endpoint.interface) for s in endpoint.sysctls])
    given = (
        (endpoint.ip_address, endpoint.ip_prefix_len),
        (endpoint.global_ipv6_address, endpoint.global_ipv6_prefix_len),
        *((address, 64 if ":" in address else 16) for address in endpoint.link_local),
    )
    requests = [netlink.add_address(link.index, ip_interface(f"{ip}/{prefix}")) for ip, prefix in given if ip]
    inside.send_sync(*requests, netlink.set_up(link.index))


def _filters_frames_sync() -> bool:
    """Whether this host takes frames between ports of one bridge through the firewall: then ports need no isolation."""
    try:
        return Path("/proc/sys/net/bridge/bridge-nf-call-iptables").read_text().strip() == "1"
    except FileNotFoundError:
        return False


def _forward_ipv6_sync() -> None:
    """Forward IPv6 and keep the host's own connection.

    A forwarding host ignores router advertisements unless told 2.
    """
    for conf in Path("/proc/sys/net/ipv6/conf").iterdir():
        accept = conf / "accept_ra"
        if conf.name not in ("all", "lo") and accept.read_text().strip() == "1":
            accept.write_text("2")
    write_sysctl_sync("ipv6/conf/all/forwarding", "1")
    write_sysctl_sync("ipv6/conf/default/forwarding", "1")
