"""The daemon is killed at every step that its journal knows, during each operation; the next start makes everything
right.

What must hold after the restart, whatever the step: every container that is listed can be inspected, started and
removed; what runs has a process, what does not has none; nothing is left on disk or in the kernel of what is not
listed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.support.daemons import Berth
from tests.support.leaks import cgroups, leftovers

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

STEPS = 6
"""More than any one operation journals; an operation that ends before its step is simply a run without a crash."""


class CrashingBerth(Berth):
    """A berth whose daemon can be told to die at a step."""

    crash_at = ""

    def command(self) -> list[str]:
        plain = super().command()
        if not self.crash_at:
            return plain
        return [sys.executable, "-m", "tests.support.crashing", self.crash_at, *plain[3:]]

    def arm(self, when: str, number: int) -> None:
        """Restart as a daemon that dies at that step of what comes next."""
        self.stop_daemon()
        self.crash_at = f"{when}:{number}"
        self.start()
        (self.data_root / "armed").touch()

    def stop_daemon(self) -> None:
        """End the daemon alone, whatever state it is in."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        (self.data_root / "armed").unlink(missing_ok=True)
        self.crash_at = ""

    def recover(self) -> None:
        """A healthy daemon again."""
        self.stop_daemon()
        self.start()


@pytest.fixture(scope="module")
def engine() -> Iterator[CrashingBerth]:
    """One data root for all crashes of this module."""
    berth = CrashingBerth(registry=False)
    try:
        berth.start()
        berth.make_busybox()
        yield berth
    finally:
        berth.recover()
        berth.stop()
    left = leftovers(str(berth.root), berth.bridge)
    berth.remove()
    assert not left, f"left behind: {sorted(left)}"


def listed(engine: Berth) -> dict[str, dict[str, object]]:
    """Every container by id, inspected."""
    identifiers = engine.docker("ps", "-aq", "--no-trunc", check=True).stdout.split()
    if not identifiers:
        return {}
    return {one["Id"]: one for one in json.loads(engine.docker("inspect", *identifiers, check=True).stdout)}


def check_invariants(engine: Berth, seen: set[str]) -> None:
    """Records and reality agree; then everything can be started and removed, and nothing stays."""
    found = listed(engine)
    for container in found.values():
        state = container["State"]
        assert isinstance(state, dict)
        assert state["Running"] == (state["Pid"] > 0), state
        if state["Running"]:
            assert Path(f"/proc/{state['Pid']}").exists(), state
    for identifier, container in found.items():
        if not container["State"]["Running"]:  # type: ignore[index]
            engine.docker("start", identifier, check=True)
    seen |= set(found)
    if found:
        engine.docker("rm", "-f", *found, check=True)
    wait_until_clean(engine, seen)


def wait_until_clean(engine: Berth, seen: set[str]) -> None:
    """No snapshot, folder, run folder or control group of a container is left."""
    folders = [engine.data_root / "snapshots", engine.data_root / "containers", engine.exec_root / "containers"]
    end = time.monotonic() + 10
    while True:
        left = {str(path) for folder in folders if folder.is_dir() for path in folder.iterdir()} | cgroups(seen)
        if not left:
            return
        assert time.monotonic() < end, f"left behind: {sorted(left)}\n{engine.last_words()}"
        time.sleep(0.1)


def prepare(engine: Berth, operation: str) -> list[str]:
    """What must exist before the operation, and the operation's command line."""
    if operation in ("start", "remove", "remove-volumes"):
        engine.docker("create", "-v", "/anonymous", "--name", "subject", "busybox", "sleep", "60", check=True)
    elif operation == "commit":
        script = "echo data >/kept; exec sleep 60"
        engine.docker("run", "-d", "--name", "subject", "busybox", "sh", "-c", script, check=True)
        while engine.docker("exec", "subject", "test", "-s", "/kept").returncode:
            time.sleep(0.02)
    elif operation in ("exec", "stop", "pause", "rename", "kill"):
        engine.docker("run", "-d", "--name", "subject", "busybox", "sleep", "60", check=True)
    return {
        "create": ["create", "-v", "/anonymous", "--name", "subject", "busybox", "sleep", "60"],
        "start": ["start", "subject"],
        "exec": ["exec", "subject", "true"],
        "stop": ["stop", "-t", "0", "subject"],
        "kill": ["kill", "subject"],
        "pause": ["pause", "subject"],
        "rename": ["rename", "subject", "renamed"],
        "remove": ["rm", "subject"],
        "remove-volumes": ["rm", "-v", "subject"],
        "run": ["run", "--rm", "--name", "subject", "busybox", "true"],
        "commit": ["commit", "subject", "committed:1"],
    }[operation]


@pytest.mark.parametrize(
    "operation", ["create", "start", "exec", "stop", "kill", "pause", "rename", "remove", "run", "commit"]
)
def test_a_crash_at_any_step_loses_and_leaks_nothing(engine: CrashingBerth, operation: str) -> None:
    crashes = 0
    for when in ("before", "after"):
        if (operation, when) == ("remove", "after"):
            operation = "remove-volumes"
        for number in range(1, STEPS + 1):
            command = prepare(engine, operation)
            existing = set(listed(engine))
            engine.arm(when, number)
            done = engine.docker(*command, seconds=30)
            assert engine.process is not None
            time.sleep(0.05)
            crashed = engine.process.poll() is not None
            crashes += crashed
            engine.recover()
            after = listed(engine)
            check_promises(operation, done, crashed, existing, after)
            if operation == "commit":
                check_commit(engine, done)
            check_volumes(engine, operation, after)
            check_invariants(engine, existing)
            engine.docker("volume", "prune", "-f", check=True)
            if not crashed:
                break
    assert crashes or operation == "exec", "no step was found to crash at"


def check_volumes(engine: Berth, operation: str, containers: dict[str, dict[str, object]]) -> None:
    """An anonymous volume lives as long as its container, and longer where nobody asked for its removal."""
    volumes = engine.docker("volume", "ls", "-q", check=True).stdout.split()
    if operation in ("create", "start", "remove-volumes"):
        assert len(volumes) == len(containers), volumes
    if operation == "remove":
        assert len(volumes) == 1, volumes


def check_commit(engine: Berth, done: CompletedProcess[str]) -> None:
    """An image that the client was told of is there; one that is there is whole; nothing half done is left."""
    named = engine.docker("images", "-q", "committed:1", check=True).stdout.split()
    assert named or done.returncode, "the image that was promised is gone"
    for image in set(named + engine.docker("images", "-q", "-f", "dangling=true", check=True).stdout.split()):
        assert engine.docker("run", "--rm", image, "cat", "/kept", check=True).stdout == "data\n"
        engine.docker("rmi", "-f", image, check=True)
    unfinished = engine.data_root / "registry" / "berth" / "tmp"
    end = time.monotonic() + 10
    while unfinished.is_dir() and (left := list(unfinished.iterdir())):
        assert time.monotonic() < end, f"left behind: {left}"
        time.sleep(0.1)


def check_promises(
    operation: str,
    done: CompletedProcess[str],
    crashed: bool,
    existing: set[str],
    after: dict[str, dict[str, object]],
) -> None:
    """What the client was told is so; what it was not told may be either way."""
    if done.returncode == 0:
        if operation == "create":
            assert done.stdout.strip() in after
        if operation == "start":
            assert all(one["State"]["Running"] for one in after.values())  # type: ignore[index]
        if operation in ("remove", "remove-volumes"):
            assert not after
        if operation == "rename":
            assert [one["Name"] for one in after.values()] == ["/renamed"]
        if operation in ("stop", "kill"):
            assert not any(one["State"]["Running"] for one in after.values())  # type: ignore[index]
    elif operation not in ("remove", "remove-volumes", "run"):
        assert existing <= set(after), "a container that nobody asked to remove is gone"
    del crashed
