"""The create body in, the configuration objects out."""

from __future__ import annotations

import json

import pytest

from engine.api.shapes.containers import config_json, decode_create, host_config_json
from engine.containers.settings import BindOptions, ContainerConfig, HealthConfig, HostConfig, Mount
from engine.errors import InvalidParameter


def test_a_create_body_is_three_parts() -> None:
    body = {"Image": "busybox", "Cmd": ["true"], "hostconfig": {"Memory": 6291456}, "NetworkingConfig": None}
    request = decode_create(json.dumps(body).encode())
    assert request.config == ContainerConfig(image="busybox", cmd=("true",))
    assert request.host == HostConfig(memory=6291456)
    assert request.networking.endpoints_config is None


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"HostConfig": 5}', b'{"NetworkingConfig": {"EndpointsConfig": []}}'])
def test_a_bad_create_body_is_the_clients_error(raw: bytes) -> None:
    with pytest.raises(InvalidParameter, match="invalid JSON"):
        decode_create(raw)


def test_a_body_without_any_setting_is_no_container() -> None:
    with pytest.raises(InvalidParameter, match="config cannot be empty in order to create a container"):
        decode_create(b'{"HostConfig": {}}')
    with pytest.raises(InvalidParameter, match="^invalid JSON: EOF$"):
        decode_create(b"")


def test_config_leaves_out_what_dockerd_leaves_out() -> None:
    shape = config_json(ContainerConfig(hostname="h", healthcheck=HealthConfig(test=("NONE",))))
    assert shape["Healthcheck"] == {"Test": ["NONE"]} or shape["Healthcheck"] == {"Test": ("NONE",)}
    assert shape["Env"] is None
    assert not {"ExposedPorts", "StopSignal", "StopTimeout", "Shell", "MacAddress"} & set(shape)


def test_host_config_leaves_out_what_dockerd_leaves_out() -> None:
    mounts = (Mount(type="bind", target="/x", bind_options=BindOptions()),)
    shape = host_config_json(HostConfig(mounts=mounts, init=False))
    assert shape["Mounts"] == [{"Type": "bind", "Target": "/x", "BindOptions": {}}]
    assert shape["Init"] is False
    assert not {"Sysctls", "Tmpfs", "KernelMemoryTCP", "Annotations"} & set(shape)
    assert "Init" not in host_config_json(HostConfig())
