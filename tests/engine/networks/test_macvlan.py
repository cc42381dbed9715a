"""Macvlan and ipvlan networks without a kernel: what may be made, and what is asked of the kernel."""

from __future__ import annotations

from typing import Any

import pytest

from engine.kernel.netlink import Link, Request
from engine.networks.bridge import ALIAS
from engine.networks.macvlan import MacvlanDriver
from engine.networks.model import Network
from tests.support.played_networks import PlayedLinks


class HostWith(PlayedLinks):
    """A host with named interfaces, by their kind; those asked for appear."""

    def __init__(self, **kinds: str) -> None:
        super().__init__()
        self.there = {name: Link(5, name, "", 1500, 0, True, kind) for name, kind in kinds.items()}
        self.removed: list[str] = []

    async def link(self, name: str) -> Link | None:
        return self.there.get(name)

    async def send(self, *requests: Request) -> None:
        await super().send(*requests)
        for request in requests:
            verb, _, name = request.purpose.rpartition(" interface ")
            if verb == "create":
                kind = "vlan" if "." in name else "dummy"
                self.there[name] = Link(90 + len(self.there), name, "", 1500, 0, True, kind)
            elif verb == "mark":
                found = self.there[name]
                self.there[name] = Link(found.index, name, "", 1500, 0, True, found.kind, ALIAS)

    async def remove(self, name: str) -> None:
        self.removed.append(name)
        del self.there[name]


def network(number: int, driver: str = "macvlan", **options: str) -> Network:
    return Network(id=f"{number:x}" * 64, name=f"n{number}", driver=driver, options=options)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("macvlan", {"macvlan_mode": "foo"}, "mode 'foo' is not valid, 'bridge' mode is the macvlan driver default"),
        ("ipvlan", {"ipvlan_mode": "foo"}, "mode 'foo' is not valid, 'l2' mode is the ipvlan driver default"),
        ("ipvlan", {"ipvlan_flag": "foo"}, "flag 'foo' is not valid, 'bridge' is the ipvlan driver default"),
        ("ipvlan", {"ipvlan_flag": "vepa"}, "ipvlan flag 'vepa' is not offered, use a macvlan network in vepa mode"),
        ("macvlan", {"parent": "lo"}, "loopback interface is not a valid macvlan parent link"),
    ],
)
def test_options_that_make_no_sense(kind: str, options: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MacvlanDriver(HostWith(), kind).check(network(1, kind, **options))


@pytest.mark.parametrize(
    ("parent", "words"),
    [
        ("nowhere0", "^invalid subinterface vlan name nowhere0, example formatting is eth0.10$"),
        ("nowhere0.5", "^-o parent interface was not found on the host: nowhere0$"),
        ("eth0.4095", "^vlan id must be between 1-4094, received: 4095$"),
    ],
)
async def test_parents_that_cannot_be(parent: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        await MacvlanDriver(HostWith(eth0=""), "macvlan").create(network(1, parent=parent))


@pytest.mark.parametrize(
    ("made", "outside", "routed"),
    [
        (network(1), False, False),
        (network(1, parent="eth0"), True, False),
        (network(1, "ipvlan", parent="eth0", ipvlan_mode="l2"), True, False),
        (network(1, "ipvlan", parent="eth0", ipvlan_mode="l3s"), True, True),
        (network(1, "bridge"), True, False),
    ],
)
def test_which_networks_lead_outside(made: Network, outside: bool, routed: bool) -> None:
    assert (made.leads_outside, made.is_routed) == (outside, routed)


async def test_a_vlan_is_made_shared_and_removed_with_its_last_network() -> None:
    host = HostWith(eth0="")
    driver = MacvlanDriver(host, "macvlan")
    first, second = network(1, parent="eth0.42"), network(2, parent="eth0.42")
    await driver.create(first)
    assert [request.purpose for request in host.sent] == ["create interface eth0.42", "mark interface eth0.42"]
    await driver.create(second)
    await driver.remove(first)
    await driver.remove(first)
    assert host.removed == []
    await driver.remove(second)
    assert host.removed == ["eth0.42"]


async def test_a_network_without_a_parent_gets_a_dummy() -> None:
    host = HostWith()
    driver = MacvlanDriver(host, "macvlan")
    await driver.create(network(1))
    assert [r.purpose for r in host.sent] == ["create interface dm-111111111111", "mark interface dm-111111111111"]
    await driver.remove(network(1))
    assert host.removed == ["dm-111111111111"]


async def test_interfaces_of_the_administrators_are_left_alone() -> None:
    host = HostWith(**{"eth0": "", "eth0.7": "vlan"})
    driver = MacvlanDriver(host, "macvlan")
    for parent in ("eth0", "eth0.7"):
        await driver.create(network(1, parent=parent))
        await driver.remove(network(1, parent=parent))
    assert (host.sent, host.removed) == ([], [])


@pytest.mark.parametrize(
    ("kind", "first", "second", "words"),
    [
        ("macvlan", {}, {"macvlan_mode": "passthru"}, "^cannot use mode passthru, macvlan network 1+ is already using"),
        ("macvlan", {"macvlan_mode": "passthru"}, {}, "^macvlan network 1+ is already .* eth0 in mode passthru$"),
        ("ipvlan", {}, {}, "^network 1+ is already using parent interface eth0$"),
    ],
)
async def test_who_can_share_an_interface(kind: str, first: Any, second: Any, words: str) -> None:
    driver = MacvlanDriver(HostWith(eth0=""), kind)
    await driver.create(network(1, kind, parent="eth0", **first))
    await driver.create(network(1, kind, parent="eth0", **first))  # at every start of the daemon
    with pytest.raises(ValueError, match=words):
        await driver.create(network(2, kind, parent="eth0", **second))
    await driver.remove(network(2, kind, parent="eth0", **second))
    await driver.remove(network(1, kind, parent="eth0", **first))
    await driver.create(network(2, kind, parent="eth0", **second))
