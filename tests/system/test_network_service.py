"""Networks on the real kernel: who reaches whom, what survives the daemon, and that nothing is left.

Each "container" is a sleeping process in its namespace; sockets are opened inside namespaces by the tests themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import dns.message
import msgspec
import pytest

from engine.config import Config
from engine.dns import wire
from engine.errors import Conflict, Forbidden, InvalidParameter, SystemFailure
from engine.events import EventBus
from engine.journal import Journal
from engine.kernel import namespaces, netlink
from engine.kernel.namespaces import NetworkNamespace
from engine.kernel.netlink import RouteSocket
from engine.names import new_id
from engine.networks.model import OPTION_BRIDGE, IpamBlock, Link, Network, PortsWish, SandboxRequest
from engine.networks.sandbox import Sandbox
from engine.networks.service import CreateNetwork, NetworkService, table_name
from tests.support.leaks import processes

# Connecting from here blocks the loop, and nothing else runs on it that would mind.
pytestmark = [pytest.mark.system, pytest.mark.slow_loop]

BRIDGE = f"btb{os.getpid() % 100000}"
THIRD = 10 + os.getpid() % 200
GATEWAY = f"10.250.{THIRD}.1"


@dataclass(frozen=True)
class Binding:
    host_ip: str = ""
    host_port: str = ""


@dataclass(frozen=True)
class Addresses:
    ipv4_address: str = ""
    ipv6_address: str = ""
    link_local_ips: Sequence[str] | None = None


@dataclass(frozen=True)
class Wish:
    ipam_config: Addresses | None = None
    aliases: Sequence[str] | None = None
    links: Sequence[str] | None = None
    mac_address: str = ""
    gw_priority: int = 0
    driver_opts: Mapping[str, str] | None = None


@dataclass
class Box:
    """A running "container": its sandbox, its process, and sockets inside it."""

    sandbox: Sandbox
    process: subprocess.Popen[bytes]
    namespace: NetworkNamespace
    sockets: list[socket.socket] = field(default_factory=list)

    def ip(self, network: str = "bridge") -> str:
        return self.sandbox.endpoints[network].ip_address

    def run(self, fn: Callable[[], socket.socket]) -> socket.socket:
        made = namespaces.in_namespace_sync(self.namespace.fd, fn)
        self.sockets.append(made)
        return made

    def listen(self, port: int = 80, *, udp: bool = False, family: int = socket.AF_INET) -> socket.socket:
        def make() -> socket.socket:
            made = socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
            made.bind(("", port))
            if not udp:
                made.listen()
            made.settimeout(1)
            return made

        return self.run(make)

    def connect(self, address: str, port: int, timeout: float = 2.5) -> socket.socket:
        return self.run(lambda: socket.create_connection((address, port), timeout=timeout))

    @contextlib.contextmanager
    def inside(self) -> Iterator[RouteSocket]:
        """A look at the links and routes in its namespace."""
        opened = namespaces.open_namespace_sync(self.process.pid)
        try:
            yield RouteSocket(opened.socket)
        finally:
            opened.close()

    def close(self) -> None:
        for one in self.sockets:
            one.close()
        self.namespace.close()
        self.process.kill()
        self.process.wait()


class House:
    """A network service with a bridge and table of its own, and the boxes on it."""

    def __init__(self, root: Path, **config: object) -> None:
        self.root = root
        self.config = Config(bridge=BRIDGE, bip=f"{GATEWAY}/24", data_root=root, exec_root=root, **config)  # type: ignore[arg-type]
        self.journal = Journal(root / "journal.db")
        self.events = EventBus()
        self.service = NetworkService(self.config, self.journal, self.events)
        self.boxes: dict[str, Box] = {}
        self.networks = 0

    async def start(self) -> None:
        await asyncio.to_thread(self.journal.open_sync)
        await self.service.start()
        await self.service.settle()

    async def network(self, name: str, **request: Any) -> Network:
        """A user's network in a corner that no other daemon on this machine uses."""
        self.networks += 1
        block = IpamBlock(subnet=f"10.252.{THIRD}.{16 * self.networks}/28")
        return (await self.service.create(CreateNetwork(name=name, blocks=(block,), **request)))[0]

    async def open(
        self,
        name: str,
        *,
        mode: str = "default",
        ports: Mapping[str, Sequence[Binding]] | None = None,
        endpoints: Mapping[str, Wish] | None = None,
        links: Sequence[Link] = (),
        publish_all: bool = False,
        exposed: Sequence[str] = ("80/tcp",),
        dns: Sequence[str] = (),
    ) -> Box:
        container_id = new_id()
        sandbox = await self.service.open_sandbox(
            SandboxRequest(
                container_id=container_id,
                name=name,
                hostname=name,
                directory=self.root / container_id,
                mode=mode,
                endpoints=await self.service.validate_wish(mode, endpoints or {}, Wish()),
                ports=PortsWish(exposed, ports or {}, publish_all),
                links=links,
                dns=dns,
            )
        )
        enter = ["nsenter", f"--net={sandbox.netns_path}"] if sandbox.netns_path else []
        held = [os.dup(fd) for fd in sandbox.hold_fds]
        process = subprocess.Popen([*enter, "sleep", "60"], pass_fds=held)
        for fd in held:
            os.close(fd)
        namespace = open_of(sandbox)
        while os.stat(f"/proc/{process.pid}/ns/net").st_ino != os.fstat(namespace.fd).st_ino:
            await asyncio.sleep(0.001)
        await self.service.sandbox_started(container_id, process.pid)
        box = self.boxes[container_id] = Box(sandbox, process, namespace)
        return box

    async def end(self, box: Box) -> None:
        box.close()
        await self.service.close_sandbox(box.sandbox.container_id)
        del self.boxes[box.sandbox.container_id]

    async def restart_daemon(self) -> None:
        """The service is replaced by a new one that finds the containers running."""
        documents = {i: self.service.to_document(box.sandbox) for i, box in self.boxes.items()}
        await self.service.aclose()
        self.service = NetworkService(self.config, self.journal, self.events)
        await self.service.start()
        for container_id, box in self.boxes.items():
            box.sandbox = await self.service.adopt_sandbox(container_id, box.process.pid, documents[container_id])
        await self.service.settle()

    async def aclose(self) -> None:
        for box in tuple(self.boxes.values()):
            await self.end(box)
        await self.service.aclose(remove=True)
        await self.journal.aclose()


def open_of(sandbox: Sandbox) -> NetworkNamespace:
    path = sandbox.netns_path or "/proc/self/ns/net"
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    inside = namespaces.in_namespace_sync(fd, lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
    return NetworkNamespace(fd, inside)


@pytest.fixture
async def house(short_root: Path) -> AsyncIterator[House]:
    made = House(short_root)
    await made.start()
    try:
        yield made
    finally:
        await made.aclose()
    left = [link.name for link in links() if link.name == BRIDGE or link.name.startswith(("br-", "veth"))]
    assert not [name for name in left if name == BRIDGE]
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    assert table_name(made.config) not in tables.split()


def links() -> list[netlink.Link]:
    route = RouteSocket()
    try:
        return route.links_sync()
    finally:
        route.close()


def free_port(kind: int = socket.SOCK_STREAM) -> str:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("0.0.0.0", 0))
        return str(probe.getsockname()[1])


def reach(address: str, port: str | int, timeout: float = 2.5) -> bool:
    """Whether a TCP connection from the host succeeds."""
    try:
        socket.create_connection((address, int(port)), timeout=timeout).close()
    except OSError:
        return False
    return True


def reaches(box: Box, address: str, port: str | int, timeout: float = 2.5) -> bool:
    """Whether a TCP connection from a container succeeds. More than a second: the first ARP request may be lost."""
    try:
        box.connect(address, int(port), timeout)
    except OSError:
        return False
    return True


@pytest.fixture
def outside() -> Iterator[Box]:
    """Another machine: a namespace on a wire of its own to this host (10.251.x.1 here, .2 there)."""
    namespace = namespaces.create_namespace_sync()
    name = f"bto{os.getpid() % 100000}"
    route = RouteSocket()
    third = THIRD
    # A bridge without ports of its own serves as this end of the wire.
    route.send_sync(netlink.add_bridge(f"{name}b"))
    link = route.link_sync(f"{name}b")
    assert link is not None
    route.send_sync(
        netlink.add_address(link.index, ip_interface(f"10.251.{third}.1/24")),
        netlink.add_veth(
            name, master=link.index, mtu=1500, peer="eth0", peer_mac="02:42:0a:d7:00:02", peer_netns=namespace.fd
        ),
    )
    inner = RouteSocket(namespace.socket)
    eth0 = inner.link_sync("eth0")
    assert eth0 is not None
    inner.send_sync(
        netlink.set_up(1),
        netlink.add_address(eth0.index, ip_interface(f"10.251.{third}.2/24")),
        netlink.set_up(eth0.index),
        netlink.add_route("0.0.0.0/0", f"10.251.{third}.1"),
    )
    process = subprocess.Popen(["sleep", "60"])
    box = Box(Sandbox("", "outside", "", "none"), process, namespace)
    try:
        yield box
    finally:
        box.close()
        with contextlib.suppress(OSError):
            route.send_sync(netlink.delete_link(name))
        route.send_sync(netlink.delete_link(f"{name}b"))
        route.close()


async def test_a_container_has_address_gateway_route_and_name_files(house: House) -> None:
    box = await house.open("web")
    endpoint = box.sandbox.endpoints["bridge"]
    assert (endpoint.ip_address, endpoint.ip_prefix_len, endpoint.gateway) == (f"10.250.{THIRD}.2", 24, GATEWAY)
    with box.inside() as inner:
        assert [r.gateway for r in inner.routes_sync() if r.destination.prefixlen == 0] == [GATEWAY]
        found = {link.name: link.mac for link in inner.links_sync() if link.name != "lo"}
    assert found == {"eth0": endpoint.mac_address}
    assert Path(box.sandbox.hosts_path).read_text().splitlines()[-1] == f"{endpoint.ip_address}\tweb"
    assert Path(box.sandbox.hostname_path).read_text() == "web\n"
    assert "nameserver" in Path(box.sandbox.resolv_path).read_text()


async def test_a_published_port_is_reached_from_everywhere(house: House, outside: Box) -> None:
    port = free_port()
    web = await house.open("web", ports={"80/tcp": [Binding(host_port=port)]})
    other = await house.open("other")
    web.listen()
    assert web.sandbox.ports == {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": port}]}
    assert reach("127.0.0.1", port) and reach(GATEWAY, port) and reach(web.ip(), 80)
    assert reaches(outside, f"10.251.{THIRD}.1", port)
    assert reaches(other, GATEWAY, port) and reaches(web, GATEWAY, port)
    assert reaches(other, f"10.251.{THIRD}.1", port) and reaches(other, web.ip(), 80)


async def test_loopback_publishing_and_unpublished_ports_are_closed_to_other_hosts(house: House, outside: Box) -> None:
    port = free_port()
    web = await house.open("web", ports={"80/tcp": [Binding("127.0.0.1", port)]})
    web.listen()
    assert reach("127.0.0.1", port)
    assert not reaches(outside, f"10.251.{THIRD}.1", port, timeout=0.4)
    assert not reaches(outside, web.ip(), 80, timeout=0.4)
    # A neighbour that routes 127.0.0.1 to this host is not believed.
    inner = RouteSocket(outside.namespace.socket)
    index = inner.link_sync("eth0")
    assert index is not None
    inner.send_sync(netlink.add_route("127.0.0.9/32", f"10.251.{THIRD}.1", index.index))
    assert not reaches(outside, "127.0.0.9", port, timeout=0.4)


def crc32c(data: bytes) -> int:
    """The checksum of SCTP (RFC 9260, appendix A), which connection tracking looks at."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def sctp_init(source: int, target: int) -> bytes:
    """The first packet of an association, as made by hand: kernels without SCTP translate it all the same."""
    chunk = struct.pack(">BBHIIHHI", 1, 0, 20, 77, 65536, 1, 1, 77)
    blank = struct.pack(">HHII", source, target, 0, 0) + chunk
    return struct.pack(">HHI", source, target, 0) + struct.pack("<I", crc32c(blank)) + chunk


async def test_sctp_ports_are_translated_and_given_back(house: House, outside: Box) -> None:
    port = 30000 + os.getpid() % 10000
    web = await house.open("web", exposed=("90/sctp",), ports={"80/sctp": [Binding(host_port=str(port))]})
    assert web.sandbox.ports["80/sctp"] == [{"HostIp": "0.0.0.0", "HostPort": str(port)}]
    raw = partial(socket.socket, socket.AF_INET, socket.SOCK_RAW, 132)
    inside, sender = web.run(raw), outside.run(raw)
    inside.settimeout(3)
    sender.sendto(sctp_init(4000, port), (f"10.251.{THIRD}.1", 0))
    packet, (peer, _) = inside.recvfrom(2048)
    assert peer == f"10.251.{THIRD}.2" and packet[20:24] == struct.pack(">HH", 4000, 80)
    zeroed = packet[20:28] + bytes(4) + packet[32:]
    assert packet[28:32] == struct.pack("<I", crc32c(zeroed)), "the checksum goes with the new port"
    with pytest.raises(SystemFailure, match="port is already allocated"):
        await house.open("other", ports={"80/sctp": [Binding(host_port=str(port))]})
    await house.open("tcp", ports={"80/tcp": [Binding(host_port=str(port))]})
    sender.sendto(sctp_init(4001, 90), (web.ip(), 0))
    with pytest.raises(TimeoutError):
        inside.settimeout(0.3)
        inside.recvfrom(2048)
    await house.end(web)
    await house.open("next", ports={"80/sctp": [Binding(host_port=str(port))]})


async def test_the_source_address_seen_by_the_container_is_the_clients(house: House, outside: Box) -> None:
    port = free_port()
    web = await house.open("web", ports={"80/tcp": [Binding(host_port=port)]})
    listener = web.listen()
    outside.connect(f"10.251.{THIRD}.1", int(port))
    connection, (peer, _) = listener.accept()
    connection.close()
    assert peer == f"10.251.{THIRD}.2"


async def test_outgoing_connections_carry_the_hosts_address(house: House, outside: Box) -> None:
    listener = outside.listen(7777)
    box = await house.open("client")
    box.connect(f"10.251.{THIRD}.2", 7777)
    connection, (peer, _) = listener.accept()
    connection.close()
    assert peer == f"10.251.{THIRD}.1"


async def test_udp_ports_answer(house: House) -> None:
    port = free_port(socket.SOCK_DGRAM)
    box = await house.open("dns", ports={"53/udp": [Binding(host_port=port)]})
    server = box.listen(53, udp=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(1)
        client.connect(("127.0.0.1", int(port)))
        client.send(b"question")
        data, peer = server.recvfrom(100)
        assert data == b"question"
        server.sendto(b"answer", peer)
        assert client.recv(100) == b"answer"


async def test_a_udp_client_that_never_stops_finds_the_new_container(house: House) -> None:
    port = free_port(socket.SOCK_DGRAM)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.1", 0))
        client.sendto(b"early", ("127.0.0.1", int(port)))
        box = await house.open("late", ports={"53/udp": [Binding(host_port=port)]})
        server = box.listen(53, udp=True)
        client.sendto(b"late", ("127.0.0.1", int(port)))
        assert server.recvfrom(100)[0] == b"late"


async def test_a_port_that_is_taken_is_an_error_in_dockers_words_and_leaves_nothing(house: House) -> None:
    port = free_port()
    await house.open("first", ports={"80/tcp": [Binding(host_port=port)]})
    with pytest.raises(
        SystemFailure, match=rf"driver failed .* endpoint second \(.*\): Bind for 0.0.0.0:{port} failed"
    ):
        await house.open("second", ports={"80/tcp": [Binding(host_port=port)]})
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        taken = str(other.getsockname()[1])
        with pytest.raises(SystemFailure, match="bind: address already in use"):
            await house.open("third", ports={"80/tcp": [Binding(host_port=taken)]})
    ports = [link for link in links() if link.master and link.name.startswith("veth")]
    bridge = next(link for link in links() if link.name == BRIDGE)
    assert len([p for p in ports if p.master == bridge.index]) == 1
    assert (await house.open("fourth")).ip() == f"10.250.{THIRD}.3"


async def test_the_shim_holds_the_port_and_it_is_free_when_the_container_is_gone(house: House) -> None:
    port = free_port()
    box = await house.open("web", ports={"80/tcp": [Binding(host_port=port)]})
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(("0.0.0.0", int(port)))
            other.listen()
    await house.end(box)
    again = await house.open("web", ports={"80/tcp": [Binding(host_port=port)]})
    again.listen()
    assert reach("127.0.0.1", port)


async def test_publish_all_and_ranges_choose_ports(house: House) -> None:
    box = await house.open("web", exposed=["80/tcp", "81/udp"], publish_all=True)
    box.listen()
    chosen = box.sandbox.ports["80/tcp"]
    assert chosen is not None and box.sandbox.ports["81/udp"] is not None
    assert reach("127.0.0.1", chosen[0]["HostPort"])


async def test_networks_are_closed_to_each_other_but_not_to_their_own(house: House) -> None:
    await house.network(name="other")
    first, second = await house.open("a"), await house.open("b", mode="other")
    third = await house.open("c", mode="other")
    first.listen()
    third.listen()
    assert reaches(second, third.ip("other"), 80)
    assert not reaches(second, first.ip(), 80, timeout=0.4)
    port = free_port()
    published = await house.open("d", ports={"80/tcp": [Binding(host_port=port)]})
    published.listen()
    assert reaches(second, GATEWAY, port)


async def test_an_internal_network_reaches_nobody(house: House, outside: Box) -> None:
    await house.network(name="inner", is_internal=True)
    outside.listen(7777)
    first, second = await house.open("a", mode="inner"), await house.open("b", mode="inner")
    second.listen()
    assert first.sandbox.endpoints["inner"].gateway == ""
    assert reaches(first, second.ip("inner"), 80)
    assert not reaches(first, f"10.251.{THIRD}.2", 7777, timeout=0.4)


async def test_without_icc_only_links_pass(short_root: Path) -> None:
    house = House(short_root, icc=False)
    await house.start()
    try:
        server, stranger = await house.open("db", exposed=["80/tcp"]), await house.open("x")
        server.listen(80)
        server.listen(81)
        friend = await house.open("web", links=[Link("db", "database", server.ip())])
        assert not reaches(stranger, server.ip(), 80, timeout=0.4)
        assert reaches(friend, server.ip(), 80)
        assert not reaches(friend, server.ip(), 81, timeout=0.4)
        assert f"{server.ip()}\tdatabase db" in Path(friend.sandbox.hosts_path).read_text()
    finally:
        await house.aclose()


async def test_ports_work_while_the_daemon_is_away_and_after_it_is_back(house: House) -> None:
    port = free_port()
    box = await house.open("web", ports={"80/tcp": [Binding(host_port=port)]})
    box.listen()
    connection = socket.create_connection(("127.0.0.1", int(port)), timeout=1)
    await house.service.aclose()
    assert reach("127.0.0.1", port)
    house.service = NetworkService(house.config, house.journal, house.events)
    document = house.service.to_document(box.sandbox)
    await house.service.start()
    assert reach("127.0.0.1", port)
    box.sandbox = await house.service.adopt_sandbox(box.sandbox.container_id, box.process.pid, document)
    await house.service.settle()
    assert reach("127.0.0.1", port)
    connection.send(b"still there")
    connection.close()
    with pytest.raises(SystemFailure, match="port is already allocated"):
        await house.open("second", ports={"80/tcp": [Binding(host_port=port)]})
    assert (await house.open("third")).ip() == f"10.250.{THIRD}.3"


@pytest.mark.parametrize("damage", [["delete", "table"], ["flush", "table"]])
async def test_rules_come_back_after_a_foreign_flush(house: House, damage: list[str]) -> None:
    port = free_port()
    box = await house.open("web", ports={"80/tcp": [Binding(host_port=port)]})
    box.listen()
    table = table_name(house.config)
    subprocess.run(["nft", "add", "rule", "inet", table, "berth-user", "counter"], check=True)
    await house.network(name="another")
    listing = subprocess.run(["nft", "list", "chain", "inet", table, "berth-user"], capture_output=True, text=True)
    assert "counter" in listing.stdout  # what the administrator wrote survives our own changes
    subprocess.run(["nft", *damage, "inet", table], check=True)
    for _ in range(40):
        await asyncio.sleep(0.05)
        listing = subprocess.run(["nft", "list", "table", "inet", table], capture_output=True, text=True)
        if f"tcp . {port} " in listing.stdout and "jump published" in listing.stdout:
            break
    assert await asyncio.to_thread(reach, "127.0.0.1", port)


async def test_connect_and_disconnect_a_running_container(house: House) -> None:
    port = free_port()
    await house.service.create(CreateNetwork(name="zwei", blocks=(IpamBlock(subnet=f"10.252.{THIRD}.0/24"),)))
    box = await house.open("web", ports={"80/tcp": [Binding(host_port=port)]})
    box.listen()
    wanted = Wish(ipam_config=Addresses(f"10.252.{THIRD}.77"), aliases=("alias",), mac_address="02:00:00:00:00:07")
    endpoint = await house.service.connect(box.sandbox.container_id, "zwei", wanted)
    assert (endpoint.interface, endpoint.ip_address) == ("eth1", f"10.252.{THIRD}.77")
    assert endpoint.dns_names[:2] == ("web", "alias")
    assert reach(f"10.252.{THIRD}.77", 80) and reach("127.0.0.1", port)
    with pytest.raises(Forbidden, match="already exists in network zwei"):
        await house.service.connect(box.sandbox.container_id, "zwei", None)
    await house.service.disconnect(box.sandbox.container_id, "bridge")
    assert reach("127.0.0.1", port)  # the port follows the network that is left
    assert not reach(f"10.250.{THIRD}.2", 80, timeout=0.4)
    with pytest.raises(Forbidden, match="is not connected to the network bridge"):
        await house.service.disconnect(box.sandbox.container_id, "bridge")
    with pytest.raises(Forbidden, match="has active endpoints"):
        await house.service.remove("zwei")
    again = await house.service.connect(box.sandbox.container_id, "bridge", None)
    assert again.interface == "eth0"


async def test_static_addresses(house: House) -> None:
    await house.service.create(CreateNetwork(name="fest", blocks=(IpamBlock(subnet=f"10.252.{THIRD}.0/24"),)))
    wish = {"fest": Wish(ipam_config=Addresses(f"10.252.{THIRD}.50"))}
    box = await house.open("a", mode="fest", endpoints=wish)
    assert box.ip("fest") == f"10.252.{THIRD}.50"
    with pytest.raises(Forbidden, match="Address already in use"):
        await house.open("b", mode="fest", endpoints=wish)
    await house.end(box)
    again = await house.open("a", mode="fest", endpoints=wish)  # at once: waits for the old interface to go
    assert again.ip("fest") == f"10.252.{THIRD}.50"


async def test_none_host_and_joined_modes(house: House) -> None:
    alone = await house.open("alone", mode="none")
    with alone.inside() as inner:
        assert [link.name for link in inner.links_sync()] == ["lo"]
    host = await house.open("host", mode="host")
    assert host.sandbox.netns_path is None and "host" in host.sandbox.endpoints
    web = await house.open("web")
    joined = await house.service.open_sandbox(
        SandboxRequest(
            container_id=new_id(),
            name="joined",
            hostname="x",
            directory=house.root / "joined",
            mode=f"container:{web.sandbox.container_id}",
            joined_id=web.sandbox.container_id,
            joined_pid=web.process.pid,
        )
    )
    assert joined.netns_path == f"/proc/{web.process.pid}/ns/net"
    assert joined.hosts_path == web.sandbox.hosts_path
    with pytest.raises(Conflict, match="cannot join network of a non running container"):
        await house.open("lost", mode="container:" + "0" * 64)


async def test_wishes_are_checked_before_a_container_exists(house: House) -> None:
    await house.network(name="mine")
    blank = Wish()
    assert list(await house.service.validate_wish("default", {}, blank)) == ["bridge"]
    assert list(await house.service.validate_wish("mine", {"bridge": blank}, blank)) == ["bridge"]
    assert await house.service.validate_wish("container:x", {}, blank) == {}
    assert list(await house.service.validate_wish("absent", {}, blank)) == ["absent"]
    with pytest.raises(InvalidParameter, match="user specified IP address is supported on user defined networks only"):
        await house.service.validate_wish("bridge", {"bridge": Wish(ipam_config=Addresses("10.1.1.1"))}, blank)


async def test_many_quick_changes_are_not_taken_for_damage(house: House, caplog: pytest.LogCaptureFixture) -> None:
    async def live(number: int) -> None:
        port = free_port()
        for turn in range(4):
            network = await house.network(name=f"n{number}-{turn}")
            box = await house.open(f"c{number}-{turn}", mode=network.name, ports={"80/tcp": [Binding(host_port=port)]})
            await house.end(box)
            while house.service.endpoints(network):
                await asyncio.sleep(0.01)
            await house.service.remove(network.id)
            await asyncio.sleep(0.03)

    await asyncio.gather(*(live(number) for number in range(3)))
    await asyncio.sleep(0.2)
    assert "from outside" not in caplog.text


async def test_ports_wait_for_a_network_that_leads_outside(house: House) -> None:
    await house.network(name="inner", is_internal=True)
    await house.network(name="town")
    ports = PortsWish(("80/tcp",), {"80/tcp": [Binding(host_port=(port := free_port()))]})
    web = await house.open("web", mode="inner", ports=ports.bindings)
    web.listen()
    assert web.sandbox.ports == {"80/tcp": None} and not reach("127.0.0.1", port)
    await house.service.connect(web.sandbox.container_id, "town", Wish(), ports)
    assert web.sandbox.ports == {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": port}]} and reach("127.0.0.1", port)


async def test_neighbours_hear_of_a_restarted_containers_new_hardware_address(house: House) -> None:
    client, first = await house.open("client"), await house.open("web")
    first.listen()
    assert reaches(client, first.ip(), 80)
    old = first.sandbox.endpoints["bridge"]
    await house.end(first)
    while (second := await house.open("web")).ip() != old.ip_address:
        await house.end(second)
    assert second.sandbox.endpoints["bridge"].mac_address != old.mac_address
    second.listen()
    await asyncio.sleep(0.1)
    assert reaches(client, old.ip_address, 80, timeout=0.9), "the client still talks to the old hardware address"


async def test_gateway_modes(house: House, outside: Box) -> None:
    def modes(both: str) -> dict[str, str]:
        return {f"{OPTION_BRIDGE}gateway_mode_ipv{version}": both for version in (4, 6)}

    for mode in ("routed", "nat-unprotected"):
        await house.network(name=mode, options=modes(mode))
    with pytest.raises(InvalidParameter, match=r"gateway_mode_ipv4 value: x \(unknown gateway mode x\)"):
        await house.network(name="x", options=modes("x"))
    with pytest.raises(InvalidParameter, match="gateway mode 'isolated' can only be used for an internal network"):
        await house.network(name="x", options=modes("isolated"))
    near = await house.open("near")
    ports = {"80/tcp": [Binding(host_port=free_port())]}
    routed = await house.open("routed", mode="routed", ports=ports, exposed=("80/tcp", "81/tcp"))
    assert routed.sandbox.ports == {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": ""}], "81/tcp": None}
    assert routed.sandbox.hold_fds == ()
    for number in (80, 81):
        routed.listen(number)
        assert [reaches(box, routed.ip("routed"), number) for box in (near, outside)] == [number == 80] * 2
    await house.restart_daemon()
    assert reaches(near, routed.ip("routed"), 80)
    listener = outside.listen(7777)
    routed.connect(f"10.251.{THIRD}.2", 7777)
    connection, (peer, _) = listener.accept()
    connection.close()
    assert peer == routed.ip("routed")
    bare = await house.open("bare", mode="nat-unprotected")
    bare.listen(81)
    assert reaches(near, bare.ip("nat-unprotected"), 81) and reaches(outside, bare.ip("nat-unprotected"), 81)
    alone = await house.network(name="alone", options=modes("isolated"), is_internal=True)
    one, two = [await house.open(name, mode="alone") for name in ("one", "two")]
    one.listen()
    assert one.sandbox.endpoints["alone"].gateway == "" and reaches(two, one.ip("alone"), 80)
    with contextlib.closing(RouteSocket()) as host:
        link = host.link_sync(alone.interface)
        assert link is not None and link.index not in {address.index for address in host.addresses_sync()}


async def test_ipv6_networks(house: House) -> None:
    await house.network(name="six", has_ipv6=True)
    port = free_port()
    web = await house.open("web", mode="six", ports={"80/tcp": [Binding(host_port=port)]})
    client = await house.open("client", mode="six")
    web.listen(family=socket.AF_INET6)
    address = web.sandbox.endpoints["six"].global_ipv6_address
    assert reaches(client, address, 80)
    assert web.sandbox.ports == {
        "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": port}, {"HostIp": "::", "HostPort": port}]
    }
    gateway = web.sandbox.endpoints["six"].ipv6_gateway
    assert reach(gateway, port) and reaches(client, gateway, port)


async def test_ipv6_networks_of_link_local_addresses(house: House) -> None:
    block = IpamBlock(subnet="fe80:1234::/64")
    await house.service.create(CreateNetwork(name="near", has_ipv6=True, blocks=(block,)))
    web, client = [await house.open(name, mode="near") for name in ("web", "client")]
    web.listen(family=socket.AF_INET6)
    address = web.sandbox.endpoints["near"].global_ipv6_address
    assert address.startswith("fe80:1234::")
    assert reaches(client, f"{address}%eth0", 80)


def kernel_lacks(kind: str) -> bool:
    """Whether this kernel can make no interface of that kind."""
    script = f"ip link add one type veth peer name two && ip link add probe link one type {kind}"
    return subprocess.run(["unshare", "--net", "sh", "-c", script], capture_output=True).returncode != 0


@pytest.fixture
def parent() -> Iterator[str]:
    """An interface of the host with a neighbour at its other end, whose address is 10.253.THIRD.1."""
    name = f"nt{THIRD}"
    for command in (
        f"link add {name} type veth peer name {name}p",
        f"addr add 10.253.{THIRD}.1/24 dev {name}p",
        f"link set {name} up",
        f"link set {name}p up",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    yield name
    subprocess.run(["ip", "link", "del", name], check=True)


@pytest.mark.skipif(os.geteuid() != 0 or kernel_lacks("macvlan"), reason="this kernel has no macvlan")
async def test_macvlan_puts_containers_on_a_network_of_the_hosts(house: House, parent: str) -> None:
    block = IpamBlock(subnet=f"10.253.{THIRD}.0/24", gateway=f"10.253.{THIRD}.1")
    options = {"parent": parent, "macvlan_mode": "bridge"}
    await house.service.create(CreateNetwork(name="lan", driver="macvlan", blocks=(block,), options=options))
    wish = {"lan": Wish(Addresses(f"10.253.{THIRD}.9"), mac_address="02:42:0a:00:00:09")}
    published = {"80/tcp": [Binding(host_port=free_port())]}
    first = await house.open("a", mode="lan", endpoints=wish, ports=published)
    second = await house.open("b", mode="lan")
    with first.inside() as inner:
        (link,) = [link for link in inner.links_sync() if link.name == "eth0"]
        assert link.kind == "macvlan"
        assert any(str(a.interface) == f"10.253.{THIRD}.9/24" for a in inner.addresses_sync())
        assert [r for r in inner.routes_sync() if r.destination.prefixlen == 0]
    assert first.sandbox.published == ()
    second.listen()
    assert reaches(first, second.ip("lan"), 80)
    assert ask(first, "b") == [second.ip("lan")]
    first.listen()
    assert reach(first.ip("lan"), 80), "not reached from outside"
    for box in (first, second):
        await house.end(box)
    again = await house.open("c", mode="lan", endpoints=wish)  # the same addresses at once
    await house.service.disconnect(again.sandbox.container_id, "lan")
    with again.inside() as inner:
        assert [link.name for link in inner.links_sync()] == ["lo"]
    await house.service.connect(again.sandbox.container_id, "lan", wish["lan"])
    await house.end(again)
    await house.service.remove("lan")
    assert parent in {link.name for link in links()}, "the host's own interface was taken away"


@pytest.mark.skipif(os.geteuid() != 0 or kernel_lacks("macvlan"), reason="this kernel has no macvlan")
async def test_macvlan_in_private_mode_keeps_neighbours_apart(house: House, parent: str) -> None:
    block = IpamBlock(subnet=f"10.253.{THIRD}.0/24", gateway=f"10.253.{THIRD}.1")
    options = {"parent": parent, "macvlan_mode": "private"}
    await house.service.create(CreateNetwork(name="lan", driver="macvlan", blocks=(block,), options=options))
    first, second = await house.open("a", mode="lan"), await house.open("b", mode="lan")
    second.listen()
    assert not reaches(first, second.ip("lan"), 80)
    assert reach(second.ip("lan"), 80)
    with pytest.raises(SystemFailure, match="^-o parent interface was not found on the host: nowhere0$"):
        await house.service.create(CreateNetwork(name="no", driver="macvlan", options={"parent": "nowhere0.5"}))


@pytest.mark.skipif(os.geteuid() != 0 or kernel_lacks("dummy"), reason="this kernel has no dummy interfaces")
async def test_macvlan_and_ipvlan_make_networks_inside_the_host(house: House) -> None:
    for number, driver in enumerate(("macvlan", "ipvlan")):
        subnet = IpamBlock(subnet=f"10.25{3 + number}.{THIRD}.0/24")
        await house.service.create(CreateNetwork(name=driver, driver=driver, blocks=(subnet,)))
        first, second = await house.open(f"a{number}", mode=driver), await house.open(f"b{number}", mode=driver)
        second.listen()
        assert reaches(first, second.ip(driver), 80)
        for box in (first, second):
            await house.end(box)
        await house.service.remove(driver)


async def test_a_default_route_without_a_gateway(house: House) -> None:
    box = await house.open("a")
    routed = msgspec.structs.replace(box.sandbox.endpoints["bridge"], gateway="", is_routed=True)
    box.sandbox.endpoints["bridge"] = routed
    box.sandbox.namespace = namespaces.open_namespace_sync(box.process.pid)
    try:
        assert RouteSocket(box.sandbox.namespace.socket).link_sync(BRIDGE) is None, "this is the host's namespace"
        await house.service._keeper._set_default_routes(box.sandbox)
    finally:
        box.sandbox.let_go()
    with box.inside() as inner:
        (route,) = [route for route in inner.routes_sync() if route.destination.prefixlen == 0]
        assert (route.gateway, route.index) == ("", inner.link_sync("eth0").index)  # type: ignore[union-attr]


async def test_a_start_that_fails_leaves_nothing(house: House) -> None:
    before = {link.name for link in links()}
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SystemFailure):
        await house.open("a", ports={"80/tcp": [Binding("203.0.113.7", "80")]})
    assert {link.name for link in links()} == before
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 8  # the pool of prepared namespaces may have been filled


async def test_the_end_of_init_takes_the_interface_with_it(house: House) -> None:
    box = await house.open("web")
    link = box.sandbox.endpoints["bridge"].link
    os.kill(box.process.pid, signal.SIGKILL)
    await house.end(box)
    assert (await house.open("next")).ip() in (f"10.250.{THIRD}.2", f"10.250.{THIRD}.3")
    for _ in range(40):
        if link not in {one.name for one in links()}:
            break
        await asyncio.sleep(0.05)
    assert link not in {one.name for one in links()}


def ask(box: Box, name: str, *, tcp: bool = False, kind: int = 1) -> list[str]:
    """Resolve as a process in the container would: the addresses (or the name, for PTR) that 127.0.0.11 gives."""
    packet = dns.message.make_query(name, kind, id=77).to_wire()

    def talk() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
        made.settimeout(3)
        made.connect(("127.0.0.11", 53))
        made.send(len(packet).to_bytes(2, "big") + packet if tcp else packet)
        return made

    answer = box.run(talk).recv(4096)[2 if tcp else 0 :]
    code, count = answer[3] & 15, int.from_bytes(answer[6:8], "big")
    if code:
        raise LookupError(code)
    found, offset = [], len(packet)
    for _ in range(count):
        size = int.from_bytes(answer[offset + 10 : offset + 12], "big")
        data = answer[offset + 12 : offset + 12 + size]
        found.append(str(ip_address(data)) if kind != wire.PTR else data.decode("latin-1"))
        offset += 12 + size
    return found


async def test_names_resolve_on_user_defined_networks(house: House) -> None:
    network = await house.network("town")
    web = await house.open("web", mode="town", endpoints={"town": Wish(aliases=("www",))})
    client = await house.open("client", mode="town", endpoints={"town": Wish(links=("web:shop",))})
    await house.network("village")
    stranger = await house.open("stranger", mode="village")
    assert "nameserver 127.0.0.11" in Path(client.sandbox.resolv_path).read_text()
    for name in ("web", "WEB", "www", "web.town", "shop", web.sandbox.container_id[:12]):
        assert ask(client, name) == [web.ip("town")]
    assert ask(client, "web", tcp=True) == [web.ip("town")]
    assert ask(client, "web", kind=wire.AAAA) == []
    reverse = ".".join(reversed(web.ip("town").split("."))) + ".in-addr.arpa"
    assert ask(client, reverse, kind=wire.PTR) == ["\x03web\x04town\x00"]
    assert ask(client, "host.docker.internal") == [network.blocks[0].gateway]
    with pytest.raises(LookupError):
        ask(stranger, "shop")
    await house.service.rename_container(web.sandbox.container_id, "shop2")
    assert ask(client, "shop2") == [web.ip("town")]
    await house.end(web)
    await asyncio.sleep(0.2)
    with pytest.raises(LookupError):
        ask(client, "www")


async def test_a_container_may_run_a_name_server_of_its_own(house: House) -> None:
    await house.network("town")
    box = await house.open("dns", mode="town")
    box.listen(53, udp=True)
    box.listen(53)
    assert ask(box, "dns") == [box.ip("town")]


async def test_other_names_are_asked_outside(house: House, outside: Box) -> None:
    await house.network("town")
    await house.network("inner", is_internal=True)
    upstream = outside.listen(53, udp=True)
    dns = [f"10.251.{THIRD}.9", f"10.251.{THIRD}.2"]  # the first does not answer
    box = await house.open("client", mode="town", dns=dns)
    shut = await house.open("shut", mode="inner", dns=dns)
    asked = asyncio.create_task(asyncio.to_thread(ask, box, "example.org"))
    upstream.settimeout(8)
    packet, peer = await asyncio.to_thread(upstream.recvfrom, 512)
    query = wire.parse(packet)
    assert (query.name, query.kind) == ("example.org", wire.A)
    upstream.sendto(wire.answer(query, ["192.0.2.77"]), peer)
    assert await asked == ["192.0.2.77"]
    with pytest.raises(LookupError):
        ask(shut, "example.org")


async def test_names_resolve_while_the_daemon_is_away_and_when_the_server_died(house: House) -> None:
    await house.network("town")
    first, second = await house.open("a", mode="town"), await house.open("b", mode="town")
    documents = {box.sandbox.container_id: house.service.to_document(box.sandbox) for box in (first, second)}
    await house.service.aclose()
    assert ask(first, "b") == [second.ip("town")]
    house.service = NetworkService(house.config, house.journal, house.events)
    await house.service.start()
    for box in (first, second):
        ident = box.sandbox.container_id
        box.sandbox = await house.service.adopt_sandbox(ident, box.process.pid, documents[ident])
    await house.service.settle()
    assert ask(first, "b") == [second.ip("town")]
    (pid,) = [pid for pid, text in processes(str(house.root)).items() if "engine.dns" in text]
    os.kill(pid, signal.SIGKILL)
    for _ in range(100):
        await asyncio.sleep(0.05)
        with contextlib.suppress(OSError):
            assert ask(first, "b") == [second.ip("town")]
            break
    else:
        pytest.fail("the name server did not come back")


async def test_a_container_that_joins_a_network_later_gets_a_name_server(house: House) -> None:
    await house.network("town")
    web = await house.open("web", mode="town")
    late = await house.open("late")
    assert "127.0.0.11" not in Path(late.sandbox.resolv_path).read_text()
    await house.service.connect(late.sandbox.container_id, "town", Wish(aliases=("newcomer",)))
    assert ask(late, "web") == [web.ip("town")]
    assert ask(web, "newcomer") == [late.sandbox.endpoints["town"].ip_address]
    assert "nameserver 127.0.0.11" in Path(late.sandbox.resolv_path).read_text()


async def test_the_resolver_lets_go_of_a_namespace_without_the_daemon(house: House) -> None:
    await house.network("town")
    box = await house.open("web", mode="town")
    link = box.sandbox.endpoints["town"].link
    await asyncio.sleep(0.1)
    del house.boxes[box.sandbox.container_id]
    await house.service.aclose()
    box.close()
    for _ in range(60):
        if link not in {one.name for one in links()} and not processes(str(house.root)):
            break
        await asyncio.sleep(0.05)
    assert link not in {one.name for one in links()}
    assert not processes(str(house.root))  # nobody is left to serve
    house.service = NetworkService(house.config, house.journal, house.events)
    await house.service.start()
