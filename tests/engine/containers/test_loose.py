"""Go's tolerant JSON decoding of settings."""

from __future__ import annotations

import json

import pytest

from engine.containers.loose import convert_loose, decode_loose
from engine.containers.settings import ContainerConfig, EndpointSettings, HostConfig, NetworkingConfig, PortBinding


def test_null_is_absent_and_unknown_keys_are_ignored() -> None:
    config = decode_loose(ContainerConfig, b'{"Env": null, "Hostname": null, "Wrong": 1}')
    assert config == ContainerConfig()


def test_keys_match_in_any_case() -> None:
    assert (
        convert_loose(HostConfig, {"cpushares": 5, "blkioDeviceReadIOps": [{"PATH": "/x", "rate": 2}]}).cpu_shares == 5
    )


@pytest.mark.parametrize("key", ["Cmd", "Entrypoint"])
def test_a_command_may_be_text(key: str) -> None:
    config = convert_loose(ContainerConfig, {key: "ls -l"})
    assert (config.cmd or config.entrypoint) == ("ls -l",)


def test_null_members_of_maps_and_lists_are_zero_values() -> None:
    assert convert_loose(ContainerConfig, {"ExposedPorts": {"80/tcp": None}}).exposed_ports == {"80/tcp": {}}
    host = convert_loose(HostConfig, {"PortBindings": {"80/tcp": None, "81/tcp": [{"HostPort": "1"}]}, "Dns": [None]})
    assert host.port_bindings == {"80/tcp": None, "81/tcp": (PortBinding(host_port="1"),)}
    assert host.dns == ("",)
    networks = convert_loose(NetworkingConfig, {"EndpointsConfig": {"n": None, "m": {}}}).endpoints_config
    assert networks == {"n": None, "m": EndpointSettings()}


def test_a_fixed_array_is_padded_and_cut_as_go_does() -> None:
    assert convert_loose(HostConfig, {"ConsoleSize": [7]}).console_size == (7, 0)
    assert convert_loose(HostConfig, {"ConsoleSize": [7, 8, 9]}).console_size == (7, 8)


@pytest.mark.parametrize(
    ("kind", "document", "words"),
    [
        (ContainerConfig, {"Cmd": 5}, "cannot unmarshal number into Go struct field ContainerConfig.Cmd of type array"),
        (HostConfig, {"Memory": "x"}, "cannot unmarshal string into Go struct field HostConfig.Memory of type int64"),
        (HostConfig, {"Memory": 1.5}, "cannot unmarshal number into Go struct field HostConfig.Memory of type int64"),
        (HostConfig, {"Memory": 2**63}, "of type int64"),
        (HostConfig, {"Memory": True}, "cannot unmarshal bool into"),
        (
            HostConfig,
            {"LogConfig": []},
            "cannot unmarshal array into Go struct field HostConfig.LogConfig of type LogConfig",
        ),
        (HostConfig, {"Tmpfs": "x"}, "cannot unmarshal string into Go struct field HostConfig.Tmpfs of type map"),
        (
            ContainerConfig,
            {"Labels": {"a": 5}},
            "cannot unmarshal number into Go struct field ContainerConfig.Labels.a",
        ),
    ],
)
def test_wrong_types_are_refused_in_gos_words(kind: type, document: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace(".", r"\.")):
        decode_loose(kind, json.dumps(document).encode())


@pytest.mark.parametrize(
    ("raw", "words"), [(b" ", "got EOF"), (b"[1]", "cannot unmarshal array"), (b"{", "invalid JSON"), (b"5", "number")]
)
def test_what_is_not_an_object_is_refused(raw: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decode_loose(ContainerConfig, raw)


def test_null_is_an_empty_document() -> None:
    assert decode_loose(ContainerConfig, b"null") == ContainerConfig()
