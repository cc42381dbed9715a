"""What the host offers, read from the host of the test."""

from __future__ import annotations

import os

import pytest

from engine.containers import hostprobe
from engine.containers.hostprobe import all_devices_sync, device_nodes_sync, probe_host_sync


def test_the_host_of_this_test() -> None:
    facts = probe_host_sync()
    assert facts.cpus == os.cpu_count()
    assert facts.cgroup_version in (1, 2)
    assert facts.kernel >= (4, 0)
    assert facts.memory_total > 0
    assert facts.arch == os.uname().machine


def test_forwarding_that_the_daemon_will_turn_on_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostprobe, "_read", lambda path: "0" if path.endswith("ip_forward") else "")
    assert not probe_host_sync().ipv4_forwarding
    assert probe_host_sync(will_forward=True).ipv4_forwarding


def test_devices_are_found_one_by_one_and_by_folder() -> None:
    (null,) = device_nodes_sync("/dev/null")
    assert (null.kind, null.major, null.minor) == ("c", 1, 3)
    everything = {node.path: node for node in all_devices_sync()}
    assert everything["/dev/null"] == null
    assert "/dev/console" not in everything
    assert not any(path.startswith(("/dev/pts/", "/dev/shm/")) for path in everything)
    assert device_nodes_sync("/etc/passwd") == []
    with pytest.raises(FileNotFoundError):
        device_nodes_sync("/dev/does-not-exist")


def test_cgroup_version_two_is_read_from_its_controllers(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "/proc/self/mountinfo": "35 1 0:30 / /cg rw - cgroup2 cgroup2 rw",
        "/cg/cgroup.controllers": "cpuset cpu memory strange",
        "/cg/cpuset.cpus.effective": "0-3",
        "/cg/cpuset.mems.effective": "0",
    }
    monkeypatch.setattr(hostprobe, "_read", lambda path: texts.get(path, ""))
    facts = probe_host_sync()
    assert (facts.cgroup_version, facts.cpuset_cpus, facts.cpuset_mems) == (2, "0-3", "0")
    assert facts.supports == {"cpuset", "cpu_shares", "cpu_cfs", "memory", "swap", "reservation"}
