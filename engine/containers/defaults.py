"""The gaps of a host configuration filled with docker's defaults, so that what inspect shows is what runs. Pure.

Done once, when the container is created, after ``validation.py`` has found nothing wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from engine.containers.host import HostFacts
from engine.containers.mounts import is_shared_tmpfs
from engine.containers.security import DEFAULT_MASKED_PATHS, DEFAULT_READONLY_PATHS, parse_security_options
from engine.containers.settings import ContainerConfig, HostConfig, LogConfig, RestartPolicy

DEFAULT_SHM_SIZE = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonDefaults:
    """What daemon.json can say about containers that do not say it themselves."""

    shm_size: int = DEFAULT_SHM_SIZE
    ipc_mode: str = "private"
    cgroupns_mode: str = ""
    """Empty: ``host`` with cgroup v1, ``private`` with v2, as dockerd."""
    runtime: str = "runc"
    sharing_runtime: str = ""
    """For containers with a shared or unbindable tmpfs, where the default runtime makes all their mounts private."""
    log_config: LogConfig = field(default_factory=lambda: LogConfig(type="json-file"))
    cgroup_parent: str = ""


def with_defaults(
    host: HostConfig, facts: HostFacts, daemon: DaemonDefaults, discarded: Sequence[str] = ()
) -> HostConfig:
    """``host`` completed. ``discarded`` names fields that validation found this host cannot honour; they are reset."""
    resets = {name: _UNSET[name] for name in discarded if name in _UNSET}
    host = msgspec.structs.replace(host, **resets)
    changes: dict[str, Any] = {
        "shm_size": host.shm_size or daemon.shm_size,
        "network_mode": host.network_mode or "default",
        "ipc_mode": host.ipc_mode or daemon.ipc_mode,
        "cgroupns_mode": host.cgroupns_mode or _cgroupns(host, facts, daemon),
        "runtime": host.runtime or _runtime(host, daemon),
        "cgroup_parent": host.cgroup_parent or daemon.cgroup_parent,
        "restart_policy": _restart_policy(host.restart_policy),
        "log_config": _log_config(host.log_config, daemon.log_config),
        "security_opt": _security_options(host),
        **_memory_defaults(host),
    }
    if host.oom_kill_disable is None and "oom_kill_disable" in facts.supports:
        changes["oom_kill_disable"] = False
    if host.pids_limit is not None and host.pids_limit <= 0:
        changes["pids_limit"] = None  # the command line sends 0 for "not given", and -1 is no limit either
    if host.memory_swappiness == -1:
        changes["memory_swappiness"] = None
    if host.masked_paths is None and not host.privileged:
        changes["masked_paths"] = DEFAULT_MASKED_PATHS
    if host.readonly_paths is None and not host.privileged:
        changes["readonly_paths"] = DEFAULT_READONLY_PATHS
    return msgspec.structs.replace(host, **changes)


_UNSET: dict[str, Any] = {
    "memory": 0,
    "memory_swap": -1,
    "memory_swappiness": None,
    "memory_reservation": 0,
    "oom_kill_disable": None,
    "kernel_memory_tcp": 0,
    "pids_limit": None,
    "cpu_shares": 0,
    "cpu_period": 0,
    "cpu_quota": 0,
    "cpu_percent": 0,
    "cpuset_cpus": "",
    "cpuset_mems": "",
    "blkio_weight": 0,
    "blkio_weight_device": (),
    "blkio_device_read_bps": (),
    "blkio_device_write_bps": (),
    "blkio_device_read_iops": (),
    "blkio_device_write_iops": (),
    "cgroupns_mode": "host",
}


def _memory_defaults(host: HostConfig) -> dict[str, int]:
    """As much swap again as memory, when only memory is limited."""
    if host.memory > 0 and host.memory_swap == 0:
        return {"memory_swap": host.memory * 2}
    return {}


def _security_options(host: HostConfig) -> tuple[str, ...] | None:
    """SELinux labels are off for who sees the host's processes or may do everything, unless labels were asked for."""
    unlabelled = host.privileged or "host" in (host.pid_mode, host.ipc_mode)
    if not unlabelled or parse_security_options(host.security_opt).labels:
        return host.security_opt
    return (*(host.security_opt or ()), "label=disable")


def _cgroupns(host: HostConfig, facts: HostFacts, daemon: DaemonDefaults) -> str:
    """With v2 a namespace of its own; with v1 the host's, where privileged whatever the daemon's default is."""
    if host.privileged and facts.cgroup_version != 2:
        return "host"
    if daemon.cgroupns_mode:
        return daemon.cgroupns_mode
    return "private" if facts.cgroup_version == 2 and facts.cgroup_namespaces else "host"


def _runtime(host: HostConfig, daemon: DaemonDefaults) -> str:
    shares = daemon.sharing_runtime and any(is_shared_tmpfs(data) for data in (host.tmpfs or {}).values())
    return daemon.sharing_runtime if shares else daemon.runtime


def _restart_policy(policy: RestartPolicy) -> RestartPolicy:
    return policy if policy.name else RestartPolicy(name="no", maximum_retry_count=policy.maximum_retry_count)


def _log_config(wanted: LogConfig, default: LogConfig) -> LogConfig:
    """The daemon's driver where none is named, and its options where the driver is the daemon's."""
    if not wanted.type or wanted.type == default.type:
        options = {**(default.config or {}), **(wanted.config or {})}
        return LogConfig(type=default.type, config=options)
    return LogConfig(type=wanted.type, config=wanted.config or {})


def default_hostname(config: ContainerConfig, host: HostConfig, container_id: str, host_name: str) -> str:
    """The container's host name: its own, the host's where it shares the host's network, else its short id."""
    if config.hostname:
        return config.hostname
    return host_name if host.network_mode == "host" else container_id[:12]
