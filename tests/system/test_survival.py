"""The daemon dies and comes back: containers go on, nothing is lost, nothing is left."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.runtime.oci import PREFERENCE
from tests.support.daemons import Berth, free_port
from tests.support.leaks import cgroups, leftovers, processes
from tests.support.slow_runtime import write_slow_runtime

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

COUNT = "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.02; done"


@pytest.fixture
def engine() -> Iterator[Berth]:
    """A berth of this test's own, because it is killed."""
    berth = Berth(registry=False)
    try:
        berth.start()
        berth.make_busybox()
        yield berth
    finally:
        if berth.process is not None and berth.process.poll() is not None:
            berth.start()
        berth.stop()
    end = time.monotonic() + 5
    while (left := leftovers(str(berth.root), berth.bridge)) and time.monotonic() < end:
        time.sleep(0.1)
    berth.remove()
    assert not left, f"left behind: {sorted(left)}"


def fetch(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/hostname", timeout=5) as answer:
        return str(answer.read().decode())


def exit_code(engine: Berth, name: str) -> int:
    return int(engine.docker("inspect", "-f", "{{.State.ExitCode}}", name, check=True).stdout)


def test_a_killed_daemon_loses_no_container_log_line_port_or_exit_code(engine: Berth) -> None:
    port = free_port()
    engine.docker(
        "run", "-d", "--name", "web", "-p", f"127.0.0.1:{port}:80", "busybox",
        "sh", "-c", f"mkdir /w; hostname > /w/hostname; httpd -h /w -p 80; {COUNT}", check=True,
    )  # fmt: skip
    engine.docker("run", "-d", "--name", "ends", "busybox", "sh", "-c", "sleep 1; echo last; exit 42", check=True)
    engine.docker("run", "-d", "--rm", "--name", "removes", "busybox", "sleep", "1", check=True)
    before = fetch(port)
    engine.kill()
    assert fetch(port) == before, "a published port needs no daemon"
    time.sleep(1.5)
    engine.start()
    assert fetch(port) == before
    assert engine.docker("exec", "web", "hostname", check=True).stdout == before
    assert exit_code(engine, "ends") == 42
    assert engine.docker("logs", "ends", check=True).stdout == "last\n"
    assert engine.docker("inspect", "removes").returncode == 1, "--rm holds although nobody watched the end"
    lines = [int(line.split()[1]) for line in engine.docker("logs", "web", check=True).stdout.splitlines()]
    assert lines == list(range(len(lines))) and len(lines) > 50
    assert engine.docker("stop", "-t", "0", "web", check=True).stdout == "web\n"
    assert exit_code(engine, "web") == 137


def test_an_attached_client_and_a_second_daemon_see_the_same_container(engine: Berth) -> None:
    engine.docker("run", "-d", "--name", "echo", "-i", "busybox", "cat", check=True)
    engine.kill()
    engine.start()
    command = ["docker", "-H", engine.host, "attach", "echo"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=engine.environment()) as client:
        assert client.stdin is not None and client.stdout is not None
        client.stdin.write(b"after the crash\n")
        client.stdin.flush()
        assert client.stdout.readline() == b"after the crash\n"
        engine.docker("kill", "echo", check=True)
        assert client.stdout.read() == b""


def test_a_reboot_is_recognised_by_the_empty_run_folder(engine: Berth) -> None:
    engine.docker("run", "-d", "--name", "plain", "busybox", "sleep", "1000", check=True)
    engine.docker("run", "-d", "--name", "again", "--restart", "always", "busybox", "sleep", "1000", check=True)
    engine.docker(
        "run", "-d", "--name", "stopped", "--restart", "unless-stopped", "busybox", "sleep", "1000", check=True
    )
    engine.docker("create", "--name", "unborn", "--restart", "always", "busybox", "sleep", "1000", check=True)
    engine.docker("stop", "-t", "0", "stopped", check=True)
    engine.kill()
    reboot(engine)
    engine.start()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        states = dict(
            line.split() for line in engine.docker("ps", "-a", "--format", "{{.Names}} {{.State}}").stdout.splitlines()
        )
        if states["again"] == "running":
            break
        time.sleep(0.2)
    assert states == {"plain": "exited", "again": "running", "stopped": "exited", "unborn": "created"}
    identifier = engine.docker("inspect", "-f", "{{.Id}}", "plain", check=True).stdout.strip()
    assert not cgroups({identifier}), "an ended container has no control group, however it ended"
    assert exit_code(engine, "plain") == 255


def test_after_a_reboot_each_starts_after_what_it_needs(engine: Berth) -> None:
    policy = ("--restart", "always")
    engine.docker("run", "-d", "--name", "owner", *policy, "busybox", "sleep", "1000", check=True)
    joins = ("--network", "container:owner")
    engine.docker("run", "-d", "--name", "joins", *policy, *joins, "busybox", "sleep", "1000", check=True)
    engine.docker("run", "-d", "--name", "linked", *policy, "--link", "owner:o", "busybox", "sleep", "1000", check=True)
    engine.kill()
    reboot(engine)
    engine.start()
    deadline = time.monotonic() + 20
    names = ("owner", "joins", "linked")
    form = "{{.State.Running}} {{.RestartCount}} {{.State.Error}}"
    while time.monotonic() < deadline:
        found = engine.docker("inspect", "-f", form, *names, check=True).stdout.split("\n")
        if all(line.startswith("true") for line in found[:3]):
            break
        time.sleep(0.2)
    assert [line.strip() for line in found[:3]] == ["true 0"] * 3  # at the first attempt, each
    engine.docker("rm", "-f", *names, check=True)


def reboot(engine: Berth) -> None:
    """What a reboot does to a machine: every process of ours is gone, and so is the run folder."""
    pids = [int(path.read_text()) for path in (engine.exec_root / "containers").glob("*/init.pid")]
    for pid in [*processes(str(engine.exec_root)), *pids]:
        kill(pid)
    shutil.rmtree(engine.exec_root)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_a_daemon_killed_during_a_slow_start_comes_back_and_the_start_is_undone(tmp_path: Path) -> None:
    real = next(path for name in PREFERENCE if (path := shutil.which(name)))
    script = write_slow_runtime(tmp_path / "slow", real, 2)
    berth = Berth(registry=False, options=("--add-runtime", f"slow={script}"))
    try:
        berth.start()
        berth.make_busybox()
        berth.docker("create", "--name", "late", "--runtime", "slow", "busybox", "sleep", "1000", check=True)
        command = ["docker", "-H", berth.host, "start", "late"]
        with subprocess.Popen(command, env=berth.environment(), stderr=subprocess.DEVNULL) as client:
            time.sleep(0.8)
            berth.kill()
            assert client.wait() != 0
        berth.start()
        assert berth.docker("inspect", "-f", "{{.State.Status}}", "late", check=True).stdout == "created\n"
        left = processes(str(berth.exec_root / "containers"))
        assert not left, "the start that nobody was told of is undone"
        berth.docker("start", "late", check=True)
        assert berth.docker("exec", "late", "echo", "runs", check=True).stdout == "runs\n"
    finally:
        berth.stop()
    left_behind = leftovers(str(berth.root), berth.bridge)
    berth.remove()
    assert not left_behind


def test_a_graceful_stop_leaves_containers_running_and_a_start_finds_them(engine: Berth) -> None:
    engine.docker("run", "-d", "--name", "stays", "busybox", "sh", "-c", COUNT, check=True)
    pid = engine.docker("inspect", "-f", "{{.State.Pid}}", "stays", check=True).stdout.strip()
    assert engine.process is not None
    engine.process.terminate()
    assert engine.process.wait(20) == 0
    assert Path(f"/proc/{pid}").exists()
    engine.start()
    assert engine.docker("inspect", "-f", "{{.State.Pid}}", "stays", check=True).stdout.strip() == pid


def test_a_killed_shim_is_noticed_and_its_container_ended(engine: Berth) -> None:
    engine.docker("run", "-d", "--name", "lost", "busybox", "sleep", "1000", check=True)
    identifier = engine.docker("inspect", "-f", "{{.Id}} {{.State.Pid}}", "lost", check=True).stdout.split()
    parent = int(Path(f"/proc/{identifier[1]}/stat").read_text().rpartition(")")[2].split()[1])
    kill(parent)
    assert engine.docker("wait", "lost", seconds=20).stdout == "255\n"
    assert not Path(f"/proc/{identifier[1]}").exists()
    engine.docker("start", "lost", check=True)
