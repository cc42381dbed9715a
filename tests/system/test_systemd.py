"""A host whose first process is systemd and whose control groups are v2: containers are units of systemd's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from engine.runtime.cgroups import Cgroups, resolve
from tests.support.daemons import Berth


def _lacks() -> str:
    """Why this host is not such a host, or ""."""
    if not os.path.isdir("/run/systemd/system"):
        return "systemd does not run here"
    version = Cgroups.detect_sync().version
    return "" if version == 2 else f"control groups are v{version} here"


pytestmark = [pytest.mark.system, pytest.mark.skipif(bool(_lacks()), reason=_lacks() or "it is one")]
Docker = Callable[..., CompletedProcess[str]]


@pytest.fixture(params=["crun", "runc"])
def runtime(request: pytest.FixtureRequest) -> str:
    if shutil.which(request.param) is None:
        pytest.skip(f"needs {request.param}")
    return str(request.param)


def _scope(docker: Docker, name: str) -> Path:
    identifier = json.loads(docker("inspect", name, check=True).stdout)[0]["Id"]
    return Path(Cgroups.detect_sync().unified + resolve(f"system.slice:docker:{identifier}"))


def _limits(scope: Path) -> dict[str, str]:
    names = ["memory.max", "memory.low", "memory.swap.max", "cpu.max", "cpu.weight", "pids.max"]
    names += ["cpuset.cpus", "cpuset.mems"]
    return {name: (scope / name).read_text().strip() for name in names if (scope / name).exists()}


def _reload() -> None:
    subprocess.run(["systemctl", "daemon-reload"], check=True, timeout=60)


def test_limits_outlive_a_reload_of_systemds_units(docker: Docker, busybox: str, runtime: str) -> None:
    """It writes all that it knows of a unit, and "none" for what it was not told."""
    limits = ["--memory=64m", "--memory-swap=96m", "--memory-reservation=16m", "--cpus=0.5", "--pids-limit=20"]
    limits += ["--cpu-shares=300"]
    processors: list[str] = []
    if "cpuset" in Cgroups.detect_sync().controllers:
        limits.append("--cpuset-cpus=0")
        processors = [f"--cpuset-cpus={max(os.sched_getaffinity(0))}", "--cpuset-mems=0"]
    try:
        docker("run", "-d", "--name", "kept", "--runtime", runtime, *limits, busybox, "sleep", "1000", check=True)
        scope = _scope(docker, "kept")
        before = _limits(scope)
        assert before["memory.max"] == str(64 << 20)
        _reload()
        assert _limits(scope) == before
        docker("update", "--memory=80m", "--memory-swap=160m", "--cpus=0.75", "--pids-limit=-1", "kept", check=True)
        if processors:
            docker("update", *processors, "kept", check=True)
        changed = _limits(scope)
        assert not processors or f"--cpuset-cpus={changed['cpuset.cpus']}" == processors[0]
        names = ("memory.max", "memory.swap.max", "cpu.max", "pids.max")
        assert [changed[name] for name in names] == [str(80 << 20), str(80 << 20), "75000 100000", "max"]
        _reload()
        assert _limits(scope) == changed
    finally:
        docker("rm", "-f", "kept")


def test_no_container_changes_how_the_hosts_hierarchy_is_mounted(docker: Docker, busybox: str, runtime: str) -> None:
    """Whoever mounts cgroup2 from the first cgroup namespace sets these options for everybody."""
    def options() -> str:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return next(line.rsplit(" ", 1)[1] for line in lines if " - cgroup2 " in line)

    before = options()
    docker("run", "--rm", "--runtime", runtime, "--cgroupns=host", busybox, "true", check=True)
    docker("run", "--rm", "--runtime", runtime, "--privileged", "--cgroupns=host", busybox, "true", check=True)
    assert options() == before


def test_containers_are_scopes_below_the_slice_that_was_asked_for(berth: Berth, docker: Docker, busybox: str) -> None:
    arguments = ("run", "--rm", "--cgroupns=host", "--cgroup-parent=berth-test.slice", busybox, "cat")
    done = docker(*arguments, "/proc/self/cgroup", check=True)
    assert done.stdout.startswith("0::/berth.slice/berth-test.slice/docker-")
    assert done.stdout.endswith(".scope\n")


def test_an_exec_sees_the_containers_limits(docker: Docker, busybox: str, runtime: str) -> None:
    """Programs look for them in the group that /proc/self/cgroup names."""
    try:
        docker("run", "-d", "--name", "seen", "--runtime", runtime, "-m", "64m", busybox, "sleep", "1000", check=True)
        script = "read line </proc/self/cgroup; echo $line; cat /sys/fs/cgroup${line#0::}/memory.max"
        assert docker("exec", "seen", "sh", "-c", script, check=True).stdout == f"0::/\n{64 << 20}\n"
    finally:
        docker("rm", "-f", "seen")
