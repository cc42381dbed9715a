"""The firewall text: equal models give equal text, ports land in the right map, networks get the right rules."""

from ipaddress import ip_network

from engine.networks import ruleset
from engine.networks.ruleset import BridgeRules, FirewallModel, Passage, PublishedPort

WEB = PublishedPort("tcp", "0.0.0.0", 8080, "172.17.0.2", 80)
LOCAL = PublishedPort("tcp", "127.0.0.1", 8080, "172.17.0.3", 80)
SIX = PublishedPort("udp", "::", 53, "fd00::2", 53)
SIX_AT = PublishedPort("udp", "fd01::1", 53, "fd00::2", 53)
BRIDGE = BridgeRules("docker0", (ip_network("172.17.0.0/16"), ip_network("fd00::/64")))


def test_a_model_has_one_text() -> None:
    model = FirewallModel("berth", (BRIDGE,), (WEB, LOCAL))
    assert ruleset.render(model) == ruleset.render(FirewallModel("berth", (BRIDGE,), (WEB, LOCAL)))


def test_ports_go_to_the_map_of_their_address_and_family() -> None:
    found = ruleset.elements(FirewallModel("berth", (), (WEB, LOCAL, SIX, SIX_AT)))
    assert found["published4"] == ["tcp . 8080 : 172.17.0.2 . 80"]
    assert found["published4_at"] == ["127.0.0.1 . tcp . 8080 : 172.17.0.3 . 80"]
    assert found["published6"] == ["udp . 53 : fd00::2 . 53"]
    assert found["published6_at"] == ["fd01::1 . udp . 53 : fd00::2 . 53"]


def test_a_port_change_touches_one_element() -> None:
    text = ruleset.render_ports("berth", add=[WEB], remove=[LOCAL])
    assert text.splitlines() == [
        "delete element inet berth published4_at { 127.0.0.1 . tcp . 8080 }",
        "add element inet berth published4 { tcp . 8080 : 172.17.0.2 . 80 }",
    ]
    assert ruleset.render_ports("berth") == ""


def test_outgoing_connections_are_translated_unless_internal_or_told_not_to() -> None:
    def translations(bridge: BridgeRules) -> list[str]:
        return [line for line in ruleset.rules(FirewallModel("t", (bridge,)))["postrouting"] if "oifname !=" in line]

    subnets = (ip_network("172.17.0.0/16"),)
    assert translations(BridgeRules("b", subnets)) == ['ip saddr 172.17.0.0/16 oifname != "b" masquerade']
    assert translations(BridgeRules("b", subnets, is_internal=True)) == []
    assert translations(BridgeRules("b", subnets, masquerades=False)) == []
    assert translations(BridgeRules("b", subnets, source_address="192.0.2.7")) == [
        'ip saddr 172.17.0.0/16 oifname != "b" snat ip to 192.0.2.7'
    ]


def test_sets_say_who_talks_and_who_is_internal() -> None:
    quiet = BridgeRules("quiet", can_talk=False)
    inner = BridgeRules("inner", is_internal=True)
    found = ruleset.elements(
        FirewallModel("t", (BRIDGE, quiet, inner), passages=(Passage("1.1.1.1", "2.2.2.2", "tcp", 5),))
    )
    assert found["bridges"] == ['"docker0"', '"quiet"', '"inner"']
    assert found["talking"] == ['"docker0" . "docker0"', '"inner" . "inner"']
    assert found["internal"] == ['"inner"']
    assert found["passages"] == ["1.1.1.1 . 2.2.2.2 . tcp . 5"]


def test_without_ipv6_rules_its_packets_are_let_be() -> None:
    found = ruleset.rules(FirewallModel("t", (BRIDGE,), has_ipv6=False))
    hooks = ("prerouting", "output", "postrouting", "forward")
    assert {found[name][0] for name in hooks} == {"meta nfproto ipv6 accept"}
    assert "meta nfproto ipv6 accept" not in str(ruleset.rules(FirewallModel("t", (BRIDGE,))))


def test_the_users_chain_is_made_but_never_emptied() -> None:
    lines = ruleset.render(FirewallModel("berth", (BRIDGE,), (WEB,))).splitlines()
    assert "add chain inet berth berth-user" in lines
    assert not any(line.startswith(("flush", "delete")) and "berth-user" in line for line in lines)
    assert "add rule inet berth forward jump berth-user" in lines
    assert lines.index("add rule inet berth forward jump berth-user") < lines.index(
        "add rule inet berth forward oifname @bridges jump inward"
    )


def test_nothing_outside_the_table_is_named() -> None:
    lines = (ruleset.render(FirewallModel("mine", (BRIDGE,), (WEB,))) + ruleset.render_removal("mine")).splitlines()
    assert all(" inet mine" in line for line in lines)


def test_damage_shows_in_the_counts() -> None:
    model = FirewallModel("t", (BRIDGE,), (WEB,))
    expected = ruleset.count(model)
    assert expected["set published4"] == 1
    assert expected["chain forward"] == 5
    listing: list[dict[str, object]] = [{"metainfo": {}}, {"table": {"name": "t"}}]
    for chain, statements in ruleset.rules(model).items():
        listing.append({"chain": {"name": chain}})
        listing += [{"rule": {"chain": chain}} for _ in statements]
    listing += [{"chain": {"name": "berth-user"}}, {"rule": {"chain": "berth-user"}}]
    for name, items in ruleset.elements(model).items():
        listing.append({"map": {"name": name, "elem": items}} if items else {"set": {"name": name}})
    assert ruleset.count_listing(listing) == expected
    listing.remove({"rule": {"chain": "forward"}})
    assert ruleset.count_listing(listing) != expected
    assert ruleset.count_listing([{"metainfo": "no dictionary"}]) == {}


def test_versions_of_ports() -> None:
    assert (WEB.version, SIX.version) == (4, 6)


def test_gateway_modes_open_networks_or_ports() -> None:
    open4, open6 = (PublishedPort("tcp", "0.0.0.0", 0, "10.0.0.2", 80), PublishedPort("udp", "::", 0, "fd00::2", 53))
    subnets = (ip_network("10.0.0.0/24"), ip_network("fd00::/64"))
    routed = BridgeRules("routed", subnets, routed=frozenset({4, 6}))
    bare = BridgeRules("bare", subnets, unprotected=frozenset({4}))
    inner = BridgeRules("inner", subnets, is_internal=True, routed=frozenset({4}), unprotected=frozenset({6}))
    model = FirewallModel("t", (inner, routed, bare), (open4, open6, open4))
    assert ruleset.elements(model)["open4"] == ["10.0.0.2 . tcp . 80"]
    assert ruleset.elements(model)["open6"] == ["fd00::2 . udp . 53"]
    rules = ruleset.rules(model)
    assert rules["inward"][-4:] == [
        'oifname "routed" ip protocol icmp accept',
        'oifname "routed" meta l4proto ipv6-icmp accept',
        'oifname "bare" meta nfproto ipv4 accept',
        "drop",
    ]
    leaving = [rule for rule in rules["postrouting"] if "oifname !=" in rule]
    assert leaving == [
        'ip saddr 10.0.0.0/24 oifname != "bare" masquerade',
        'ip6 saddr fd00::/64 oifname != "bare" masquerade',
    ]
    assert ruleset.render_ports("t", add=[open4], remove=[open6]).splitlines() == [
        "delete element inet t open6 { fd00::2 . udp . 53 }",
        "add element inet t open4 { 10.0.0.2 . tcp . 80 }",
    ]
