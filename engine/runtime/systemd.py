"""What systemd is told of a container's limits, so that it keeps them.

A container's control group is a unit of systemd's (a scope) where the driver is systemd's. Whenever systemd reads its
units again (`systemctl daemon-reload`, which every other package does while it is installed) it writes the limits that
it knows of into their groups, and "none" for the others. runc tells it all; crun before 1.18 tells it only a part
and writes the files itself, so that a container would be without limits from then on. Here crun's share is told: at
the start by annotations, which cost nothing, and later by `systemctl`.
"""

import posixpath
from collections.abc import Mapping
from typing import Any

from engine.runtime.cgroups import resolve

ANNOTATION = "org.systemd.property."
INFINITY = 2**64 - 1
_SECOND_US = 1_000_000
_STEP_US = 10_000  # systemd counts a quota in hundredths of a processor


def limit_annotations(resources: Mapping[str, Any]) -> dict[str, str]:
    """The properties of a unit that is yet to be made, for `linux.resources`; processors have no such form."""
    properties = {**_memory(resources), **_tasks(resources), **_quota(resources)}
    return {f"{ANNOTATION}{name}": f"uint64 {number}" for name, number in properties.items()}


def assignments(resources: Mapping[str, Any], cgroup_version: int) -> list[str]:
    """What `systemctl set-property` has to be told when these limits have been changed."""
    words = [f"{name}={_or_infinity(number)}" for name, number in {**_memory(resources), **_tasks(resources)}.items()]
    quota = _quota(resources)
    if quota:
        amount = quota["CPUQuotaPerSecUSec"]
        words.append("CPUQuota=" if amount == INFINITY else f"CPUQuota={amount * 100 // _SECOND_US}%")
        if "CPUQuotaPeriodUSec" in quota:
            words.append(f"CPUQuotaPeriodSec={quota['CPUQuotaPeriodUSec']}us")
    shares = _part(resources, "cpu").get("shares")
    if shares:
        words.append(f"CPUWeight={_weight(shares)}" if cgroup_version == 2 else f"CPUShares={shares}")
    return words + processor_assignments(resources)


def processor_assignments(resources: Mapping[str, Any]) -> list[str]:
    """The part of `assignments` that annotations cannot say."""
    cpu = _part(resources, "cpu")
    kinds = (("cpus", "AllowedCPUs"), ("mems", "AllowedMemoryNodes"))
    return [f"{name}={cpu[key]}" for key, name in kinds if cpu.get(key)]


def set_property_command(cgroup_path: str, words: list[str]) -> list[str]:
    """The program that tells systemd, until the unit ends. `cgroup_path` has systemd's form."""
    return ["systemctl", "set-property", "--runtime", posixpath.basename(resolve(cgroup_path)), *words]


def _part(resources: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part: Mapping[str, Any] = resources.get(name) or {}
    return part


def _memory(resources: Mapping[str, Any]) -> dict[str, int]:
    memory = _part(resources, "memory")
    properties = {}
    if memory.get("limit"):
        properties["MemoryMax"] = _unsigned(memory["limit"])
    if memory.get("reservation"):
        properties["MemoryLow"] = _unsigned(memory["reservation"])
    if memory.get("swap"):  # docker's number is memory and swap together
        swap = memory["swap"]
        properties["MemorySwapMax"] = INFINITY if swap < 0 else max(swap - memory.get("limit", 0), 0)
    return properties


def _tasks(resources: Mapping[str, Any]) -> dict[str, int]:
    limit = _part(resources, "pids").get("limit")
    return {"TasksMax": _unsigned(limit)} if limit else {}


def _quota(resources: Mapping[str, Any]) -> dict[str, int]:
    cpu = _part(resources, "cpu")
    quota, period = cpu.get("quota", 0), cpu.get("period", 0)
    if quota < 0:
        return {"CPUQuotaPerSecUSec": INFINITY}
    if not quota:
        return {}
    amount = -(-quota * _SECOND_US // (period or 100_000))
    properties = {"CPUQuotaPerSecUSec": -(-amount // _STEP_US) * _STEP_US}
    if period:
        properties["CPUQuotaPeriodUSec"] = period
    return properties


def _weight(shares: int) -> int:
    return 1 + (shares - 2) * 9999 // 262142


def _unsigned(number: int) -> int:
    return INFINITY if number < 0 else number


def _or_infinity(number: int) -> str:
    return "infinity" if number == INFINITY else str(number)
