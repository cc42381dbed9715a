"""Limits in the OCI form."""

from __future__ import annotations

import pytest

from engine.containers.resources import UNLIMITED, linux_resources, rlimits
from engine.containers.settings import HostConfig, Resources, ThrottleDevice, Ulimit, WeightDevice


def numbers(path: str) -> tuple[int, int]:
    if path != "/dev/sda":
        raise FileNotFoundError(2, "No such file or directory", path)
    return 8, 0


def test_nothing_asked_is_nothing_limited() -> None:
    assert linux_resources(Resources(), numbers) == {}


def test_memory() -> None:
    limits = Resources(
        memory=100,
        memory_swap=200,
        memory_reservation=50,
        memory_swappiness=0,
        oom_kill_disable=False,
        kernel_memory_tcp=9,
    )
    assert linux_resources(limits, numbers) == {
        "memory": {
            "limit": 100,
            "swap": 200,
            "reservation": 50,
            "swappiness": 0,
            "disableOOMKiller": False,
            "kernelTCP": 9,
        }
    }
    assert linux_resources(Resources(memory=100, memory_swap=-1), numbers)["memory"]["swap"] == -1
    assert linux_resources(Resources(memory_swap=-1, memory_swappiness=-1), numbers) == {}


def test_cpu() -> None:
    assert linux_resources(Resources(nano_cpus=500_000_000), numbers) == {"cpu": {"period": 100_000, "quota": 50_000}}
    limits = Resources(
        cpu_shares=1,
        cpu_period=5,
        cpu_quota=6,
        cpu_realtime_period=7,
        cpu_realtime_runtime=8,
        cpuset_cpus="0",
        cpuset_mems="1",
    )
    assert linux_resources(limits, numbers)["cpu"] == {
        "shares": 2,
        "period": 5,
        "quota": 6,
        "realtimePeriod": 7,
        "realtimeRuntime": 8,
        "cpus": "0",
        "mems": "1",
    }


@pytest.mark.parametrize(("asked", "limits"), [(10, {"pids": {"limit": 10}}), (-1, {}), (0, {})])
def test_pids(asked: int, limits: dict[str, object]) -> None:
    assert linux_resources(Resources(pids_limit=asked), numbers) == limits


def test_block_io() -> None:
    rate = (ThrottleDevice(path="/dev/sda", rate=5),)
    limits = Resources(
        blkio_weight=100,
        blkio_weight_device=(WeightDevice(path="/dev/sda", weight=10),),
        blkio_device_read_bps=rate,
        blkio_device_write_iops=rate,
    )
    throttle = [{"major": 8, "minor": 0, "rate": 5}]
    assert linux_resources(limits, numbers)["blockIO"] == {
        "weight": 100,
        "weightDevice": [{"major": 8, "minor": 0, "weight": 10}],
        "throttleReadBpsDevice": throttle,
        "throttleWriteIOPSDevice": throttle,
    }
    with pytest.raises(ValueError, match="stat /dev/none: no such file or directory"):
        linux_resources(Resources(blkio_device_read_bps=(ThrottleDevice(path="/dev/none"),)), numbers)


def test_ulimits_go_over_the_defaults() -> None:
    defaults = {"nofile": Ulimit(name="nofile", soft=1, hard=2), "core": Ulimit(name="core", soft=0, hard=0)}
    host = HostConfig(ulimits=(Ulimit(name="NOFILE", soft=-1, hard=-1), Ulimit(name="cpu", soft=-1, hard=-1)))
    assert rlimits(host, defaults) == [
        {"type": "RLIMIT_NOFILE", "hard": UNLIMITED, "soft": UNLIMITED},
        {"type": "RLIMIT_CORE", "hard": 0, "soft": 0},
        {"type": "RLIMIT_CPU", "hard": UNLIMITED, "soft": UNLIMITED},
    ]
