"""Networks as a whole, without a kernel: what exists after a start, what may be made, found, removed, adopted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from engine.config import Config
from engine.errors import Conflict, Forbidden, InvalidParameter, NotFound, SystemFailure
from engine.events import EventBus
from engine.filters import Filters
from engine.journal import Journal
from engine.kernel.netlink import Route
from engine.networks.model import EndpointState, IpamBlock, PortState, SandboxDocument
from engine.networks.ports import HostPorts
from engine.networks.service import CreateNetwork, NetworkService, table_name
from engine.tasks import run_blocking
from tests.support.played_networks import PlayedDriver, PlayedLinks, absent_firewall


@dataclass
class Stage:
    """A service, what it stands on, and a way to start it again."""

    config: Config
    journal: Journal
    events: EventBus
    driver: PlayedDriver
    links: PlayedLinks
    service: NetworkService

    def build(self) -> NetworkService:
        self.service = NetworkService(
            self.config,
            self.journal,
            self.events,
            links=self.links,
            firewall=absent_firewall(),
            drivers=dict.fromkeys(("bridge", "macvlan", "ipvlan", "host", "null"), self.driver),
            host_ports=HostPorts((40000, 41000)),
        )
        return self.service

    async def again(self, **changes: Any) -> NetworkService:
        await self.service.aclose()
        self.config = replace(self.config, **changes)
        await self.build().start()
        return self.service


@pytest.fixture
async def stage(short_root: Path) -> AsyncIterator[Stage]:
    config = Config(data_root=short_root, exec_root=short_root)
    journal = Journal(short_root / "journal")
    await run_blocking(journal.open_sync)
    made = Stage(config, journal, EventBus(), PlayedDriver(), PlayedLinks(), None)  # type: ignore[arg-type]
    await made.build().start()
    yield made
    await made.service.aclose()
    await journal.aclose()


async def test_three_networks_always_exist_and_keep_their_identity(stage: Stage) -> None:
    before = {network.name: network.id for network in stage.service.networks()}
    assert set(before) == {"bridge", "host", "none"}
    bridge = stage.service.find("bridge")
    assert (bridge.blocks[0].subnet, bridge.blocks[0].gateway) == ("172.17.0.0/16", "172.17.0.1")
    assert bridge.options["com.docker.network.bridge.name"] == "docker0"
    assert {n.name: n.id for n in (await stage.again()).networks()} == before


async def test_the_default_bridge_follows_the_configuration(stage: Stage) -> None:
    service = await stage.again(bip="10.1.2.3/24", fixed_cidr="10.1.2.128/25", mtu=1400, icc=False)
    bridge = service.find("bridge")
    assert bridge.blocks[0] == IpamBlock(subnet="10.1.2.0/24", ip_range="10.1.2.128/25", gateway="10.1.2.3")
    assert bridge.mtu == 1400 and not bridge.option("enable_icc", True)
    service = await stage.again(ipv6=True)
    assert service.find("bridge").blocks[1].subnet.startswith("fd")
    with pytest.raises(SystemFailure, match="bip must be an IPv4 address"):
        await stage.again(bip="fd00::1/64")


async def test_the_default_bridge_takes_the_interfaces_address_or_avoids_routes(stage: Stage) -> None:
    stage.links = PlayedLinks(bridge_address="192.168.7.1/24")
    assert (await stage.again()).find("bridge").blocks[0].subnet == "192.168.7.0/24"
    stage.links = PlayedLinks(
        routes=[Route(ip_network("192.168.0.0/16"), 1, ""), Route(ip_network("172.17.0.0/16"), 1, "")]
    )
    assert (await stage.again()).find("bridge").blocks[0].subnet == "172.18.0.0/16"


async def test_the_default_bridges_subnets_from_ranges_and_pools(stage: Stage) -> None:
    service = await stage.again(fixed_cidr="192.168.130.0/24")
    assert service.find("bridge").blocks[0] == IpamBlock(
        subnet="192.168.130.0/24", ip_range="192.168.130.0/24", gateway="192.168.130.1", is_gateway_told=False
    )
    pools = (("10.7.0.0/16", 24), ("fd07::/56", 64))
    service = await stage.again(fixed_cidr="", ipv6=True, default_address_pools=pools)
    assert [block.subnet for block in service.find("bridge").blocks] == ["192.168.130.0/24", "fd07::/64"]
    town, _ = await service.create(CreateNetwork(name="town", has_ipv6=True))
    assert [block.subnet for block in town.blocks] == ["10.7.0.0/24", "fd07:0:0:1::/64"]
    stage.links = PlayedLinks(bridge_address="192.168.7.9/24")
    service = await stage.again(fixed_cidr="192.168.7.128/25", ipv6=False)
    assert service.find("bridge").blocks[0] == IpamBlock(
        subnet="192.168.7.0/24", ip_range="192.168.7.128/25", gateway="192.168.7.9"
    )


async def test_without_a_bridge_containers_have_no_network(stage: Stage) -> None:
    service = await stage.again(bridge="none")
    with pytest.raises(NotFound, match="network bridge not found"):
        service.find("bridge")
    assert list(await service.validate_wish("default", {}, EndpointWish())) == ["bridge"]


async def test_the_networks_that_are_given_are_all_of_them(stage: Stage) -> None:
    town, wish = (await stage.service.create(CreateNetwork(name="town")))[0], EndpointWish()
    assert await stage.service.validate_wish("default", {"town": wish}, EndpointWish()) == {"town": wish}
    assert await stage.service.validate_wish("bridge", {town.id: wish}, EndpointWish()) == {"town": wish}
    both = await stage.service.validate_wish("town", {"absent": wish, town.id[:12]: wish}, EndpointWish())
    assert list(both) == ["town", "absent"]
    for mode in ("host", "none"):
        assert list(await stage.service.validate_wish(mode, {}, wish)) == [mode]
        with pytest.raises(InvalidParameter, match="cannot attach both user-defined and non-user-defined"):
            await stage.service.validate_wish(mode, {"town": wish}, wish)


@dataclass(frozen=True)
class EndpointWish:
    ipam_config: Any = None
    aliases: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    mac_address: str = ""
    gw_priority: int = 0
    driver_opts: Any = None


@dataclass(frozen=True)
class AddressWish:
    ipv4_address: str = ""
    ipv6_address: str = ""
    link_local_ips: tuple[str, ...] | None = None


@pytest.mark.parametrize("network", ["bridge", "town", "absent"])
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (AddressWish("mynet"), "invalid IPv4 address: mynet"),
        (AddressWish("::1"), "invalid IPv4 address: ::1"),
        (AddressWish("0.0.0.0"), "invalid IPv4 address: 0.0.0.0"),
        (AddressWish(ipv6_address="mynet"), "invalid IPv6 address: mynet"),
        (AddressWish(ipv6_address="10.0.0.1"), "invalid IPv6 address: 10.0.0.1"),
        (AddressWish(ipv6_address="::ffff:10.0.0.1"), "invalid IPv6 address: ::ffff:10.0.0.1"),
        (AddressWish(ipv6_address="fe80::1%eth0"), "invalid IPv6 address: fe80::1%eth0"),
        (AddressWish(link_local_ips=("169.254.1.1", "x")), "invalid link-local IP address: x"),
    ],
)
async def test_misspelt_addresses_are_named(stage: Stage, network: str, asked: AddressWish, words: str) -> None:
    await stage.service.create(CreateNetwork(name="town"))
    wish = EndpointWish(asked)
    with pytest.raises(InvalidParameter, match=f"^invalid config for network {network}: .* settings:\n{words}$"):
        await stage.service.validate_wish(network, {network: wish})
    with pytest.raises(InvalidParameter, match=f"^invalid endpoint settings:\n{words}$"):
        stage.service.check_wish(network, wish)


async def test_link_local_addresses_are_for_every_network(stage: Stage) -> None:
    asked = EndpointWish(AddressWish(link_local_ips=("169.254.8.8", "fe80::8")))
    assert await stage.service.validate_wish("bridge", {"bridge": asked}) == {"bridge": asked}


async def test_the_default_bridges_ipv6_subnet_is_as_told(stage: Stage) -> None:
    bridge = (await stage.again(ipv6=True, fixed_cidr_v6="2001:db8:1::/64")).find("bridge")
    assert (bridge.blocks[1].subnet, bridge.blocks[1].gateway) == ("2001:db8:1::/64", "2001:db8:1::1")
    bridge = (await stage.again(bip6="2001:db8:2::9/56", fixed_cidr_v6="2001:db8:2::/64")).find("bridge")
    block = bridge.blocks[1]
    assert (block.subnet, block.gateway, block.ip_range) == ("2001:db8:2::/56", "2001:db8:2::9", "2001:db8:2::/64")


async def test_options_that_every_new_network_gets(stage: Stage) -> None:
    options = {"com.docker.network.driver.mtu": "1300", "x": "daemon's"}
    service = await stage.again(default_network_opts={"bridge": options})
    made, _ = await service.create(CreateNetwork(name="town", options={"x": "own"}))
    assert (made.mtu, made.options["x"]) == (1300, "own")
    other, _ = await service.create(CreateNetwork(name="land", driver="macvlan"))
    assert other.options == {}


def test_daemons_side_by_side_have_tables_of_their_own() -> None:
    assert table_name(Config()) == "berth"
    assert table_name(Config(bridge="br7")) == "berth-br7"
    one, other = (table_name(Config(bridge="none", data_root=Path(root))) for root in ("/one", "/other"))
    assert one != other
    assert one.startswith("berth-none-") and one == table_name(Config(bridge="none", data_root=Path("/one")))


async def test_a_network_is_made_found_and_removed(stage: Stage) -> None:
    made, warning = await stage.service.create(CreateNetwork(name="town", labels={"a": "b"}))
    assert warning == "" and stage.driver.networks["town"] == made
    for reference in ("town", made.id, made.id[:12]):
        assert stage.service.find(reference) == made
    assert (await stage.again()).find("town") == made
    with pytest.raises(Conflict, match="network with name town already exists"):
        await stage.service.create(CreateNetwork(name="town"))
    assert (await stage.service.remove("town")).id == made.id
    assert "town" not in stage.driver.networks
    with pytest.raises(NotFound, match="network town not found"):
        stage.service.find("town")
    with pytest.raises(Forbidden, match="host is a pre-defined network and cannot be removed"):
        await stage.service.remove("host")


async def test_events_tell_what_happened(stage: Stage) -> None:
    with stage.events.subscribe(Filters()) as seen:
        made, _ = await stage.service.create(CreateNetwork(name="town"))
        await stage.service.remove("town")
        actions = []
        async for event in seen:
            actions.append((event.action, event.actor_id, event.attributes["name"], event.attributes["type"]))
            if len(actions) == 2:
                break
    assert actions == [("create", made.id, "town", "bridge"), ("destroy", made.id, "town", "bridge")]


async def test_a_network_that_cannot_be_made_leaves_nothing(stage: Stage) -> None:
    stage.driver.failing.add("town")
    with pytest.raises(SystemFailure, match="cannot create network town: the kernel says no"):
        await stage.service.create(CreateNetwork(name="town"))
    with pytest.raises(InvalidParameter, match="bad option"):
        await stage.service.create(CreateNetwork(name="town", options={"bad": "1"}))
    assert stage.service.networks(Filters({"name": ("town",)})) == []
    stage.driver.failing.clear()
    await stage.service.create(CreateNetwork(name="town"))


async def test_configuration_networks(stage: Stage) -> None:
    block = IpamBlock(subnet="10.6.0.0/24")
    await stage.service.create(CreateNetwork(name="cfg", is_config_only=True, blocks=(block,)))
    assert "cfg" not in stage.driver.networks
    made, _ = await stage.service.create(CreateNetwork(name="town", config_from="cfg"))
    assert made.blocks[0].subnet == "10.6.0.0/24" and made.config_from == "cfg"
    with pytest.raises(Forbidden, match="is in use"):
        await stage.service.remove("cfg")
    with pytest.raises(NotFound, match='configuration network "nope" does not exist'):
        await stage.service.create(CreateNetwork(name="x", config_from="nope"))
    assert await stage.service.prune(Filters()) == ["town"]


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({"name": ("ow",)}, {"town"}),
        ({"driver": ("host",)}, {"host"}),
        ({"label": ("a=b",)}, {"town"}),
        ({"type": ("custom",)}, {"town"}),
        ({"type": ("builtin",)}, {"bridge", "host", "none"}),
        ({"scope": ("swarm",)}, set()),
        ({"dangling": ("true",)}, {"town"}),
        ({"dangling": ("false",)}, {"bridge", "host", "none"}),
    ],
)
async def test_filters(stage: Stage, filters: dict[str, tuple[str, ...]], names: set[str]) -> None:
    await stage.service.create(CreateNetwork(name="town", labels={"a": "b"}))
    assert {network.name for network in stage.service.networks(Filters(filters))} == names


async def test_unknown_types_are_refused(stage: Stage) -> None:
    with pytest.raises(InvalidParameter, match="invalid filter"):
        stage.service.networks(Filters({"type": ("odd",)}))


async def test_prune_respects_labels_age_and_running_containers(stage: Stage) -> None:
    old, _ = await stage.service.create(CreateNetwork(name="old"))
    await stage.service.create(CreateNetwork(name="kept", labels={"keep": ""}))
    await adopt(stage, "old")
    assert await stage.service.prune(Filters({"label!": ("keep",)})) == []
    await stage.service.close_sandbox("c" * 64)
    assert await stage.service.prune(Filters({"label!": ("keep",)}), until_ns=old.created_ns) == []
    assert await stage.service.prune(Filters({"label!": ("keep",)})) == ["old"]


async def adopt(stage: Stage, name: str) -> None:
    network = stage.service.find(name)
    endpoint = EndpointState(
        network_id=network.id,
        network_name=name,
        endpoint_id="e",
        link="veth1",
        gateway="172.18.0.1",
        ip_address="172.18.0.2",
    )
    document = SandboxDocument(
        sandbox_id="s",
        container_id="c" * 64,
        name="web",
        mode=name,
        endpoints={name: endpoint},
        ports=(PortState(port="80/tcp", host_ip="0.0.0.0", host_port=8080),),
        exposed=("80/tcp", "90/udp"),
    )
    state = stage.service.to_document(await stage.service._keeper.adopt(77, document))
    await stage.service.close_sandbox("c" * 64)
    sandbox = await stage.service.adopt_sandbox("c" * 64, 77, state)
    assert stage.service.sandbox_key(sandbox.document()) == str(stage.config.exec_root / "netns" / "s")
    assert sandbox.ports == {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "90/udp": None}


async def test_an_adopted_container_holds_its_address_port_and_network(stage: Stage) -> None:
    await stage.service.create(CreateNetwork(name="town"))
    await adopt(stage, "town")
    assert [s.name for s, _ in stage.service.endpoints(stage.service.find("town")).values()] == ["web"]
    with pytest.raises(Forbidden, match='network town has active endpoints \\(name:"web"'):
        await stage.service.remove("town")
    await stage.service.rename_container("c" * 64, "shop")
    sandbox = stage.service.sandbox("c" * 64)
    assert sandbox is not None and sandbox.name == "shop"
    await stage.service.close_sandbox("c" * 64)
    await stage.service.remove("town")
