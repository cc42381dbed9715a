"""docker update: what is named changes, what conflicts is refused in dockerd's words."""

from __future__ import annotations

from typing import Any

import pytest

from engine.containers.host import HostFacts
from engine.containers.settings import HostConfig, RestartPolicy, ThrottleDevice
from engine.containers.update import UpdateConfig, checked, live_limits, merged
from engine.errors import Conflict, InvalidParameter

MIB = 1 << 20
FACTS = HostFacts(
    supports=frozenset({"memory", "swap", "reservation", "cpu_cfs", "cpu_shares", "cpuset", "pids"}),
    cpus=4,
    cpuset_cpus="0-3",
    cpuset_mems="0",
)


def number(path: str) -> tuple[int, int]:
    """Every path is device 8:1, but for one that is none."""
    if path == "/dev/none":
        raise FileNotFoundError(2, "No such file or directory")
    return 8, 1


def test_zero_leaves_a_limit_as_it_is() -> None:
    host = HostConfig(memory=100 * MIB, memory_swap=200 * MIB, cpu_shares=512, restart_policy=RestartPolicy(name="no"))
    assert merged(host, UpdateConfig(cpu_shares=256)) == HostConfig(
        memory=100 * MIB, memory_swap=200 * MIB, cpu_shares=256, restart_policy=RestartPolicy(name="no")
    )
    assert merged(host, UpdateConfig()) == host


def test_the_restart_policy_is_updated_by_its_name() -> None:
    policy = RestartPolicy(name="on-failure", maximum_retry_count=3)
    assert merged(HostConfig(), UpdateConfig(restart_policy=policy)).restart_policy == policy
    with pytest.raises(Conflict, match="^Restart policy cannot be updated because AutoRemove is enabled"):
        merged(HostConfig(auto_remove=True), UpdateConfig(restart_policy=policy))
    no = RestartPolicy(name="no")
    assert merged(HostConfig(auto_remove=True), UpdateConfig(restart_policy=no)).restart_policy == no


@pytest.mark.parametrize(
    ("host", "change", "words"),
    [
        ({"cpu_period": 1000}, {"nano_cpus": 1}, "Nano CPUs cannot be updated as CPU Period"),
        ({"cpu_quota": 1000}, {"nano_cpus": 1}, "Nano CPUs cannot be updated as CPU Quota"),
        ({"nano_cpus": 1}, {"cpu_period": 1000}, "CPU Period cannot be updated as NanoCPUs"),
        ({"nano_cpus": 1}, {"cpu_quota": 1000}, "CPU Quota cannot be updated as NanoCPUs"),
        ({}, {"memory": 10 * MIB}, "Memory limit should be smaller than already set memoryswap limit"),
        ({"memory_swap": -1}, {"memory": 10 * MIB}, "update the memoryswap at the same time"),
        ({"memory_swap": 9 * MIB}, {"memory": 10 * MIB}, "update the memoryswap at the same time"),
    ],
)
def test_conflicts_with_what_is_set(host: dict[str, Any], change: dict[str, Any], words: str) -> None:
    with pytest.raises(Conflict, match=words):
        merged(HostConfig(**host), UpdateConfig(**change))


def test_memory_may_grow_where_swap_is_unlimited_or_grows_too() -> None:
    assert merged(HostConfig(memory_swap=-1), UpdateConfig(memory=MIB, memory_swap=-1)).memory == MIB
    assert merged(HostConfig(memory_swap=-1), UpdateConfig(memory_reservation=MIB)).memory_reservation == MIB
    grown = merged(HostConfig(memory_swap=MIB), UpdateConfig(memory=2 * MIB, memory_swap=4 * MIB))
    assert (grown.memory, grown.memory_swap) == (2 * MIB, 4 * MIB)


def test_the_runtime_is_told_of_what_changes_only() -> None:
    assert live_limits(UpdateConfig(), number) == {}
    assert live_limits(UpdateConfig(restart_policy=RestartPolicy(name="always")), number) == {}
    assert live_limits(UpdateConfig(nano_cpus=500_000_000, pids_limit=7), number) == {
        "cpu": {"period": 100_000, "quota": 50_000},
        "pids": {"limit": 7},
    }
    assert live_limits(UpdateConfig(cpu_realtime_period=1000, cpu_realtime_runtime=10), number) == {}
    assert live_limits(UpdateConfig(memory_swap=-1), number) == {"memory": {"swap": -1}}


def test_no_pids_limit_has_two_spellings() -> None:
    for number in (0, -1):
        change, _ = checked(UpdateConfig(pids_limit=number), FACTS)
        assert change.pids_limit == 0
        assert live_limits(change, number) == {"pids": {"limit": -1}}
        assert merged(HostConfig(pids_limit=5), change).pids_limit == 0


def test_what_the_host_cannot_do_is_dropped_with_a_warning() -> None:
    change, warnings = checked(UpdateConfig(blkio_weight=300, cpu_shares=2), FACTS)
    assert (change.blkio_weight, change.cpu_shares) == (0, 2)
    assert warnings == ["Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded."]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (UpdateConfig(memory=1), "^Minimum memory limit allowed is 6MB$"),
        (UpdateConfig(restart_policy=RestartPolicy(name="sometimes")), "unknown policy 'sometimes'"),
    ],
)
def test_what_is_wrong_in_itself(change: UpdateConfig, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        checked(change, FACTS)


def test_device_limits_go_to_the_devices_numbers() -> None:
    change = UpdateConfig(blkio_device_read_bps=(ThrottleDevice(path="/dev/sda", rate=5),))
    assert live_limits(change, number) == {"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 1, "rate": 5}]}}
    assert merged(HostConfig(), change).blkio_device_read_bps == change.blkio_device_read_bps
    with pytest.raises(ValueError, match="stat /dev/none: no such file"):
        live_limits(UpdateConfig(blkio_device_write_iops=(ThrottleDevice(path="/dev/none", rate=5),)), number)
