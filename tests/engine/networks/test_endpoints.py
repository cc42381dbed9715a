"""Endpoints from wishes: addresses leased and given back, names, gateways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import msgspec
import pytest

from engine.errors import Forbidden, InvalidParameter
from engine.journal import Journal
from engine.networks.endpoints import give_back, lease_endpoint
from engine.networks.model import EndpointState, IpamBlock, Network
from engine.networks.sandbox import Sandbox
from engine.networks.store import NetworkStore
from engine.networks.wishes import OPTION_SYSCTLS
from tests.support.runs import FakeJournal

TOWN = Network(
    id="ab" * 32,
    name="town",
    driver="bridge",
    has_ipv6=True,
    blocks=(
        IpamBlock(subnet="10.0.0.0/29", gateway="10.0.0.1"),
        IpamBlock(subnet="fd00::/125", gateway="fd00::1"),
    ),
)


@dataclass(frozen=True)
class Addresses:
    ipv4_address: str = ""
    ipv6_address: str = ""
    link_local_ips: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Wish:
    ipam_config: Addresses | None = None
    aliases: tuple[str, ...] | None = None
    links: tuple[str, ...] | None = None
    mac_address: str = ""
    gw_priority: int = 0
    driver_opts: Any = None


@pytest.fixture
def store() -> NetworkStore:
    return NetworkStore(cast(Journal, FakeJournal()))


async def leased(
    store: NetworkStore, wish: Wish | None = None, network: Network = TOWN, mac: str = ""
) -> EndpointState:
    if store.by_id(network.id) is None:
        await store.put(network)
    sandbox = Sandbox("c1" * 32, "web", "s", network.name)
    sandbox.hostname = "host"
    return lease_endpoint(store, sandbox, network, wish, "eth0", mac)


async def test_without_wishes_the_lowest_addresses_and_own_names(store: NetworkStore) -> None:
    found = await leased(store)
    assert (found.ip_address, found.ip_prefix_len, found.gateway) == ("10.0.0.2", 29, "10.0.0.1")
    assert (found.global_ipv6_address, found.ipv6_gateway) == ("fd00::2", "fd00::1")
    assert found.dns_names == ("web", "c1c1c1c1c1c1", "host")
    again = await leased(store)
    assert found.mac_address.startswith("02:42:") and again.mac_address != found.mac_address
    assert found.link.startswith("veth") and found.interface == "eth0"
    give_back(store, found)
    assert (await leased(store)).ip_address == "10.0.0.2"


async def test_what_was_wished_for(store: NetworkStore) -> None:
    asked = Addresses("10.0.0.5", "fd00::5", ("169.254.1.1", "fe80::9"))
    found = await leased(store, Wish(asked, ("www",), ("db:sql",), "02:00:00:00:00:09", 7), mac="02:00:00:00:00:01")
    assert (found.ip_address, found.global_ipv6_address) == ("10.0.0.5", "fd00::5")
    assert found.link_local == ("169.254.1.1", "fe80::9")
    assert (found.mac_address, found.gw_priority, found.links) == ("02:00:00:00:00:09", 7, ("db:sql",))
    assert found.dns_names == ("web", "www", "c1c1c1c1c1c1", "host")
    assert (await leased(store, mac="02:00:00:00:00:01")).mac_address == "02:00:00:00:00:01"


async def test_an_address_of_no_link_is_refused_before_anything_is_leased(store: NetworkStore) -> None:
    with pytest.raises(InvalidParameter, match="^invalid link local IP address: 169.253.5.5$"):
        await leased(store, Wish(Addresses(link_local_ips=("169.254.5.5", "169.253.5.5"))))
    assert (await leased(store)).ip_address == "10.0.0.2"


async def test_a_lease_that_fails_half_way_gives_back_its_first_half(store: NetworkStore) -> None:
    await leased(store, Wish(Addresses(ipv6_address="fd00::5")))
    with pytest.raises(Forbidden, match="Address already in use"):
        await leased(store, Wish(Addresses(ipv6_address="fd00::5")))
    assert (await leased(store)).ip_address == "10.0.0.3"
    for _ in range(3):
        await leased(store)
    with pytest.raises(Forbidden, match="no available IPv4 addresses on this network's address pools: town"):
        await leased(store)


@pytest.mark.parametrize(
    ("parts", "gateway", "routed"),
    [
        ({"is_internal": True}, "", False),
        ({"driver": "macvlan", "options": {"parent": "eth0"}}, "10.0.0.1", False),
        ({"driver": "macvlan"}, "", False),
        ({"driver": "ipvlan", "options": {"parent": "eth0", "ipvlan_mode": "l3"}}, "", True),
        ({"driver": "ipvlan", "options": {"ipvlan_mode": "l3"}}, "", False),
    ],
)
async def test_the_way_outside(store: NetworkStore, parts: dict[str, Any], gateway: str, routed: bool) -> None:
    network = Network(id="cd" * 32, name="lan", blocks=TOWN.blocks, **{"driver": "bridge", **parts})
    found = await leased(store, network=network)
    assert (found.gateway, found.is_routed, bool(found.link)) == (gateway, routed, network.driver == "bridge")


async def test_a_bridge_may_have_another_way_out_than_itself(store: NetworkStore) -> None:
    aux = {"DefaultGatewayIPv4": "10.0.0.6"}
    blocks = (msgspec.structs.replace(TOWN.blocks[0], aux=aux), TOWN.blocks[1])
    found = await leased(store, network=msgspec.structs.replace(TOWN, blocks=blocks))
    assert (found.gateway, found.ipv6_gateway) == ("10.0.0.6", "fd00::1")
    lan = Network(id="cd" * 32, name="lan", driver="macvlan", options={"parent": "eth0"}, blocks=blocks)
    assert (await leased(store, network=lan)).gateway == "10.0.0.1"


async def test_who_turns_ipv6_off_has_no_such_address(store: NetworkStore) -> None:
    option = {OPTION_SYSCTLS: "net.ipv4.conf.IFNAME.forwarding=1,net.ipv6.conf.ifname.disable_ipv6=1"}
    by_option = await leased(store, Wish(driver_opts=option))
    assert (by_option.ip_address, by_option.global_ipv6_address, by_option.ipv6_gateway) == ("10.0.0.2", "", "")
    assert by_option.sysctls == tuple(option[OPTION_SYSCTLS].split(","))
    sandbox = Sandbox("c2" * 32, "db", "s", "town", has_ipv6=False)
    assert lease_endpoint(store, sandbox, TOWN, None, "eth0", "").global_ipv6_address == ""
    assert (await leased(store)).global_ipv6_address != ""
