"""Which of a container's limits systemd is told, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from engine.runtime import systemd

EVERYTHING = {
    "memory": {"limit": 100, "reservation": 20, "swap": 250, "swappiness": 5},
    "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0-1", "mems": "0"},
    "pids": {"limit": 30},
    "blockIO": {"weight": 300},
}


def test_a_new_unit_gets_all_that_annotations_can_say() -> None:
    assert systemd.limit_annotations(EVERYTHING) == {
        "org.systemd.property.MemoryMax": "uint64 100",
        "org.systemd.property.MemoryLow": "uint64 20",
        "org.systemd.property.MemorySwapMax": "uint64 150",
        "org.systemd.property.TasksMax": "uint64 30",
        "org.systemd.property.CPUQuotaPerSecUSec": "uint64 500000",
        "org.systemd.property.CPUQuotaPeriodUSec": "uint64 100000",
    }


def test_no_limits_no_properties() -> None:
    assert systemd.limit_annotations({"memory": {"disableOOMKiller": False}}) == {}
    assert systemd.assignments({}, 2) == []


def test_a_unit_that_is_there_is_told_by_systemctl() -> None:
    assert systemd.assignments(EVERYTHING, 2) == [
        *("MemoryMax=100", "MemoryLow=20", "MemorySwapMax=150", "TasksMax=30"),
        *("CPUQuota=50%", "CPUQuotaPeriodSec=100000us", "CPUWeight=20", "AllowedCPUs=0-1", "AllowedMemoryNodes=0"),
    ]
    assert systemd.assignments({"cpu": {"shares": 512}}, 1) == ["CPUShares=512"]


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"memory": {"limit": 100, "swap": -1}}, ["MemoryMax=100", "MemorySwapMax=infinity"]),
        ({"memory": {"limit": 100, "swap": 100}}, ["MemoryMax=100", "MemorySwapMax=0"]),
        ({"pids": {"limit": -1}}, ["TasksMax=infinity"]),
        ({"cpu": {"quota": -1}}, ["CPUQuota="]),
    ],
)
def test_what_lifts_a_limit(limits: dict[str, Any], words: list[str]) -> None:
    assert systemd.assignments(limits, 2) == words


@pytest.mark.parametrize(
    ("quota", "period", "told"),
    [
        (1, 100_000, {"CPUQuotaPerSecUSec": 10_000, "CPUQuotaPeriodUSec": 100_000}),
        (33_333, 50_000, {"CPUQuotaPerSecUSec": 670_000, "CPUQuotaPeriodUSec": 50_000}),
        (150_000, 0, {"CPUQuotaPerSecUSec": 1_500_000}),
    ],
)
def test_quotas_are_rounded_up_to_what_systemd_counts_in(quota: int, period: int, told: dict[str, int]) -> None:
    annotations = systemd.limit_annotations({"cpu": {"quota": quota, "period": period}})
    assert annotations == {f"org.systemd.property.{name}": f"uint64 {number}" for name, number in told.items()}


def test_processors_are_told_after_the_start() -> None:
    assert systemd.processor_assignments(EVERYTHING) == ["AllowedCPUs=0-1", "AllowedMemoryNodes=0"]
    assert systemd.processor_assignments({"cpu": {"quota": 7}}) == []


def test_the_unit_is_named_by_the_last_part_of_the_path() -> None:
    assert systemd.set_property_command("a-b.slice:docker:c0ffee", ["TasksMax=1"]) == [
        *("systemctl", "set-property", "--runtime", "docker-c0ffee.scope", "TasksMax=1")
    ]
