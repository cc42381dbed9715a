"""Forgetting connections: a UDP flow keeps the way its first packet took, however the rules have changed since.

See linux/netfilter/nfnetlink_conntrack.h. The table is read and filtered here; the kernel has no filter by port.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Collection, Iterator

_NETLINK_NETFILTER = 12
_GET, _DELETE = 0x101, 0x102
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE = 2, 3
_TUPLE_ORIG, _TUPLE_PROTO, _PROTO_NUM, _PROTO_DST = 1, 2, 1, 3
_NESTED = 0x8000
_HEADER = struct.Struct("=IHHII")
UDP = 17


def forget_sync(ports: Collection[int], *, protocol: int = UDP) -> int:
    """Drop every tracked flow whose first packet went to one of ``ports``; how many there were."""
    found = 0
    with contextlib.closing(_open()) as sock:
        for family in (socket.AF_INET, socket.AF_INET6):
            stale = [
                original for original in _originals(sock, family) if _target(original) in {(protocol, p) for p in ports}
            ]
            for original in stale:
                body = struct.pack("=BBH", family, 0, 0) + _attribute(_TUPLE_ORIG | _NESTED, original)
                sock.send(_HEADER.pack(16 + len(body), _DELETE, _REQUEST | _ACK, 1, 0) + body)
                sock.recv(65536)  # a flow that ended by itself meanwhile is an error, and what was wanted
                found += 1
    return found


def _open() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    sock.settimeout(5)
    return sock


def _originals(sock: socket.socket, family: int) -> Iterator[bytes]:
    """The original direction of every tracked flow, as the kernel packs it."""
    sock.send(_HEADER.pack(20, _GET, _REQUEST | _DUMP, 1, 0) + struct.pack("=BBH", family, 0, 0))
    while True:
        data, offset = sock.recv(262144), 0
        while offset + 16 <= len(data):
            size, kind, _, _, _ = _HEADER.unpack_from(data, offset)
            if kind in (_DONE, _ERROR):
                return
            original = _attributes(data[offset + 20 : offset + size]).get(_TUPLE_ORIG)
            if original is not None:
                yield original
            offset += size + (-size % 4)


def _target(original: bytes) -> tuple[int, int]:
    proto = _attributes(_attributes(original).get(_TUPLE_PROTO, b""))
    return (proto.get(_PROTO_NUM, b"\0")[0], int.from_bytes(proto.get(_PROTO_DST, b""), "big"))


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    offset = 0
    while offset + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, offset)
        if size < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + size]
        offset += size + (-size % 4)
    return found
