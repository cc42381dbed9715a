"""A container's counters and limits, read from its control groups (cgroup-v1/*.rst and cgroup-v2.rst of the kernel)."""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

NANOSECONDS_PER_TICK = 10**9 // (os.sysconf("SC_CLK_TCK") or 100)
UNLIMITED = 0


@dataclass(frozen=True, slots=True)
class BlkioEntry:
    """One device's counter; `op` is Read, Write, Sync, Async, Discard or Total."""

    major: int
    minor: int
    op: str
    value: int


@dataclass(frozen=True, slots=True)
class CgroupStats:
    """Times are nanoseconds, sizes bytes. `memory_limit` and `pids_limit` are 0 where there is none."""

    cpu_total: int = 0
    cpu_user: int = 0
    cpu_system: int = 0
    cpu_percpu: tuple[int, ...] = ()
    throttle_periods: int = 0
    throttled_periods: int = 0
    throttled_time: int = 0
    memory_usage: int = 0
    memory_max_usage: int = 0
    memory_limit: int = 0
    memory_failures: int = 0
    memory_stat: Mapping[str, int] = field(default_factory=dict)
    pids: int = 0
    pids_limit: int = 0
    io_bytes: tuple[BlkioEntry, ...] = ()
    io_operations: tuple[BlkioEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """What the kernel enforces; 0 or "" for no limit. `cpu_shares` is in v1's scale on both versions' own file."""

    memory: int = 0
    memory_swap: int = 0
    memory_reservation: int = 0
    cpu_quota: int = 0
    cpu_period: int = 0
    cpu_shares: int = 0
    cpu_weight: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids: int = 0


def read_stats_sync(folders: Mapping[str, str], version: int) -> CgroupStats:
    """`folders` maps controllers to a container's folders; missing files count as zero."""
    return _stats_v2(folders.get("memory", "")) if version == 2 else _stats_v1(folders)


def read_limits_sync(folders: Mapping[str, str], version: int) -> Limits:
    return _limits_v2(folders.get("memory", "")) if version == 2 else _limits_v1(folders)


def _stats_v1(folders: Mapping[str, str]) -> CgroupStats:
    cpu, cpuacct = folders.get("cpu", ""), folders.get("cpuacct", "")
    memory, pids, blkio = folders.get("memory", ""), folders.get("pids", ""), folders.get("blkio", "")
    throttling = _table(f"{cpu}/cpu.stat")
    ticks = _table(f"{cpuacct}/cpuacct.stat")
    return CgroupStats(
        cpu_total=_number(f"{cpuacct}/cpuacct.usage"),
        cpu_user=ticks.get("user", 0) * NANOSECONDS_PER_TICK,
        cpu_system=ticks.get("system", 0) * NANOSECONDS_PER_TICK,
        cpu_percpu=tuple(int(value) for value in _text(f"{cpuacct}/cpuacct.usage_percpu").split()),
        throttle_periods=throttling.get("nr_periods", 0),
        throttled_periods=throttling.get("nr_throttled", 0),
        throttled_time=throttling.get("throttled_time", 0),
        memory_usage=_number(f"{memory}/memory.usage_in_bytes"),
        memory_max_usage=_number(f"{memory}/memory.max_usage_in_bytes"),
        memory_limit=_v1_limit(f"{memory}/memory.limit_in_bytes"),
        memory_failures=_number(f"{memory}/memory.failcnt"),
        memory_stat=_table(f"{memory}/memory.stat"),
        pids=_number(f"{pids}/pids.current"),
        pids_limit=_number(f"{pids}/pids.max"),
        io_bytes=_v1_io(blkio, "blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"),
        io_operations=_v1_io(blkio, "blkio.throttle.io_serviced_recursive", "blkio.throttle.io_serviced"),
    )


def _stats_v2(folder: str) -> CgroupStats:
    cpu = _table(f"{folder}/cpu.stat")
    io_bytes, io_operations = _v2_io(_text(f"{folder}/io.stat"))
    return CgroupStats(
        cpu_total=cpu.get("usage_usec", 0) * 1000,
        cpu_user=cpu.get("user_usec", 0) * 1000,
        cpu_system=cpu.get("system_usec", 0) * 1000,
        throttle_periods=cpu.get("nr_periods", 0),
        throttled_periods=cpu.get("nr_throttled", 0),
        throttled_time=cpu.get("throttled_usec", 0) * 1000,
        memory_usage=_number(f"{folder}/memory.current"),
        memory_max_usage=_number(f"{folder}/memory.peak"),
        memory_limit=_number(f"{folder}/memory.max"),
        memory_failures=_table(f"{folder}/memory.events").get("max", 0),
        memory_stat=_table(f"{folder}/memory.stat"),
        pids=_number(f"{folder}/pids.current"),
        pids_limit=_number(f"{folder}/pids.max"),
        io_bytes=io_bytes,
        io_operations=io_operations,
    )


def _limits_v1(folders: Mapping[str, str]) -> Limits:
    cpu, cpuset = folders.get("cpu", ""), folders.get("cpuset", "")
    memory, pids = folders.get("memory", ""), folders.get("pids", "")
    return Limits(
        memory=_v1_limit(f"{memory}/memory.limit_in_bytes"),
        memory_swap=_v1_limit(f"{memory}/memory.memsw.limit_in_bytes"),
        memory_reservation=_v1_limit(f"{memory}/memory.soft_limit_in_bytes"),
        cpu_quota=max(0, _number(f"{cpu}/cpu.cfs_quota_us")),
        cpu_period=_number(f"{cpu}/cpu.cfs_period_us"),
        cpu_shares=_number(f"{cpu}/cpu.shares"),
        cpuset_cpus=_text(f"{cpuset}/cpuset.cpus"),
        cpuset_mems=_text(f"{cpuset}/cpuset.mems"),
        pids=_number(f"{pids}/pids.max"),
    )


def _limits_v2(folder: str) -> Limits:
    quota, _, period = _text(f"{folder}/cpu.max").partition(" ")
    memory, swap = _number(f"{folder}/memory.max"), _number(f"{folder}/memory.swap.max")
    return Limits(
        memory=memory,
        memory_swap=memory + swap if memory and swap else 0,
        memory_reservation=_number(f"{folder}/memory.low"),
        cpu_quota=int(quota) if quota.isdigit() else 0,
        cpu_period=int(period) if period.isdigit() else 0,
        cpu_weight=_number(f"{folder}/cpu.weight"),
        cpuset_cpus=_text(f"{folder}/cpuset.cpus"),
        cpuset_mems=_text(f"{folder}/cpuset.mems"),
        pids=_number(f"{folder}/pids.max"),
    )


def _text(path: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
        return file.read().strip()
    return ""


def _number(path: str) -> int:
    """The file's number; 0 for "max", an empty or a missing file."""
    text = _text(path)
    return int(text) if text.lstrip("-").isdigit() else UNLIMITED


def _v1_limit(path: str) -> int:
    value = _number(path)
    return value if value < 1 << 62 else UNLIMITED  # v1's "none" is the largest number of whole pages


def _table(path: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in _text(path).splitlines():
        key, _, value = line.partition(" ")
        if value.isdigit():
            found[key] = int(value)
    return found


def _v1_io(folder: str, *names: str) -> tuple[BlkioEntry, ...]:
    for name in names:
        entries = []
        for line in _text(f"{folder}/{name}").splitlines():
            fields = line.split()
            if len(fields) == 3 and ":" in fields[0]:
                major, _, minor = fields[0].partition(":")
                entries.append(BlkioEntry(int(major), int(minor), fields[1], int(fields[2])))
        if entries:
            return tuple(entries)
    return ()


def _v2_io(text: str) -> tuple[tuple[BlkioEntry, ...], tuple[BlkioEntry, ...]]:
    """io.stat's lines `MAJ:MIN rbytes=.. wbytes=.. rios=.. wios=..`.

    Docker shows Read and Write in lower case on v2.
    """
    sizes: list[BlkioEntry] = []
    operations: list[BlkioEntry] = []
    for line in text.splitlines():
        device, *pairs = line.split()
        major, _, minor = device.partition(":")
        for pair in pairs:
            key, _, value = pair.partition("=")
            if key in ("rbytes", "wbytes", "rios", "wios"):
                entries = sizes if key.endswith("bytes") else operations
                entries.append(BlkioEntry(int(major), int(minor), "read" if key[0] == "r" else "write", int(value)))
    return tuple(sizes), tuple(operations)
