"""``StatsResponse`` of the Engine API from a sample and the one before it. Pure.

Members that dockerd leaves out when they are zero are left out here: the CLI tells cgroup v1 from v2 by them.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from engine.clock import rfc3339
from engine.containers.stats import Sample

_BLKIO = (
    "io_service_bytes_recursive",
    "io_serviced_recursive",
    "io_queue_recursive",
    "io_service_time_recursive",
    "io_wait_time_recursive",
    "io_merged_recursive",
    "io_time_recursive",
    "sectors_recursive",
)
_NO_PIDS_LIMIT = 2**64 - 1


def stats_view(container_id: str, name: str, sample: Sample, before: Sample, cgroup_version: int) -> dict[str, Any]:
    """One document of ``GET /containers/{id}/stats``; ``before`` is the last sample of the same stream."""
    running = sample.read_at != 0
    shown: dict[str, Any] = {
        "name": f"/{name}",
        "id": container_id,
        "read": rfc3339(sample.read_at),
        "preread": rfc3339(before.read_at),
        "pids_stats": _pids(sample, cgroup_version) if running else {},
        "blkio_stats": _blkio(sample, cgroup_version) if running else dict.fromkeys(_BLKIO),
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": _cpu(sample),
        "precpu_stats": _cpu(before),
        "memory_stats": _memory(sample, cgroup_version) if running else {},
    }
    if sample.traffic:
        shown["networks"] = {interface: asdict(counters) for interface, counters in sample.traffic.items()}
    return shown


def _pids(sample: Sample, cgroup_version: int) -> dict[str, int]:
    limit = sample.cgroup.pids_limit or (_NO_PIDS_LIMIT if cgroup_version == 2 else 0)
    return _without_zeros({"current": sample.cgroup.pids, "limit": limit})


def _cpu(sample: Sample) -> dict[str, Any]:
    cgroup = sample.cgroup
    usage: dict[str, Any] = {"total_usage": cgroup.cpu_total}
    if cgroup.cpu_percpu:
        usage["percpu_usage"] = list(cgroup.cpu_percpu)
    usage |= {"usage_in_kernelmode": cgroup.cpu_system, "usage_in_usermode": cgroup.cpu_user}
    return {
        "cpu_usage": usage,
        **_without_zeros({"system_cpu_usage": sample.system_cpu, "online_cpus": sample.online_cpus}),
        "throttling_data": {
            "periods": cgroup.throttle_periods,
            "throttled_periods": cgroup.throttled_periods,
            "throttled_time": cgroup.throttled_time,
        },
    }


def _memory(sample: Sample, cgroup_version: int) -> dict[str, Any]:
    """The usage is the kernel's own, page cache included: clients subtract it by ``stats``."""
    cgroup = sample.cgroup
    shown: dict[str, Any] = _without_zeros(
        {
            "usage": cgroup.memory_usage,
            "max_usage": cgroup.memory_max_usage if cgroup_version == 1 else 0,
            "failcnt": cgroup.memory_failures,
            "limit": sample.memory_limit,
        }
    )
    if cgroup.memory_stat:
        shown["stats"] = dict(cgroup.memory_stat)
    return shown


def _blkio(sample: Sample, cgroup_version: int) -> dict[str, Any]:
    shown: dict[str, Any] = {key: [] if cgroup_version == 1 else None for key in _BLKIO}
    for key, entries in zip(_BLKIO, (sample.cgroup.io_bytes, sample.cgroup.io_operations), strict=False):
        shown[key] = [asdict(entry) for entry in entries] or shown[key]
    return shown


def _without_zeros(pairs: dict[str, int]) -> dict[str, int]:
    return {key: value for key, value in pairs.items() if value}
