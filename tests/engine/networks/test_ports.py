"""Host ports: what is asked for, who has what, and what a second taker is told."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from engine.networks.ports import (
    HostPorts,
    PortTaken,
    PortWish,
    ephemeral_range_sync,
    parse_host_port,
    parse_port,
    wanted_ports,
)


@dataclass(frozen=True)
class Binding:
    host_ip: str = ""
    host_port: str = ""


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


@pytest.fixture
def ports() -> Iterator[HostPorts]:
    book = HostPorts((40000, 40999))
    yield book


def test_the_daemons_own_ports_are_nobodys(free_port: int) -> None:
    book = HostPorts((40000, 40999), daemons=[("127.0.0.1", free_port)])
    words = f"Bind for 0.0.0.0:{free_port} failed: port is already allocated$"
    with pytest.raises(PortTaken, match=words):
        book.reserve([(PortWish("tcp", 80, "", free_port, free_port), ("0.0.0.0",))])
    book.release(book.reserve([(PortWish("udp", 80, "", free_port, free_port), ("127.0.0.1",))]))


def test_ports_and_ranges_are_read() -> None:
    assert parse_port("80") == [(80, "tcp")]
    assert parse_port("53/UDP") == [(53, "udp")]
    assert parse_port("80-82/sctp") == [(80, "sctp"), (81, "sctp"), (82, "sctp")]
    assert parse_host_port("") == parse_host_port("0") == (0, 0)
    assert parse_host_port("8000-8010") == (8000, 8010)


@pytest.mark.parametrize("text", ["", "x", "0", "70000", "82-80", "80/icmp", "-1"])
def test_bad_container_ports(text: str) -> None:
    with pytest.raises(ValueError, match="invalid"):
        parse_port(text)


@pytest.mark.parametrize("text", ["x", "70000", "9-8", "1-"])
def test_bad_host_ports(text: str) -> None:
    with pytest.raises(ValueError, match="invalid port"):
        parse_host_port(text)


def test_bindings_exposed_ports_and_publish_all_make_wishes() -> None:
    bindings = {"80/tcp": [Binding(host_port="8080")], "81/tcp": [Binding(host_ip="127.0.0.1")], "82/tcp": None}
    wishes = wanted_ports(["80/tcp", "90/udp"], bindings, publish_all=False)
    assert wishes == [PortWish("tcp", 80, "", 8080, 8080), PortWish("tcp", 81, "127.0.0.1")]
    everything = wanted_ports(["80/tcp", "90/udp"], bindings, publish_all=True)
    assert PortWish("udp", 90) in everything
    assert len(everything) == 3
    assert wishes[0].port == "80/tcp"


def test_a_bad_host_address_is_refused() -> None:
    with pytest.raises(ValueError, match="not-an-ip"):
        wanted_ports([], {"80/tcp": [Binding(host_ip="not-an-ip")]}, publish_all=False)


def test_our_own_port_is_reported_as_allocated_and_is_free_after_release(ports: HostPorts, free_port: int) -> None:
    wish = PortWish("tcp", 80, "127.0.0.1", free_port, free_port)
    held = ports.reserve([(wish, ("127.0.0.1",))])
    with pytest.raises(PortTaken, match=f"Bind for 127.0.0.1:{free_port} failed: port is already allocated") as error:
        ports.reserve([(wish, ("127.0.0.1",))])
    assert error.value.by_us
    ports.release(held)
    ports.release(ports.reserve([(wish, ("127.0.0.1",))]))


def test_any_address_conflicts_with_each_but_families_and_protocols_do_not(ports: HostPorts) -> None:
    ports.adopt("tcp", "0.0.0.0", 7)
    with pytest.raises(PortTaken):
        ports.reserve([(PortWish("tcp", 80, "", 7, 7), ("127.0.0.1",))])
    ports.forget("tcp", "0.0.0.0", 7)
    ports.adopt("udp", "127.0.0.1", 7)
    ports.adopt("tcp", "::", 7)
    assert not ports._conflicts("tcp", "127.0.0.1", 7)
    assert ports._conflicts("udp", "0.0.0.0", 7)
    ports.forget("tcp", "1.2.3.4", 9)


def test_another_programs_port_is_reported_as_in_use(ports: HostPorts) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        number = other.getsockname()[1]
        words = f"Error starting userland proxy: listen tcp4 127.0.0.1:{number}: bind: address already in use"
        with pytest.raises(PortTaken, match=words) as error:
            ports.reserve([(PortWish("tcp", 80, "", number, number), ("127.0.0.1",))])
        assert not error.value.by_us


def test_a_held_port_refuses_another_listener_and_answers_nobody(ports: HostPorts, free_port: int) -> None:
    held = ports.reserve([(PortWish("tcp", 80, "", free_port, free_port), ("127.0.0.1",))])
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", free_port))
            other.listen()
    with socket.socket() as client:
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.connect(("127.0.0.1", free_port))
    ports.release(held)


def test_a_failure_releases_what_was_reserved_before_it(ports: HostPorts, free_port: int) -> None:
    ports.adopt("tcp", "127.0.0.1", 9)
    wishes = [
        (PortWish("udp", 53, "", free_port, free_port), ("127.0.0.1",)),
        (PortWish("tcp", 80, "", 9, 9), ("127.0.0.1",)),
    ]
    with pytest.raises(PortTaken):
        ports.reserve(wishes)
    ports.release(ports.reserve(wishes[:1]))


def test_an_address_that_is_not_ours_is_no_conflict(ports: HostPorts) -> None:
    with pytest.raises(OSError, match="cannot assign requested address") as error:
        ports.reserve([(PortWish("tcp", 80), ("203.0.113.9",))])
    assert not isinstance(error.value, PortTaken)


def test_a_range_takes_the_first_free_port_and_any_port_goes_on_upwards(ports: HostPorts) -> None:
    ports.adopt("tcp", "0.0.0.0", 41000)
    held = ports.reserve([(PortWish("tcp", 80, "", 41000, 41001), ("127.0.0.1",))])
    assert held[0].host_port == 41001
    first, second = ports.reserve([(PortWish("udp", p), ("127.0.0.1",)) for p in (53, 54)])
    assert 40000 <= first.host_port < second.host_port
    ports.release([*held, first, second])
    with pytest.raises(PortTaken):
        ports.reserve([(PortWish("tcp", 80, "", 41000, 41000), ("127.0.0.1",))])


def test_the_kernels_range_is_a_range() -> None:
    first, last = ephemeral_range_sync()
    assert 0 < first < last <= 65535
