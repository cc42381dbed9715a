"""The whole specification, and what each group of settings changes in it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.containers.host import DeviceNode, HostFacts
from engine.containers.security import ALL_CAPABILITIES, DEFAULT_CAPABILITIES
from engine.containers.settings import ContainerConfig, HostConfig, ThrottleDevice, Ulimit
from engine.containers.spec import SpecInput, build_spec, capability_sets, uses_init
from engine.containers.users import ResolvedUser
from engine.kernel.idmap import IdMap, IdRange

FACTS = HostFacts(capabilities=frozenset(ALL_CAPABILITIES))


def spec(config: ContainerConfig | None = None, host: HostConfig | None = None, **given: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "config": config or ContainerConfig(cmd=("true",)),
        "host": host or HostConfig(),
        "facts": FACTS,
        "user": ResolvedUser(),
        "rootfs": "/rootfs",
        "cgroup_path": "/berth/x",
        "hostname": "box",
        "netns": "/run/netns/x",
        **given,
    }
    return build_spec(SpecInput(**values))


def test_the_plain_container() -> None:
    made = spec()
    assert made["ociVersion"].startswith("1.0")
    assert made["root"] == {"path": "/rootfs"}
    assert made["hostname"] == "box"
    process = made["process"]
    assert (process["args"], process["cwd"], process["terminal"]) == (["true"], "/", False)
    assert process["capabilities"]["effective"] == list(DEFAULT_CAPABILITIES)
    assert process["noNewPrivileges"] is False
    assert "consoleSize" not in process
    assert "rlimits" not in process
    assert made["linux"]["cgroupsPath"] == "/berth/x"
    assert made["linux"]["sysctl"]["net.ipv4.ip_unprivileged_port_start"] == "0"
    assert "/proc/kcore" in made["linux"]["maskedPaths"]
    assert "/proc/sys" in made["linux"]["readonlyPaths"]
    assert made["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    msgspec.json.encode(made)


def test_privileged() -> None:
    made = spec(host=HostConfig(privileged=True), host_devices=[DeviceNode("/dev/sda", "b", 8, 0)])
    assert not {"maskedPaths", "readonlyPaths", "seccomp"} & set(made["linux"])
    assert made["linux"]["devices"][0]["path"] == "/dev/sda"
    assert made["process"]["capabilities"]["bounding"] == list(ALL_CAPABILITIES)


def test_another_user_keeps_only_the_bounding_set() -> None:
    sets = capability_sets(["CAP_CHOWN"], 1000)
    assert sets == {"bounding": ["CAP_CHOWN"], "effective": [], "permitted": [], "inheritable": []}


def test_a_terminal_has_a_size_when_the_client_gave_one() -> None:
    process = spec(ContainerConfig(cmd=("sh",), tty=True), HostConfig(console_size=(24, 80)))["process"]
    assert process["consoleSize"] == {"height": 24, "width": 80}
    assert "TERM=xterm" in process["env"]


def test_init_goes_before_the_command_unless_the_pid_namespace_is_shared() -> None:
    made = spec(host=HostConfig(init=True), init_binary="/usr/bin/tini")
    assert made["process"]["args"] == ["/sbin/docker-init", "--", "true"]
    assert made["mounts"][-1]["source"] == "/usr/bin/tini"
    assert uses_init(HostConfig(), True)
    assert not uses_init(HostConfig(init=False), True)
    assert not uses_init(HostConfig(init=True, pid_mode="host"), False)


def test_names_and_sysctls() -> None:
    made = spec(
        ContainerConfig(cmd=("x",), domainname="d.org"),
        HostConfig(sysctls={"net.ipv4.ip_unprivileged_port_start": "5"}),
    )
    assert made["linux"]["sysctl"]["kernel.domainname"] == "d.org"
    assert made["linux"]["sysctl"]["net.ipv4.ip_unprivileged_port_start"] == "5"
    on_host = spec(host=HostConfig(network_mode="host", uts_mode="host"), netns=None)
    assert on_host["linux"]["sysctl"] == {}
    assert "hostname" not in on_host


def test_a_domain_name_for_the_hosts_namespace_is_the_runtimes_to_refuse() -> None:
    made = spec(ContainerConfig(cmd=("x",), domainname="d.org"), HostConfig(uts_mode="host"))
    assert made["linux"]["sysctl"]["kernel.domainname"] == "d.org"


def test_paths_can_be_opened_up() -> None:
    made = spec(host=HostConfig(masked_paths=(), readonly_paths=("/proc/x",)))
    assert made["linux"]["maskedPaths"] == []
    assert made["linux"]["readonlyPaths"] == ["/proc/x"]


def test_security_options_and_limits() -> None:
    host = HostConfig(
        security_opt=("no-new-privileges", "seccomp=unconfined", "apparmor=mine"),
        ulimits=(Ulimit(name="nofile", soft=1, hard=2),),
        oom_score_adj=7,
        readonly_rootfs=True,
        annotations={"a": "b"},
    )
    facts = HostFacts(capabilities=frozenset(), apparmor=True)
    made = spec(host=host, facts=facts, annotations={"c": "d"})
    assert made["process"]["noNewPrivileges"] is True
    assert made["process"]["apparmorProfile"] == "mine"
    assert made["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "hard": 2, "soft": 1}]
    assert made["process"]["oomScoreAdj"] == 7
    assert made["root"]["readonly"] is True
    assert made["annotations"] == {"a": "b", "c": "d"}
    assert "seccomp" not in made["linux"]


def test_block_devices_are_looked_up() -> None:
    host = HostConfig(blkio_device_read_bps=(ThrottleDevice(path="/dev/sda", rate=1),))
    made = spec(host=host, lookup_device=lambda path: [DeviceNode(path, "b", 8, 3)])
    assert made["linux"]["resources"]["blockIO"]["throttleReadBpsDevice"] == [{"major": 8, "minor": 3, "rate": 1}]
    with pytest.raises(ValueError, match="/dev/sda is not a device"):
        spec(host=host)


def test_shared_binds_make_the_root_shared() -> None:
    from engine.containers.mounts import parse_bind

    made = spec(mounts=[parse_bind("/a:/b:rshared")])
    assert made["linux"]["rootfsPropagation"] == "shared"


def test_the_hosts_ipc_comes_with_its_shared_memory() -> None:
    mounts = {m["destination"]: m for m in spec(host=HostConfig(ipc_mode="host"))["mounts"]}
    assert (mounts["/dev/shm"]["type"], mounts["/dev/shm"]["source"]) == ("bind", "/dev/shm")
    shared = {m["destination"]: m for m in spec(host=HostConfig(ipc_mode="shareable"), shm_path="/c/shm")["mounts"]}
    assert shared["/dev/shm"]["source"] == "/c/shm"


@pytest.mark.parametrize(
    ("version", "mode", "kind"), [(2, "host", "bind"), (2, "private", "cgroup"), (1, "host", "cgroup")]
)
def test_the_hosts_own_cgroup2_is_not_mounted_anew(version: int, mode: str, kind: str) -> None:
    facts = HostFacts(capabilities=frozenset(ALL_CAPABILITIES), cgroup_version=version)
    made = spec(host=HostConfig(cgroupns_mode=mode), facts=facts)
    assert [m["type"] for m in made["mounts"] if m["destination"] == "/sys/fs/cgroup"] == [kind]


def test_users_that_are_others_on_the_host() -> None:
    ids = IdMap((IdRange(0, 100000, 65536),), (IdRange(0, 200000, 1000), IdRange(1000, 300000, 10)))
    made = spec(ids=ids, userns="/proc/1/fd/9")["linux"]
    assert {"type": "user", "path": "/proc/1/fd/9"} in made["namespaces"]
    assert made["uidMappings"] == [{"containerID": 0, "hostID": 100000, "size": 65536}]
    assert made["gidMappings"][1] == {"containerID": 1000, "hostID": 300000, "size": 10}
    assert made["sysctl"]["net.ipv4.ping_group_range"] == "0 1009"
    assert "uidMappings" not in spec()["linux"]
