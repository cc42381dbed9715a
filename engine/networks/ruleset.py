"""The firewall as text for nftables, from the model: the same model always gives the same rules. Pure.

One table of family inet holds everything. Published ports are elements of maps, so their number costs nothing and one
of them is one small transaction. The whole text may be applied over an existing table: what is ours is emptied and
filled again in that one transaction, and the chain ``berth-user``, which belongs to the administrator and is visited
first, is left alone.

What the rules promise:
- a published port leads to its container from the host, from 127.0.0.1, from other hosts and from other containers;
- one that is bound to a loopback address does not answer to other hosts, whatever they put into their packets;
- a container's unpublished ports are closed to everybody outside its network, and networks are closed to each other;
- an internal network reaches nothing outside and is reached by nothing outside.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address

USER_CHAIN = "berth-user"


@dataclass(frozen=True, slots=True)
class BridgeRules:
    """What the firewall must know of one bridge network."""

    interface: str
    subnets: tuple[IPv4Network | IPv6Network, ...] = ()
    is_internal: bool = False
    can_talk: bool = True
    """Whether containers of this network reach each other (``icc``)."""
    masquerades: bool = True
    unprotected: frozenset[int] = frozenset()
    """The IP versions in which all ports of its containers are open."""
    routed: frozenset[int] = frozenset()
    """The IP versions in which its containers are reached and reach others by their own addresses."""
    source_address: str = ""
    """The host's IPv4 address that outgoing connections take, instead of that of the route's interface."""


@dataclass(frozen=True, slots=True, order=True)
class PublishedPort:
    """A host port that leads to a container. ``host_ip`` is an address or ``0.0.0.0``/``::`` for all of the host's.

    ``host_port`` 0 opens the container's port at its own address.
    """

    protocol: str
    host_ip: str
    host_port: int
    container_ip: str
    container_port: int

    @property
    def version(self) -> int:
        """The IP version of the container's address."""
        return ip_address(self.container_ip).version


@dataclass(frozen=True, slots=True, order=True)
class Passage:
    """A link: one container may reach one port of another although their network forbids talking."""

    source: str
    destination: str
    protocol: str
    port: int


@dataclass(frozen=True, slots=True)
class FirewallModel:
    """Everything the rules depend on."""

    table: str
    bridges: tuple[BridgeRules, ...] = ()
    ports: tuple[PublishedPort, ...] = ()
    passages: tuple[Passage, ...] = ()
    has_ipv6: bool = True
    """Whether the rules concern IPv6 packets, or let them all be."""


def _element(port: PublishedPort) -> tuple[str, str, str]:
    """The map or set a port belongs to, its key, and what else its element says."""
    if not port.host_port:
        return f"open{port.version}", f"{port.container_ip} . {port.protocol} . {port.container_port}", ""
    everywhere = ip_address(port.host_ip).is_unspecified
    key = f"{port.protocol} . {port.host_port}"
    name = f"published{port.version}" if everywhere else f"published{port.version}_at"
    value = f" : {port.container_ip} . {port.container_port}"
    return name, key if everywhere else f"{port.host_ip} . {key}", value


_MAPS = {
    "published4": "type inet_proto . inet_service : ipv4_addr . inet_service",
    "published4_at": "type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service",
    "published6": "type inet_proto . inet_service : ipv6_addr . inet_service",
    "published6_at": "type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service",
}
_SETS = {
    "bridges": "type ifname",
    "internal": "type ifname",
    "talking": "type ifname . ifname",
    "passages": "type ipv4_addr . ipv4_addr . inet_proto . inet_service",
    "open4": "type ipv4_addr . inet_proto . inet_service",
    "open6": "type ipv6_addr . inet_proto . inet_service",
}
_CHAINS = {
    "prerouting": "{ type nat hook prerouting priority -100; policy accept; }",
    "output": "{ type nat hook output priority -100; policy accept; }",
    "postrouting": "{ type nat hook postrouting priority 100; policy accept; }",
    "forward": "{ type filter hook forward priority 0; policy accept; }",
    "published": "",
    "inward": "",
}


def elements(model: FirewallModel) -> dict[str, list[str]]:
    """Every set and map with the elements it must hold."""
    found: dict[str, list[str]] = {name: [] for name in (*_SETS, *_MAPS)}
    for bridge in model.bridges:
        name = f'"{bridge.interface}"'
        found["bridges"].append(name)
        if bridge.is_internal:
            found["internal"].append(name)
        if bridge.can_talk:
            found["talking"].append(f"{name} . {name}")
    for passage in dict.fromkeys(model.passages):  # two links to one container are one passage
        found["passages"].append(f"{passage.source} . {passage.destination} . {passage.protocol} . {passage.port}")
    for port in dict.fromkeys(model.ports):
        target, key, value = _element(port)
        found[target].append(key + value)
    return found


def rules(model: FirewallModel) -> dict[str, list[str]]:
    """Every chain of ours with its rules, in order."""
    local4 = "meta nfproto ipv4 fib daddr type local"
    local6 = "meta nfproto ipv6 fib daddr type local"
    chains = {
        # Loopback destinations are translated for the host's own processes only (output). A packet from outside that
        # claims one is left as it is, and the kernel drops it as a martian.
        "prerouting": [f"{local4} ip daddr != 127.0.0.0/8 jump published", f"{local6} ip6 daddr != ::1 jump published"],
        "output": [f"{local4} jump published", f"{local6} ip6 daddr != ::1 jump published"],
        "published": [
            "dnat ip to ip daddr . meta l4proto . th dport map @published4_at",
            "dnat ip to meta l4proto . th dport map @published4",
            "dnat ip6 to ip6 daddr . meta l4proto . th dport map @published6_at",
            "dnat ip6 to meta l4proto . th dport map @published6",
        ],
        "postrouting": [
            # The host's own connection over 127.0.0.1 must leave with an address that the container can answer to.
            "ip saddr 127.0.0.0/8 oifname @bridges masquerade",
            *(line for bridge in model.bridges for line in _translations(bridge)),
        ],
        "forward": [
            f"jump {USER_CHAIN}",
            "iifname . oifname @talking accept",
            "iifname @internal drop",
            "oifname @internal ct status dnat drop",
            "oifname @bridges jump inward",
        ],
        "inward": [
            "ct state established,related accept",
            "ct status dnat accept",
            "ip saddr . ip daddr . meta l4proto . th dport @passages accept",
            "ip daddr . meta l4proto . th dport @open4 accept",
            "ip6 daddr . meta l4proto . th dport @open6 accept",
            *(line for bridge in model.bridges for line in _openings(bridge)),
            "drop",
        ],
    }
    if not model.has_ipv6:
        for name in ("prerouting", "output", "postrouting", "forward"):
            chains[name].insert(0, "meta nfproto ipv6 accept")
    return chains


def _translations(bridge: BridgeRules) -> Iterable[str]:
    for subnet in bridge.subnets:
        family = "ip" if subnet.version == 4 else "ip6"
        # A container that reaches a neighbour (or itself) through the host: the answer must come back through the host.
        yield f"{family} saddr {subnet} {family} daddr {subnet} ct status dnat masquerade"
        if bridge.is_internal or not bridge.masquerades or subnet.version in bridge.routed:
            continue
        leave = f"snat ip to {bridge.source_address}" if bridge.source_address and subnet.version == 4 else "masquerade"
        yield f'{family} saddr {subnet} oifname != "{bridge.interface}" {leave}'


def _openings(bridge: BridgeRules) -> Iterable[str]:
    """What passes into a network beside its published ports."""
    if bridge.is_internal:
        return
    for version in sorted(bridge.unprotected):
        yield f'oifname "{bridge.interface}" meta nfproto ipv{version} accept'
    for version in sorted(bridge.routed):
        yield f'oifname "{bridge.interface}" {"ip protocol icmp" if version == 4 else "meta l4proto ipv6-icmp"} accept'


def render(model: FirewallModel) -> str:
    """The script that makes the table equal to the model, whether it exists, is damaged, or is absent."""
    table = f"inet {model.table}"
    lines = [f"add table {table}", f"add chain {table} {USER_CHAIN}"]
    lines += [f"add set {table} {name} {{ {kind}; }}" for name, kind in _SETS.items()]
    lines += [f"add map {table} {name} {{ {kind}; }}" for name, kind in _MAPS.items()]
    lines += [f"add chain {table} {name} {hook}".rstrip() for name, hook in _CHAINS.items()]
    lines += [f"flush chain {table} {name}" for name in _CHAINS]
    for name, items in elements(model).items():
        lines.append(f"flush {'set' if name in _SETS else 'map'} {table} {name}")
        if items:
            lines.append(f"add element {table} {name} {{ {', '.join(items)} }}")
    for chain, statements in rules(model).items():
        lines += [f"add rule {table} {chain} {statement}" for statement in statements]
    return "\n".join(lines) + "\n"


def render_ports(table: str, *, add: Iterable[PublishedPort] = (), remove: Iterable[PublishedPort] = ()) -> str:
    """The script that publishes and unpublishes ports and touches nothing else."""
    lines = []
    for port in remove:
        name, key, _ = _element(port)
        lines.append(f"delete element inet {table} {name} {{ {key} }}")
    for port in add:
        name, key, value = _element(port)
        lines.append(f"add element inet {table} {name} {{ {key}{value} }}")
    return "".join(f"{line}\n" for line in lines)


def render_removal(table: str) -> str:
    """The script that removes the table, which need not exist."""
    return f"add table inet {table}\ndelete table inet {table}\n"


def count(model: FirewallModel) -> dict[str, int]:
    """How many rules each chain and how many elements each set must have: enough to see that somebody emptied one."""
    counts = {f"chain {name}": len(statements) for name, statements in rules(model).items()}
    return counts | {f"set {name}": len(items) for name, items in elements(model).items()}


def count_listing(listing: Iterable[dict[str, object]]) -> dict[str, int]:
    """The same numbers of a table as libnftables lists it, the administrator's chain left out."""
    counts: dict[str, int] = {}
    for item in listing:
        for kind, body in item.items():
            if not isinstance(body, dict):
                continue
            if kind == "rule" and body["chain"] != USER_CHAIN:
                counts[f"chain {body['chain']}"] = counts.get(f"chain {body['chain']}", 0) + 1
            elif kind == "chain" and body["name"] != USER_CHAIN:
                counts.setdefault(f"chain {body['name']}", 0)
            elif kind in ("set", "map"):
                counts[f"set {body['name']}"] = len(body.get("elem", ()))
    return counts
