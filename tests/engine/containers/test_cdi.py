"""What CDI specifications do to a container's."""

from __future__ import annotations

from typing import Any

import pytest

from engine.containers.cdi import CdiCatalog, catalog_of, host_paths, inject, is_qualified, requested_names
from engine.containers.host import DeviceNode
from engine.containers.settings import DeviceMapping, DeviceRequest, HostConfig

GPU = {
    "cdiVersion": "0.6.0",
    "kind": "nvidia.com/gpu",
    "containerEdits": {"env": ["ALL=1"], "hooks": [{"hookName": "createContainer", "path": "/h", "args": ["h"]}]},
    "devices": [
        {
            "name": "0",
            "containerEdits": {
                "deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/host0", "permissions": "rw"}],
                "mounts": [{"hostPath": "/lib/a", "containerPath": "/usr/a", "options": ["ro", "bind"]}],
            },
        },
        {"name": "all", "containerEdits": {"env": ["A=new"], "additionalGids": [44, 0]}},
    ],
}
OTHER = {
    "cdiVersion": "0.5.0",
    "kind": "vendor.com/net",
    "devices": [
        {
            "name": "eth",
            "containerEdits": {
                "deviceNodes": [
                    {"path": "/dev/n", "type": "c", "major": 7, "minor": 8, "fileMode": 384, "uid": 1, "gid": 2}
                ],
                "mounts": [{"hostPath": "/x", "containerPath": "/y"}],
                "hooks": [{"hookName": "poststop", "path": "/p", "timeout": 3}],
            },
        }
    ],
}
CATALOG = catalog_of([("/etc/cdi/a.json", GPU), ("/etc/cdi/b.yaml", OTHER)])
HOST_NODE = DeviceNode("/dev/host0", "c", 195, 0, 0o666, 0, 44)


def blank() -> dict[str, Any]:
    return {
        "process": {"env": ["A=old", "B=2"], "user": {"additionalGids": [5]}},
        "mounts": [{"destination": "/usr/a", "source": "old", "type": "bind", "options": []}],
        "linux": {"resources": {}},
    }


def test_files_that_cannot_be_used_are_told() -> None:
    named = {"cdiVersion": "0.6.0", "kind": "vendor.com/net"}
    catalog = catalog_of(
        [
            ("/etc/cdi/bad.json", None),
            ("/etc/cdi/empty.json", named),
            ("/etc/cdi/kind.json", {"cdiVersion": "0.6.0", "kind": "net", "devices": [{"name": "a"}]}),
            ("/etc/cdi/twice.json", {**named, "devices": [{"name": "a"}, {"name": "a"}]}),
        ]
    )
    assert not catalog.devices
    bad, empty, kind, twice = (warning.split(": failed to load CDI Spec ") for warning in catalog.warnings)
    assert bad[0] == "CDI: Error associated with spec file /etc/cdi/bad.json"
    assert empty[1] == "invalid CDI Spec: invalid spec, no devices"
    assert kind[1] == 'invalid CDI Spec: "net=a" is no name of a device'
    assert twice[1] == 'invalid CDI Spec: invalid spec, multiple device "a"'


def test_two_files_of_one_folder_cannot_have_the_same_device() -> None:
    same = [("/etc/cdi/a.json", OTHER), ("/etc/cdi/b.json", OTHER)]
    catalog = catalog_of(same)
    assert not catalog.devices
    words = 'conflicting device "vendor.com/net=eth" (specs "/etc/cdi/b.json", "/etc/cdi/a.json")'
    assert catalog.warnings == (
        f"CDI: Error associated with spec file /etc/cdi/b.json: {words}",
        f"CDI: Error associated with spec file /etc/cdi/a.json: {words}",
    )
    assert list(catalog_of([*same, ("/run/cdi/a.json", OTHER)]).devices) == ["vendor.com/net=eth"]


def test_where_cdi_is_off_nobody_gives_its_devices() -> None:
    off, words = CdiCatalog(is_on=False), r'^could not select device driver "cdi" with capabilities: \[\]$'
    mapping = DeviceMapping(path_on_host="vendor.com/net=eth")
    for host in (
        HostConfig(devices=(mapping,)),
        HostConfig(device_requests=(DeviceRequest(driver="cdi", device_ids=("vendor.com/net=eth",)),)),
    ):
        with pytest.raises(ValueError, match=words):
            requested_names(host, off)


def test_names() -> None:
    assert is_qualified("vendor.com/class-1=gpu.0:1")
    for name in ("/dev/a=b", "vendor.com/class", "vendor/class=", "=x", "v/c=é"):
        assert not is_qualified(name)


def test_a_device_changes_what_its_file_says() -> None:
    spec = blank()
    inject(spec, ["nvidia.com/gpu=0", "nvidia.com/gpu=all"], CATALOG, {"/dev/host0": HOST_NODE})
    assert spec["process"]["env"] == ["B=2", "ALL=1", "A=new"]
    assert spec["process"]["user"]["additionalGids"] == [5, 44]
    mounted = {"destination": "/usr/a", "source": "/lib/a", "type": "bind", "options": ["ro", "bind"]}
    assert spec["mounts"] == [mounted]
    node = {"path": "/dev/gpu0", "type": "c", "major": 195, "minor": 0, "fileMode": 0o666, "uid": 0, "gid": 44}
    assert spec["linux"]["devices"] == [node]
    rule = {"allow": True, "type": "c", "major": 195, "minor": 0, "access": "rw"}
    assert spec["linux"]["resources"]["devices"] == [rule]
    assert spec["hooks"] == {"createContainer": [{"path": "/h", "args": ["h"], "env": []}]}  # once a file


def test_what_a_file_says_of_a_node_needs_no_host() -> None:
    spec = blank()
    inject(spec, ["vendor.com/net=eth"], CATALOG, {})
    node = {"path": "/dev/n", "type": "c", "major": 7, "minor": 8, "fileMode": 0o600, "uid": 1, "gid": 2}
    assert spec["linux"]["devices"] == [node]
    assert spec["linux"]["resources"]["devices"][0]["access"] == "rwm"
    assert spec["mounts"][-1]["options"] == ["rbind"]
    assert spec["hooks"]["poststop"] == [{"path": "/p", "args": [], "env": [], "timeout": 3}]


def test_what_cannot_be_injected() -> None:
    with pytest.raises(ValueError, match="CDI device injection failed: unresolvable CDI devices a.com/b=c"):
        inject(blank(), ["a.com/b=c"], CATALOG, {})
    with pytest.raises(ValueError, match="no device /dev/host0 on this host"):
        inject(blank(), ["nvidia.com/gpu=0"], CATALOG, {})
    assert host_paths(["nvidia.com/gpu=0", "vendor.com/net=eth", "a.com/b=c"], CATALOG) == ["/dev/host0", "/dev/n"]


def test_a_file_that_is_none_is_told_and_the_later_one_wins() -> None:
    again = {**OTHER, "devices": [{"name": "eth", "containerEdits": {"env": ["L=1"]}}]}
    catalog = catalog_of([("/x/a", OTHER), ("/b", {"kind": 5}), ("/c", None), ("/y/d", again)])
    assert [warning.split(": ")[1] for warning in catalog.warnings] == [
        "Error associated with spec file /b",
        "Error associated with spec file /c",
    ]
    spec = blank()
    inject(spec, ["vendor.com/net=eth"], catalog, {})
    assert spec["process"]["env"][-1] == "L=1"


@pytest.mark.parametrize(
    ("request_", "names"),
    [
        (DeviceRequest(driver="cdi", device_ids=("a.com/b=c",)), ("a.com/b=c",)),
        (DeviceRequest(driver="cdi"), ()),
        (DeviceRequest(count=-1, capabilities=(("gpu",),)), ("nvidia.com/gpu=all",)),
        (DeviceRequest(count=2, capabilities=(("gpu",),)), ("nvidia.com/gpu=0", "nvidia.com/gpu=1")),
        (DeviceRequest(device_ids=("1", "x.com/y=z"), capabilities=(("gpu",),)), ("nvidia.com/gpu=1", "x.com/y=z")),
        (DeviceRequest(driver="nvidia", count=1), ("nvidia.com/gpu=0",)),
    ],
)
def test_requests(request_: DeviceRequest, names: tuple[str, ...]) -> None:
    assert requested_names(HostConfig(device_requests=(request_,)), CATALOG) == names


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (DeviceRequest(driver="cdi", count=1), "unexpected count in CDI device request"),
        (DeviceRequest(driver="cdi", options={"a": "b"}), "unexpected options in CDI device request"),
        (DeviceRequest(driver="amd", count=1), 'could not select device driver "amd" with capabilities'),
        (DeviceRequest(count=1, capabilities=(("tpu",),)), r'driver "" with capabilities: \[\[tpu\]\]'),
        (DeviceRequest(count=1, device_ids=("1",), capabilities=(("gpu",),)), "cannot set both Count and DeviceIDs"),
    ],
)
def test_bad_requests(request_: DeviceRequest, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        requested_names(HostConfig(device_requests=(request_,)), CATALOG)


def test_no_vendor_no_gpu() -> None:
    host = HostConfig(device_requests=(DeviceRequest(count=-1, capabilities=(("gpu",),)),))
    with pytest.raises(ValueError, match=r'could not select device driver "" with capabilities: \[\[gpu\]\]'):
        requested_names(host, CdiCatalog())


def test_device_options_may_name_one() -> None:
    host = HostConfig(devices=(DeviceMapping(path_on_host="a.com/b=c"), DeviceMapping(path_on_host="/dev/null")))
    assert requested_names(host, CATALOG) == ("a.com/b=c",)
