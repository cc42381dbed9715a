"""What the host offers, read from the host of the test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.config import Config, ConfigError
from engine.containers import hostprobe
from engine.containers.hostprobe import (
    all_devices_sync,
    cdi_documents_sync,
    device_nodes_sync,
    probe_host_sync,
    seccomp_profile_sync,
)


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


def test_cgroup_version_two_weighs_devices_where_the_scheduler_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {
        "/proc/self/mountinfo": f"35 1 0:30 / {tmp_path} rw - cgroup2 cgroup2 rw",
        f"{tmp_path}/cgroup.controllers": "io",
    }
    monkeypatch.setattr(hostprobe, "_read", lambda path: texts.get(path, ""))
    assert probe_host_sync().supports == {"blkio_weight", "blkio_throttle"}
    (tmp_path / "system.slice").mkdir()
    (tmp_path / "system.slice" / "io.bfq.weight").touch()
    assert probe_host_sync().supports == {"blkio_weight", "blkio_weight_device", "blkio_throttle"}


def test_device_specifications_are_read_as_json_with_tabs_and_as_yaml(tmp_path: Path) -> None:
    (tmp_path / "tabs.json").write_text('{\n\t"kind": "a.com/gpu",\n\t"devices": [\n\t\t{"name": "0"}\n\t]\n}')
    (tmp_path / "words.yaml").write_text("kind: b.com/gpu\ndevices: [{name: one}]\n")
    (tmp_path / "yaml.json").write_text("kind: c.com/gpu\ndevices: [{name: two}]\n")
    (tmp_path / "zz.json").write_text("{")
    found = cdi_documents_sync([str(tmp_path), str(tmp_path / "nosuch")])
    kinds = [content and content["kind"] for _path, content in found]
    assert kinds == ["a.com/gpu", "b.com/gpu", "c.com/gpu", None]


def test_the_daemons_own_seccomp_profile_is_read_from_its_file(tmp_path: Path) -> None:
    assert [seccomp_profile_sync(Config(seccomp_profile=word)) for word in ("", "builtin", "unconfined")] == [
        "builtin",
        "builtin",
        "unconfined",
    ]
    (tmp_path / "profile.json").write_text("{}")
    assert seccomp_profile_sync(Config(seccomp_profile=str(tmp_path / "profile.json"))) == "{}"
    with pytest.raises(ConfigError, match=f"^opening seccomp profile \\({tmp_path}/no\\) failed: .*/no: no such file"):
        seccomp_profile_sync(Config(seccomp_profile=f"{tmp_path}/no"))
