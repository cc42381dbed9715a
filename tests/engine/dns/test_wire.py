"""DNS packets: what is read, what is refused, what is answered."""

import struct
from ipaddress import ip_address

import dns.message
import dns.name
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.dns import wire


def packet(name: str = "web", kind: int = wire.A, *, flags: int = 0x100, extra: bytes = b"", cls: int = 1) -> bytes:
    head = struct.pack("!HHHHHH", 7, flags, 1, 0, 0, 1 if extra else 0)
    return head + dns.name.from_text(name).to_wire() + struct.pack("!HH", kind, cls) + extra


def options(size: int) -> bytes:
    return b"\0" + struct.pack("!HHIH", dns.rdatatype.OPT, size, 0, 0)


def test_a_question_is_read_in_lower_case() -> None:
    query = wire.parse(packet("Web.Example", wire.AAAA))
    assert (query.message.id, query.name, query.kind, query.limit) == (7, "web.example", wire.AAAA, 512)


@pytest.mark.parametrize(("size", "limit"), [(1232, 1232), (100, 512), (65000, 4096)])
def test_the_askers_payload_size_counts_within_reason(size: int, limit: int) -> None:
    assert wire.parse(packet(extra=options(size))).limit == limit


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        packet(flags=0x8000),
        packet(flags=0x2800),
        packet(cls=3),
        packet()[:-3],
        packet()[:14],
        packet()[:12] + b"\xc0\x0c" + packet()[17:],
        struct.pack("!HHHHHH", 7, 0, 2, 0, 0, 0) + packet()[12:],
        packet()[:16],
    ],
)
def test_packets_that_are_no_question_of_ours(bad: bytes) -> None:
    with pytest.raises(ValueError):
        wire.parse(bad)


def test_an_answer_has_the_addresses_of_the_asked_family() -> None:
    query = wire.parse(packet())
    answer = wire.answer(query, ["172.18.0.2", "fd00::2", "172.18.0.3"])
    assert answer[:2] == struct.pack("!H", 7) and answer[3] & 15 == wire.NOERROR
    assert struct.unpack_from("!H", answer, 6)[0] == 2
    assert ip_address("172.18.0.2").packed in answer and ip_address("fd00::2").packed not in answer
    assert (
        struct.unpack_from("!H", wire.answer(wire.parse(packet(kind=wire.ANY)), ["172.18.0.2", "fd00::2"]), 6)[0] == 2
    )


def test_too_many_addresses_for_udp_are_left_for_tcp() -> None:
    query = wire.parse(packet())
    many = [f"10.0.0.{n}" for n in range(100)]
    over_udp, over_tcp = wire.answer(query, many), wire.answer(query, many, over_udp=False)
    assert over_udp[2] & 2 and len(over_udp) < 512
    assert not over_tcp[2] & 2 and len(over_tcp) > 1600


def test_options_are_answered_with_options() -> None:
    answer = wire.answer(wire.parse(packet(extra=options(1232))), ["10.0.0.1"])
    assert struct.unpack_from("!H", answer, 10)[0] == 1


def test_errors_keep_the_question_or_at_least_the_identity() -> None:
    assert wire.refuse(wire.parse(packet()), wire.SERVFAIL)[3] & 15 == wire.SERVFAIL
    refused = wire.refuse_packet(packet(cls=3), wire.FORMERR)
    assert refused is not None and refused[:2] == struct.pack("!H", 7) and refused[3] & 15 == wire.FORMERR
    assert wire.refuse_packet(b"short", wire.FORMERR) is None
    assert wire.refuse_packet(packet(flags=0x8000), wire.FORMERR) is None


def test_names_of_addresses() -> None:
    assert wire.reverse_address("2.0.18.172.in-addr.arpa") == "172.18.0.2"
    digits = ".".join(reversed(f"{int(ip_address('fd00::2')):032x}"))
    assert wire.reverse_address(f"{digits}.ip6.arpa") == "fd00::2"
    for name in ("x.in-addr.arpa", "1.2.ip6.arpa", "web", "z.ip6.arpa"):
        assert wire.reverse_address(name) is None
    answer = wire.answer_pointer(wire.parse(packet(kind=wire.PTR)), "web.town")
    assert answer.endswith(b"\x03web\x04town\0")


def test_names_that_dns_cannot_carry_do_not_exist() -> None:
    answer = wire.answer_pointer(wire.parse(packet(kind=wire.PTR)), "n" * 64 + ".town")
    assert dns.message.from_wire(answer).rcode() == wire.NXDOMAIN


def test_answers_repeat_the_question_as_it_was_asked() -> None:
    """Resolvers that mix upper and lower case against forgeries compare the letters."""
    reply = dns.message.from_wire(wire.answer(wire.parse(packet("wEb.toWN")), ["10.0.0.1"]))
    assert reply.question[0].name.to_text() == reply.answer[0].name.to_text() == "wEb.toWN."
    assert [str(record) for record in reply.answer[0]] == ["10.0.0.1"] and reply.answer[0].ttl == wire.TTL_SECONDS


def test_a_signed_question_is_read_without_its_key() -> None:
    asked = dns.message.make_query("web", "A")
    asked.use_tsig({dns.name.from_text("key"): b"secret"})
    assert wire.parse(asked.to_wire()).name == "web"


@given(st.binary(max_size=80), st.integers(0, 60), st.sampled_from([b"", options(1232)]))
def test_no_packet_is_worse_than_unreadable(noise: bytes, at: int, extra: bytes) -> None:
    whole = packet("web.town", extra=extra)
    for bad in (noise, whole[:12] + noise, whole[:at] + noise + whole[at + len(noise) :]):
        try:
            assert len(wire.answer(wire.parse(bad), ["10.0.0.1"])) > 12
        except ValueError:
            assert wire.refuse_packet(bad, wire.FORMERR) is None or len(bad) >= 12
