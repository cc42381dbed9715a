"""DNS packets in dnspython's vocabulary: the one question that is read, and the few kinds of answer (RFC 1035, 6891).

Pure. Whatever is wrong with a packet is a ``ValueError`` here: the library has an exception for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import dns.exception
import dns.flags
import dns.inet
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.PTR
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
import dns.reversename
import dns.rrset
from dns.rdatatype import AAAA, ANY, PTR, A

__all__ = [
    "AAAA", "ANY", "FORMERR", "NOERROR", "NXDOMAIN", "PTR", "SERVFAIL", "A", "Query", "answer", "answer_pointer",
    "parse", "refuse", "refuse_packet", "reverse_address",
]  # fmt: skip

NOERROR, FORMERR, SERVFAIL, NXDOMAIN = dns.rcode.NOERROR, dns.rcode.FORMERR, dns.rcode.SERVFAIL, dns.rcode.NXDOMAIN
TTL_SECONDS = 600
PAYLOAD_BYTES = 4096
_HEADER_BYTES = 12
_MIN_PAYLOAD_BYTES = 512
_OPCODE = 0x7800


@dataclass(frozen=True, slots=True)
class Query:
    """A question. ``name`` is lower case without the last dot; ``limit`` is how long a UDP answer may be, in bytes."""

    message: dns.message.Message
    name: str
    kind: int
    limit: int


def parse(packet: bytes) -> Query:
    """Read a query with one question of class IN. Raises ``ValueError`` for anything else."""
    try:
        message = dns.message.from_wire(packet, keyring=False, ignore_trailing=True)
    except dns.exception.DNSException as error:
        raise ValueError(str(error)) from error
    if message.flags & dns.flags.QR or message.opcode() != dns.opcode.QUERY or len(message.question) != 1:
        raise ValueError("not a query with one question")
    question = message.question[0]
    if question.rdclass != dns.rdataclass.IN:
        raise ValueError("not of class IN")
    limit = min(max(message.payload, _MIN_PAYLOAD_BYTES), PAYLOAD_BYTES) if message.edns >= 0 else _MIN_PAYLOAD_BYTES
    return Query(message, question.name.to_text(omit_final_dot=True).lower(), question.rdtype, limit)


def _reply(query: Query, code: dns.rcode.Rcode, records: Sequence[dns.rdata.Rdata] = (), *, limit: int = 0) -> bytes:
    reply = dns.message.make_response(query.message, recursion_available=True, our_payload=PAYLOAD_BYTES, pad=0)
    reply.set_rcode(code)
    name = query.message.question[0].name
    for kind in dict.fromkeys(record.rdtype for record in records):
        same = [record for record in records if record.rdtype == kind]
        reply.answer.append(dns.rrset.from_rdata_list(name, TTL_SECONDS, same))
    return reply.to_wire(max_size=limit or 65535, prefer_truncation=True)


def answer(query: Query, addresses: Sequence[str], *, over_udp: bool = True) -> bytes:
    """The addresses of the asked family; none of them is a name without such an address.

    Too many for UDP: as many as fit, and come by TCP.
    """
    records: list[dns.rdata.Rdata] = []
    for address in addresses:
        kind = AAAA if ":" in address else A
        if query.kind in (kind, ANY):
            record = dns.rdtypes.IN.AAAA.AAAA if kind == AAAA else dns.rdtypes.IN.A.A
            records.append(record(dns.rdataclass.IN, kind, address))
    return _reply(query, NOERROR, records, limit=query.limit if over_udp else 0)


def answer_pointer(query: Query, name: str) -> bytes:
    """The name of an address; a name that DNS cannot carry (a label of more than 63 bytes) does not exist."""
    try:
        target = dns.name.from_text(name)
    except dns.exception.DNSException:
        return _reply(query, NXDOMAIN)
    record = dns.rdtypes.ANY.PTR.PTR(dns.rdataclass.IN, PTR, target)  # type: ignore[no-untyped-call]
    return _reply(query, NOERROR, [record])


def refuse(query: Query, code: dns.rcode.Rcode) -> bytes:
    """An answer that is an error."""
    return _reply(query, code)


def refuse_packet(packet: bytes, code: dns.rcode.Rcode) -> bytes | None:
    """An error for a packet that cannot be read; None when it is too short to be answered."""
    if len(packet) < _HEADER_BYTES:
        return None
    flags = int.from_bytes(packet[2:4], "big")
    if flags & dns.flags.QR:
        return None
    reply = dns.message.Message(int.from_bytes(packet[:2], "big"))
    reply.flags = dns.flags.QR | (flags & (dns.flags.RD | _OPCODE))
    reply.set_rcode(code)
    return reply.to_wire()


def reverse_address(name: str) -> str | None:
    """The address in a name under ``in-addr.arpa`` or ``ip6.arpa``."""
    try:
        return dns.inet.canonicalize(dns.reversename.to_address(dns.name.from_text(name)))
    except (dns.exception.DNSException, ValueError):
        return None
