"""Stats documents are dockerd's: what is zero there is left out, what is unknown is null or empty."""

from __future__ import annotations

from engine.api.shapes.stats import stats_view
from engine.containers.stats import NOTHING, Sample, Traffic
from engine.runtime.cgroupstats import BlkioEntry, CgroupStats

SAMPLE = Sample(
    read_at=1_700_000_000_000_000_000,
    cgroup=CgroupStats(
        cpu_total=50,
        cpu_user=30,
        cpu_system=20,
        cpu_percpu=(20, 30),
        memory_usage=4096,
        memory_max_usage=8192,
        memory_stat={"total_inactive_file": 1024},
        pids=3,
        io_bytes=(BlkioEntry(254, 0, "Read", 512),),
    ),
    system_cpu=1000,
    online_cpus=2,
    memory_limit=1 << 30,
    traffic={"eth0": Traffic(rx_bytes=7, tx_packets=1)},
)


def test_a_running_container_on_v1() -> None:
    shown = stats_view("c1", "one", SAMPLE, NOTHING, 1)
    assert (shown["name"], shown["id"], shown["read"]) == ("/one", "c1", "2023-11-14T22:13:20Z")
    assert shown["preread"] == "0001-01-01T00:00:00Z"
    assert shown["pids_stats"] == {"current": 3}
    assert shown["memory_stats"] == {
        "usage": 4096,
        "max_usage": 8192,
        "limit": 1 << 30,
        "stats": {"total_inactive_file": 1024},
    }
    assert shown["cpu_stats"]["cpu_usage"]["percpu_usage"] == [20, 30]
    assert shown["cpu_stats"]["system_cpu_usage"] == 1000
    assert shown["precpu_stats"]["cpu_usage"]["total_usage"] == 0
    assert "system_cpu_usage" not in shown["precpu_stats"]
    assert shown["blkio_stats"]["io_service_bytes_recursive"] == [
        {"major": 254, "minor": 0, "op": "Read", "value": 512}
    ]
    assert shown["blkio_stats"]["sectors_recursive"] == []
    assert shown["networks"]["eth0"]["rx_bytes"] == 7


def test_v2_has_no_peak_and_says_that_pids_are_unlimited() -> None:
    shown = stats_view("c1", "one", SAMPLE, SAMPLE, 2)
    assert shown["pids_stats"]["limit"] == 2**64 - 1
    assert "max_usage" not in shown["memory_stats"]
    assert shown["blkio_stats"]["sectors_recursive"] is None
    assert shown["precpu_stats"] == shown["cpu_stats"]
    assert shown["preread"] == shown["read"]


def test_a_stopped_container_has_a_name_and_nothing_else() -> None:
    shown = stats_view("c1", "one", NOTHING, NOTHING, 1)
    assert shown["read"] == "0001-01-01T00:00:00Z"
    assert (shown["pids_stats"], shown["memory_stats"]) == ({}, {})
    assert set(shown["blkio_stats"].values()) == {None}
    assert "networks" not in shown
