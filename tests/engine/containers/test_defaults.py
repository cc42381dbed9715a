"""A host configuration completed."""

from __future__ import annotations

import pytest

from engine.containers.defaults import DaemonDefaults, default_hostname, with_defaults
from engine.containers.host import HostFacts
from engine.containers.settings import ContainerConfig, HostConfig, LogConfig, RestartPolicy

V1 = HostFacts(cgroup_version=1, supports=frozenset({"oom_kill_disable"}))
V2 = HostFacts(cgroup_version=2)


def test_everything_unsaid_is_dockers_default() -> None:
    host = with_defaults(HostConfig(), V1, DaemonDefaults())
    assert (host.shm_size, host.network_mode, host.ipc_mode) == (67108864, "default", "private")
    assert (host.cgroupns_mode, host.runtime, host.oom_kill_disable) == ("host", "runc", False)
    assert host.restart_policy.name == "no"
    assert host.log_config == LogConfig(type="json-file", config={})
    assert "/proc/kcore" in (host.masked_paths or ())
    assert "/proc/sys" in (host.readonly_paths or ())


def test_cgroup_version_two_has_namespaces_of_its_own() -> None:
    assert with_defaults(HostConfig(), V2, DaemonDefaults()).cgroupns_mode == "private"
    assert with_defaults(HostConfig(privileged=True), V2, DaemonDefaults()).cgroupns_mode == "private"
    assert with_defaults(HostConfig(), V2, DaemonDefaults(cgroupns_mode="host")).cgroupns_mode == "host"
    private = DaemonDefaults(cgroupns_mode="private")
    assert with_defaults(HostConfig(privileged=True), V1, private).cgroupns_mode == "host"
    assert with_defaults(HostConfig(), V2, DaemonDefaults()).oom_kill_disable is None


@pytest.mark.parametrize(
    ("asked", "runtime"),
    [
        (HostConfig(tmpfs={"/t": "size=1m,shared"}), "runc"),
        (HostConfig(tmpfs={"/s": "", "/t": "runbindable"}), "runc"),
        (HostConfig(tmpfs={"/t": "shared,slave"}), "crun"),
        (HostConfig(), "crun"),
        (HostConfig(tmpfs={"/t": "shared"}, runtime="other"), "other"),
    ],
)
def test_a_shared_tmpfs_has_a_runtime_that_leaves_it_shared(asked: HostConfig, runtime: str) -> None:
    daemon = DaemonDefaults(runtime="crun", sharing_runtime="runc")
    assert with_defaults(asked, V1, daemon).runtime == runtime
    only = "other" if runtime == "other" else "crun"
    assert with_defaults(asked, V1, DaemonDefaults(runtime="crun")).runtime == only


def test_what_was_said_stays() -> None:
    asked = HostConfig(
        shm_size=5, ipc_mode="host", restart_policy=RestartPolicy(name="always"), masked_paths=(), memory_swappiness=7
    )
    host = with_defaults(asked, V1, DaemonDefaults())
    assert (host.shm_size, host.ipc_mode, host.restart_policy.name) == (5, "host", "always")
    assert (host.masked_paths, host.memory_swappiness) == ((), 7)


def test_swap_is_twice_the_memory_when_only_memory_is_limited() -> None:
    assert with_defaults(HostConfig(memory=100), V1, DaemonDefaults()).memory_swap == 200
    assert with_defaults(HostConfig(memory=100, memory_swap=-1), V1, DaemonDefaults()).memory_swap == -1


def test_privileged_hides_nothing_and_swappiness_minus_one_is_unset() -> None:
    host = with_defaults(HostConfig(privileged=True, memory_swappiness=-1), V1, DaemonDefaults())
    assert (host.masked_paths, host.readonly_paths, host.memory_swappiness) == (None, None, None)


def test_discarded_settings_are_reset() -> None:
    asked = HostConfig(blkio_weight=5, pids_limit=9, cpu_shares=3)
    host = with_defaults(asked, V1, DaemonDefaults(), ["blkio_weight", "pids_limit"])
    assert (host.blkio_weight, host.pids_limit, host.cpu_shares) == (0, None, 3)


def test_log_options_of_the_daemon_are_for_its_own_driver() -> None:
    daemon = DaemonDefaults(log_config=LogConfig(type="json-file", config={"max-size": "1m", "max-file": "3"}))
    mine = HostConfig(log_config=LogConfig(type="json-file", config={"max-size": "2m"}))
    assert with_defaults(mine, V1, daemon).log_config.config == {"max-size": "2m", "max-file": "3"}
    other = HostConfig(log_config=LogConfig(type="none"))
    assert with_defaults(other, V1, daemon).log_config == LogConfig(type="none", config={})


@pytest.mark.parametrize(("asked", "kept"), [(None, None), (0, None), (-1, None), (5, 5)])
def test_no_limit_of_processes_is_null(asked: int | None, kept: int | None) -> None:
    assert with_defaults(HostConfig(pids_limit=asked), V1, DaemonDefaults()).pids_limit == kept


@pytest.mark.parametrize(
    ("host", "recorded"),
    [
        (HostConfig(), None),
        (HostConfig(privileged=True), ("label=disable",)),
        (HostConfig(pid_mode="host", security_opt=("no-new-privileges",)), ("no-new-privileges", "label=disable")),
        (HostConfig(ipc_mode="host"), ("label=disable",)),
        (HostConfig(privileged=True, security_opt=("label=type:t",)), ("label=type:t",)),
    ],
)
def test_labels_are_off_for_who_sees_the_host(host: HostConfig, recorded: tuple[str, ...] | None) -> None:
    assert with_defaults(host, V1, DaemonDefaults()).security_opt == recorded


def test_host_names() -> None:
    config, host_network = ContainerConfig(), HostConfig(network_mode="host")
    assert default_hostname(ContainerConfig(hostname="h"), HostConfig(), "a" * 64, "node") == "h"
    assert default_hostname(config, HostConfig(), "a" * 64, "node") == "a" * 12
    assert default_hostname(config, host_network, "a" * 64, "node") == "node"
