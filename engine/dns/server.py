"""The sockets of the name server: one UDP and one TCP socket inside each container's namespace, and the way outside.

One thread, one selector. Names of ours are answered at once; everything else is passed on, from the host's namespace,
to the container's servers, one after the other. A container's sockets are closed when its init ends, which is noticed
here without the daemon's help: they must not keep its namespace alive.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import os
import selectors
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from engine.dns import wire
from engine.dns.zones import Member, Zones

TRY_SECONDS = 2.0
TCP_SECONDS = 10.0
TRIES = 2
FRESH_SECONDS = 5.0
MAX_MESSAGE = 65535
MAX_CONNECTIONS = 256

Reply = Callable[[bytes], None]


class HostServers:
    """The host's name servers, read again when the file has changed."""

    def __init__(self, path: Path = Path("/etc/resolv.conf")) -> None:
        self._path = path
        self._checked = 0.0
        self._changed = -1
        self._servers: tuple[str, ...] = ()

    def get(self) -> tuple[str, ...]:
        """The servers now."""
        now = time.monotonic()
        if now - self._checked > FRESH_SECONDS:
            self._checked = now
            with contextlib.suppress(OSError):
                changed = self._path.stat().st_mtime_ns
                if changed != self._changed:
                    self._changed = changed
                    lines = self._path.read_text(errors="replace").splitlines()
                    self._servers = tuple(w[1] for w in map(str.split, lines) if len(w) > 1 and w[0] == "nameserver")
        return self._servers


class Server:
    """Serves until nobody is left: no container, and no daemon connected."""

    def __init__(self, control: socket.socket) -> None:
        self._selector = selectors.DefaultSelector()
        self._zones = Zones()
        self._host = HostServers()
        self._sockets: dict[str, list[socket.socket]] = {}
        self._pidfds: dict[str, int] = {}
        self._daemons = 0
        self._streams = 0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._control = control
        self._watch(control, lambda: self._welcome(control))

    def _watch(self, source: Any, on_readable: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, on_readable)

    def _unwatch(self, source: Any) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(source)

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Call ``action`` after a while."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._count), action))

    def run(self) -> None:
        """Serve. The daemon that started this process connects first, so it does not end before that."""
        had_daemon = False
        while not had_daemon or self._daemons or self._zones.members:
            timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
            for key, _ in self._selector.select(timeout):
                if self._selector.get_map().get(key.fd) is key:  # an earlier one of this round may have closed it
                    key.data()
            while self._timers and self._timers[0][0] <= time.monotonic():
                heapq.heappop(self._timers)[2]()
            had_daemon = had_daemon or self._daemons > 0
        for ident in tuple(self._sockets):
            self._drop(ident)
        for key in tuple(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket) and key.fileobj is not self._control:
                key.fileobj.close()
        self._selector.close()

    # ---- the daemon

    def _welcome(self, control: socket.socket) -> None:
        with contextlib.suppress(OSError):
            daemon, _ = control.accept()
            self._daemons += 1
            self._watch(daemon, lambda: self._hear(daemon))

    def _hear(self, daemon: socket.socket) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(daemon, 1 << 18, 4)
        except OSError:
            data, fds = b"", []
        if not data:
            self._unwatch(daemon)
            daemon.close()
            self._daemons -= 1
            return
        reply = self._obey(json.loads(data), fds)
        with contextlib.suppress(OSError):
            daemon.send(json.dumps(reply).encode())

    def _obey(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        match message.get("do"):
            case "put":
                self._put(Member.parse(message), fds)
            case "watch":
                self._watch_init(message["id"], fds)
            case "drop":
                self._drop(message["id"])
            case "hello":
                pass
            case "keep":
                for ident in set(self._zones.members) - set(message["ids"]):
                    self._drop(ident)
            case _:
                return {"error": "unknown message"}
        return {"have": sorted(self._sockets), "pid": os.getpid()}

    def _put(self, member: Member, fds: list[int]) -> None:
        if fds:
            self._close(member.ident)
            udp, tcp = (socket.socket(fileno=fd) for fd in fds)
            self._sockets[member.ident] = [udp, tcp]
            for one in (udp, tcp):
                one.setblocking(False)
            self._watch(udp, lambda: self._on_datagram(member.ident, udp))
            self._watch(tcp, lambda: self._on_connection(member.ident, tcp))
        self._zones.put(member)

    def _watch_init(self, ident: str, fds: list[int]) -> None:
        for pidfd in fds:
            if ident not in self._sockets or ident in self._pidfds:
                os.close(pidfd)
                continue
            self._pidfds[ident] = pidfd
            self._watch(pidfd, lambda: self._drop(ident))

    def _drop(self, ident: str) -> None:
        self._zones.drop(ident)
        self._close(ident)

    def _close(self, ident: str) -> None:
        for one in self._sockets.pop(ident, ()):
            self._unwatch(one)
            one.close()
        pidfd = self._pidfds.pop(ident, None)
        if pidfd is not None:
            self._unwatch(pidfd)
            os.close(pidfd)

    # ---- containers

    def _on_datagram(self, ident: str, udp: socket.socket) -> None:
        try:
            packet, peer = udp.recvfrom(MAX_MESSAGE)
        except OSError:
            return

        def reply(data: bytes) -> None:
            with contextlib.suppress(OSError):
                udp.sendto(data, peer)

        self._answer(ident, packet, reply, over_udp=True)

    def _on_connection(self, ident: str, tcp: socket.socket) -> None:
        try:
            stream, _ = tcp.accept()
        except OSError:
            return
        if self._streams >= MAX_CONNECTIONS:
            stream.close()
            return
        self._streams += 1
        Stream(self, stream, lambda packet, reply: self._answer(ident, packet, reply, over_udp=False))

    def stream_closed(self) -> None:
        """A container's TCP connection is over."""
        self._streams -= 1

    def _answer(self, ident: str, packet: bytes, reply: Reply, *, over_udp: bool) -> None:
        try:
            query = wire.parse(packet)
        except ValueError:
            error = wire.refuse_packet(packet, wire.FORMERR)
            if error is not None:
                reply(error)
            return
        if query.kind == wire.PTR:
            address = wire.reverse_address(query.name)
            name = self._zones.reverse(ident, address) if address is not None else None
            if name is not None:
                reply(wire.answer_pointer(query, name))
                return
        else:
            found = self._zones.resolve(ident, query.name)
            if found is not None:
                reply(wire.answer(query, found, over_udp=over_udp))
                return
        self._forward(ident, query, packet, reply, over_udp=over_udp)

    def _forward(self, ident: str, query: wire.Query, packet: bytes, reply: Reply, *, over_udp: bool) -> None:
        member = self._zones.members.get(ident)
        servers = (self._host.get() if member.upstream is None else member.upstream) if member is not None else ()
        if member is None or not member.has_outside or not servers:
            reply(wire.refuse(query, wire.SERVFAIL))
            return
        route = itertools.chain.from_iterable(itertools.repeat(servers, TRIES))
        kind = Datagram if over_udp else Exchange
        self.try_next(list(route), kind, query, packet, reply)

    def try_next(
        self, servers: list[str], kind: type[Datagram | Exchange], query: wire.Query, packet: bytes, reply: Reply
    ) -> None:
        """Ask the first of ``servers``; when it does not answer the next; after the last one give up."""
        while servers:
            server, servers = servers[0], servers[1:]
            try:
                kind(self, server, packet, reply, partial(self.try_next, servers, kind, query, packet, reply))
                return
            except (OSError, ValueError):
                continue
        reply(wire.refuse(query, wire.SERVFAIL))

    def watch(self, sock: socket.socket, events: int, action: Callable[[], None]) -> None:
        """Wait for a socket of a conversation, replacing what was waited for."""
        try:
            self._selector.modify(sock, events, action)
        except KeyError:
            self._selector.register(sock, events, action)

    def release(self, sock: socket.socket) -> None:
        """A conversation is over."""
        self._unwatch(sock)
        sock.close()


def _endpoint(server: str) -> tuple[socket.AddressFamily, tuple[str, int]]:
    return (socket.AF_INET6 if ":" in server else socket.AF_INET), (server, 53)


class Datagram:
    """One question passed on by UDP from a port of its own."""

    def __init__(self, server: Server, address: str, packet: bytes, reply: Reply, failed: Callable[[], None]) -> None:
        family, target = _endpoint(address)
        self._server, self._ident, self._reply, self._failed = server, packet[:2], reply, failed
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._open = True
        try:
            self._socket.connect(target)
            self._socket.send(packet)
        except OSError:
            self._socket.close()
            raise
        server.watch(self._socket, selectors.EVENT_READ, self._on_answer)
        server.later(TRY_SECONDS, self._give_up)

    def _on_answer(self) -> None:
        try:
            data = self._socket.recv(MAX_MESSAGE)
        except OSError:
            self._give_up()
            return
        if data[:2] != self._ident:
            return
        self._end()
        self._reply(data)

    def _give_up(self) -> None:
        if self._open:
            self._end()
            self._failed()

    def _end(self) -> None:
        self._open = False
        self._server.release(self._socket)


class Exchange:
    """One question passed on by TCP."""

    def __init__(self, server: Server, address: str, packet: bytes, reply: Reply, failed: Callable[[], None]) -> None:
        family, target = _endpoint(address)
        self._server, self._reply, self._failed = server, reply, failed
        self._out = len(packet).to_bytes(2, "big") + packet
        self._in = b""
        self._open = True
        self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        with contextlib.suppress(BlockingIOError):
            self._socket.connect(target)
        server.watch(self._socket, selectors.EVENT_WRITE, self._on_writable)
        server.later(TRY_SECONDS * 2, self._give_up)

    def _on_writable(self) -> None:
        try:
            self._out = self._out[self._socket.send(self._out) :]
        except OSError:
            self._give_up()
            return
        if not self._out:
            self._server.watch(self._socket, selectors.EVENT_READ, self._on_readable)

    def _on_readable(self) -> None:
        try:
            data = self._socket.recv(MAX_MESSAGE)
        except OSError:
            data = b""
        self._in += data
        if len(self._in) >= 2 and len(self._in) >= 2 + int.from_bytes(self._in[:2], "big"):
            self._end()
            self._reply(self._in[2 : 2 + int.from_bytes(self._in[:2], "big")])
        elif not data:
            self._give_up()

    def _give_up(self) -> None:
        if self._open:
            self._end()
            self._failed()

    def _end(self) -> None:
        self._open = False
        self._server.release(self._socket)


class Stream:
    """A container's TCP connection: any number of questions, each behind its length."""

    def __init__(self, server: Server, sock: socket.socket, ask: Callable[[bytes, Reply], None]) -> None:
        self._server, self._socket, self._ask = server, sock, ask
        self._in = self._out = b""
        self._open = True
        sock.setblocking(False)
        server.watch(sock, selectors.EVENT_READ, self._on_readable)
        server.later(TCP_SECONDS, self._end)

    def _on_readable(self) -> None:
        try:
            data = self._socket.recv(MAX_MESSAGE)
        except OSError:
            data = b""
        if not data:
            self._end()
            return
        self._in += data
        while self._open and len(self._in) >= 2:
            size = int.from_bytes(self._in[:2], "big")
            if len(self._in) < 2 + size:
                return
            packet, self._in = self._in[2 : 2 + size], self._in[2 + size :]
            self._ask(packet, self._reply)

    def _reply(self, data: bytes) -> None:
        if self._open:
            self._out += len(data).to_bytes(2, "big") + data
            self._flush()

    def _flush(self) -> None:
        try:
            self._out = self._out[self._socket.send(self._out) :]
        except BlockingIOError:
            pass
        except OSError:
            self._end()
            return
        if self._out:
            self._server.watch(self._socket, selectors.EVENT_WRITE, self._flush)
        else:
            self._server.watch(self._socket, selectors.EVENT_READ, self._on_readable)

    def _end(self) -> None:
        if self._open:
            self._open = False
            self._server.release(self._socket)
            self._server.stream_closed()
