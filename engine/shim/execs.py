"""The processes exec'ed into a container: their streams before, their exit codes after.

An exec may be attached to before it starts, so that nothing of its output is missed. Its exit code is kept until the
shim ends, because the daemon that asked may not be the one that wants to know.

On v1 each exec runs in a leaf group below the container's, and what belongs to it is what lies in there. On v2 it runs
in the container's group, where it finds its limits, and what belongs to it is what has its mark: a number of its own as
the limit of file locks, which the kernel hands on to every child and has not heeded since Linux 2.4.25 (getrlimit(2),
"RLIMIT_LOCKS"). Neither a session of its own nor another parent takes a process out of that.

A runtime that cannot be asked for a leaf (crun) writes the process into the container's own list of processes; for as
long as it runs, the leaf's list lies over that one in the shim's mount namespace, so such starts take turns.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from engine.shim import console, invoke, mounts, wire
from engine.shim.loop import Loop
from engine.shim.stdio import Daemons, Stdio

Answer = Callable[[wire.Message], None]

KEPT = 100  # exit codes remembered; a health check would otherwise grow the shim for ever
MARKS = 1 << 56  # lie below it, and below the own limit, which may be the mark of an exec that berth itself runs in
LEAST_MARKS = 1 << 32  # of fewer, two could be the same


class Exec:
    """One process object, started at most once."""

    def __init__(self, exec_id: str, container_id: str, settings: dict[str, Any], stdio: Stdio) -> None:
        self.exec_id = exec_id
        self.container_id = container_id
        self.stdio = stdio
        size = settings.get("console_size")
        self.console_size: tuple[int, int] | None = (size[0], size[1]) if size else None
        self.cgroup = str(settings["cgroup"])
        self.leaf = ""
        self.started = False
        self.reaped = False
        self.pid: int | None = None
        self.mark = ""
        self.exit_code: int | None = None
        self.finished_at = 0

    def pids(self) -> list[int]:
        """What runs of it, and of what it left behind: everything in its control group, else with its mark, else itself
        alone."""
        if self.leaf:
            with contextlib.suppress(OSError):
                return [int(pid) for pid in invoke.read_whole(f"{self.leaf}/cgroup.procs").split()]
        if self.mark:
            return marked(self.mark, self.container_id)
        return [self.pid] if self.pid and not self.reaped else []

    def remove_leaf(self) -> None:
        """Its control group goes when nothing is left in it; otherwise with the container's."""
        if self.leaf:
            with contextlib.suppress(OSError):
                os.rmdir(self.leaf)
                self.leaf = ""

    def state(self) -> wire.Message:
        return {
            "pid": self.pid,
            "exit_code": self.exit_code,
            "started": self.started,
            "finished_at": self.finished_at,
        }


def marked(mark: str, container_id: str) -> list[int]:
    """The processes with this mark in groups of the container: what runs on has no more than a number in common."""
    found = []
    group = container_id.encode()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if group in invoke.read_whole(f"/proc/{name}/cgroup") and _locks(name) == mark and not _is_zombie(name):
                found.append(int(name))
    return found


def _locks(pid: str) -> str:
    """A process's hard limit of file locks, a number or "unlimited"; "" or OSError when it is gone.

    prlimit(2) would want to be asked by the same user or with a capability that not every daemon has.
    """
    for line in invoke.read_whole(f"/proc/{pid}/limits").splitlines():
        if line.startswith(b"Max file locks"):
            return line.split()[4].decode()
    return ""


def _is_zombie(pid: str) -> bool:
    """Whether it has ended and nobody has asked how (proc(5), /proc/pid/stat)."""
    return invoke.read_whole(f"/proc/{pid}/stat").rpartition(b")")[2].lstrip().startswith(b"Z")


class Execs:
    """All of one container's."""

    def __init__(
        self,
        loop: Loop,
        runtime: invoke.Runtime,
        settings: dict[str, Any],
        tell: Answer,
        daemons: Daemons,
    ) -> None:
        self._loop = loop
        self._runtime = runtime
        self._container_id = str(settings["container_id"])
        self._spill_dir = str(settings["spill_dir"])
        self._owner = settings["owner"]
        self._leaf_folder = str(settings["leaf_folder"])
        self._leaf_prefix = str(settings["leaf_prefix"])
        self._leaf_covered = settings["leaf_way"] == "covered"
        self._turns: list[Callable[[], None]] = []  # starts where a list is covered; the first is under way
        self._tell = tell
        self._daemons = daemons
        self._known: dict[str, Exec] = {}

    def states(self) -> dict[str, wire.Message]:
        return {exec_id: known.state() for exec_id, known in self._known.items()}

    def get(self, exec_id: str) -> Exec:
        known = self._known.get(exec_id)
        if known is None:
            raise LookupError(f"no exec {exec_id}")
        return known

    def prepare(self, message: wire.Message) -> None:
        exec_id = message["exec_id"]
        if exec_id in self._known:
            raise FileExistsError(f"exec {exec_id} exists")
        stdio = Stdio(
            self._loop,
            terminal=message["terminal"],
            open_stdin=message["open_stdin"],
            stdin_once=False,
            spill_dir=self._spill_dir,
            log=None,
            daemons=self._daemons,
            owner=self._owner,
        )
        self._known[exec_id] = Exec(exec_id, self._container_id, message, stdio)

    def start(self, exec_id: str, answer: Answer) -> None:
        """Run it; `answer` is called with its pid or the runtime's failure."""
        known = self.get(exec_id)
        if known.started:
            raise FileExistsError(f"exec {exec_id} has already run")
        known.started = True
        pid_file, log = f"exec-{exec_id}.pid", f"exec-{exec_id}.log"
        arguments = ["exec", "--detach", "--process", os.path.abspath(f"exec-{exec_id}.json")]
        arguments += ["--pid-file", os.path.abspath(pid_file)]
        arguments += self._leaf(known)
        listener = None
        if known.stdio.terminal:
            take = partial(known.stdio.set_master, size=known.console_size)
            listener = console.ConsoleSocket(self._loop, f"{exec_id[:16]}.tty", take)
            arguments += ["--tty", "--console-socket", listener.path]

        def done(code: int) -> None:
            self._started(known, code, listener, answer)
            for name in (pid_file, log, f"exec-{exec_id}.json"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)

        begin = partial(self._begin, known, listener, arguments, log, done, answer)
        if self._leaf_covered:
            self._turns.append(begin)
        if len(self._turns) <= 1:
            begin()

    def _begin(
        self,
        known: Exec,
        listener: console.ConsoleSocket | None,
        arguments: list[str],
        log: str,
        done: Callable[[int], None],
        answer: Answer,
    ) -> None:
        uncover = self._cover(known)

        def ended(code: int) -> None:
            uncover()
            done(code)
            self._next_turn()

        try:
            self._runtime.start(
                [*arguments, self._container_id], known.stdio.child_ends, log, ended, ahead=known.stdio.terminal
            )
        except OSError as error:
            uncover()
            self._failed(known, listener)
            answer(wire.failure(error))
            self._next_turn()

    def _cover(self, known: Exec) -> Callable[[], None]:
        """Lay the leaf's list of processes over the container's; how to take it away."""
        procs = f"{self._leaf_folder}/cgroup.procs"
        if self._leaf_covered and known.leaf:
            try:
                mounts.cover(procs, f"{known.leaf}/cgroup.procs")
            except OSError:
                known.remove_leaf()
                self._mark(known)
            else:
                return partial(mounts.uncover, procs)
        return lambda: None

    def _next_turn(self) -> None:
        if self._turns:
            self._turns.pop(0)
        if self._turns:
            self._turns[0]()

    def reaped(self, pid: int, code: int) -> bool:
        """Whether the ended child was an exec'ed process."""
        for known in self._known.values():
            if known.pid == pid and not known.reaped:
                self._ended(known, code)
                return True
        return False

    def close(self) -> None:
        for known in self._known.values():
            known.stdio.close()
            known.stdio.finish()

    def lingering(self) -> list[Stdio]:
        return [known.stdio for known in self._known.values() if known.stdio.attachments]

    def _leaf(self, known: Exec) -> list[str]:
        """Make the exec's own control group; it is marked and runs in the container's where that cannot be had."""
        if known.cgroup:
            return ["--cgroup", known.cgroup]
        if self._leaf_folder:
            name = f"exec-{known.exec_id}"
            with contextlib.suppress(OSError):
                os.mkdir(f"{self._leaf_folder}/{name}")
                known.leaf = f"{self._leaf_folder}/{name}"
                return ["--cgroup", f"{self._leaf_prefix}{name}"] if not self._leaf_covered else []
        self._mark(known)
        return []

    def _mark(self, known: Exec) -> None:
        """Write a mark into its process object, unless that has such a limit from the container, as all others have,
        or this process has one that leaves too few."""
        path = f"exec-{known.exec_id}.json"
        process = json.loads(invoke.read_whole(path).decode())
        limits = process.setdefault("rlimits", [])
        ours = _locks("self")
        marks = min(MARKS, int(ours)) if ours.isdigit() else MARKS
        if marks < LEAST_MARKS or any(limit["type"] == "RLIMIT_LOCKS" for limit in limits):
            return
        mark = int.from_bytes(os.urandom(8), "big") % marks
        limits.append({"type": "RLIMIT_LOCKS", "hard": mark, "soft": mark})
        known.mark = str(mark)
        invoke.write_whole(path, json.dumps(process).encode())

    def _started(self, known: Exec, code: int, listener: console.ConsoleSocket | None, answer: Answer) -> None:
        try:
            if code != 0:
                raise OSError(invoke.last_words(f"exec-{known.exec_id}.log", code))
            known.pid = invoke.read_pid(f"exec-{known.exec_id}.pid")
        except (OSError, ValueError) as error:
            self._failed(known, listener)
            answer(wire.failure(error if isinstance(error, OSError) else OSError(str(error))))
            return
        if listener is not None:
            listener.close()
        known.stdio.close_child_ends()
        known.stdio.begin()
        answer({"pid": known.pid})
        ended = self._runtime.claim(known.pid)
        if ended is not None:
            self._ended(known, ended)

    def _failed(self, known: Exec, listener: console.ConsoleSocket | None) -> None:
        if listener is not None:
            listener.close()
        known.exit_code = 126
        known.remove_leaf()
        known.stdio.close()
        known.stdio.finish()

    def _ended(self, known: Exec, code: int) -> None:
        known.reaped = True
        known.finished_at = time.time_ns()

        def drained() -> None:
            # Told before the streams end, so that whoever waits for their end finds the exit code known.
            known.exit_code = code
            known.remove_leaf()
            self._tell({"event": "exec_exit", "exec_id": known.exec_id, "exit_code": code})
            known.stdio.finish()
            self._prune()

        known.stdio.drain(drained)

    def _prune(self) -> None:
        over = [
            known
            for known in self._known.values()
            if known.exit_code is not None and not known.stdio.attachments and not known.leaf
        ]
        for known in over[:-KEPT]:
            del self._known[known.exec_id]
