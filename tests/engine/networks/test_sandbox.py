"""What follows from a sandbox's endpoints: the default route, where published ports lead."""

from __future__ import annotations

from typing import Any

from engine.networks.model import EndpointState, PortState
from engine.networks.sandbox import Sandbox, gateway_endpoint, member_of, publishing_endpoint, translations


def endpoint(name: str, **parts: Any) -> EndpointState:
    return EndpointState(network_id=name, network_name=name, endpoint_id="e", dns_names=("x",), **parts)


def sandbox(*endpoints: EndpointState) -> Sandbox:
    made = Sandbox("c", "web", "s", "bridge", endpoints={e.network_name: e for e in endpoints})
    made.published = (PortState(port="80/tcp", host_ip="0.0.0.0", host_port=8080),)
    return made


BRIDGE = endpoint("m", link="veth1", gateway="10.0.0.1", ip_address="10.0.0.2")
LAN = endpoint("lan", gateway="10.1.0.1", ip_address="10.1.0.2")
ROUTED = endpoint("a", is_routed=True, ip_address="10.2.0.2")
INNER = endpoint("a-inner", link="veth2", ip_address="10.3.0.2")


def test_the_default_route_is_by_priority_then_name() -> None:
    assert gateway_endpoint(sandbox(BRIDGE, LAN)) is LAN
    assert gateway_endpoint(sandbox(BRIDGE, LAN, ROUTED)) is ROUTED
    first = endpoint("z", link="v", gateway="10.4.0.1", gw_priority=1)
    assert gateway_endpoint(sandbox(BRIDGE, LAN, first)) is first
    assert gateway_endpoint(sandbox(INNER)) is gateway_endpoint(sandbox(ROUTED), 6) is None


def test_published_ports_lead_to_an_endpoint_that_the_host_reaches() -> None:
    made = sandbox(BRIDGE, LAN, ROUTED, INNER)
    assert publishing_endpoint(made) is BRIDGE
    assert [port.container_ip for port in translations(made, BRIDGE)] == ["10.0.0.2"]
    assert publishing_endpoint(sandbox(LAN, ROUTED, INNER)) is None
    six = endpoint("a", link="veth3", ipv6_gateway="fd00::1", global_ipv6_address="fd00::2")
    assert publishing_endpoint(sandbox(BRIDGE, six)) is BRIDGE
    assert publishing_endpoint(sandbox(LAN, six)) is six


def test_names_are_forwarded_for_who_has_a_way_outside() -> None:
    assert [member_of(sandbox(one))["outside"] for one in (BRIDGE, ROUTED, INNER)] == [True, True, False]
