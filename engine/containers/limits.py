"""Are these limits possible here? dockerd's checks of memory, CPU, process and block-I/O limits, at create and update.

Pure. What is wrong raises ``ValueError``; what this kernel cannot honour is a warning, and the field is discarded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from engine.containers.host import HostFacts
from engine.containers.settings import Resources

MIN_MEMORY = 6 * 1024 * 1024
MIN_SHARES, MAX_SHARES = 2, 262_144
"""Of the kernel's scheduler (v1's cpu.shares)."""


@dataclass(slots=True)
class Findings:
    """The warnings for the client and the names of the settings that are to be dropped."""

    warnings: list[str] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)

    def discard(self, warning: str, *names: str) -> None:
        """Note that settings are dropped, and why."""
        self.warnings.append(warning)
        self.discarded += names


def check_limits(limits: Resources, facts: HostFacts, findings: Findings, *, update: bool = False) -> None:
    """Check all limits against the host. Raises ``ValueError`` with dockerd's sentence."""
    _check_memory(limits, facts, findings, update=update)
    _check_memory_extras(limits, facts, findings)
    _check_cpu(limits, facts, findings)
    _check_realtime(limits, facts)
    _check_cpuset(limits, facts, findings)
    _check_block_io(limits, facts, findings)


def _check_memory(limits: Resources, facts: HostFacts, findings: Findings, *, update: bool) -> None:
    memory, swap = limits.memory, limits.memory_swap
    if memory != 0 and memory < MIN_MEMORY:
        raise ValueError("Minimum memory limit allowed is 6MB")
    if memory > 0 and "memory" not in facts.supports:
        findings.discard(_lacks("memory limit capabilities", "Limitation discarded."), "memory", "memory_swap")
        return
    if memory > 0 and swap not in (-1, 0) and "swap" not in facts.supports:
        findings.discard(_lacks("swap limit capabilities", "Memory limited without swap."), "memory_swap")
        swap = -1
    if memory > 0 and 0 < swap < memory:
        raise ValueError("Minimum memoryswap limit should be larger than memory limit, see usage")
    if memory == 0 and swap > 0 and not update:
        raise ValueError("You should always set the Memory limit when using Memoryswap limit, see usage")


def _check_memory_extras(limits: Resources, facts: HostFacts, findings: Findings) -> None:
    swappiness, reservation = limits.memory_swappiness, limits.memory_reservation
    if swappiness is not None and swappiness != -1:
        if "swappiness" not in facts.supports:
            findings.discard(
                _lacks("memory swappiness capabilities", "Memory swappiness discarded."), "memory_swappiness"
            )
        elif not 0 <= swappiness <= 100:
            raise ValueError(f"Invalid value: {swappiness}, valid memory swappiness range is 0-100")
    if reservation > 0 and "reservation" not in facts.supports:
        findings.discard(_lacks("memory soft limit capabilities", "Limitation discarded."), "memory_reservation")
    elif 0 < reservation < MIN_MEMORY:
        raise ValueError("Minimum memory reservation allowed is 6MB")
    elif limits.memory > 0 and limits.memory < reservation:
        raise ValueError("Minimum memory limit can not be less than memory reservation limit, see usage")
    if limits.oom_kill_disable is not None and "oom_kill_disable" not in facts.supports:
        findings.discarded.append("oom_kill_disable")  # not even "no" stays on record
        if limits.oom_kill_disable:
            findings.warnings.append("Your kernel does not support OomKillDisable. OomKillDisable discarded.")
    elif limits.oom_kill_disable and limits.memory == 0:
        findings.warnings.append(
            "OOM killer is disabled for the container, but no memory limit is set, "
            "this can result in the system running out of resources."
        )
    if limits.kernel_memory_tcp > 0 and "kernel_memory_tcp" not in facts.supports:
        findings.discard(_lacks("kernel memory TCP limit capabilities", "Limitation discarded."), "kernel_memory_tcp")
    if (limits.pids_limit or 0) > 0 and "pids" not in facts.supports:
        findings.discard(_lacks("PIDs limit capabilities", "PIDs limit discarded."), "pids_limit")


def _check_cpu(limits: Resources, facts: HostFacts, findings: Findings) -> None:
    nano, period, quota = limits.nano_cpus, limits.cpu_period, limits.cpu_quota
    if nano > 0 and period > 0:
        raise ValueError("Conflicting options: Nano CPUs and CPU Period cannot both be set")
    if nano > 0 and quota > 0:
        raise ValueError("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
    if nano > 0 and "cpu_cfs" not in facts.supports:
        raise ValueError(
            "NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is not mounted"
        )
    if not 0 <= nano <= facts.cpus * 1_000_000_000:
        raise ValueError(
            f"range of CPUs is from 0.01 to {facts.cpus}.00, as there are only {facts.cpus} CPUs available"
        )
    if limits.cpu_shares < 0:
        raise ValueError(f"invalid CPU shares ({limits.cpu_shares}): value must be a positive integer")
    if limits.cpu_shares and not MIN_SHARES <= limits.cpu_shares <= MAX_SHARES:
        bound, number = ("minimum", MIN_SHARES) if limits.cpu_shares < MIN_SHARES else ("maximum", MAX_SHARES)
        raise ValueError(f"the {bound} allowed cpu-shares is {number}")
    if limits.cpu_shares > 0 and "cpu_shares" not in facts.supports:
        findings.discard(_lacks("CPU shares", "Shares discarded."), "cpu_shares")
    if (period or quota) and "cpu_cfs" not in facts.supports:
        findings.discard(_lacks("CPU CFS scheduler", "CPU period/quota discarded."), "cpu_period", "cpu_quota")
        return
    if period and not 1000 <= period <= 1_000_000:
        raise ValueError("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
    if 0 < quota < 1000:
        raise ValueError("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    if limits.cpu_percent > 0:
        findings.discard("linux does not support CPU percent. Percent discarded.", "cpu_percent")


def _check_realtime(limits: Resources, facts: HostFacts) -> None:
    period, runtime = limits.cpu_realtime_period, limits.cpu_realtime_runtime
    if (period or runtime) and "cpu_realtime" not in facts.supports:
        raise ValueError("Your kernel does not support CPU real-time scheduler")
    if period and runtime and runtime > period:
        raise ValueError("cpu real-time runtime cannot be higher than cpu real-time period")


def _check_cpuset(limits: Resources, facts: HostFacts, findings: Findings) -> None:
    cpus, mems = limits.cpuset_cpus, limits.cpuset_mems
    if (cpus or mems) and "cpuset" not in facts.supports:
        findings.discard(_lacks("cpuset", "CPUset discarded."), "cpuset_cpus", "cpuset_mems")
        return
    _check_members(cpus, facts.cpuset_cpus, "cpuset cpus", "CPUs")
    _check_members(mems, facts.cpuset_mems, "cpuset mems", "memory nodes")


def _check_members(wanted: str, available: str, field_name: str, what: str) -> None:
    try:
        members = parse_cpu_list(wanted)
    except ValueError as error:
        raise ValueError(f"Invalid value {wanted} for {field_name}: invalid format: {wanted}") from error
    if not members <= parse_cpu_list(available):
        raise ValueError(f"Requested {what} are not available - requested {wanted}, available: {available}")


def parse_cpu_list(text: str) -> frozenset[int]:
    """The kernel's list format (``0-2,7``) as numbers. Raises ``ValueError``."""
    return frozenset(_members(text))


def _members(text: str) -> Iterator[int]:
    for part in text.split(",") if text else ():
        first, ranged, last = part.partition("-")
        if not first.isdigit() or (ranged and not last.isdigit()) or len(part) > 20:
            raise ValueError(f"not a list of numbers: {part}")
        low, high = int(first), int(last) if ranged else int(first)
        if high < low or high > 8191:
            raise ValueError(f"not a list of numbers: {part}")
        yield from range(low, high + 1)


def _check_block_io(limits: Resources, facts: HostFacts, findings: Findings) -> None:
    if limits.blkio_weight > 0 and "blkio_weight" not in facts.supports:
        findings.discard(_lacks("Block I/O weight", "Weight discarded."), "blkio_weight")
    elif limits.blkio_weight and not 10 <= limits.blkio_weight <= 1000:
        raise ValueError("Range of blkio weight is from 10 to 1000")
    if limits.io_maximum_bandwidth or limits.io_maximum_iops:
        raise ValueError("Invalid QoS settings: linux does not support Maximum IO Bandwidth or Maximum IO IOps")
    if limits.blkio_weight_device and "blkio_weight_device" not in facts.supports:
        findings.discard(_lacks("Block I/O weight_device", "Weight-device discarded."), "blkio_weight_device")
    if "blkio_throttle" in facts.supports:
        return
    for name, unit, verb in (
        ("blkio_device_read_bps", "BPS", "read"),
        ("blkio_device_write_bps", "BPS", "write"),
        ("blkio_device_read_iops", "IOPS", "read"),
        ("blkio_device_write_iops", "IOPS", "write"),
    ):
        if getattr(limits, name):
            findings.discard(
                _lacks(f"{unit} Block I/O {verb} limit", f"Block I/O {unit} {verb} limit discarded."), name
            )


def _lacks(what: str, consequence: str) -> str:
    return f"Your kernel does not support {what} or the cgroup is not mounted. {consequence}"
