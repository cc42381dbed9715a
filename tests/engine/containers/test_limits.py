"""Which limits this host can honour."""

from __future__ import annotations

import pytest

from engine.containers.host import HostFacts
from engine.containers.limits import Findings, check_limits, parse_cpu_list
from engine.containers.settings import Resources, ThrottleDevice, WeightDevice

ALL = frozenset(
    {
        "memory", "swap", "swappiness", "reservation", "oom_kill_disable", "kernel_memory_tcp", "cpu_shares", "cpu_cfs",
        "cpu_realtime", "cpuset", "pids", "blkio_weight", "blkio_weight_device", "blkio_throttle",
    }
)  # fmt: skip
ABLE = HostFacts(supports=ALL, cpus=2, cpuset_cpus="0-1", cpuset_mems="0")
UNABLE = HostFacts(cpus=2)
MB = 1 << 20
RATE = (ThrottleDevice(path="/dev/sda", rate=1),)


def check(limits: Resources, facts: HostFacts = ABLE, *, update: bool = False) -> Findings:
    findings = Findings()
    check_limits(limits, facts, findings, update=update)
    return findings


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Resources(memory=5 * MB), "Minimum memory limit allowed is 6MB"),
        (Resources(memory=8 * MB, memory_swap=7 * MB), "Minimum memoryswap limit should be larger than memory limit"),
        (Resources(memory_swap=7 * MB), "You should always set the Memory limit when using Memoryswap limit"),
        (Resources(memory_swappiness=101), "Invalid value: 101, valid memory swappiness range is 0-100"),
        (Resources(memory_reservation=MB), "Minimum memory reservation allowed is 6MB"),
        (
            Resources(memory=8 * MB, memory_reservation=9 * MB),
            "Minimum memory limit can not be less than memory reserv",
        ),
        (Resources(nano_cpus=1, cpu_period=1000), "Nano CPUs and CPU Period cannot both be set"),
        (Resources(nano_cpus=1, cpu_quota=1000), "Nano CPUs and CPU Quota cannot both be set"),
        (
            Resources(nano_cpus=3_000_000_000),
            r"range of CPUs is from 0\.01 to 2\.00, as there are only 2 CPUs available",
        ),
        (Resources(nano_cpus=-1), "range of CPUs"),
        (Resources(cpu_period=999), "CPU cfs period can not be less than 1ms"),
        (Resources(cpu_quota=999), "CPU cfs quota can not be less than 1ms"),
        (Resources(cpu_realtime_period=5, cpu_realtime_runtime=6), "cpu real-time runtime cannot be higher"),
        (Resources(cpuset_cpus="0-x"), "Invalid value 0-x for cpuset cpus"),
        (Resources(cpuset_cpus="5"), "Requested CPUs are not available - requested 5, available: 0-1"),
        (Resources(cpuset_mems="1"), "Requested memory nodes are not available - requested 1, available: 0"),
        (Resources(blkio_weight=5), "Range of blkio weight is from 10 to 1000"),
        (Resources(io_maximum_iops=1), "Invalid QoS settings"),
    ],
)
def test_impossible_limits(limits: Resources, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check(limits)


def test_possible_limits_are_silent() -> None:
    limits = Resources(
        memory=64 * MB, memory_swap=128 * MB, memory_swappiness=10, memory_reservation=32 * MB, pids_limit=5,
        cpu_period=1000, cpu_quota=1000, cpu_shares=5, cpuset_cpus="0,1", cpuset_mems="0", blkio_weight=10,
        blkio_device_read_bps=RATE, cpu_realtime_period=10, cpu_realtime_runtime=5, kernel_memory_tcp=1,
        blkio_weight_device=(WeightDevice(path="/dev/sda", weight=10),),
    )  # fmt: skip
    findings = check(limits)
    assert (findings.warnings, findings.discarded) == ([], [])
    check(Resources(memory_swap=64 * MB), update=True)


@pytest.mark.parametrize(
    ("limits", "discarded", "words"),
    [
        (Resources(memory=64 * MB), ["memory", "memory_swap"], "memory limit capabilities"),
        (Resources(memory_swappiness=5), ["memory_swappiness"], "Memory swappiness discarded."),
        (Resources(memory_reservation=64 * MB), ["memory_reservation"], "memory soft limit capabilities"),
        (Resources(oom_kill_disable=True), ["oom_kill_disable"], "OomKillDisable discarded."),
        (Resources(kernel_memory_tcp=1), ["kernel_memory_tcp"], "kernel memory TCP limit"),
        (Resources(pids_limit=1), ["pids_limit"], "PIDs limit discarded."),
        (Resources(cpu_shares=2), ["cpu_shares"], "Shares discarded."),
        (Resources(cpu_quota=1), ["cpu_period", "cpu_quota"], "CPU period/quota discarded."),
        (Resources(cpuset_cpus="0"), ["cpuset_cpus", "cpuset_mems"], "CPUset discarded."),
        (Resources(blkio_weight=1), ["blkio_weight"], "Weight discarded."),
        (Resources(blkio_weight_device=(WeightDevice(),)), ["blkio_weight_device"], "Weight-device discarded."),
        (Resources(blkio_device_read_bps=RATE), ["blkio_device_read_bps"], "BPS Block I/O read limit"),
        (Resources(blkio_device_write_iops=RATE), ["blkio_device_write_iops"], "IOPS Block I/O write limit"),
    ],
)
def test_what_the_kernel_lacks_is_discarded_with_a_warning(limits: Resources, discarded: list[str], words: str) -> None:
    findings = check(limits, UNABLE)
    assert findings.discarded == discarded
    assert words in findings.warnings[0]


def test_what_cannot_be_discarded_is_refused() -> None:
    with pytest.raises(ValueError, match="NanoCPUs can not be set"):
        check(Resources(nano_cpus=1), UNABLE)
    with pytest.raises(ValueError, match="does not support CPU real-time scheduler"):
        check(Resources(cpu_realtime_period=1), UNABLE)


def test_no_swap_accounting() -> None:
    findings = check(Resources(memory=64 * MB, memory_swap=65 * MB), HostFacts(supports=ALL - {"swap"}))
    assert findings.discarded == ["memory_swap"]


def test_a_kernel_without_it_keeps_no_word_of_the_oom_killer() -> None:
    findings = check(Resources(oom_kill_disable=False), UNABLE)
    assert (findings.discarded, findings.warnings) == (["oom_kill_disable"], [])
    assert check(Resources(oom_kill_disable=False)).discarded == []


def test_warnings_without_consequence() -> None:
    assert "no memory limit is set" in check(Resources(oom_kill_disable=True)).warnings[0]
    assert check(Resources(cpu_percent=1)).discarded == ["cpu_percent"]


@pytest.mark.parametrize(("text", "members"), [("", set()), ("0-2,7", {0, 1, 2, 7}), ("3", {3})])
def test_cpu_lists(text: str, members: set[int]) -> None:
    assert parse_cpu_list(text) == members


@pytest.mark.parametrize("text", ["a", "1-", "2-1", "9999", ",", "1" * 30])
def test_bad_cpu_lists(text: str) -> None:
    with pytest.raises(ValueError, match="not a list of numbers"):
        parse_cpu_list(text)
