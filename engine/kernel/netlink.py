"""Links, addresses and routes: the few rtnetlink messages the engine needs, packed by hand.

One ``send`` carries a batch, the kernel works through it before the call returns, and the acknowledgements are read
after it: a container's whole interface is two round trips. (A general library costs 11 MiB of private memory and 0.4 ms
a message, measured; this is why there is none here.) See rtnetlink(7) and linux/if_link.h.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_address, ip_network

Interface = IPv4Interface | IPv6Interface
Net = IPv4Network | IPv6Network

_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_REQUEST, _ACK, _DUMP, _EXCL, _REPLACE, _CREATE = 0x1, 0x4, 0x300, 0x200, 0x100, 0x400
_ERROR, _DONE = 2, 3
_IFF_UP = 1
_NESTED = 0x8000

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 5, 10, 18
_IFLA_NET_NS_FD, _IFLA_IFALIAS = 28, 20
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 1, 2, 4, 5
_VETH_PEER, _BRPORT_HAIRPIN, _BRPORT_ISOLATED, _MACVLAN_MODE, _IPVLAN_MODE = 1, 4, 33, 1, 1
_MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
_IPVLAN_MODES = {"l2": 0, "l3": 1, "l3s": 2}
_VLAN_ID = 1

_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBi")
_RTMSG = struct.Struct("=BBBBBBBBI")


@dataclass(frozen=True, slots=True)
class Request:
    """One message of a batch; ``purpose`` begins the error's text."""

    kind: int
    flags: int
    body: bytes
    purpose: str


@dataclass(frozen=True, slots=True)
class Link:
    """An interface as the kernel lists it."""

    index: int
    name: str
    mac: str
    mtu: int
    master: int
    is_up: bool
    kind: str
    alias: str = ""


@dataclass(frozen=True, slots=True)
class Address:
    """An address of an interface."""

    index: int
    interface: Interface


@dataclass(frozen=True, slots=True)
class Route:
    """A unicast route of the main table; ``gateway`` is empty for a directly connected one."""

    destination: Net
    index: int
    gateway: str


def _attr(kind: int, payload: bytes) -> bytes:
    size = 4 + len(payload)
    return struct.pack("=HH", size, kind) + payload + b"\0" * (-size % 4)


def _text(kind: int, value: str) -> bytes:
    return _attr(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return _attr(kind, struct.pack("=I", value))


def _mac(kind: int, value: str) -> bytes:
    return _attr(kind, bytes.fromhex(value.replace(":", "")))


def _family(version: int) -> int:
    return int(socket.AF_INET if version == 4 else socket.AF_INET6)


def _new_link(purpose: str, attributes: bytes, *, up: bool) -> Request:
    head = _IFINFO.pack(0, 0, 0, _IFF_UP if up else 0, _IFF_UP if up else 0)
    return Request(_NEWLINK, _CREATE | _EXCL, head + attributes, purpose)


def add_bridge(name: str, *, mtu: int = 0, mac: str = "") -> Request:
    """Create a bridge and bring it up.

    A fixed ``mac`` keeps it from changing with every port, which would spoil the containers' ARP caches.
    """
    attributes = _text(_IFLA_IFNAME, name) + (_mac(_IFLA_ADDRESS, mac) if mac else b"")
    attributes += _number(_IFLA_MTU, mtu) if mtu else b""
    info = _attr(_IFLA_LINKINFO | _NESTED, _text(_INFO_KIND, "bridge"))
    return _new_link(f"create bridge {name}", attributes + info, up=True)


def set_alias(name: str, alias: str) -> Request:
    """Give an existing interface the remark that ``ip link`` shows, by which its maker knows it again."""
    body = _IFINFO.pack(0, 0, 0, 0, 0) + _text(_IFLA_IFNAME, name) + _text(_IFLA_IFALIAS, alias)
    return Request(_NEWLINK, 0, body, f"mark interface {name}")


def add_dummy(name: str) -> Request:
    """Create a dummy interface, the parent of a macvlan network that was given none."""
    info = _attr(_IFLA_LINKINFO | _NESTED, _text(_INFO_KIND, "dummy"))
    return _new_link(f"create interface {name}", _text(_IFLA_IFNAME, name) + info, up=True)


def add_vlan(name: str, parent: int, vlan_id: int) -> Request:
    """Create an 802.1Q interface of ``parent`` (an index)."""
    data = _attr(_INFO_DATA | _NESTED, _attr(_VLAN_ID, struct.pack("=H", vlan_id)))
    info = _attr(_IFLA_LINKINFO | _NESTED, _text(_INFO_KIND, "vlan") + data)
    return _new_link(
        f"create interface {name}", _text(_IFLA_IFNAME, name) + _number(_IFLA_LINK, parent) + info, up=True
    )


def add_veth(name: str, *, master: int, mtu: int, peer: str, peer_mac: str, peer_netns: int) -> Request:
    """Create a pair: ``name`` here, up and a port of bridge ``master``;

    ``peer`` in the namespace of descriptor ``peer_netns``.
    """
    inner = _IFINFO.pack(0, 0, 0, 0, 0) + _text(_IFLA_IFNAME, peer) + _mac(_IFLA_ADDRESS, peer_mac)
    inner += _number(_IFLA_MTU, mtu) + _number(_IFLA_NET_NS_FD, peer_netns)
    data = _attr(_INFO_DATA | _NESTED, _attr(_VETH_PEER | _NESTED, inner))
    info = _attr(_IFLA_LINKINFO | _NESTED, _text(_INFO_KIND, "veth") + data)
    outer = _text(_IFLA_IFNAME, name) + _number(_IFLA_MTU, mtu) + _number(_IFLA_MASTER, master)
    return _new_link(f"create interface {name}", outer + info, up=True)


def add_child(name: str, kind: str, mode: str, *, parent: int, mac: str, netns: int) -> Request:
    """Create a macvlan or ipvlan interface of ``parent`` directly in a namespace.

    Raises ``ValueError`` for an unknown mode.
    """
    modes = _MACVLAN_MODES if kind == "macvlan" else _IPVLAN_MODES
    if mode not in modes:
        raise ValueError(f"unknown {kind} mode: {mode}")
    packed = struct.pack("=I", modes[mode]) if kind == "macvlan" else struct.pack("=H", modes[mode])
    data = _attr(_INFO_DATA | _NESTED, _attr(_MACVLAN_MODE if kind == "macvlan" else _IPVLAN_MODE, packed))
    info = _attr(_IFLA_LINKINFO | _NESTED, _text(_INFO_KIND, kind) + data)
    attributes = _text(_IFLA_IFNAME, name) + _number(_IFLA_LINK, parent) + _number(_IFLA_NET_NS_FD, netns)
    if mac and kind == "macvlan":  # an ipvlan interface has its parent's address
        attributes += _mac(_IFLA_ADDRESS, mac)
    return _new_link(f"create interface {name}", attributes + info, up=False)


def configure_port(name: str, *, is_isolated: bool = False) -> Request:
    """Let a bridge port send a frame back where it came from: a container that calls its own published port.

    An isolated port exchanges frames with no other isolated one, only with the host.
    """
    flags = _attr(_BRPORT_HAIRPIN, b"\1") + (_attr(_BRPORT_ISOLATED, b"\1") if is_isolated else b"")
    slave = _attr(_INFO_SLAVE_DATA | _NESTED, flags)
    info = _attr(_IFLA_LINKINFO | _NESTED, _text(_INFO_SLAVE_KIND, "bridge") + slave)
    body = _IFINFO.pack(0, 0, 0, 0, 0) + _text(_IFLA_IFNAME, name) + info
    return Request(_NEWLINK, 0, body, f"configure port {name}")


def set_up(index: int) -> Request:
    """Bring an interface up."""
    return Request(_NEWLINK, 0, _IFINFO.pack(0, 0, index, _IFF_UP, _IFF_UP), "bring interface up")


def rename(index: int, name: str) -> Request:
    """Give an interface, which must be down, another name."""
    return Request(_NEWLINK, 0, _IFINFO.pack(0, 0, index, 0, 0) + _text(_IFLA_IFNAME, name), f"name interface {name}")


def delete_link(name: str) -> Request:
    """Remove an interface, and with a veth its peer."""
    return Request(_DELLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + _text(_IFLA_IFNAME, name), f"remove interface {name}")


def _address(kind: int, flags: int, index: int, interface: Interface, purpose: str) -> Request:
    version, packed = interface.version, interface.ip.packed
    nodad = 0x02 if version == 6 else 0  # IFA_F_NODAD: our addresses are leased, nobody else has them
    body = (
        _IFADDR.pack(_family(version), interface.network.prefixlen, nodad, 0, index)
        + _attr(2, packed)
        + _attr(1, packed)
    )
    if version == 4 and interface.network.prefixlen < 31:
        body += _attr(4, interface.network.broadcast_address.packed)
    return Request(kind, flags, body, f"{purpose} {interface}")


def add_address(index: int, interface: Interface) -> Request:
    """Give an interface an address."""
    return _address(_NEWADDR, _CREATE | _REPLACE, index, interface, "add address")


def delete_address(index: int, interface: Interface) -> Request:
    """Take an address away."""
    return _address(_DELADDR, 0, index, interface, "remove address")


def _route(kind: int, flags: int, destination: str, gateway: str, index: int, purpose: str) -> Request:
    network = ip_network(destination)
    scope = 0 if gateway else 253  # universe, or link for a directly connected one
    head = _RTMSG.pack(_family(network.version), network.prefixlen, 0, 0, 254, 3, scope, 1, 0)
    body = head + (_attr(1, network.network_address.packed) if network.prefixlen else b"")
    body += _attr(5, ip_address(gateway).packed) if gateway else b""
    return Request(kind, flags, body + (_number(4, index) if index else b""), f"{purpose} {destination}")


def add_route(destination: str, gateway: str, index: int = 0) -> Request:
    """Route ``destination`` (CIDR) through ``gateway``, or directly through interface ``index``."""
    return _route(_NEWROUTE, _CREATE | _REPLACE, destination, gateway, index, "add route")


def delete_route(destination: str, gateway: str, index: int = 0) -> Request:
    """Remove a route."""
    return _route(_DELROUTE, 0, destination, gateway, index, "remove route")


class RouteSocket:
    """A conversation with the routing part of one namespace. Not for two threads at once."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        self._socket = sock or socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.settimeout(10)
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def send_sync(self, *requests: Request) -> None:
        """Carry out all requests in order. The kernel tries every one; the first failure is raised as ``OSError``."""
        first, packed = self._sequence + 1, b""
        for request in requests:
            self._sequence += 1
            packed += self._pack(request.kind, request.flags | _ACK, request.body)
        self._socket.send(packed)
        failed: OSError | None = None
        for _ in requests:
            sequence, code = self._read_ack()
            while sequence < first:  # an answer that an earlier, interrupted call did not read
                sequence, code = self._read_ack()
            if code and failed is None:
                failed = OSError(code, f"{requests[sequence - first].purpose}: {os.strerror(code)}")
        if failed is not None:
            raise failed

    def _read_ack(self) -> tuple[int, int]:
        while True:
            data = self._socket.recv(65536)
            _, kind, _, sequence, _ = _HEADER.unpack_from(data)
            if kind == _ERROR:
                return sequence, -struct.unpack_from("=i", data, _HEADER.size)[0]

    def _pack(self, kind: int, flags: int, body: bytes) -> bytes:
        return _HEADER.pack(_HEADER.size + len(body), kind, flags | _REQUEST, self._sequence, 0) + body

    def _dump(self, kind: int, body: bytes, *, single: bool = False) -> Iterator[bytes]:
        self._sequence += 1
        self._socket.send(self._pack(kind, 0 if single else _DUMP, body))
        while True:
            data = self._socket.recv(262144)
            offset = 0
            while offset + _HEADER.size <= len(data):
                size, answer, _, sequence, _ = _HEADER.unpack_from(data, offset)
                payload, offset = data[offset + _HEADER.size : offset + size], offset + size + (-size % 4)
                if sequence != self._sequence:
                    continue
                if answer == _DONE:
                    return
                if answer == _ERROR:
                    code = -struct.unpack_from("=i", payload)[0]
                    raise OSError(code, f"list: {os.strerror(code)}")
                yield payload
                if single:
                    return

    def links_sync(self) -> list[Link]:
        """Every interface."""
        return [_parse_link(p) for p in self._dump(_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0))]

    def link_sync(self, name: str) -> Link | None:
        """The interface of that name, or None."""
        try:
            found = list(self._dump(_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0) + _text(_IFLA_IFNAME, name), single=True))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return _parse_link(found[0])

    def addresses_sync(self) -> list[Address]:
        """Every address of every interface."""
        return [_parse_address(p) for p in self._dump(_GETADDR, _IFADDR.pack(0, 0, 0, 0, 0))]

    def routes_sync(self) -> list[Route]:
        """The unicast routes of the main table, both families."""
        head = [_RTMSG.pack(f, 0, 0, 0, 0, 0, 0, 0, 0) for f in (socket.AF_INET, socket.AF_INET6)]
        found = [_parse_route(p) for h in head for p in self._dump(_GETROUTE, h)]
        return [route for route in found if route is not None]


def _attributes(data: bytes, offset: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while offset + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, offset)
        if size < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + size]
        offset += size + (-size % 4)
    return found


def _parse_link(data: bytes) -> Link:
    _, _, index, flags, _ = _IFINFO.unpack_from(data)
    attrs = _attributes(data, _IFINFO.size)
    info = _attributes(attrs.get(_IFLA_LINKINFO, b""), 0)
    return Link(
        index=index,
        name=attrs[_IFLA_IFNAME].rstrip(b"\0").decode(),
        mac=attrs.get(_IFLA_ADDRESS, b"").hex(":"),
        mtu=int.from_bytes(attrs.get(_IFLA_MTU, b""), "little" if struct.pack("=H", 1)[0] else "big"),
        master=struct.unpack("=i", attrs.get(_IFLA_MASTER, b"\0\0\0\0"))[0],
        is_up=bool(flags & _IFF_UP),
        kind=info.get(_INFO_KIND, b"").rstrip(b"\0").decode(),
        alias=attrs.get(_IFLA_IFALIAS, b"").rstrip(b"\0").decode(errors="replace"),
    )


def _parse_address(data: bytes) -> Address:
    family, prefix, _, _, index = _IFADDR.unpack_from(data)
    attrs = _attributes(data, _IFADDR.size)
    ip = ip_address(attrs.get(2) or attrs[1])
    kind = IPv4Interface if family == socket.AF_INET else IPv6Interface
    return Address(index, kind(f"{ip}/{prefix}"))


def _parse_route(data: bytes) -> Route | None:
    family, prefix, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(data)
    if kind != 1 or table != 254:
        return None
    attrs = _attributes(data, _RTMSG.size)
    destination = ip_address(attrs.get(1) or bytes(4 if family == socket.AF_INET else 16))
    index = struct.unpack("=i", attrs.get(4, b"\0\0\0\0"))[0]
    with contextlib.suppress(ValueError):
        return Route(ip_network(f"{destination}/{prefix}"), index, str(ip_address(attrs[5])) if 5 in attrs else "")
    return None


def open_watch() -> socket.socket:
    """A non-blocking socket that hears of every interface that comes, changes or goes in this namespace."""
    watch = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    try:
        watch.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        watch.bind((0, 1))  # RTMGRP_LINK
    except OSError:
        watch.close()
        raise
    return watch


def removed_links(watch: socket.socket) -> set[str]:
    """Read what is there: the names of interfaces that are gone. ``*`` when the kernel dropped notices."""
    found: set[str] = set()
    while True:
        try:
            data = watch.recv(65536)
        except BlockingIOError:
            return found
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            found.add("*")
            continue
        offset = 0
        while offset + _HEADER.size + _IFINFO.size <= len(data):
            size, kind, _, _, _ = _HEADER.unpack_from(data, offset)
            body = data[offset + _HEADER.size : offset + size]
            # A bridge announces the loss of a port in the bridge family; only AF_UNSPEC says that the interface is
            # gone.
            if kind == _DELLINK and body[0] == socket.AF_UNSPEC:
                found.add(_attributes(body, _IFINFO.size)[_IFLA_IFNAME].rstrip(b"\0").decode())
            offset += size + (-size % 4)
