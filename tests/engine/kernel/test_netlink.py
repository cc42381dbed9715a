"""rtnetlink messages against a kernel played by the other end of a socket pair."""

import socket
import struct
import threading
from collections.abc import Iterator
from ipaddress import ip_interface, ip_network

import pytest

from engine.kernel import netlink
from engine.kernel.netlink import RouteSocket

HEADER = struct.Struct("=IHHII")


class Kernel:
    """Answers every message of a batch with an acknowledgement or an error; dumps with what it was given."""

    def __init__(self) -> None:
        self.theirs, self.ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.seen: list[tuple[int, int, bytes]] = []
        self.errors: dict[int, int] = {}
        self.dump: list[bytes] = []
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        while data := self.ours.recv(65536):
            offset = 0
            while offset < len(data):
                size, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
                self.seen.append((kind, flags, data[offset + 16 : offset + size]))
                offset += size + (-size % 4)
                if flags & 0x4:
                    code = self.errors.get(len(self.seen), 0)
                    self.ours.send(HEADER.pack(36, 2, 0, sequence, 0) + struct.pack("=i", -code) + data[:16])
                else:
                    # The kernel answers a question (GETLINK, GETADDR, GETROUTE) with what would make the same thing.
                    answer = b"".join(HEADER.pack(16 + len(b), kind - 2, 2, sequence, 0) + b for b in self.dump)
                    self.ours.send(answer + HEADER.pack(20, 3, 2, sequence, 0) + bytes(4))

    def close(self) -> None:
        self.ours.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.ours.close()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    played = Kernel()
    yield played
    played.theirs.close()
    played.close()


def test_a_batch_is_one_send_and_every_answer_is_read(kernel: Kernel) -> None:
    route = RouteSocket(kernel.theirs)
    route.send_sync(netlink.add_bridge("br9", mtu=1400), netlink.set_alias("br9", "mine"), netlink.set_up(3))
    assert [kind for kind, _, _ in kernel.seen] == [16, 16, 16]
    assert b"br9\0" in kernel.seen[0][2] and b"bridge\0" in kernel.seen[0][2]
    assert kernel.seen[0][1] & 0x600 == 0x600  # create, and it must not exist
    assert b"mine\0" in kernel.seen[1][2]


def test_the_first_failure_of_a_batch_is_raised_with_its_purpose(kernel: Kernel) -> None:
    kernel.errors = {2: 19, 3: 1}
    route = RouteSocket(kernel.theirs)
    with pytest.raises(OSError, match="remove interface v2: No such device") as error:
        route.send_sync(netlink.delete_link("v1"), netlink.delete_link("v2"), netlink.delete_link("v3"))
    assert error.value.errno == 19
    route.send_sync(netlink.delete_link("v4"))  # nothing of the failed batch is left to be read


def test_a_veth_pair_names_both_ends_the_bridge_and_the_namespace(kernel: Kernel) -> None:
    RouteSocket(kernel.theirs).send_sync(
        netlink.add_veth("veth1", master=7, mtu=1500, peer="eth0", peer_mac="02:42:ac:11:00:02", peer_netns=33)
    )
    body = kernel.seen[0][2]
    for part in (b"veth1\0", b"eth0\0", bytes.fromhex("0242ac110002"), struct.pack("=I", 33), struct.pack("=I", 7)):
        assert part in body


def test_addresses_and_routes_carry_their_family(kernel: Kernel) -> None:
    RouteSocket(kernel.theirs).send_sync(
        netlink.add_address(2, ip_interface("172.17.0.2/16")),
        netlink.add_address(2, ip_interface("fd00::2/64")),
        netlink.delete_address(2, ip_interface("172.17.0.2/16")),
        netlink.add_route("0.0.0.0/0", "172.17.0.1"),
        netlink.delete_route("10.0.0.0/8", "", 2),
    )
    four, six, gone, default, direct = (body for _, _, body in kernel.seen)
    assert four[0] == socket.AF_INET and four[1] == 16 and bytes([172, 17, 255, 255]) in four
    assert six[0] == socket.AF_INET6 and six[1] == 64
    assert gone[:2] == four[:2]
    assert default[1] == 0 and bytes([172, 17, 0, 1]) in default
    assert direct[1] == 8 and bytes([10, 0, 0, 0]) in direct


def test_children_carry_parent_mode_and_namespace(kernel: Kernel) -> None:
    RouteSocket(kernel.theirs).send_sync(
        netlink.add_child("m0", "macvlan", "passthru", parent=6, mac="02:42:ac:11:00:03", netns=44),
        netlink.add_child("i0", "ipvlan", "l3s", parent=6, mac="02:42:ac:11:00:03", netns=44),
        netlink.add_vlan("v0", 6, 77),
        netlink.configure_port("p0", is_isolated=True),
    )
    macvlan, ipvlan, vlan, port = (body for _, _, body in kernel.seen)
    assert b"macvlan\0" in macvlan and attribute(1, struct.pack("=I", 8)) in macvlan
    assert b"ipvlan\0" in ipvlan and attribute(1, struct.pack("=H", 2)) in ipvlan
    assert attribute(5, struct.pack("=I", 6)) in macvlan and attribute(28, struct.pack("=I", 44)) in ipvlan
    assert bytes.fromhex("0242ac110003") in macvlan and bytes.fromhex("0242ac110003") not in ipvlan
    assert attribute(1, struct.pack("=H", 77)) in vlan and attribute(5, struct.pack("=I", 6)) in vlan
    assert attribute(4, b"\1") in port and attribute(33, b"\1") in port


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown macvlan mode"):
        netlink.add_child("eth0", "macvlan", "sideways", parent=1, mac="", netns=3)


def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def test_links_are_read_with_name_kind_and_state(kernel: Kernel) -> None:
    head = struct.pack("=BxHiII", 0, 1, 5, 1, 0)
    info = attribute(18, attribute(1, b"bridge\0"))
    kernel.dump = [
        head + attribute(3, b"br9\0") + attribute(1, bytes(6)) + attribute(4, struct.pack("=I", 1500)) + info
    ]
    assert RouteSocket(kernel.theirs).links_sync() == [
        netlink.Link(5, "br9", "00:00:00:00:00:00", 1500, 0, True, "bridge")
    ]


def test_links_without_a_hardware_address_of_six_bytes_are_listed(kernel: Kernel) -> None:
    head = struct.pack("=BxHiII", 0, 768, 4, 0, 0)
    kernel.dump = [
        head + attribute(3, b"tunl0\0") + attribute(1, bytes([10, 0, 0, 1])),
        head + attribute(1, bytes([10, 0, 0, 1])) + attribute(3, b"tun0\0"),
        head + attribute(3, b"tun1\0"),
    ]
    assert [link.name for link in RouteSocket(kernel.theirs).links_sync()] == ["tunl0", "tun0", "tun1"]


def test_addresses_are_read_in_both_families(kernel: Kernel) -> None:
    kernel.dump = [
        struct.pack("=BBBBi", socket.AF_INET, 24, 0, 0, 3)
        + attribute(1, bytes([10, 0, 0, 9]))
        + attribute(2, b"\n\0\0\1"),
        struct.pack("=BBBBi", socket.AF_INET6, 64, 0, 0, 4) + attribute(1, ip_interface("fd00::1/64").packed),
    ]
    assert RouteSocket(kernel.theirs).addresses_sync() == [
        netlink.Address(3, ip_interface("10.0.0.1/24")),
        netlink.Address(4, ip_interface("fd00::1/64")),
    ]


def test_routes_of_other_tables_and_kinds_are_left_out(kernel: Kernel) -> None:
    def route(table: int, kind: int) -> bytes:
        head = struct.pack("=BBBBBBBBI", socket.AF_INET, 8, 0, 0, table, 3, 0, kind, 0)
        return (
            head + attribute(1, bytes([10, 0, 0, 0])) + attribute(5, bytes([192, 0, 2, 1])) + attribute(4, b"\2\0\0\0")
        )

    kernel.dump = [route(254, 1), route(255, 1), route(254, 2)]
    found = RouteSocket(kernel.theirs).routes_sync()
    assert found == [netlink.Route(ip_network("10.0.0.0/8"), 2, "192.0.2.1")] * 2  # once for each family asked


def test_only_the_end_of_an_interface_is_news() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    gone = struct.pack("=BxHiII", 0, 1, 5, 0, 0) + attribute(3, b"veth1\0")
    port = struct.pack("=BxHiII", socket.AF_BRIDGE, 1, 5, 0, 0) + attribute(3, b"veth2\0")
    for kind, body in ((17, gone), (17, port), (16, gone)):
        theirs.send(HEADER.pack(16 + len(body), kind, 0, 0, 0) + body)
    assert netlink.removed_links(ours) == {"veth1"}
    several = b""
    for name in (b"v\0", b"bridge0\0"):
        body = gone[:16] + attribute(4, b"\0\0\0\0") + attribute(3, name)
        message = HEADER.pack(16 + len(body), 17, 0, 0, 0) + body
        several += message + bytes(-len(message) % 4)
    theirs.send(several)
    assert netlink.removed_links(ours) == {"v", "bridge0"}
    empty_attribute = HEADER.pack(36, 17, 0, 0, 0) + gone[:16] + bytes(4)
    for nonsense in (several[:16], several[:20], HEADER.pack(8, 17, 0, 0, 0) + gone, empty_attribute):
        theirs.send(nonsense)
        assert netlink.removed_links(ours) == set()
    ours.close()
    theirs.close()
