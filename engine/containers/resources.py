"""Limits to the OCI form: memory, CPU, processes, block I/O, ulimits. Pure; discards what this host cannot control."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.containers.settings import HostConfig, Resources, ThrottleDevice, Ulimit

CPU_PERIOD_US = 100_000
UNLIMITED = 2**64 - 1

DeviceNumber = Callable[[str], tuple[int, int]]
"""Major and minor of a block device's path."""


def linux_resources(limits: Resources, device_number: DeviceNumber) -> dict[str, Any]:
    """``linux.resources`` without its devices and empty parts. Raises ``ValueError`` for an unknown device."""
    parts = {
        "memory": _memory(limits),
        "cpu": _cpu(limits),
        "pids": {"limit": limits.pids_limit} if limits.pids_limit and limits.pids_limit > 0 else {},
        "blockIO": _block_io(limits, device_number),
    }
    return {name: part for name, part in parts.items() if part}


def _memory(limits: Resources) -> dict[str, Any]:
    memory: dict[str, Any] = {}
    if limits.memory > 0:
        memory["limit"] = limits.memory
    if limits.memory_reservation > 0:
        memory["reservation"] = limits.memory_reservation
    if limits.memory_swap > 0 or (limits.memory_swap == -1 and limits.memory > 0):
        memory["swap"] = limits.memory_swap
    if limits.memory_swappiness is not None and limits.memory_swappiness >= 0:
        memory["swappiness"] = limits.memory_swappiness
    if limits.oom_kill_disable is not None:
        memory["disableOOMKiller"] = limits.oom_kill_disable
    if limits.kernel_memory_tcp:
        memory["kernelTCP"] = limits.kernel_memory_tcp
    return memory


def _cpu(limits: Resources) -> dict[str, Any]:
    cpu: dict[str, Any] = {}
    if limits.cpu_shares:
        # dockerd clips negative shares to the kernel's least.
        cpu["shares"] = max(limits.cpu_shares, 2)
    if limits.nano_cpus > 0:
        cpu["period"] = CPU_PERIOD_US
        cpu["quota"] = limits.nano_cpus * CPU_PERIOD_US // 1_000_000_000
    if limits.cpu_period:
        cpu["period"] = limits.cpu_period
    if limits.cpu_quota > 0:
        cpu["quota"] = limits.cpu_quota
    if limits.cpu_realtime_period:
        cpu["realtimePeriod"] = limits.cpu_realtime_period
    if limits.cpu_realtime_runtime:
        cpu["realtimeRuntime"] = limits.cpu_realtime_runtime
    if limits.cpuset_cpus:
        cpu["cpus"] = limits.cpuset_cpus
    if limits.cpuset_mems:
        cpu["mems"] = limits.cpuset_mems
    return cpu


def _block_io(limits: Resources, device_number: DeviceNumber) -> dict[str, Any]:
    block: dict[str, Any] = {}
    if limits.blkio_weight:
        block["weight"] = limits.blkio_weight
    if limits.blkio_weight_device:
        block["weightDevice"] = [
            {**_numbers(d.path, device_number), "weight": d.weight} for d in limits.blkio_weight_device
        ]
    for key, rates in (
        ("throttleReadBpsDevice", limits.blkio_device_read_bps),
        ("throttleWriteBpsDevice", limits.blkio_device_write_bps),
        ("throttleReadIOPSDevice", limits.blkio_device_read_iops),
        ("throttleWriteIOPSDevice", limits.blkio_device_write_iops),
    ):
        if rates:
            block[key] = _throttles(rates, device_number)
    return block


def _throttles(rates: Sequence[ThrottleDevice], device_number: DeviceNumber) -> list[dict[str, int]]:
    return [{**_numbers(d.path, device_number), "rate": d.rate} for d in rates]


def _numbers(path: str, device_number: DeviceNumber) -> dict[str, int]:
    try:
        major, minor = device_number(path)
    except OSError as error:
        raise ValueError(f"stat {path}: {(error.strerror or 'failed').lower()}") from error
    return {"major": major, "minor": minor}


def rlimits(host: HostConfig, defaults: Mapping[str, Ulimit]) -> list[dict[str, Any]]:
    """``process.rlimits``: the daemon's defaults, the container's own over them."""
    wanted = {**defaults, **{u.name.lower(): u for u in host.ulimits or ()}}
    return [
        {"type": f"RLIMIT_{name.upper()}", "hard": _unsigned(limit.hard), "soft": _unsigned(limit.soft)}
        for name, limit in wanted.items()
    ]


def _unsigned(number: int) -> int:
    return UNLIMITED if number < 0 else number
