"""Sockets that hold a port: exclusive, and deaf."""

import socket

import pytest

from engine.kernel.sockets import hold_sync


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_held_port_is_exclusive(protocol: str) -> None:
    held = hold_sync(protocol, "127.0.0.1", 0)
    assert held is not None
    port = held.getsockname()[1]
    with pytest.raises(OSError, match="in use"):
        hold_sync(protocol, "127.0.0.1", port)
    held.close()


def test_a_held_udp_port_hears_nothing() -> None:
    held = hold_sync("udp", "127.0.0.1", 0)
    assert held is not None
    held.setblocking(False)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"hello", held.getsockname())
    with pytest.raises(BlockingIOError):
        held.recv(10)
    held.close()


def test_ipv6_does_not_take_the_ipv4_port() -> None:
    held = hold_sync("tcp", "::1", 0)
    assert held is not None
    other = hold_sync("tcp", "127.0.0.1", held.getsockname()[1])
    assert other is not None
    other.close()
    held.close()
