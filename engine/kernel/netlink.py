"""Links, addresses and routes: rtnetlink messages by pyroute2, carried over blocking sockets of our own.

One ``send`` carries a batch, the kernel works through it before the call returns, and the acknowledgements are read
after it: a container's whole interface is two round trips. The sockets are plain ones because they live in namespaces
of containers and are used from pool threads; the library's own bring an event loop and four descriptors each. See
rtnetlink(7) and linux/if_link.h.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_interface, ip_network
from typing import Any

from engine.kernel import rtnl
from engine.kernel.rtnl import IFF_UP, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Message

Interface = IPv4Interface | IPv6Interface
Net = IPv4Network | IPv6Network
Attributes = list[tuple[str, Any]]

_MACVLAN_MODES = frozenset({"private", "vepa", "bridge", "passthru"})
_IPVLAN_MODES = {"l2": 0, "l3": 1, "l3s": 2}
_MAIN_TABLE = 254
_UNICAST = rtnl.constants.rt_type["unicast"]
_HEADER = struct.Struct("=IH10x")  # struct nlmsghdr: length and type
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr: length and type
_IFINFO_SIZE = 16
_IFLA_IFNAME = 3


class _Marshal(rtnl.Marshal):  # type: ignore[misc]
    """Reads the answers to what is asked here."""

    msg_map = {  # noqa: RUF012 - the library's own way of configuring it
        rtnl.constants.RTM_NEWLINK: rtnl.ifinfmsg,
        rtnl.constants.RTM_DELLINK: rtnl.ifinfmsg,
        rtnl.constants.RTM_GETLINK: rtnl.ifinfmsg,
        rtnl.constants.RTM_NEWADDR: rtnl.ifaddrmsg,
        rtnl.constants.RTM_GETADDR: rtnl.ifaddrmsg,
        rtnl.constants.RTM_NEWROUTE: rtnl.rtmsg,
        rtnl.constants.RTM_GETROUTE: rtnl.rtmsg,
    }


@dataclass(frozen=True, slots=True)
class Request:
    """One message of a batch; ``purpose`` begins the error's text."""

    message: Message
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


def _nested(attributes: Attributes) -> dict[str, Attributes]:
    return {"attrs": attributes}


def _message(of: type[Message], kind: int, flags: int, fields: dict[str, int], attributes: Attributes) -> Message:
    message = of()
    message.update(fields)
    message["attrs"] = attributes
    message["header"].update({"type": kind, "flags": flags | rtnl.NLM_F_REQUEST})
    return message


def _link(kind: int, flags: int, attributes: Attributes, *, index: int = 0, up: bool = False) -> Message:
    fields = {"index": index, "flags": IFF_UP, "change": IFF_UP} if up else {"index": index}
    return _message(rtnl.ifinfmsg, kind, flags, fields, attributes)


def _new_link(name: str, kind: str, attributes: Attributes, *, data: Attributes | None = None, up: bool) -> Message:
    info: Attributes = [("IFLA_INFO_KIND", kind)]
    if data is not None:
        info.append(("IFLA_INFO_DATA", _nested(data)))
    whole: Attributes = [("IFLA_IFNAME", name), *attributes, ("IFLA_LINKINFO", _nested(info))]
    return _link(rtnl.constants.RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, whole, up=up)


def _change_link(attributes: Attributes, *, index: int = 0, up: bool = False) -> Message:
    return _link(rtnl.constants.RTM_NEWLINK, 0, attributes, index=index, up=up)


def _family(version: int) -> int:
    return int(socket.AF_INET if version == 4 else socket.AF_INET6)


def add_bridge(name: str, *, mtu: int = 0, mac: str = "") -> Request:
    """Create a bridge and bring it up.

    A fixed ``mac`` keeps it from changing with every port, which would spoil the containers' ARP caches.
    """
    attributes: Attributes = [("IFLA_ADDRESS", mac)] if mac else []
    if mtu:
        attributes.append(("IFLA_MTU", mtu))
    return Request(_new_link(name, "bridge", attributes, up=True), f"create bridge {name}")


def set_alias(name: str, alias: str) -> Request:
    """Give an existing interface the remark that ``ip link`` shows, by which its maker knows it again."""
    return Request(_change_link([("IFLA_IFNAME", name), ("IFLA_IFALIAS", alias)]), f"mark interface {name}")


def add_dummy(name: str) -> Request:
    """Create a dummy interface, the parent of a macvlan network that was given none."""
    return Request(_new_link(name, "dummy", [], up=True), f"create interface {name}")


def add_vlan(name: str, parent: int, vlan_id: int) -> Request:
    """Create an 802.1Q interface of ``parent`` (an index)."""
    message = _new_link(name, "vlan", [("IFLA_LINK", parent)], data=[("IFLA_VLAN_ID", vlan_id)], up=True)
    return Request(message, f"create interface {name}")


def add_veth(name: str, *, master: int, mtu: int, peer: str, peer_mac: str, peer_netns: int) -> Request:
    """Create a pair: ``name`` here, up and a port of bridge ``master``;

    ``peer`` in the namespace of descriptor ``peer_netns``.
    """
    inner: Attributes = [
        ("IFLA_IFNAME", peer),
        ("IFLA_ADDRESS", peer_mac),
        ("IFLA_MTU", mtu),
        ("IFLA_NET_NS_FD", peer_netns),
    ]
    outer: Attributes = [("IFLA_MTU", mtu), ("IFLA_MASTER", master)]
    message = _new_link(name, "veth", outer, data=[("VETH_INFO_PEER", _nested(inner))], up=True)
    return Request(message, f"create interface {name}")


def add_child(name: str, kind: str, mode: str, *, parent: int, mac: str, netns: int) -> Request:
    """Create a macvlan or ipvlan interface of ``parent`` directly in a namespace.

    Raises ``ValueError`` for an unknown mode.
    """
    if mode not in (_MACVLAN_MODES if kind == "macvlan" else _IPVLAN_MODES):
        raise ValueError(f"unknown {kind} mode: {mode}")
    attributes: Attributes = [("IFLA_LINK", parent), ("IFLA_NET_NS_FD", netns)]
    data: Attributes = (
        [("IFLA_MACVLAN_MODE", mode)] if kind == "macvlan" else [("IFLA_IPVLAN_MODE", _IPVLAN_MODES[mode])]
    )
    if mac and kind == "macvlan":  # an ipvlan interface has its parent's address
        attributes.append(("IFLA_ADDRESS", mac))
    return Request(_new_link(name, kind, attributes, data=data, up=False), f"create interface {name}")


def configure_port(name: str, *, is_isolated: bool = False) -> Request:
    """Let a bridge port send a frame back where it came from: a container that calls its own published port.

    An isolated port exchanges frames with no other isolated one, only with the host.
    """
    flags: Attributes = [("IFLA_BRPORT_MODE", 1)]  # hairpin
    if is_isolated:
        flags.append(("IFLA_BRPORT_ISOLATED", 1))
    info: Attributes = [("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", _nested(flags))]
    message = _change_link([("IFLA_IFNAME", name), ("IFLA_LINKINFO", _nested(info))])
    return Request(message, f"configure port {name}")


def set_up(index: int) -> Request:
    """Bring an interface up."""
    return Request(_change_link([], index=index, up=True), "bring interface up")


def rename(index: int, name: str) -> Request:
    """Give an interface, which must be down, another name."""
    return Request(_change_link([("IFLA_IFNAME", name)], index=index), f"name interface {name}")


def delete_link(name: str) -> Request:
    """Remove an interface, and with a veth its peer."""
    return Request(_link(rtnl.constants.RTM_DELLINK, 0, [("IFLA_IFNAME", name)]), f"remove interface {name}")


def _address(kind: int, flags: int, index: int, interface: Interface, purpose: str) -> Request:
    version, ip = interface.version, str(interface.ip)
    attributes: Attributes = [("IFA_LOCAL", ip), ("IFA_ADDRESS", ip)]
    if version == 4 and interface.network.prefixlen < 31:
        attributes.append(("IFA_BROADCAST", str(interface.network.broadcast_address)))
    fields = {
        "family": _family(version),
        "prefixlen": interface.network.prefixlen,
        "flags": rtnl.IFA_F_NODAD if version == 6 else 0,  # our addresses are leased, nobody else has them
        "index": index,
    }
    return Request(_message(rtnl.ifaddrmsg, kind, flags, fields, attributes), f"{purpose} {interface}")


def add_address(index: int, interface: Interface) -> Request:
    """Give an interface an address."""
    return _address(rtnl.constants.RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, index, interface, "add address")


def delete_address(index: int, interface: Interface) -> Request:
    """Take an address away."""
    return _address(rtnl.constants.RTM_DELADDR, 0, index, interface, "remove address")


def _route(kind: int, flags: int, destination: str, gateway: str, index: int, purpose: str) -> Request:
    network = ip_network(destination)
    attributes: Attributes = [("RTA_DST", str(network.network_address))] if network.prefixlen else []
    if gateway:
        attributes.append(("RTA_GATEWAY", gateway))
    if index:
        attributes.append(("RTA_OIF", index))
    fields = {
        "family": _family(network.version),
        "dst_len": network.prefixlen,
        "table": _MAIN_TABLE,
        "proto": rtnl.constants.rt_proto["boot"],
        "scope": rtnl.constants.rt_scope["universe" if gateway else "link"],
        "type": _UNICAST,
    }
    return Request(_message(rtnl.rtmsg, kind, flags, fields, attributes), f"{purpose} {destination}")


def add_route(destination: str, gateway: str, index: int = 0) -> Request:
    """Route ``destination`` (CIDR) through ``gateway``, or directly through interface ``index``."""
    return _route(rtnl.constants.RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, destination, gateway, index, "add route")


def delete_route(destination: str, gateway: str, index: int = 0) -> Request:
    """Remove a route."""
    return _route(rtnl.constants.RTM_DELROUTE, 0, destination, gateway, index, "remove route")


class RouteSocket:
    """A conversation with the routing part of one namespace. Not for two threads at once."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        self._socket = sock or socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.settimeout(10)
        self._sequence = 0
        self._marshal = _Marshal()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def send_sync(self, *requests: Request) -> None:
        """Carry out all requests in order. The kernel tries every one; the first failure is raised as ``OSError``."""
        first = self._sequence + 1
        self._socket.send(b"".join(self._pack(request.message, NLM_F_ACK) for request in requests))
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
            answer = rtnl.nlmsgerr(self._socket.recv(65536))
            answer.decode()
            if answer["header"]["type"] == rtnl.NLMSG_ERROR:
                return answer["header"]["sequence_number"], -answer["error"]

    def _pack(self, message: Message, flags: int) -> bytes:
        self._sequence += 1
        header = message["header"]
        header["sequence_number"] = self._sequence
        header["flags"] |= flags
        message.reset()
        message.encode()
        return bytes(message.data) + b"\0" * (-len(message.data) % 4)

    def _ask(self, question: Message, *, is_dump: bool = True) -> Iterator[Message]:
        self._socket.send(self._pack(question, rtnl.NLM_F_DUMP if is_dump else 0))
        while True:
            for answer in self._marshal.parse(self._socket.recv(262144)):
                header = answer["header"]
                if header["sequence_number"] != self._sequence:
                    continue
                if header["error"] is not None:
                    raise OSError(header["error"].code, f"list: {os.strerror(header['error'].code)}")
                if header["type"] == rtnl.NLMSG_DONE:
                    return
                yield answer
                if not is_dump:
                    return

    def links_sync(self) -> list[Link]:
        """Every interface."""
        return [_read_link(answer) for answer in self._ask(_link(rtnl.constants.RTM_GETLINK, 0, []))]

    def link_sync(self, name: str) -> Link | None:
        """The interface of that name, or None."""
        question = _link(rtnl.constants.RTM_GETLINK, 0, [("IFLA_IFNAME", name)])
        try:
            return _read_link(next(self._ask(question, is_dump=False)))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise

    def addresses_sync(self) -> list[Address]:
        """Every address of every interface."""
        question = _message(rtnl.ifaddrmsg, rtnl.constants.RTM_GETADDR, 0, {}, [])
        return [_read_address(answer) for answer in self._ask(question)]

    def routes_sync(self) -> list[Route]:
        """The unicast routes of the main table, both families."""
        found = []
        for family in (socket.AF_INET, socket.AF_INET6):
            question = _message(rtnl.rtmsg, rtnl.constants.RTM_GETROUTE, 0, {"family": family}, [])
            found += [_read_route(answer) for answer in self._ask(question)]
        return [route for route in found if route is not None]


def _read_link(answer: Message) -> Link:
    info = answer.get_attr("IFLA_LINKINFO")
    return Link(
        index=answer["index"],
        name=answer.get_attr("IFLA_IFNAME"),
        mac=answer.get_attr("IFLA_ADDRESS") or "",
        mtu=answer.get_attr("IFLA_MTU") or 0,
        master=answer.get_attr("IFLA_MASTER") or 0,
        is_up=bool(answer["flags"] & IFF_UP),
        kind=(info.get_attr("IFLA_INFO_KIND") if info is not None else None) or "",
        alias=answer.get_attr("IFLA_IFALIAS") or "",
    )


def _read_address(answer: Message) -> Address:
    ip = answer.get_attr("IFA_LOCAL") or answer.get_attr("IFA_ADDRESS")
    return Address(answer["index"], ip_interface(f"{ip}/{answer['prefixlen']}"))


def _read_route(answer: Message) -> Route | None:
    if answer["type"] != _UNICAST or answer["table"] != _MAIN_TABLE:
        return None
    destination = answer.get_attr("RTA_DST") or ("0.0.0.0" if answer["family"] == socket.AF_INET else "::")
    with contextlib.suppress(ValueError):
        network = ip_network(f"{destination}/{answer['dst_len']}")
        return Route(network, answer.get_attr("RTA_OIF") or 0, answer.get_attr("RTA_GATEWAY") or "")
    return None


def open_watch() -> socket.socket:
    """A non-blocking socket that hears of every interface that comes, changes or goes in this namespace."""
    watch = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    try:
        watch.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        watch.bind((0, rtnl.constants.RTMGRP_LINK))
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
        found.update(_names_gone(data))


def _names_gone(data: bytes) -> Iterator[str]:
    """The names in the RTM_DELLINK messages of a buffer (netlink(7), rtnetlink(7)).

    A container that starts is a dozen notices of a millisecond each, were all of them taken apart.
    """
    start = 0
    while start + _HEADER.size <= len(data):
        length, kind = _HEADER.unpack_from(data, start)
        if length < _HEADER.size:
            return
        # A bridge announces the loss of a port in the bridge family; only AF_UNSPEC says that the interface is gone.
        body, end = start + _HEADER.size, min(start + length, len(data))
        if kind == rtnl.constants.RTM_DELLINK and body < end and data[body] == socket.AF_UNSPEC:
            at = body + _IFINFO_SIZE
            while at + _ATTRIBUTE.size <= end:
                size, name = _ATTRIBUTE.unpack_from(data, at)
                if size < _ATTRIBUTE.size:
                    break
                if name == _IFLA_IFNAME:
                    yield data[at + _ATTRIBUTE.size : at + size].rstrip(b"\0").decode()
                at += -(-size // 4) * 4
        start += -(-length // 4) * 4
