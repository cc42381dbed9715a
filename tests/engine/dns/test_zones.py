"""Who sees which name."""

from typing import Any

import pytest

from engine.dns.zones import Member, Zones


def member(ident: str, *networks: str, names: tuple[str, ...] = (), address: str = "10.0.0.2", **more: Any) -> Member:
    places = [
        {"network": n, "domain": n, "addresses": [address], "names": [ident, *names], "gateway": "10.0.0.1", **more}
        for n in networks
    ]
    return Member.parse({"id": ident, "places": places})


@pytest.fixture
def zones() -> Zones:
    made = Zones()
    made.put(member("web", "town", names=("WWW",), address="10.0.0.2"))
    made.put(member("client", "town", address="10.0.0.3", links=[("Shop", "web")]))
    made.put(member("stranger", "village", address="10.1.0.2"))
    return made


@pytest.mark.parametrize("name", ["web", "www", "web.town", "shop", "shop.town"])
def test_names_aliases_domains_and_links(zones: Zones, name: str) -> None:
    assert zones.resolve("client", name) == ["10.0.0.2"]


def test_links_are_private_and_networks_are_separate(zones: Zones) -> None:
    assert zones.resolve("web", "shop") is None
    assert zones.resolve("stranger", "web") is None
    assert zones.resolve("nobody", "web") is None


def test_a_shared_alias_has_all_addresses_until_they_leave(zones: Zones) -> None:
    zones.put(member("web2", "town", names=("www",), address="10.0.0.9"))
    assert sorted(zones.resolve("client", "www") or []) == ["10.0.0.2", "10.0.0.9"]
    zones.drop("web")
    assert zones.resolve("client", "www") == ["10.0.0.9"]
    assert zones.resolve("client", "web") is None
    zones.drop("web")


def test_a_container_that_changes_is_replaced_whole(zones: Zones) -> None:
    zones.put(member("web", "town", "village", address="10.0.0.7"))
    assert zones.resolve("client", "web") == ["10.0.0.7"]
    assert zones.resolve("client", "www") is None
    assert zones.resolve("stranger", "web") == ["10.0.0.7"]


def test_reverse_names_carry_the_network(zones: Zones) -> None:
    assert zones.reverse("client", "10.0.0.2") == "web.town"
    assert zones.reverse("stranger", "10.0.0.2") is None
    assert zones.reverse("nobody", "10.0.0.2") is None


def test_the_host_has_a_name(zones: Zones) -> None:
    assert zones.resolve("client", "host.docker.internal") == ["10.0.0.1"]
    zones.put(member("inner", "closed", gateway=""))
    assert zones.resolve("inner", "host.docker.internal") is None


def test_nothing_is_kept_of_those_who_left(zones: Zones) -> None:
    for ident in ("web", "client", "stranger"):
        zones.drop(ident)
    assert not zones.members and not zones._networks


def test_defaults_of_a_message() -> None:
    assert Member.parse({"id": "x"}) == Member("x", (), None, True)
    assert Member.parse({"id": "x", "upstream": ["1.1.1.1"], "outside": False}) == Member("x", (), ("1.1.1.1",), False)
