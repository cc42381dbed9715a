"""An exec's terminal: its output is heard whenever the runtime hands the terminal over."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.shim import wire
from engine.shim.execs import Execs, in_session
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


def test_a_session_is_listed_without_what_left_it(tmp_path: Path) -> None:
    away = tmp_path / "away"
    script = f"sleep 50 & setsid sh -c 'echo $$ > {away}; exec sleep 51' & while ! [ -s {away} ]; do :; done"
    with subprocess.Popen(["sh", "-c", script], start_new_session=True) as leader:
        leader.wait()
    here = Path("/proc/self/cgroup").read_text()
    left = in_session(leader.pid, here)
    try:
        assert [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left] == [b"sleep\x0050\x00"]
        # Its number, given to somebody else: not a process of the container's.
        assert in_session(leader.pid, "elsewhere") == []
    finally:
        for pid in (*left, int(away.read_text())):
            os.kill(pid, signal.SIGKILL)


def test_a_terminal_that_comes_with_the_runtimes_end_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loop = Loop(lambda _pid, _status: None)
    settings = {
        "container_id": "c",
        "spill_dir": str(tmp_path),
        "leaf_folder": "",
        "owner": [0, 0],
        "leaf_prefix": "",
        "leaf_way": "",
    }
    told: list[wire.Message] = []
    runtime: Any = HastyRuntime()
    execs = Execs(loop, runtime, settings, told.append, frozenset)
    execs.prepare({"exec_id": "e", "cgroup": "", "console_size": [20, 70], "terminal": True, "open_stdin": False})
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
