"""Network requests: dockerd's refusals, and subnets that suit."""

from dataclasses import replace
from ipaddress import ip_network

import pytest

from engine.errors import Conflict, EngineError, Forbidden, InvalidParameter, NotFound
from engine.networks.creation import CreateNetwork, check_name, plan_blocks, refuse_duplicate_bridge
from engine.networks.ipam import DEFAULT_POOLS, first_host
from engine.networks.model import OPTION_BRIDGE, IpamBlock, Network

ID = "ab" * 32
PLAIN = CreateNetwork(name="mine")


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"name": " "}, InvalidParameter, "name is empty"),
        ({"name": "host"}, Forbidden, "operation is not permitted on predefined host network"),
        ({"driver": "host"}, Forbidden, 'only one instance of "host" network is allowed'),
        ({"driver": "overlay"}, Forbidden, "not a swarm manager"),
        ({"driver": "weave"}, NotFound, 'plugin "weave" not found'),
        ({"ipam_driver": "dhcp"}, NotFound, 'plugin "dhcp" not found'),
        ({"is_config_only": True, "config_from": "x"}, Forbidden, "configuration-only"),
        ({"has_ipv4": False}, InvalidParameter, "must be enabled"),
    ],
)
def test_requests_that_are_refused(change: dict[str, object], kind: type[EngineError], words: str) -> None:
    with pytest.raises(kind, match=words):
        check_name(replace(PLAIN, **change))  # type: ignore[arg-type]


def plan(
    *blocks: IpamBlock, networks: tuple[Network, ...] = (), host: tuple[str, ...] = (), **change: object
) -> list[str]:
    request = replace(PLAIN, blocks=blocks, **change)  # type: ignore[arg-type]
    pairs = [(block.network, network) for network in networks for block in network.blocks]
    found = plan_blocks(request, ID, DEFAULT_POOLS, pairs, [ip_network(h) for h in host])
    return [f"{b.subnet} {b.gateway}" for b in found]


def test_default_subnet_avoids_host_routes_and_gets_a_gateway() -> None:
    assert plan(host=("172.17.0.0/16", "0.0.0.0/0")) == ["172.18.0.0/16 172.18.0.1"]


def test_given_subnet_keeps_its_gateway_and_range() -> None:
    assert plan(IpamBlock(subnet="10.9.0.0/24", gateway="10.9.0.254")) == ["10.9.0.0/24 10.9.0.254"]
    assert plan(IpamBlock(subnet="10.9.0.0/24", ip_range="10.9.0.128/25")) == ["10.9.0.0/24 10.9.0.129"]
    assert plan(IpamBlock(subnet="10.9.0.0/24", aux={"x": "10.9.0.1"})) == ["10.9.0.0/24 10.9.0.2"]


def test_ipv6_comes_by_itself_and_only_when_asked_for() -> None:
    found = plan(has_ipv6=True)
    assert len(found) == 2 and found[1].startswith("fdab:abab:abab")
    assert plan(IpamBlock(subnet="fd77::/64"), IpamBlock(subnet="10.9.0.0/24")) == ["10.9.0.0/24 10.9.0.1"]


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (IpamBlock(subnet="10.9.0.1/24"), "it should be 10.9.0.0/24"),
        (IpamBlock(subnet="nonsense"), "invalid subnet nonsense: invalid CIDR block notation"),
        (IpamBlock(subnet="10.9.0.0/24", ip_range="10.8.0.0/24"), "doesn't contain ip-range"),
        (IpamBlock(subnet="10.9.0.0/24", ip_range="x"), "invalid CIDR block notation"),
        (IpamBlock(subnet="10.9.0.0/24", gateway="10.8.0.1"), "invalid gateway 10.8.0.1"),
        (IpamBlock(subnet="10.9.0.0/24", gateway="x"), "invalid address"),
        (IpamBlock(subnet="10.9.0.0/24", aux={"a": "1.1.1.1"}), "invalid auxiliary address 1.1.1.1"),
        (IpamBlock(subnet="", gateway="1.1.1.1"), "no matching subnet for gateway 1.1.1.1"),
    ],
)
def test_subnets_that_make_no_sense(block: IpamBlock, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        plan(block)


def test_a_gateway_hint_is_taken_over_by_the_default_subnet() -> None:
    assert plan(IpamBlock(subnet="", gateway="172.17.9.9")) == ["172.17.0.0/16 172.17.9.9"]


def test_hints_that_belong_to_no_subnet() -> None:
    with pytest.raises(InvalidParameter, match="no matching subnet for range 10.1.0.0/24"):
        plan(IpamBlock(subnet="10.9.0.0/24"), IpamBlock(subnet="", ip_range="10.1.0.0/24"))


def test_overlap_names_the_network_in_the_way() -> None:
    other = Network(id="x", name="older", driver="bridge", blocks=(IpamBlock(subnet="10.9.0.0/16"),))
    with pytest.raises(Forbidden, match="Pool overlaps with other one on this address space.*of network older"):
        plan(IpamBlock(subnet="10.9.3.0/24"), networks=(other,))
    with pytest.raises(InvalidParameter, match="must not overlap"):
        plan(IpamBlock(subnet="10.9.0.0/24"), IpamBlock(subnet="10.9.0.0/16"))


def test_no_pool_left() -> None:
    with pytest.raises(EngineError, match="all predefined address pools have been fully subnetted"):
        plan(host=("128.0.0.0/1",))


def test_one_bridge_belongs_to_one_network() -> None:
    option = {"com.docker.network.bridge.name": "br7"}
    first = Network(id="1" * 64, name="a", driver="bridge", options=option)
    with pytest.raises(Conflict, match="networks have same bridge name"):
        refuse_duplicate_bridge(Network(id="2" * 64, name="b", driver="bridge", options=option), [first])
    refuse_duplicate_bridge(Network(id="2" * 64, name="b", driver="bridge"), [first])


def test_an_isolated_network_has_no_gateway() -> None:
    request = CreateNetwork(
        name="x",
        is_internal=True,
        has_ipv6=True,
        options={f"{OPTION_BRIDGE}gateway_mode_ipv4": "isolated", f"{OPTION_BRIDGE}gateway_mode_ipv6": "nat"},
    )
    four, six = plan_blocks(request, ID, DEFAULT_POOLS, [], [])
    assert four.gateway == "" and six.gateway == first_host(six.network)
