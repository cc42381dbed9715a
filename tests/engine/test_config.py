"""Flags and daemon.json to one record; what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine import config as module
from engine.config import (
    DEFAULT_HOST,
    Config,
    ConfigError,
    RuntimeConfig,
    convert,
    load_config,
    mask_credentials,
    own_ports,
    reload_attributes,
    reload_config,
)


def written(folder: Path, document: object) -> Path:
    path = folder / "daemon.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def loaded(folder: Path, document: object, **flags: Any) -> Config:
    return load_config({k.replace("_", "-"): v for k, v in flags.items()}, config_file=written(folder, document))


def test_nothing_given_is_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEFAULT_CONFIG_FILE", tmp_path / "absent.json")
    assert load_config({}) == Config(config_file=tmp_path / "absent.json")
    assert Config().bridge_name == "docker0"
    assert Config(bridge="br9").bridge_name == "br9"


@pytest.mark.parametrize("text", ["", " \n", "{}"])
def test_an_empty_file_is_the_defaults(tmp_path: Path, text: str) -> None:
    assert loaded(tmp_path, text) == Config(config_file=tmp_path / "daemon.json")


def test_flags_and_file_together(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        {
            "labels": ["a=b"],
            "log-opts": {"max-size": "1m", "max-file": 3},
            "max-concurrent-downloads": 7,
            "registry-mirrors": ["https://mirror"],
            "data-root": "/srv/berth",
            "features": {"buildkit": True},
            "icc": False,
        },
        debug=True,
        hosts=["unix:///tmp/x"],
    )
    assert config.labels == ("a=b",)
    assert config.log_opts == {"max-size": "1m", "max-file": "3"}
    assert config.max_concurrent_downloads == 7
    assert config.registry_mirrors == ("https://mirror",)
    assert config.data_root == Path("/srv/berth")
    assert config.hosts == ("unix:///tmp/x",)
    assert (config.debug, config.icc) == (True, False)


@pytest.mark.parametrize(
    ("key", "value", "result"),
    [
        ("runtimes", {"kata": {"path": "/k", "runtimeArgs": ["-x"]}}, {"kata": RuntimeConfig("/k", ("-x",))}),
        ("runtimes", {"crun": {}}, {"crun": RuntimeConfig("crun")}),
        ("default-gateway", "10.9.0.254", "10.9.0.254"),
        ("default-gateway-v6", "fd00:0::9", "fd00::9"),
        ("default-address-pools", [{"base": "10.9.0.0/16", "size": 24}], (("10.9.0.0/16", 24),)),
        ("default-ulimits", {"nofile": {"Hard": 9, "Soft": 5, "Name": "nofile"}}, {"nofile": (5, 9)}),
        ("default-ulimits", {"nofile": {"Hard": 9}}, {"nofile": (9, 9)}),
        ("default-ulimits", {"nofile": {"Soft": 5}}, {"nofile": (5, 5)}),
        ("default-shm-size", 123, 123),
        ("default-shm-size", "64M", 64 << 20),
        ("default-shm-size", "64MB", 64 << 20),
        ("default-shm-size", "1.5GiB", 3 << 29),
        ("default-shm-size", "2k", 2048),
        ("default-shm-size", "7b", 7),
        ("default-shm-size", "100", 100),
        ("mtu", "1400", 1400),
        ("proxies", {"http-proxy": "x"}, {"http-proxy": "x"}),
    ],
)
def test_values_with_a_form_of_their_own(key: str, value: Any, result: Any) -> None:
    assert convert(key, value) == result


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("debug", "true"),
        ("debug", 1),
        ("mtu", True),
        ("mtu", "many"),
        ("bridge", 5),
        ("labels", "a=b"),
        ("labels", None),
        ("data-root", 5),
        ("runtimes", {"x": 5}),
        ("default-gateway", "x"),
        ("default-gateway", "fd00::9"),
        ("default-gateway-v6", 5),
        ("runtimes", ["crun"]),
        ("log-opts", "x"),
        ("default-address-pools", [{"base": "10.0.0.0"}]),
        ("default-address-pools", [{"base": "nowhere/8", "size": 24}]),
        ("default-ulimits", {"nofile": {}}),
        ("default-shm-size", "lots"),
        ("default-shm-size", ""),
        ("default-shm-size", True),
    ],
)
def test_a_wrong_type_names_the_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"invalid value for {key}: "):
        convert(key, value)


def test_the_name_of_the_stock_runtime_is_reserved() -> None:
    with pytest.raises(ConfigError, match="^runtime name 'runc' is reserved$"):
        convert("runtimes", {"runc": {"path": "/opt/runc"}})


def test_unknown_keys_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="don't match any configuration option: bogus, config-file"):
        loaded(tmp_path, {"bogus": 1, "debug": True, "config-file": "/x"})


@pytest.mark.parametrize(("text", "words"), [("{", "invalid JSON"), ("[1]", "one JSON object")])
def test_a_file_that_is_no_object_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        loaded(tmp_path, text)


def test_a_named_file_must_be_readable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config({}, config_file=tmp_path / "absent")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config({}, config_file=tmp_path)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "daemon.json").write_bytes(b'{"labels": ["\xff"]}')
    with pytest.raises(ConfigError, match="daemon.json"):
        load_config({}, config_file=tmp_path / "daemon.json")


def test_a_setting_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"both as a flag .*: debug: \(from flag: True, from file: False\)"):
        loaded(tmp_path, {"debug": False}, debug=True)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"log-level": "loud"}, "invalid logging level: loud"),
        ({"bip": "everywhere"}, "bip"),
        ({"bip": "10.1.0.1/24", "bridge": "none"}, "--bridge none"),
        ({"max-concurrent-downloads": 0}, "at least 1"),
        ({"max-concurrent-uploads": -1}, "at least 1"),
        ({"max-download-attempts": 0}, "at least 1"),
        ({"labels": ["nokey"]}, "bad attribute format: nokey"),
        ({"tlsverify": True, "tlscert": "c", "tlskey": "k"}, "tlsverify needs"),
        ({"data-root": "relative"}, "absolute"),
        ({"exec-root": "relative"}, "absolute"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, document: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        loaded(tmp_path, document)


@pytest.mark.parametrize("as_flag", [True, False])
@pytest.mark.parametrize("key", ["selinux-enabled", "rootless", "authorization-plugins"])
def test_what_would_change_what_containers_may_do_is_refused(tmp_path: Path, key: str, as_flag: bool) -> None:
    file = written(tmp_path, {} if as_flag else {key: "default"})
    with pytest.raises(ConfigError, match=f"^{key} cannot be 'default': .* not offered$"):
        load_config({key: "default"} if as_flag else {}, config_file=file)


def test_keys_without_effect_are_taken_and_remembered(tmp_path: Path) -> None:
    document = {"containerd": "/run/c.sock", "selinux-enabled": False, "userns-remap": "", "oom-score-adjust": -500}
    assert loaded(tmp_path, document, log_format="x").ignored == ("containerd", "log-format", "oom-score-adjust")
    assert loaded(tmp_path, {"userland-proxy": True}).ignored == ("userland-proxy",)
    assert loaded(tmp_path, {"userland-proxy": False}).ignored == ()
    with pytest.raises(ConfigError, match="don't match any configuration option: ignored"):
        loaded(tmp_path, {"ignored": ["x"]})


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({}, ()),
        ({"host-gateway-ip": "192.0.2.1"}, ("192.0.2.1",)),
        ({"host-gateway-ips": ["192.0.2.1", "2001:DB8::1"]}, ("192.0.2.1", "2001:db8::1")),
    ],
)
def test_what_host_gateway_stands_for(tmp_path: Path, document: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert loaded(tmp_path, document).host_gateway_ips == expected


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"host-gateway-ip": "nowhere"}, "invalid value for host-gateway-ips"),
        ({"host-gateway-ips": "192.0.2.1"}, "invalid value for host-gateway-ips"),
        ({"host-gateway-ips": ["192.0.2.1", "192.0.2.2"]}, "only one IPv4 host gateway IP address can be specified"),
        ({"host-gateway-ips": ["::1", "::2"]}, "only one IPv6 host gateway IP address can be specified"),
        ({"host-gateway-ips": ["::1"], "host-gateway-ip": "::1"}, "host-gateway-ip and host-gateway-ips are one"),
        ({"bip6": "10.0.0.1/8"}, "bip6 and fixed-cidr-v6 must be IPv6"),
        ({"fixed-cidr-v6": "many"}, "invalid value for bip6 or fixed-cidr-v6"),
        ({"default-network-opts": {"bridge": 5}}, "invalid value for default-network-opts"),
        ({"hosts": "tcp://x"}, "invalid value for hosts"),
    ],
)
def test_addresses_that_cannot_be_are_refused(tmp_path: Path, document: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        loaded(tmp_path, document)


def test_where_to_listen_may_lack_the_scheme(tmp_path: Path) -> None:
    config = loaded(tmp_path, {}, hosts=["0.0.0.0:23756", ":2375", "", "unix:///s", "tcp://[::1]:1", "fd://"])
    assert config.hosts == (
        *("tcp://0.0.0.0:23756", "tcp://:2375", DEFAULT_HOST, "unix:///s", "tcp://[::1]:1", "fd://"),
    )


def test_bip_with_a_bridge_is_fine(tmp_path: Path) -> None:
    assert loaded(tmp_path, {"bip": "10.1.0.1/24", "bridge": "b0"}).bip == "10.1.0.1/24"


def test_a_reload_takes_over_what_may_change(tmp_path: Path) -> None:
    config = loaded(tmp_path, {"debug": False, "mtu": 1400})
    written(tmp_path, {"debug": True, "mtu": 9000, "labels": ["x=y"]})
    again = reload_config(config)
    assert (again.debug, again.labels, again.mtu) == (True, ("x=y",), 1400)
    written(tmp_path, {"default-shm-size": "128m", "default-ipc-mode": "shareable", "default-cgroupns-mode": "host"})
    later = reload_config(again)
    assert (later.default_shm_size, later.default_ipc_mode, later.default_cgroupns_mode) == (
        1 << 27,
        "shareable",
        "host",
    )


def test_null_is_not_given(tmp_path: Path) -> None:
    document = {"max-concurrent-uploads": None, "labels": None, "proxies": None}
    config = loaded(tmp_path, document, labels=["a=b"])
    assert (config.max_concurrent_uploads, config.labels) == (5, ("a=b",))
    assert loaded(tmp_path, {"proxies": {"http-proxy": None}}).http_proxy == ""


def test_proxies_by_flag_or_file(tmp_path: Path) -> None:
    proxies = {"http-proxy": "http://joe:secret@file:1", "no-proxy": "a,b"}
    config = loaded(tmp_path, {"proxies": proxies}, https_proxy="http://flag:2")
    assert config.http_proxy == "http://joe:secret@file:1"
    assert (config.https_proxy, config.no_proxy) == ("http://flag:2", "a,b")
    words = (
        "^the following directives are specified both as a flag and in the configuration file: "
        r"http-proxy: \(from flag: http://xxxxx:xxxxx@flag:3, from file: http://xxxxx:xxxxx@file:1\)$"
    )
    with pytest.raises(ConfigError, match=words):
        loaded(tmp_path, {"proxies": proxies}, http_proxy="http://joe:other@flag:3")
    with pytest.raises(ConfigError, match="proxies must be an object"):
        loaded(tmp_path, {"proxies": "http://x"})
    with pytest.raises(ConfigError, match="don't match any configuration option: ftp-proxy"):
        loaded(tmp_path, {"proxies": {"ftp-proxy": "x"}})


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://joe:secret@proxy:3128/x", "http://xxxxx:xxxxx@proxy:3128/x"),
        ("http://joe@proxy", "http://xxxxx:xxxxx@proxy"),
        ("http://proxy:3128", "http://proxy:3128"),
        ("proxy", "proxy"),
        ("http://[x", "http://[x"),
    ],
)
def test_passwords_of_proxies_are_not_shown(url: str, shown: str) -> None:
    assert mask_credentials(url) == shown


def test_features(tmp_path: Path) -> None:
    assert loaded(tmp_path, {}).has_cdi
    assert loaded(tmp_path, {"features": {"buildkit": True}}).has_cdi
    assert not loaded(tmp_path, {"features": {"cdi": False}}).has_cdi
    assert not loaded(tmp_path, {}, features={"cdi": "false"}).has_cdi
    assert loaded(tmp_path, {}, features={"cdi": ""}).has_cdi
    with pytest.raises(ConfigError, match="invalid value for features"):
        loaded(tmp_path, {"features": {"cdi": "perhaps"}})


def test_folders_of_cdi_specifications(tmp_path: Path) -> None:
    assert loaded(tmp_path, {}).cdi_spec_dirs == ("/etc/cdi", "/var/run/cdi")
    assert loaded(tmp_path, {"cdi-spec-dirs": ["/a", "/b"]}).cdi_spec_dirs == ("/a", "/b")
    assert loaded(tmp_path, {}, cdi_spec_dirs=[""]).cdi_spec_dirs == ()
    with pytest.raises(ConfigError, match="invalid value for cdi-spec-dirs"):
        loaded(tmp_path, {"cdi-spec-dirs": "/a"})


def test_a_reload_forgets_limits_and_proxies_that_the_file_no_longer_has(tmp_path: Path) -> None:
    file = {"max-concurrent-uploads": 8, "labels": ["a=b"], "proxies": {"http-proxy": "http://p"}}
    config = loaded(tmp_path, file, max_concurrent_downloads=9, https_proxy="http://q")
    written(tmp_path, {"max-concurrent-uploads": None})
    again = reload_config(config)
    assert (again.max_concurrent_uploads, again.http_proxy) == (5, "")
    assert (again.max_concurrent_downloads, again.https_proxy, again.labels) == (9, "http://q", ("a=b",))


def test_what_the_event_of_a_reload_tells(tmp_path: Path) -> None:
    document = {
        "labels": ["a=b", "c=d"],
        "registry-mirrors": ["https://m"],
        "runtimes": {"mine": {"path": "/bin/mine"}},
        "features": {"cdi": False, "buildkit": True},
        "debug": True,
    }
    assert reload_attributes(loaded(tmp_path, document), "crun") == {
        "debug": "true",
        "default-cgroupns-mode": "",
        "default-ipc-mode": "private",
        "default-runtime": "crun",
        "default-shm-size": "67108864",
        "features": "map[buildkit:true cdi:false]",
        "insecure-registries": "[]",
        "labels": '["a=b","c=d"]',
        "live-restore": "true",
        "max-concurrent-downloads": "3",
        "max-concurrent-uploads": "5",
        "max-download-attempts": "5",
        "registry-mirrors": '["https://m"]',
        "runtimes": "mine:/bin/mine",
        "shutdown-timeout": "15",
    }
    assert reload_attributes(Config(default_runtime="x"), "crun")["default-runtime"] == "x"


def test_a_reload_that_cannot_be_used_changes_nothing(tmp_path: Path) -> None:
    config = loaded(tmp_path, {})
    written(tmp_path, {"log-level": "loud"})
    with pytest.raises(ConfigError):
        reload_config(config)
    written(tmp_path, {"bogus": 1})
    with pytest.raises(ConfigError):
        reload_config(config)


def test_a_reload_without_the_file_keeps_everything(tmp_path: Path) -> None:
    config = loaded(tmp_path, {"debug": True})
    (tmp_path / "daemon.json").unlink()
    assert reload_config(config) == config


def test_ports_that_the_daemon_has_itself() -> None:
    hosts = ("unix:///x", "tcp://0.0.0.0:1", "tcp://localhost", "tcp://[::1]:3", "tcp://somewhere:4", "tcp://[::1]")
    assert own_ports(Config(hosts=hosts)) == [("0.0.0.0", 1), ("127.0.0.1", 2375), ("::1", 3), ("::1", 2375)]
    assert own_ports(Config(hosts=("tcp://",), tls=True)) == [("127.0.0.1", 2376)]


def test_the_registry_is_told_by_one_object(tmp_path: Path) -> None:
    assert loaded(tmp_path, {"registry": {"immutable": ["**:v*"]}}).registry == {"immutable": ["**:v*"]}
    with pytest.raises(ConfigError, match="invalid value for registry"):
        loaded(tmp_path, {"registry": ["immutable"]})


def test_a_reload_takes_over_and_forgets_what_the_registry_is_told(tmp_path: Path) -> None:
    config = loaded(tmp_path, {"registry": {"immutable": ["**:v*"]}})
    (tmp_path / "daemon.json").write_text('{"registry": {"quotas": {"team": 5}}}')
    assert reload_config(config).registry == {"quotas": {"team": 5}}
    (tmp_path / "daemon.json").write_text("{}")
    assert reload_config(config).registry == {}
