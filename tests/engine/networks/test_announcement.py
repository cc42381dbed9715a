"""What neighbours are told of a new interface, and how often."""

from __future__ import annotations

import asyncio
import socket
import threading

import msgspec
import pytest

from engine.kernel.namespaces import NetworkNamespace
from engine.networks import announcement as module
from engine.networks.announcement import OPTION_COUNT, OPTION_INTERVAL, Announcer, announcement_plan, frames_of
from engine.networks.model import EndpointState, Network

TOWN = Network(id="ab" * 32, name="town", driver="bridge", options={OPTION_INTERVAL: "100"})
ENDPOINT = EndpointState(
    network_id=TOWN.id,
    network_name="town",
    endpoint_id="e1",
    interface="eth0",
    ip_address="10.0.0.2",
    global_ipv6_address="fd00::2",
    mac_address="02:42:01:02:03:04",
)


def test_three_times_a_second_apart_unless_told_otherwise() -> None:
    assert announcement_plan({}) == (3, 1.0)
    assert announcement_plan({OPTION_COUNT: "0", OPTION_INTERVAL: "100"}) == (0, 0.1)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        (OPTION_COUNT, "4", f"^{OPTION_COUNT} must be in the range 0 to 3$"),
        (OPTION_COUNT, "-1", f"^{OPTION_COUNT} must be in the range 0 to 3$"),
        (OPTION_COUNT, "x", f'^value for option {OPTION_COUNT} "x" must be an integer$'),
        (OPTION_INTERVAL, "99", f"^{OPTION_INTERVAL} must be in the range 100 to 2000$"),
        (OPTION_INTERVAL, "2001", f"^{OPTION_INTERVAL} must be in the range 100 to 2000$"),
        (OPTION_INTERVAL, "x", f'^value for option {OPTION_INTERVAL} "x" must be integer milliseconds$'),
    ],
)
def test_other_plans_are_refused(option: str, value: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        announcement_plan({option: value})


def test_frames_are_as_the_standards_want_them() -> None:
    arp, neighbour = frames_of(ENDPOINT)
    mac = "024201020304"
    assert arp.hex() == f"ffffffffffff{mac}0806" + f"0001080006040001{mac}0a000002" + "0000000000000a000002"
    assert neighbour[:14].hex() == f"333300000001{mac}86dd"
    address, everybody = "fd" + "00" * 14 + "02", "ff02" + "00" * 13 + "01"
    assert neighbour[14:54].hex() == f"6000000000203aff{address}{everybody}"
    assert (neighbour[54:56] + neighbour[58:]).hex() == f"880020000000{address}0201{mac}"
    words = neighbour[22:54] + (32).to_bytes(4) + (58).to_bytes(4) + neighbour[54:]
    total = sum(int.from_bytes(words[i : i + 2]) for i in range(0, len(words), 2))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF


async def test_announcements_end_with_their_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    closed_by: list[int] = []

    class Slow(socket.socket):
        """A packet socket: its end takes the kernel a while."""

        def close(self) -> None:
            closed_by.append(threading.get_ident())
            super().close()

    sender = Slow(fileno=ours.detach())
    monkeypatch.setattr(module, "open_packet_socket_sync", lambda fd, interface: sender)
    monkeypatch.setattr(module, "_SETTLE_SECONDS", 0)
    announcer, namespace = Announcer(), NetworkNamespace(-1, theirs)
    await announcer.start(TOWN, ENDPOINT, namespace)
    loop = asyncio.get_running_loop()
    assert [await loop.sock_recv(theirs, 1500) for _ in range(4)] == frames_of(ENDPOINT) * 2
    announcer.stop(ENDPOINT)
    assert await loop.sock_recv(theirs, 1500) == b""
    assert closed_by[0] != threading.get_ident()
    announcer.stop(ENDPOINT)
    await announcer.start(msgspec.structs.replace(TOWN, driver="ipvlan"), ENDPOINT, namespace)
    await announcer.start(msgspec.structs.replace(TOWN, options={OPTION_COUNT: "0"}), ENDPOINT, namespace)
    await announcer.aclose()
    theirs.close()


async def test_who_cannot_be_announced_starts_anyway(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(fd: int, interface: str) -> socket.socket:
        raise OSError("no such protocol")

    monkeypatch.setattr(module, "open_packet_socket_sync", refuse)
    with socket.socket() as sock:
        await Announcer().start(TOWN, ENDPOINT, NetworkNamespace(-1, sock))
    assert "are not announced: no such protocol" in caplog.text
