"""Host ports: which are asked for, which are free, and the sockets that keep them.

A published port is a firewall rule, but it is also held by a bound socket that the container's shim keeps open, so
another program that wants the port is told so, and so are we. A TCP socket listens behind a filter that drops
everything: ``ss`` shows the port, a second listener is refused, and if the rules are away for a moment a client's SYN
is lost, not answered.
"""

from __future__ import annotations

import contextlib
import errno
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from engine.kernel.sockets import hold_sync
from engine.networks.model import BindingWish

PROTOCOLS = ("tcp", "udp", "sctp")
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(\w+))?")
_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")


class PortTaken(OSError):
    """The host port is in use: ``by_us`` for another container, else some other program.

    ``text`` is docker's sentence.
    """

    def __init__(self, text: str, *, by_us: bool) -> None:
        super().__init__(errno.EADDRINUSE, text)
        self.text = text
        self.by_us = by_us


@dataclass(frozen=True, slots=True)
class PortWish:
    """A container port to publish on one of the host ports ``first`` to ``last``; 0 for any."""

    protocol: str
    container_port: int
    host_ip: str = ""
    first: int = 0
    last: int = 0

    @property
    def port(self) -> str:
        """The container's port as the API writes it."""
        return f"{self.container_port}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class HeldPort:
    """A reserved host port. ``socket`` is None where the host cannot hold one (a protocol it does not have)."""

    wish: PortWish
    host_ip: str
    host_port: int
    socket: socket.socket | None


def parse_port(text: str) -> list[tuple[int, str]]:
    """``80``, ``80/udp`` or ``80-82/tcp`` as (port, protocol) pairs. Raises ``ValueError`` in docker's words."""
    match = _PORT.fullmatch(text)
    if match is None:
        raise ValueError(f"invalid containerPort: {text}")
    first, last, protocol = int(match[1]), int(match[2] or match[1]), (match[3] or "tcp").lower()
    if protocol not in PROTOCOLS:
        raise ValueError(f"invalid proto: {protocol}")
    if not 0 < first <= last <= 65535:
        raise ValueError(f"invalid containerPort: {text}")
    return [(port, protocol) for port in range(first, last + 1)]


def parse_host_port(text: str) -> tuple[int, int]:
    """A host port, a range, or nothing, as (first, last). Raises ``ValueError``."""
    if text in ("", "0"):
        return 0, 0
    match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text)
    if match is None or not 0 < int(match[1]) <= int(match[2] or match[1]) <= 65535:
        raise ValueError(f"invalid port specification: {text}")
    return int(match[1]), int(match[2] or match[1])


def wanted_ports(
    exposed: Sequence[str], bindings: Mapping[str, Sequence[BindingWish] | None], publish_all: bool
) -> list[PortWish]:
    """What to publish: every binding, and with ``publish_all`` every exposed port without one.

    Raises ``ValueError``.
    """
    wishes: list[PortWish] = []
    bound: set[tuple[int, str]] = set()
    for text, given in bindings.items():
        for port, protocol in parse_port(text):
            if given:
                bound.add((port, protocol))
            for binding in given or ():
                first, last = parse_host_port(binding.host_port)
                if binding.host_ip:
                    ip_address(binding.host_ip)
                wishes.append(PortWish(protocol, port, binding.host_ip, first, last))
    if publish_all:
        for text in exposed:
            wishes += [PortWish(proto, port) for port, proto in parse_port(text) if (port, proto) not in bound]
    # A wish for one certain port goes first, lest a wish for any port takes it.
    return sorted(wishes, key=lambda w: (w.first == 0, w.last - w.first, w.container_port, w.protocol))


def ephemeral_range_sync() -> tuple[int, int]:
    """The kernel's range of ports for nobody in particular."""
    with contextlib.suppress(OSError, ValueError):
        first, last = _RANGE_FILE.read_text().split()
        return int(first), int(last)
    return 49153, 65535


class HostPorts:
    """The ports that our containers have. Reserving costs a few system calls that never wait.

    ``daemons`` are the addresses and TCP ports that the daemon itself has: no container gets them.
    """

    def __init__(self, ephemeral: tuple[int, int] | None = None, daemons: Iterable[tuple[str, int]] = ()) -> None:
        self._ephemeral = ephemeral or ephemeral_range_sync()
        self._taken: dict[tuple[str, int], set[str]] = {}
        for address, port in daemons:
            self._taken.setdefault(("tcp", port), set()).add(address)
        self._next = self._ephemeral[0]

    def reserve(self, wishes: Sequence[tuple[PortWish, tuple[str, ...]]]) -> list[HeldPort]:
        """Reserve every wish on all of its host addresses, or nothing. Raises ``PortTaken``."""
        held: list[HeldPort] = []
        try:
            for wish, addresses in wishes:
                held += self._reserve_one(wish, addresses)
        except BaseException:
            self.release(held)
            raise
        return held

    def _reserve_one(self, wish: PortWish, addresses: tuple[str, ...]) -> list[HeldPort]:
        refused: OSError | None = None
        for port in self._ports_to_try(wish):
            got: list[HeldPort] = []
            try:
                for address in addresses:
                    got += [self._take(wish, address, port)]  # one by one: a later failure releases the earlier
                return got
            except OSError as error:
                self.release(got)
                refused = error
                if error.errno != errno.EADDRINUSE:
                    break
        if isinstance(refused, PortTaken):
            raise refused
        raise refused or PortTaken(f"Bind for {addresses[0]} failed: all ports are allocated", by_us=True)

    def _ports_to_try(self, wish: PortWish) -> Iterator[int]:
        if wish.first:
            yield from range(wish.first, wish.last + 1)
            return
        first, last = self._ephemeral
        for _ in range(last - first + 1):
            port, self._next = self._next, self._next + 1 if self._next < last else first
            yield port

    def _take(self, wish: PortWish, address: str, port: int) -> HeldPort:
        shown = f"[{address}]" if ":" in address else address
        if self._conflicts(wish.protocol, address, port):
            raise PortTaken(f"Bind for {shown}:{port} failed: port is already allocated", by_us=True)
        try:
            held = hold_sync(wish.protocol, address, port)
        except OSError as error:
            version = 6 if ":" in address else 4
            words = {errno.EADDRINUSE: "address already in use", errno.EADDRNOTAVAIL: "cannot assign requested address"}
            reason = words.get(error.errno or 0, (error.strerror or str(error)).lower())
            text = f"Error starting userland proxy: listen {wish.protocol}{version} {shown}:{port}: bind: {reason}"
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(text, by_us=False) from error
            raise OSError(error.errno, text) from error
        self._taken.setdefault((wish.protocol, port), set()).add(address)
        return HeldPort(wish, address, port, held)

    def _conflicts(self, protocol: str, address: str, port: int) -> bool:
        others = self._taken.get((protocol, port), ())
        ip = ip_address(address)
        for other in map(ip_address, others):
            if other.version == ip.version and (other == ip or other.is_unspecified or ip.is_unspecified):
                return True
        return False

    def adopt(self, protocol: str, address: str, port: int) -> None:
        """Remember a port that a running container's shim holds."""
        self._taken.setdefault((protocol, port), set()).add(address)

    def release(self, held: Sequence[HeldPort]) -> None:
        """Give ports back and close our copies of their sockets."""
        for one in held:
            self.forget(one.wish.protocol, one.host_ip, one.host_port)
            if one.socket is not None:
                one.socket.close()

    def forget(self, protocol: str, address: str, port: int) -> None:
        """Give one port back."""
        addresses = self._taken.get((protocol, port))
        if addresses is not None:
            addresses.discard(address)
            if not addresses:
                del self._taken[protocol, port]
