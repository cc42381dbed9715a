"""Addresses and subnets: lowest free first, nothing reserved, nothing twice, nothing that collides."""

from ipaddress import ip_address, ip_network

import pytest

from engine.networks import ipam
from engine.networks.ipam import AddressPool, AddressTaken, PoolExhausted
from engine.networks.model import IpamBlock


def pool(subnet: str = "10.0.0.0/29", **kwargs: object) -> AddressPool:
    return AddressPool(IpamBlock(subnet=subnet, gateway="10.0.0.1", **kwargs))  # type: ignore[arg-type]


def test_lowest_free_address_comes_first_and_comes_again_after_release() -> None:
    addresses = pool()
    first, second = addresses.lease(), addresses.lease()
    assert (str(first), str(second)) == ("10.0.0.2", "10.0.0.3")
    addresses.release("10.0.0.2")
    assert str(addresses.lease()) == "10.0.0.2"
    assert str(addresses.lease()) == "10.0.0.4"


def test_network_broadcast_gateway_and_auxiliary_addresses_are_never_given() -> None:
    addresses = pool(aux={"router": "10.0.0.4"})
    given = []
    with pytest.raises(PoolExhausted):
        while True:
            given.append(str(addresses.lease()))
    assert given == ["10.0.0.2", "10.0.0.3", "10.0.0.5", "10.0.0.6"]


def test_a_range_limits_the_choice_but_not_what_one_may_ask_for() -> None:
    addresses = AddressPool(IpamBlock(subnet="10.0.0.0/24", ip_range="10.0.0.128/30", gateway="10.0.0.1"))
    assert str(addresses.lease()) == "10.0.0.128"
    assert str(addresses.lease("10.0.0.9")) == "10.0.0.9"
    addresses.release("10.0.0.9")
    assert addresses.leased == {ip_address("10.0.0.128")}


@pytest.mark.parametrize("wanted", ["10.0.0.1", "10.0.0.0", "10.0.0.7", "10.1.0.1", "nonsense"])
def test_addresses_that_cannot_be_had(wanted: str) -> None:
    with pytest.raises(AddressTaken):
        pool().lease(wanted)


def test_an_address_is_leased_once() -> None:
    addresses = pool()
    addresses.lease("10.0.0.3")
    with pytest.raises(AddressTaken, match="Address already in use"):
        addresses.lease("10.0.0.3")
    assert [str(addresses.lease()) for _ in range(2)] == ["10.0.0.2", "10.0.0.4"]


def test_a_range_outside_its_subnet_is_refused() -> None:
    with pytest.raises(ValueError, match="not inside"):
        AddressPool(IpamBlock(subnet="10.0.0.0/24", ip_range="10.0.1.0/24"))


def test_default_subnets_avoid_routes_and_networks_but_not_the_default_route() -> None:
    taken = [
        ip_network("0.0.0.0/0"),
        ip_network("172.17.5.0/24"),
        ip_network("172.16.0.0/15"),
        ip_network("172.18.0.0/16"),
    ]
    assert str(ipam.choose_subnet(ipam.DEFAULT_POOLS, taken)) == "172.19.0.0/16"


def test_pools_run_out_with_a_clear_error() -> None:
    with pytest.raises(PoolExhausted, match="non-overlapping"):
        ipam.choose_subnet([("10.0.0.0/24", 25)], [ip_network("10.0.0.0/8")])


def test_docker_has_31_default_networks_and_then_come_many_small_ones() -> None:
    assert len(list(ipam.candidates(ipam.DEFAULT_POOLS))) == 31
    assert len(list(ipam.candidates(ipam.OVERFLOW_POOLS))) == 2048 + 4096


def test_private_ipv6_subnets_are_private_stable_and_distinct() -> None:
    seed = "0123456789abcdef" * 4
    first = ipam.unique_local_subnet(seed, [])
    assert first == ipam.unique_local_subnet(seed, [])
    assert first.subnet_of(ip_network("fd00::/8")) and first.prefixlen == 64  # type: ignore[arg-type]
    assert ipam.unique_local_subnet(seed, [first]) != first


def test_overlap_names_what_is_in_the_way() -> None:
    assert ipam.overlaps(ip_network("10.0.0.0/8"), [ip_network("fd00::/8"), ip_network("10.9.0.0/16")]) == ip_network(
        "10.9.0.0/16"
    )
    assert ipam.overlaps(ip_network("10.0.0.0/8"), [ip_network("11.0.0.0/8")]) is None


def test_gateway_is_the_first_host_even_of_a_single_address() -> None:
    assert ipam.first_host(ip_network("10.3.0.0/16")) == "10.3.0.1"
    assert ipam.first_host(ip_network("10.3.0.7/32")) == "10.3.0.7"


def test_point_to_point_subnets_have_no_broadcast() -> None:
    addresses = AddressPool(IpamBlock(subnet="10.0.0.0/31", gateway="10.0.0.0"))
    assert str(addresses.lease()) == "10.0.0.1"
