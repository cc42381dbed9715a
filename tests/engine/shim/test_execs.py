"""Execs: what belongs to one is found, and a terminal is heard whenever the runtime hands it over."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.shim import execs as execs_module
from engine.shim import wire
from engine.shim.execs import Execs, marked
from engine.shim.loop import READ, Loop


class HastyRuntime:
    """Hands the master over and ends, before anybody can have looked; what was exec'ed has ended too."""

    def start(
        self,
        arguments: Sequence[str],
        _stdio: Sequence[int],
        _log: str,
        done: Callable[[int], None],
        *,
        ahead: bool = False,
    ) -> None:
        assert ahead
        master, slave = pty.openpty()
        os.write(slave, b"all it said")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(arguments[arguments.index("--console-socket") + 1])
            socket.send_fds(connection, [b"x"], [master])
        os.close(slave)
        os.close(master)
        Path(arguments[arguments.index("--pid-file") + 1]).write_text("4000000")
        done(0)

    def claim(self, _pid: int) -> int:
        return 0


class ReadingRuntime:
    """Starts nothing, but reads what it was to start."""

    def __init__(self) -> None:
        self.process: dict[str, Any] = {}

    def start(
        self,
        arguments: Sequence[str],
        _stdio: Sequence[int],
        _log: str,
        _done: Callable[[int], None],
        *,
        ahead: bool = False,
    ) -> None:
        assert not ahead
        self.process = json.loads(Path(arguments[arguments.index("--process") + 1]).read_bytes())


def settings_in(folder: Path) -> dict[str, Any]:
    """Of a container whose execs have no groups of their own."""
    return {
        "container_id": "c",
        "spill_dir": str(folder),
        "leaf_folder": "",
        "owner": [0, 0],
        "leaf_prefix": "",
        "leaf_way": "",
    }


def test_what_has_the_mark_is_listed_wherever_it_went(tmp_path: Path) -> None:
    """An orphan with a session of its own is found; what has another limit, or is in another group, is not."""
    pids = tmp_path / "pids"
    script = f"""
    sleep 50 & echo $! >> {pids}
    (setsid sh -c 'echo $$ >> {pids}; exec sleep 51' &)
    while [ $(wc -l < {pids}) -lt 2 ]; do :; done
    exec prlimit --locks=7:7 sleep 52"""
    group = Path("/proc/self/cgroup").read_text()
    with subprocess.Popen(["prlimit", "--locks=77:77", "sh", "-c", script]) as other:
        while Path(f"/proc/{other.pid}/cmdline").read_bytes() != b"sleep\x0052\x00":
            time.sleep(0.005)
        made = sorted(int(pid) for pid in pids.read_text().split())
        try:
            assert sorted(marked("77", group)) == made
            assert marked("7", group) == [other.pid]
            assert marked("77", "elsewhere") == []
        finally:
            for pid in (*made, other.pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("limits", "ours", "is_marked"),
    [
        ([{"type": "RLIMIT_NOFILE", "hard": 9, "soft": 8}], "unlimited", True),
        ([], str(1 << 40), True),
        ([], "0", False),
        ([{"type": "RLIMIT_LOCKS", "hard": 5, "soft": 5}], "unlimited", False),
    ],
)
def test_an_exec_without_a_group_is_marked_unless_such_a_limit_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: list[dict[str, Any]], ours: str, is_marked: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(execs_module, "_locks", lambda _pid: ours)
    loop = Loop(lambda _pid, _status: None)
    runtime: Any = ReadingRuntime()
    execs = Execs(loop, runtime, settings_in(tmp_path), lambda _told: None, frozenset)
    for exec_id in ("e", "f"):
        message = {"exec_id": exec_id, "cgroup": "", "terminal": False, "open_stdin": False}
        execs.prepare(message)
        process = {"args": ["sleep"], "rlimits": limits}
        (tmp_path / f"exec-{exec_id}.json").write_text(json.dumps(process))
        execs.start(exec_id, lambda _answer: None)
        mark = execs.get(exec_id).mark
        if is_marked:
            value = int(mark)
            assert ours == "unlimited" or value < int(ours)
            process["rlimits"] = [*limits, {"type": "RLIMIT_LOCKS", "hard": value, "soft": value}]
        assert bool(mark) == is_marked
        assert runtime.process == process
    assert not is_marked or execs.get("e").mark != execs.get("f").mark
    known = execs.get("e")
    known.pid = 4000000  # what has neither a group nor a mark is itself alone, for as long as it runs
    assert known.pids() == ([] if is_marked else [4000000])
    known.reaped = True
    assert known.pids() == []
    execs.close()
    loop.close()


def test_a_terminal_that_comes_with_the_runtimes_end_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loop = Loop(lambda _pid, _status: None)
    told: list[wire.Message] = []
    runtime: Any = HastyRuntime()
    execs = Execs(loop, runtime, settings_in(tmp_path), told.append, frozenset)
    execs.prepare({"exec_id": "e", "cgroup": "", "console_size": [20, 70], "terminal": True, "open_stdin": False})
    (tmp_path / "exec-e.json").write_text("{}")
    ours, theirs = socket.socketpair()
    execs.get("e").stdio.attach(theirs, stdin=False, streams=frozenset((wire.STDOUT,)), close_input=False)
    execs.start("e", told.append)
    loop.after(2, loop.stop)
    ours.settimeout(0)

    def read() -> None:
        heard.extend(ours.recv(100))
        loop.stop()

    heard = bytearray()
    loop.watch(ours.fileno(), READ, lambda _events: read())
    loop.run()
    assert bytes(heard) == b"all it said"
    ours.close()
    execs.close()
    for stdio in execs.lingering():
        for attachment in tuple(stdio.attachments):
            attachment.drop()
    loop.close()
