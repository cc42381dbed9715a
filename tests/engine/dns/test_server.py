"""The server on its sockets, in a thread: local answers, forwarding, and when it ends."""

import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.name
import pytest

from engine.dns import server as module
from engine.dns import wire
from engine.dns.server import HostServers, Server


def query(name: str, kind: int = wire.A) -> bytes:
    return (
        struct.pack("!HHHHHH", 9, 0x100, 1, 0, 0, 0) + dns.name.from_text(name).to_wire() + struct.pack("!HH", kind, 1)
    )


class Rig:
    """A server, a daemon's connection to it, one container's sockets, and an upstream server."""

    def __init__(self, folder: Path) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(str(folder / "c"))
        listener.listen()
        self.listener = listener
        self.thread = threading.Thread(target=Server(listener).run)
        self.thread.start()
        self.daemon = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.daemon.connect(str(folder / "c"))
        self.upstream = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.upstream.bind(("127.0.0.1", 0))
        self.upstream.settimeout(3)
        self.upstream_tcp = socket.create_server(("127.0.0.1", 0))
        self.upstream_tcp.settimeout(3)
        self.opened: list[socket.socket] = [self.upstream, self.upstream_tcp]

    def tell(self, message: dict[str, Any], fds: list[int] | None = None) -> dict[str, Any]:
        socket.send_fds(self.daemon, [json.dumps(message).encode()], fds or [])
        answer: dict[str, Any] = json.loads(self.daemon.recv(65536))
        return answer

    def member(self, ident: str = "web", **more: Any) -> tuple[tuple[str, int], tuple[str, int]]:
        """Register a container; the addresses of its UDP and TCP sockets."""
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        tcp = socket.create_server(("127.0.0.1", 0))
        place = {"network": "n", "domain": "town", "addresses": ["10.0.0.2"], "names": [ident]}
        message = {"do": "put", "id": ident, "places": [place], "upstream": ["127.0.0.1"], **more}
        assert ident in self.tell(message, [udp.fileno(), tcp.fileno()])["have"]
        addresses = udp.getsockname(), tcp.getsockname()
        udp.close()
        tcp.close()
        return addresses

    def client(self, kind: int, address: tuple[str, int]) -> socket.socket:
        made = socket.socket(socket.AF_INET, kind)
        made.settimeout(3)
        made.connect(address)
        self.opened.append(made)
        return made

    def close(self) -> None:
        self.daemon.close()
        self.thread.join(5)
        assert not self.thread.is_alive()
        self.listener.close()
        for one in self.opened:
            one.close()


@pytest.fixture
def rig(short_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    made = Rig(short_root)
    monkeypatch.setattr(module, "TRY_SECONDS", 0.2)
    ports = {"udp": made.upstream.getsockname()[1], "tcp": made.upstream_tcp.getsockname()[1]}
    monkeypatch.setattr(module, "_endpoint", lambda server: (socket.AF_INET, (server, ports["udp"])))
    yield made
    made.tell({"do": "keep", "ids": []})
    made.close()


def test_names_are_answered_by_udp_and_tcp(rig: Rig) -> None:
    udp, tcp = rig.member()
    client = rig.client(socket.SOCK_DGRAM, udp)
    client.send(query("web"))
    assert socket.inet_aton("10.0.0.2") in client.recv(512)
    client.send(query("2.0.0.10.in-addr.arpa", wire.PTR))
    assert client.recv(512).endswith(b"\x03web\x04town\0")
    stream = rig.client(socket.SOCK_STREAM, tcp)
    for _ in range(2):  # one connection carries many questions, in pieces if need be
        packet = query("web")
        data = len(packet).to_bytes(2, "big") + packet
        stream.send(data[:5])
        stream.send(data[5:])
        assert socket.inet_aton("10.0.0.2") in stream.recv(512)


def test_unreadable_packets_are_refused_and_silence_is_no_crime(rig: Rig) -> None:
    udp, tcp = rig.member()
    client = rig.client(socket.SOCK_DGRAM, udp)
    client.send(b"x")
    client.send(query("web")[:-2])
    assert client.recv(512)[3] & 15 == wire.FORMERR
    rig.client(socket.SOCK_STREAM, tcp).close()


def test_other_names_are_passed_on_and_the_answer_comes_back_as_it_is(rig: Rig) -> None:
    udp, _ = rig.member()
    client = rig.client(socket.SOCK_DGRAM, udp)
    client.send(query("example.org"))
    packet, peer = rig.upstream.recvfrom(512)
    assert wire.parse(packet).name == "example.org"
    rig.upstream.sendto(b"zz" + packet[2:], peer)  # not the answer to this question
    answer = wire.answer(wire.parse(packet), ["192.0.2.1"])
    rig.upstream.sendto(answer, peer)
    assert client.recv(512) == answer


def test_a_silent_server_is_asked_again_and_then_given_up(rig: Rig) -> None:
    udp, _ = rig.member()
    client = rig.client(socket.SOCK_DGRAM, udp)
    client.send(query("example.org"))
    assert [rig.upstream.recv(512)[:2] for _ in range(2)] == [b"\0\x09"] * 2
    assert client.recv(512)[3] & 15 == wire.SERVFAIL


def test_questions_by_tcp_are_passed_on_by_tcp(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    port = rig.upstream_tcp.getsockname()[1]
    monkeypatch.setattr(module, "_endpoint", lambda server: (socket.AF_INET, (server, port)))
    _, tcp = rig.member()
    stream = rig.client(socket.SOCK_STREAM, tcp)
    packet = query("example.org")
    stream.send(len(packet).to_bytes(2, "big") + packet)
    connection, _ = rig.upstream_tcp.accept()
    rig.opened.append(connection)
    assert connection.recv(512)[2:] == packet
    answer = wire.answer(wire.parse(packet), ["192.0.2.1"])
    connection.send(len(answer).to_bytes(2, "big") + answer)
    assert stream.recv(512)[2:] == answer


@pytest.mark.parametrize("more", [{"outside": False}, {"upstream": []}])
def test_nobody_is_asked_where_nobody_may_be(rig: Rig, more: dict[str, Any]) -> None:
    udp, _ = rig.member(**more)
    client = rig.client(socket.SOCK_DGRAM, udp)
    client.send(query("example.org"))
    assert client.recv(512)[3] & 15 == wire.SERVFAIL


def test_the_daemons_messages(rig: Rig) -> None:
    rig.member("a")
    rig.member("b")
    assert rig.tell({"do": "hello"})["pid"] == os.getpid()
    assert rig.tell({"do": "keep", "ids": ["a"]})["have"] == ["a"]
    assert rig.tell({"do": "drop", "id": "a"})["have"] == []
    assert rig.tell({"do": "dance"}) == {"error": "unknown message"}


def test_the_end_of_init_is_noticed(rig: Rig) -> None:
    rig.member("a")
    pid = os.posix_spawn("/bin/sleep", ["sleep", "30"], {})
    pidfd = os.pidfd_open(pid)
    assert rig.tell({"do": "watch", "id": "a"}, [pidfd])["have"] == ["a"]
    assert rig.tell({"do": "watch", "id": "unknown"}, [pidfd])["have"] == ["a"]
    os.close(pidfd)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    for _ in range(1000):
        if not rig.tell({"do": "hello"})["have"]:
            return
    pytest.fail("its sockets are still open")


def test_the_hosts_servers_are_read_again_when_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FRESH_SECONDS", -1)
    file = tmp_path / "resolv.conf"
    servers = HostServers(file)
    assert servers.get() == ()
    file.write_text("nameserver 192.0.2.1\nsearch x\nnameserver\n")
    assert servers.get() == ("192.0.2.1",)
    file.write_text("nameserver 192.0.2.2\n")
    os.utime(file, ns=(1, 1))
    assert servers.get() == ("192.0.2.2",)
