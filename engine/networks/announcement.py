"""Tells the neighbours of a new interface which hardware address its addresses have now.

A restarted container has its IP addresses again but another hardware address; whoever has talked to it before would go
on with the old one for seconds. Unsolicited ARP and neighbour advertisements correct them (RFC 5227, RFC 4861).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address

from engine.kernel.namespaces import NetworkNamespace
from engine.kernel.sockets import open_packet_socket_sync
from engine.networks.model import EndpointState, Network
from engine.tasks import Nursery, run_in, run_to_end

log = logging.getLogger(__name__)

OPTION_COUNT = "com.docker.network.advertise_addr_nmsgs"
OPTION_INTERVAL = "com.docker.network.advertise_addr_ms"
_COUNTS = (0, 3)
_INTERVALS_MS = (100, 2000)
_SETTLE_SECONDS = 0.02
"""How long a bridge's new port may take to forward."""


def announcement_plan(options: Mapping[str, str]) -> tuple[int, float]:
    """How many times a network's addresses are announced, and the seconds between. Raises ``ValueError``."""
    count, interval = options.get(OPTION_COUNT, "3"), options.get(OPTION_INTERVAL, "1000")
    times = _whole(count, f'value for option {OPTION_COUNT} "{count}" must be an integer')
    pause = _whole(interval, f'value for option {OPTION_INTERVAL} "{interval}" must be integer milliseconds')
    for option, value, (least, most) in ((OPTION_COUNT, times, _COUNTS), (OPTION_INTERVAL, pause, _INTERVALS_MS)):
        if not least <= value <= most:
            raise ValueError(f"{option} must be in the range {least} to {most}")
    return times, pause / 1000


def _whole(text: str, words: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(words) from error


def frames_of(endpoint: EndpointState) -> list[bytes]:
    """An Ethernet frame for each of the endpoint's leased addresses."""
    mac = bytes.fromhex(endpoint.mac_address.replace(":", ""))
    frames = []
    if endpoint.ip_address:
        frames.append(_arp_frame(mac, IPv4Address(endpoint.ip_address)))
    if endpoint.global_ipv6_address:
        frames.append(_neighbour_frame(mac, IPv6Address(endpoint.global_ipv6_address)))
    return frames


def _arp_frame(mac: bytes, address: IPv4Address) -> bytes:
    everybody, nobody = b"\xff" * 6, bytes(6)
    ethernet = everybody + mac + struct.pack("!H", 0x0806)
    request = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
    return ethernet + request + mac + address.packed + nobody + address.packed


def _neighbour_frame(mac: bytes, address: IPv6Address) -> bytes:
    everybody = IPv6Address("ff02::1").packed
    override = 1 << 29
    body = struct.pack("!BBHI", 136, 0, 0, override) + address.packed + b"\x02\x01" + mac
    pseudo = address.packed + everybody + struct.pack("!II", len(body), socket.IPPROTO_ICMPV6)
    body = body[:2] + struct.pack("!H", _checksum(pseudo + body)) + body[4:]
    header = struct.pack("!IHBB", 6 << 28, len(body), socket.IPPROTO_ICMPV6, 255) + address.packed + everybody
    return b"\x33\x33\x00\x00\x00\x01" + mac + struct.pack("!H", 0x86DD) + header + body


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Announcer:
    """Announces interfaces, each for a few seconds after it was made."""

    def __init__(self) -> None:
        self._nursery = Nursery("announcements")
        self._running: dict[str, asyncio.Task[None]] = {}

    async def start(self, network: Network, endpoint: EndpointState, namespace: NetworkNamespace) -> None:
        """Begin to announce an endpoint whose interface is up. Never fails: neighbours find out by themselves, later.

        ``namespace`` is needed for the time of the call only.
        """
        times, pause = announcement_plan(network.options)
        # An ipvlan interface has its parent's hardware address, which is no news.
        frames = frames_of(endpoint) if network.driver != "ipvlan" else []
        if not times or not frames:
            return
        try:
            sender = await run_in("net", open_packet_socket_sync, namespace.fd, endpoint.interface)
        except OSError as error:
            log.warning("the addresses of endpoint %s are not announced: %s", endpoint.endpoint_id, error)
            return
        task = self._nursery.start(_announce(sender, frames, times, pause), name="announce")
        self._running[endpoint.endpoint_id] = task
        # A task that is cancelled before it ever ran closes nothing itself.
        task.add_done_callback(lambda _: sender.close())
        task.add_done_callback(lambda _: self._running.pop(endpoint.endpoint_id, None))

    def stop(self, endpoint: EndpointState) -> None:
        """The endpoint goes: it is announced no more, and its namespace let go. Without announcement it is fine."""
        if (task := self._running.pop(endpoint.endpoint_id, None)) is not None:
            task.cancel()

    async def aclose(self) -> None:
        """Stop all."""
        await self._nursery.aclose()


async def _announce(sender: socket.socket, frames: list[bytes], times: int, pause: float) -> None:
    try:
        await asyncio.sleep(_SETTLE_SECONDS)
        for number in range(times):
            if number:
                await asyncio.sleep(pause)
            for frame in frames:
                sender.send(frame)
    except OSError:  # the interface is gone or down: nobody is there to be announced
        return
    finally:
        # The kernel waits 10 ms and more until nobody uses a packet socket any more: not in the loop.
        await run_to_end("net", sender.close)
