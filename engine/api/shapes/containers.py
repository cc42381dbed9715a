"""The container resource's wire shapes: the create body in, and the configuration objects as dockerd prints them."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.containers.loose import convert_loose, mismatch, names_any, parse_object
from engine.containers.settings import ContainerConfig, HostConfig, NetworkingConfig
from engine.errors import InvalidParameter

_CONFIG_OMIT_EMPTY = frozenset(
    {"ExposedPorts", "Healthcheck", "ArgsEscaped", "NetworkDisabled", "MacAddress", "StopSignal", "Shell"}
)
_HOST_OMIT_EMPTY = frozenset({"Annotations", "StorageOpt", "Tmpfs", "Sysctls", "Runtime", "Mounts"})
_HEALTH_OMIT_EMPTY = ("Interval", "Timeout", "StartPeriod", "StartInterval", "Retries", "Test")


class CreateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The three parts of a create body."""

    config: ContainerConfig
    host: HostConfig
    networking: NetworkingConfig


def decode_create(raw: bytes) -> CreateRequest:
    """The body of ``POST /containers/create``: a ContainerConfig with HostConfig and NetworkingConfig inside.

    Raises ``InvalidParameter`` with dockerd's words.
    """
    if not raw.strip():
        raise InvalidParameter("invalid JSON: EOF")
    try:
        document = parse_object(raw)
        parts = {key.lower(): value for key, value in document.items()}
        request = CreateRequest(
            config=convert_loose(ContainerConfig, document),
            host=convert_loose(HostConfig, _part(parts, "hostconfig")),
            networking=convert_loose(NetworkingConfig, _part(parts, "networkingconfig")),
        )
    except ValueError as error:
        raise InvalidParameter(str(error)) from error
    if not names_any(ContainerConfig, document):
        raise InvalidParameter("config cannot be empty in order to create a container")
    return request


def _part(parts: dict[str, Any], name: str) -> dict[str, Any]:
    value = parts.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise mismatch(value, name, "object")
    return value


def config_json(config: ContainerConfig) -> dict[str, Any]:
    """``Config`` of an inspect answer, with the keys that dockerd leaves out when empty left out."""
    shape: dict[str, Any] = msgspec.to_builtins(config)
    for key in _CONFIG_OMIT_EMPTY:
        if not shape[key]:
            del shape[key]
    if shape["StopTimeout"] is None:
        del shape["StopTimeout"]
    health = shape.get("Healthcheck")
    if health is not None:
        shape["Healthcheck"] = {key: value for key, value in health.items() if value or key not in _HEALTH_OMIT_EMPTY}
    return shape


def host_config_json(host: HostConfig) -> dict[str, Any]:
    """``HostConfig`` of an inspect answer, with the keys that dockerd leaves out when empty left out."""
    shape: dict[str, Any] = msgspec.to_builtins(host)
    for key in _HOST_OMIT_EMPTY:
        if not shape[key]:
            del shape[key]
    if shape["Init"] is None:
        del shape["Init"]
    if not shape["KernelMemoryTCP"]:
        del shape["KernelMemoryTCP"]
    if "Mounts" in shape:
        shape["Mounts"] = [_without_empty(mount) for mount in shape["Mounts"]]
    return shape


def _without_empty(value: dict[str, Any]) -> dict[str, Any]:
    """A mount as Go encodes it: every empty member is left out, option objects that were sent stay."""
    shaped = {key: _without_empty(item) if isinstance(item, dict) else item for key, item in value.items()}
    return {key: item for key, item in shaped.items() if isinstance(item, dict) or item}
