"""Which subnet the default bridge has, after dockerd's own tests of it."""

from __future__ import annotations

from ipaddress import ip_interface

import pytest

from engine.networks.defaultbridge import told_block, with_way_out
from engine.networks.model import IpamBlock


@pytest.mark.parametrize(
    ("told", "inner", "present", "is_users", "expected"),
    [
        ("", "", "", False, None),
        ("", "192.168.176.0/24", "", False, ("192.168.176.0/24", "192.168.176.0/24", "192.168.176.1")),
        ("192.168.176.88/24", "", "", False, ("192.168.176.0/24", "", "192.168.176.88")),
        ("", "", "fe80::1/64 fd00::88/64", False, ("fd00::/64", "", "fd00::88")),
        ("", "", "fe80::1/64", False, None),
        # docker0: a range that is inside is kept apart, a bigger one widens the subnet, another one replaces it.
        ("", "10.1.0.0/24", "10.1.0.88/20", False, ("10.1.0.0/20", "10.1.0.0/24", "10.1.0.88")),
        ("", "10.1.0.0/20", "10.1.0.88/24", False, ("10.1.0.0/20", "10.1.0.0/20", "10.1.0.88")),
        ("", "10.2.0.0/24", "10.1.0.88/24", False, ("10.2.0.0/24", "10.2.0.0/24", "10.2.0.1")),
        ("10.1.0.99/24", "10.1.0.0/24", "10.1.0.88/20", False, ("10.1.0.0/24", "10.1.0.0/24", "10.1.0.99")),
        ("", "fe80::/64", "fe80::42/64", False, ("fe80::/64", "fe80::/64", "fe80::42")),
        # A bridge of the user's: the address whose subnet has the range, else one in it; its subnet stays as it is.
        ("", "10.1.0.0/24", "10.0.0.8/20 10.1.0.8/20", True, ("10.1.0.0/20", "10.1.0.0/24", "10.1.0.8")),
        ("", "10.1.0.0/20", "10.0.0.8/24 10.1.3.8/24", True, ("10.1.3.0/24", "", "10.1.3.8")),
        ("", "10.1.0.0/24", "10.0.0.8/20", True, ("10.0.0.0/20", "", "10.0.0.8")),
    ],
)
def test_the_subnet_follows_from_options_and_addresses(
    told: str, inner: str, present: str, is_users: bool, expected: tuple[str, str, str] | None
) -> None:
    found = told_block(told, inner, [ip_interface(one) for one in present.split()], is_users=is_users)
    if expected is None:
        assert found is None
    else:
        subnet, ip_range, gateway = expected
        is_told = bool(told) or any(str(ip_interface(one).ip) == gateway for one in present.split())
        assert found == IpamBlock(subnet=subnet, ip_range=ip_range, gateway=gateway, is_gateway_told=is_told)


def test_another_way_out_is_inside_the_subnet() -> None:
    four, six = IpamBlock(subnet="10.9.0.0/16", gateway="10.9.0.1"), IpamBlock(subnet="fd00::/64", gateway="fd00::1")
    assert with_way_out(four, "", "") == four
    assert with_way_out(four, "10.9.9.9", "fd00::9").way_out == "10.9.9.9"
    assert with_way_out(six, "10.9.9.9", "fd00::9").aux == {"DefaultGatewayIPv6": "fd00::9"}
    words = r"auxiliary address: \(DefaultGatewayIPv4:10.8.9.9\) must belong to the master pool: 10.9.0.0/16"
    with pytest.raises(ValueError, match=f"^{words}$"):
        with_way_out(four, "10.8.9.9", "")


@pytest.mark.parametrize("inner", ["fd00::/60", "fd00:0:0:10::/64"])
def test_an_ipv6_range_outside_a_users_bridge_is_refused(inner: str) -> None:
    with pytest.raises(ValueError, match="is outside any subnet implied by addresses on the user-managed"):
        told_block("", inner, [ip_interface("fd00::88/64")], is_users=True)
