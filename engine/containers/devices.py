"""Which device files a container sees and may use: docker's default rules, ``--device``, ``--device-cgroup-rule``.

Pure: the host's device files come in through a lookup function.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.containers.cdi import is_qualified
from engine.containers.host import DeviceNode
from engine.containers.settings import DeviceMapping, HostConfig

Lookup = Callable[[str], Sequence[DeviceNode]]
"""All device files at a host path: one for a device, those below for a folder. Raises ``OSError``."""

_RULE = re.compile(r"^([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})$")
_MODE = re.compile(r"^[rwm]{1,3}$")

_ALLOWED = ((1, 5), (1, 3), (1, 9), (1, 8), (5, 0), (5, 1), (10, 200))
"""zero, null, urandom, random, tty, console, tun (which runc adds by itself): what every container may open.

The runtime adds pts and ptmx.
"""


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """The two OCI lists: ``linux.devices`` and ``linux.resources.devices``."""

    nodes: tuple[dict[str, Any], ...]
    rules: tuple[dict[str, Any], ...]


def plan_devices(host: HostConfig, lookup: Lookup, host_devices: Iterable[DeviceNode] = ()) -> DevicePlan:
    """Devices and rules for these settings. ``host_devices`` are all of the host's, used by a privileged container.

    Raises ``ValueError`` with dockerd's sentence for a device that does not exist or is none.
    """
    paths = [mapping for mapping in host.devices or () if not is_qualified(mapping.path_on_host)]
    mapped = [(mapping, _gather(mapping, lookup)) for mapping in paths]
    if host.privileged:
        nodes = {node.path: node for node in host_devices}
        for _, found in mapped:
            nodes.update({node.path: node for node in found})
        return DevicePlan(tuple(_node(n) for n in nodes.values()), ({"allow": True, "access": "rwm"},))
    rules = default_rules()
    devices: dict[str, DeviceNode] = {}
    for mapping, found in mapped:
        devices.update({node.path: node for node in found})
        access = mapping.cgroup_permissions or "rwm"
        rules += [_rule(True, n.kind, n.major, n.minor, access) for n in found]
    rules += [_parse_rule(text) for text in host.device_cgroup_rules or ()]
    return DevicePlan(tuple(_node(n) for n in devices.values()), tuple(rules))


def default_rules() -> list[dict[str, Any]]:
    """Deny all, then what every container has; fuse stays closed, as dockerd writes it."""
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    rules += [_rule(True, "c", major, minor, "rwm") for major, minor in _ALLOWED]
    return [*rules, _rule(False, "c", 10, 229, "rwm")]


def validate_devices(host: HostConfig) -> None:
    """Check the texts. Raises ``ValueError``."""
    for text in host.device_cgroup_rules or ():
        _parse_rule(text)
    for mapping in host.devices or ():
        if mapping.cgroup_permissions and not _MODE.match(mapping.cgroup_permissions):
            raise ValueError(f"invalid device mode: {mapping.cgroup_permissions}")


def _gather(mapping: DeviceMapping, lookup: Lookup) -> list[DeviceNode]:
    on_host = mapping.path_on_host
    target = mapping.path_in_container or on_host
    try:
        found = lookup(on_host)
    except OSError as error:
        raise ValueError(_gathering(on_host, (error.strerror or str(error)).lower())) from error
    if not found:
        raise ValueError(_gathering(on_host, "not a device node"))
    placed: list[DeviceNode] = []
    for node in found:
        inside = node.path[len(on_host.rstrip("/")) :] if node.path.startswith(f"{on_host.rstrip('/')}/") else ""
        path = f"{target.rstrip('/')}{inside}"
        placed.append(DeviceNode(path, node.kind, node.major, node.minor, node.mode, node.uid, node.gid))
    return placed


def _gathering(path: str, reason: str) -> str:
    return f'error gathering device information while adding custom device "{path}": {reason}'


def _node(node: DeviceNode) -> dict[str, Any]:
    return {
        "path": node.path,
        "type": node.kind,
        "major": node.major,
        "minor": node.minor,
        "fileMode": node.mode,
        "uid": node.uid,
        "gid": node.gid,
    }


def _rule(allow: bool, kind: str, major: int | None, minor: int | None, access: str) -> dict[str, Any]:
    """A number that is left out means any; runc also takes -1 for that, crun does not."""
    numbers = {"major": major, "minor": minor}
    return {"allow": allow, "type": kind, **{k: n for k, n in numbers.items() if n is not None}, "access": access}


def _parse_rule(text: str) -> dict[str, Any]:
    match = _RULE.match(text)
    if match is None:
        raise ValueError(f"invalid device cgroup rule format: '{text}'")
    kind, major, minor, access = match.groups()
    return _rule(True, kind, None if major == "*" else int(major), None if minor == "*" else int(minor), access)
