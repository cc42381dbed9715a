"""Flags and daemon.json to one record; what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine import config as module
from engine.config import Config, ConfigError, RuntimeConfig, convert, load_config, reload_config


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


def test_bip_with_a_bridge_is_fine(tmp_path: Path) -> None:
    assert loaded(tmp_path, {"bip": "10.1.0.1/24", "bridge": "b0"}).bip == "10.1.0.1/24"


def test_a_reload_takes_over_what_may_change(tmp_path: Path) -> None:
    config = loaded(tmp_path, {"debug": False, "mtu": 1400})
    written(tmp_path, {"debug": True, "mtu": 9000, "labels": ["x=y"]})
    again = reload_config(config)
    assert (again.debug, again.labels, again.mtu) == (True, ("x=y",), 1400)


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


def test_the_registry_is_told_by_one_object(tmp_path: Path) -> None:
    assert loaded(tmp_path, {"registry": {"immutable": ["**:v*"]}}).registry == {"immutable": ["**:v*"]}
    with pytest.raises(ConfigError, match="invalid value for registry"):
        loaded(tmp_path, {"registry": ["immutable"]})
