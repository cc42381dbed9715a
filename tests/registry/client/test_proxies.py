"""Which requests go through which proxy."""

from __future__ import annotations

import pytest

from registry.client.proxies import Proxies

BOTH = {"http": "http://plain:1", "https": "http://secure:2"}


def test_what_was_given_wins_over_the_environment() -> None:
    environment = {"HTTP_PROXY": "http://env:1", "https_proxy": "http://env:2", "HTTPS_PROXY": "", "no_proxy": "a"}
    assert Proxies.given(environment=environment) == Proxies("http://env:1", "http://env:2", "a")
    assert Proxies.given("x", no="b", environment=environment) == Proxies("x", "http://env:2", "b")


def test_each_scheme_has_its_proxy() -> None:
    proxies = Proxies(**BOTH)
    assert proxies.of_url("http://host.example/v2/") == "http://plain:1"
    assert proxies.of_url("https://host.example/v2/") == "http://secure:2"
    assert Proxies(http="plain:1").of_url("http://host.example/") == "http://plain:1"
    assert Proxies(http="plain:1").of_url("https://host.example/") is None


@pytest.mark.parametrize("host", ["localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000"])
def test_this_machine_needs_none(host: str) -> None:
    assert Proxies(**BOTH).of_url(f"http://{host}/v2/") is None


@pytest.mark.parametrize(
    ("entry", "host", "direct"),
    [
        ("*", "any.example", True),
        ("other, inside.example", "inside.example", True),
        ("inside.example", "deep.INSIDE.example", True),
        ("inside.example", "notinside.example", False),
        (".inside.example", "inside.example", False),
        (".inside.example", "deep.inside.example", True),
        ("*.inside.example", "deep.inside.example", True),
        ("inside.example:5000", "inside.example:5000", True),
        ("inside.example:5000", "inside.example", False),
        ("inside.example:443", "inside.example", True),
        ("192.0.2.0/24", "192.0.2.7:5000", True),
        ("192.0.2.0/24", "192.0.3.7", False),
        ("192.0.2.0/24", "inside.example", False),
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7:1", "192.0.2.7", False),
        ("2001:db8::1", "[2001:db8::1]:5000", True),
        ("[2001:db8::1]:5000", "[2001:db8::1]:5000", True),
        ("nonsense/99", "host.example", False),
        (" ,", "host.example", False),
    ],
)
def test_hosts_that_are_asked_directly(entry: str, host: str, direct: bool) -> None:
    assert (Proxies(**BOTH, no=entry).of_url(f"https://{host}/v2/") is None) is direct
