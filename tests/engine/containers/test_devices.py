"""Device files and device rules."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from engine.containers.devices import default_rules, plan_devices, validate_devices
from engine.containers.host import DeviceNode
from engine.containers.settings import DeviceMapping, HostConfig

FUSE = DeviceNode("/dev/fuse", "c", 10, 229, 0o600)
CARD = DeviceNode("/dev/dri/card0", "c", 226, 0, 0o660, 0, 44)


def lookup(path: str) -> Sequence[DeviceNode]:
    if path == "/dev/missing":
        raise FileNotFoundError(2, "No such file or directory", path)
    if path == "/dev/secret":
        raise PermissionError(13, "Permission denied", path)
    return {"/dev/fuse": [FUSE], "/dev/dri": [CARD]}.get(path, [])


def test_a_container_has_only_dockers_rules_by_default() -> None:
    plan = plan_devices(HostConfig(), lookup)
    assert plan.nodes == ()
    assert list(plan.rules) == default_rules()
    assert plan.rules[0] == {"allow": False, "access": "rwm"}


def test_a_device_gets_a_node_and_a_rule() -> None:
    host = HostConfig(
        devices=(DeviceMapping(path_on_host="/dev/fuse", path_in_container="/dev/f", cgroup_permissions="r"),)
    )
    plan = plan_devices(host, lookup)
    assert [(n["path"], n["major"], n["fileMode"]) for n in plan.nodes] == [("/dev/f", 10, 0o600)]
    assert plan.rules[-1] == {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "r"}


def test_a_folder_brings_its_devices() -> None:
    host = HostConfig(devices=(DeviceMapping(path_on_host="/dev/dri", path_in_container="/dev/gpu/"),))
    plan = plan_devices(host, lookup)
    assert [(n["path"], n["gid"]) for n in plan.nodes] == [("/dev/gpu/card0", 44)]
    assert plan.rules[-1]["access"] == "rwm"


def test_the_path_inside_defaults_to_the_one_outside() -> None:
    plan = plan_devices(HostConfig(devices=(DeviceMapping(path_on_host="/dev/fuse"),)), lookup)
    assert plan.nodes[0]["path"] == "/dev/fuse"


def test_privileged_has_all_devices_and_its_own_names_win() -> None:
    mapping = DeviceMapping(path_on_host="/dev/fuse", path_in_container="/dev/dri/card0")
    plan = plan_devices(HostConfig(privileged=True, devices=(mapping,)), lookup, [CARD, FUSE])
    assert {n["path"]: n["major"] for n in plan.nodes} == {"/dev/dri/card0": 10, "/dev/fuse": 10}
    assert plan.rules == ({"allow": True, "access": "rwm"},)


def test_device_cgroup_rules() -> None:
    plan = plan_devices(HostConfig(device_cgroup_rules=("c 1:* rw", "a *:* rwm")), lookup)
    assert plan.rules[-2:] == (
        {"allow": True, "type": "c", "major": 1, "access": "rw"},
        {"allow": True, "type": "a", "access": "rwm"},
    )


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/dev/missing", "no such file or directory"),
        ("/dev/none", "not a device node"),
        ("/dev/secret", "permission denied"),
    ],
)
def test_devices_that_cannot_be_found(path: str, reason: str) -> None:
    words = f'error gathering device information while adding custom device "{path}": {reason}'
    with pytest.raises(ValueError, match=words):
        plan_devices(HostConfig(devices=(DeviceMapping(path_on_host=path),)), lookup)


def test_bad_texts_are_refused_at_create() -> None:
    with pytest.raises(ValueError, match="invalid device cgroup rule format: 'c 1:2'"):
        validate_devices(HostConfig(device_cgroup_rules=("c 1:2",)))
    with pytest.raises(ValueError, match="invalid device mode: rx"):
        validate_devices(HostConfig(devices=(DeviceMapping(path_on_host="/dev/x", cgroup_permissions="rx"),)))
    validate_devices(HostConfig(devices=(DeviceMapping(path_on_host="/dev/x", cgroup_permissions="rw"),)))
