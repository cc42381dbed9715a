"""Sockets that occupy a host port without ever answering on it."""

from __future__ import annotations

import ctypes
import errno
import socket

from engine.kernel.namespaces import in_namespace_sync
from engine.kernel.nft import Nft

_SO_ATTACH_FILTER = 26
_IPPROTO_SCTP = 132
_RESOLVER_TABLE = "ip berth-resolver"


def hold_sync(protocol: str, host_ip: str, port: int) -> socket.socket | None:
    """A socket that occupies the port. Raises ``OSError`` when it is taken or the address is not the host's."""
    family = socket.AF_INET6 if ":" in host_ip else socket.AF_INET
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    try:
        held = socket.socket(family, kind, _IPPROTO_SCTP if protocol == "sctp" else 0)
    except OSError as error:
        if error.errno in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.ESOCKTNOSUPPORT):
            return None
        raise
    try:
        if family == socket.AF_INET6:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            # Over what an earlier program left in TIME_WAIT; a listener still conflicts with every other.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if protocol != "sctp":
            _drop_everything(held)
        held.bind((host_ip, port))
        if protocol == "tcp":
            held.listen(1)
    except OSError:
        held.close()
        raise
    return held


def _drop_everything(held: socket.socket) -> None:
    # struct sock_fprog with the one BPF instruction "return 0 bytes".
    instruction = ctypes.create_string_buffer(b"\x06\0\0\0\0\0\0\0", 8)

    class _Program(ctypes.Structure):
        _fields_ = [("size", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    program = _Program(1, ctypes.addressof(instruction))
    held.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, bytes(program))


def open_packet_socket_sync(netns: int, interface: str) -> socket.socket:
    """A non-blocking socket that sends whole frames from an interface of a namespace, and hears none."""

    def run() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        try:
            made.bind((interface, 0))
        except OSError:
            made.close()
            raise
        return made

    return in_namespace_sync(netns, run)


def resolver_sockets_sync(nft: Nft, netns: int, address: str, *, is_fresh: bool) -> tuple[socket.socket, socket.socket]:
    """A UDP and a TCP socket inside a namespace that get what its processes send to port 53 of ``address``.

    They are bound to ports of the kernel's choice, and rules inside the namespace lead there: a container may run a
    name server of its own on port 53. Rules of an earlier call are replaced unless the namespace ``is_fresh``, because
    looking for them costs the kernel a grace period of 10 ms. Raises ``OSError``.
    """

    def run() -> tuple[socket.socket, socket.socket]:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            udp.bind((address, 0))
            tcp.bind((address, 0))
            tcp.listen(64)
            rules = _resolver_rules(address, udp.getsockname()[1], tcp.getsockname()[1])
            nft.run_sync(rules if is_fresh else f"add table {_RESOLVER_TABLE}\ndelete table {_RESOLVER_TABLE}\n{rules}")
        except OSError:
            udp.close()
            tcp.close()
            raise
        return udp, tcp

    return in_namespace_sync(netns, run)


def _resolver_rules(address: str, udp_port: int, tcp_port: int) -> str:
    table = _RESOLVER_TABLE
    return (
        f"add table {table}\n"
        f"add chain {table} output {{ type nat hook output priority -100; }}\n"
        f"add rule {table} output ip daddr {address} udp dport 53 dnat to {address}:{udp_port}\n"
        f"add rule {table} output ip daddr {address} tcp dport 53 dnat to {address}:{tcp_port}\n"
    )
