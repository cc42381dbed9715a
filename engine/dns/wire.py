"""DNS packets, as far as a forwarder that answers a few names needs them (RFC 1035, RFC 6891). Pure."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from dataclasses import dataclass

A, PTR, AAAA, ANY, OPT = 1, 12, 28, 255, 41
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP = 0, 1, 2, 3, 4
TTL_SECONDS = 600
_HEADER = struct.Struct("!HHHHHH")
_POINTER_TO_QUESTION = b"\xc0\x0c"
_RESPONSE, _AVAILABLE, _DESIRED, _TRUNCATED = 0x8000, 0x0080, 0x0100, 0x0200
_OPCODE = 0x7800


@dataclass(frozen=True, slots=True)
class Query:
    """A question. ``name`` is lower case without the last dot; ``limit`` is how long a UDP answer may be, in bytes."""

    ident: int
    flags: int
    name: str
    kind: int
    question: bytes
    limit: int
    has_options: bool


def parse(packet: bytes) -> Query:
    """Read a query with one question of class IN. Raises ``ValueError`` for anything else."""
    if len(packet) < _HEADER.size:
        raise ValueError("short packet")
    ident, flags, questions, _, _, extras = _HEADER.unpack_from(packet)
    if flags & _RESPONSE or flags & _OPCODE or questions != 1:
        raise ValueError("not a query with one question")
    labels, offset = [], _HEADER.size
    while True:
        if offset >= len(packet):
            raise ValueError("name without an end")
        size = packet[offset]
        offset += 1
        if size == 0:
            break
        if size > 63 or offset + size > len(packet):
            raise ValueError("bad label")
        labels.append(packet[offset : offset + size].decode("latin-1"))
        offset += size
    if offset + 4 > len(packet):
        raise ValueError("question without a type")
    kind, cls = struct.unpack_from("!HH", packet, offset)
    if cls != 1:
        raise ValueError("not of class IN")
    offset += 4
    limit = _payload_limit(packet, offset) if extras else 0
    return Query(
        ident, flags, ".".join(labels).lower(), kind, packet[_HEADER.size : offset], max(limit, 512), limit > 0
    )


def _payload_limit(packet: bytes, offset: int) -> int:
    # An OPT record right after the question: root name, type 41, and the payload size where others have the class.
    if len(packet) >= offset + 11 and packet[offset] == 0:
        kind, size = struct.unpack_from("!HH", packet, offset + 1)
        if kind == OPT:
            return int(min(max(size, 512), 4096))
    return 0


def encode_name(name: str) -> bytes:
    """A domain name as labels."""
    parts = [part.encode("latin-1", "replace")[:63] for part in name.rstrip(".").split(".") if part]
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"


def _packet(query: Query, code: int, records: Sequence[bytes], *, truncated: bool = False) -> bytes:
    flags = _RESPONSE | _AVAILABLE | (query.flags & _DESIRED) | code | (_TRUNCATED if truncated else 0)
    options = b"\0" + struct.pack("!HHIH", OPT, 4096, 0, 0) if query.has_options else b""
    head = _HEADER.pack(query.ident, flags, 1, len(records), 0, 1 if options else 0)
    return head + query.question + b"".join(records) + options


def _record(kind: int, data: bytes) -> bytes:
    return _POINTER_TO_QUESTION + struct.pack("!HHIH", kind, 1, TTL_SECONDS, len(data)) + data


def answer(query: Query, addresses: Sequence[str], *, over_udp: bool = True) -> bytes:
    """The addresses of the asked family; none of them is a name without such an address.

    Too many for UDP: come by TCP.
    """
    records = []
    for text in addresses:
        address = ipaddress.ip_address(text)
        kind = A if address.version == 4 else AAAA
        if query.kind in (kind, ANY):
            records.append(_record(kind, address.packed))
    packet = _packet(query, NOERROR, records)
    if over_udp and len(packet) > query.limit:
        return _packet(query, NOERROR, [], truncated=True)
    return packet


def answer_pointer(query: Query, name: str) -> bytes:
    """The name of an address."""
    return _packet(query, NOERROR, [_record(PTR, encode_name(name))])


def refuse(query: Query, code: int) -> bytes:
    """An answer that is an error."""
    return _packet(query, code, [])


def refuse_packet(packet: bytes, code: int) -> bytes | None:
    """An error for a packet that cannot be read; None when it is too short to be answered."""
    if len(packet) < _HEADER.size or packet[2] & 0x80:
        return None
    ident, flags = struct.unpack_from("!HH", packet)
    return _HEADER.pack(ident, _RESPONSE | (flags & (_DESIRED | _OPCODE)) | code, 0, 0, 0, 0)


def reverse_address(name: str) -> str | None:
    """The address in a name under ``in-addr.arpa`` or ``ip6.arpa``."""
    try:
        if name.endswith(".in-addr.arpa"):
            parts = name.removesuffix(".in-addr.arpa").split(".")
            return str(ipaddress.IPv4Address(".".join(reversed(parts))))
        if name.endswith(".ip6.arpa"):
            digits = "".join(reversed(name.removesuffix(".ip6.arpa").split(".")))
            return str(ipaddress.IPv6Address(int(digits, 16))) if len(digits) == 32 else None
    except ValueError:
        return None
    return None
