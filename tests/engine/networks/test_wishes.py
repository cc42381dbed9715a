"""What driver options of an endpoint say, and which wishes make no sense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from engine.errors import InvalidParameter, SystemFailure
from engine.networks.model import OPTION_PREFIX, Network
from engine.networks.wishes import (
    OPTION_INTERFACE,
    OPTION_SYSCTLS,
    check_wish,
    choose_interface,
    plain_mac,
    sysctl_of,
    wished_interface,
    wished_sysctls,
)

TOWN = Network(id="ab" * 32, name="town", driver="bridge")


@dataclass(frozen=True)
class Wish:
    driver_opts: dict[str, str] | None = None
    ipam_config: Any = None
    aliases: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    mac_address: str = ""
    gw_priority: int = 0


def test_interfaces_are_numbered_unless_they_are_named() -> None:
    assert [wished_interface(wish) for wish in (None, Wish(), Wish({OPTION_INTERFACE: "lan"}))] == ["", "", "lan"]
    assert choose_interface(TOWN, None, {"eth0", "eth2"}) == "eth1"
    assert choose_interface(TOWN, Wish({OPTION_INTERFACE: "lan"}), {"eth0"}) == "lan"
    prefixed = Network(id="cd" * 32, name="city", driver="bridge", options={OPTION_PREFIX: "net"})
    assert choose_interface(prefixed, Wish(), {"eth0", "net0"}) == "net1"
    for name in ("eth0", "lo"):
        with pytest.raises(SystemFailure, match=f'error renaming interface to "{name}": file exists'):
            choose_interface(TOWN, Wish({OPTION_INTERFACE: name}), {"eth0"})


def test_sysctls_name_the_interface_by_a_placeholder() -> None:
    text = "net.ipv4.conf.IFNAME.forwarding=1,net.ipv6.conf.ifname.accept_ra=2"
    assert wished_sysctls(None) == wished_sysctls(Wish()) == ()
    first, second = wished_sysctls(Wish({OPTION_SYSCTLS: text}))
    assert sysctl_of(first, "eth1") == ("net/ipv4/conf/eth1/forwarding", "1")
    assert sysctl_of(second, "lan") == ("net/ipv6/conf/lan/accept_ra", "2")
    with pytest.raises(ValueError, match="to have format name=value"):
        sysctl_of("net.ipv4.conf.IFNAME.forwarding", "eth0")
    check_wish(TOWN, Wish({OPTION_SYSCTLS: text}))


@pytest.mark.parametrize(
    "wrong",
    [
        "net.ipv4.conf.eth0.forwarding=1",
        "net.bridge.conf.IFNAME.x=1",
        "net.ipv4.IFNAME.x=1",
        "kernel.ipv4.conf.IFNAME.x=1",
        "net.ipv4.conf/../..IFNAME.x=1",
        "",
    ],
)
def test_other_sysctls_are_refused(wrong: str) -> None:
    wish = Wish({OPTION_SYSCTLS: f"net.ipv4.conf.IFNAME.forwarding=1,{wrong}"})
    with pytest.raises(InvalidParameter, match=f"unrecognised network interface sysctl '{wrong}'; represent"):
        check_wish(None, wish)


@pytest.mark.parametrize("text", ["02:42:AC:11:00:09", "02-42-ac-11-00-09", "0242.ac11.0009"])
def test_hardware_addresses_have_three_spellings(text: str) -> None:
    check_wish(TOWN, Wish(mac_address=text))
    assert plain_mac(text) == "02:42:ac:11:00:09"


@pytest.mark.parametrize("text", ["foo", "02:42", "02:42-ac:11:00:09", "02:42:ac:11:00:09:11", "zz:42:ac:11:00:09"])
def test_what_is_no_hardware_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match=f"^invalid MAC address {text}$"):
        check_wish(None, Wish(mac_address=text))


def test_only_users_networks_know_aliases() -> None:
    bridge = Network(id="ef" * 32, name="bridge", driver="bridge")
    check_wish(TOWN, Wish(aliases=("db",)))
    words = "network-scoped alias is supported only for containers in user defined networks"
    with pytest.raises(InvalidParameter, match=f"invalid endpoint settings:\n{words}$"):
        check_wish(bridge, Wish(aliases=("db",)))
