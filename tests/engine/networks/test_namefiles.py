"""The name files: docker's rules for hosts and resolv.conf."""

from pathlib import Path

import pytest

from engine.networks import namefiles
from engine.networks.namefiles import ResolvConf, hosts_text, own_names, parse_extra_hosts


def test_hosts_has_local_names_then_added_ones_then_its_own() -> None:
    text = hosts_text([("10.0.0.9", "db")], [("172.17.0.2", "web.example.org web")])
    lines = text.splitlines()
    assert lines[0] == "127.0.0.1\tlocalhost"
    assert lines[-2:] == ["10.0.0.9\tdb", "172.17.0.2\tweb.example.org web"]


@pytest.mark.parametrize(
    ("hostname", "domain", "names"),
    [("web", "", "web"), ("web", "example.org", "web.example.org web"), ("web.example.org", "", "web.example.org web")],
)
def test_own_names(hostname: str, domain: str, names: str) -> None:
    assert own_names(hostname, domain) == names


def test_extra_hosts_in_both_spellings_and_with_the_host_itself() -> None:
    entries = ["a:10.0.0.1", "b=fd00::1", "c:[::2]", "host:host-gateway"]
    assert parse_extra_hosts(entries, ["172.17.0.1"]) == [
        ("10.0.0.1", "a"),
        ("fd00::1", "b"),
        ("::2", "c"),
        ("172.17.0.1", "host"),
    ]


@pytest.mark.parametrize("entry", ["nothing", "a:", ":1.2.3.4", "a:1.2.3", "a:host-gateway"])
def test_bad_extra_hosts(entry: str) -> None:
    with pytest.raises(ValueError, match="add-host|host-gateway"):
        parse_extra_hosts([entry], [])


HOST = """
# a comment
nameserver 127.0.0.53 # local
nameserver 192.0.2.53
nameserver fe80::1%eth0
nameserver not-an-address
domain old.example
search example.org corp.example
options ndots:2 ; another comment
options edns0
"""


def test_reading_a_resolv_conf() -> None:
    conf = ResolvConf.parse(HOST)
    assert conf.servers == ("127.0.0.53", "192.0.2.53", "fe80::1%eth0", "not-an-address")
    assert conf.search == ("example.org", "corp.example")
    assert conf.options == ("ndots:2", "edns0")


def test_bridge_containers_get_reachable_servers_or_public_ones() -> None:
    assert ResolvConf.parse(HOST).for_bridge().servers == ("192.0.2.53",)
    assert ResolvConf(("127.0.0.1",)).for_bridge().servers == namefiles.FALLBACK_SERVERS


def test_the_embedded_server_looks_at_single_names_first() -> None:
    assert ResolvConf(("1.1.1.1",)).for_embedded().text().endswith("nameserver 127.0.0.11\noptions ndots:0\n")
    assert ResolvConf((), (), ("ndots:3",)).for_embedded().options == ("ndots:3",)


def test_options_override_the_host() -> None:
    conf = ResolvConf.parse(HOST).override(["1.1.1.1"], ["."], ["timeout:1"])
    assert (conf.servers, conf.search, conf.options) == (("1.1.1.1",), (), ("timeout:1",))
    assert "search a b\n" in ResolvConf.parse(HOST).override([], ["a", "b"], []).text()


def test_the_stub_resolver_is_replaced_by_what_it_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub, real = tmp_path / "stub", tmp_path / "real"
    stub.write_text("nameserver 127.0.0.53\n")
    monkeypatch.setattr(namefiles, "_RESOLVED_FILE", real)
    assert namefiles.host_resolv_conf_sync(stub) == "nameserver 127.0.0.53\n"
    real.write_text("nameserver 192.0.2.1\n")
    assert namefiles.host_resolv_conf_sync(stub) == "nameserver 192.0.2.1\n"
    assert namefiles.host_resolv_conf_sync(tmp_path / "absent") == ""


def test_files_are_rewritten_in_place(tmp_path: Path) -> None:
    paths = namefiles.write_files_sync(tmp_path / "new", hosts="h\n", hostname="web", resolv="r\n")
    inode = paths[0].stat().st_ino
    namefiles.write_files_sync(tmp_path / "new", hosts="other\n", hostname="web", resolv="r\n")
    assert [p.read_text() for p in paths] == ["other\n", "web\n", "r\n"]
    assert paths[0].stat().st_ino == inode
    assert paths[0].stat().st_mode & 0o777 == 0o644


def test_hosts_of_a_container_without_ipv6_name_no_such_address() -> None:
    assert hosts_text([("10.0.0.9", "db")], [("172.17.0.2", "web")], has_ipv6=False) == (
        "127.0.0.1\tlocalhost\n10.0.0.9\tdb\n172.17.0.2\tweb\n"
    )
