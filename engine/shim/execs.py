"""The processes exec'ed into a container: their streams before, their exit codes after.

An exec may be attached to before it starts, so that nothing of its output is missed. Its exit code is kept until the
shim ends, because the daemon that asked may not be the one that wants to know.

On v1 each exec runs in a leaf group below the container's, and what belongs to it is what lies in there. On v2 it runs
in the container's group, where it finds its limits, and what belongs to it is its session, which a runtime makes for
each exec: all but what has begun a session of its own, as daemons do.

A runtime that cannot be asked for a leaf (crun) writes the process into the container's own list of processes; for as
long as it runs, the leaf's list lies over that one in the shim's mount namespace, so such starts take turns.
"""

import contextlib
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
        self.session = 0
        self.exit_code: int | None = None
        self.finished_at = 0

    @property
    def is_starting(self) -> bool:
        """Whether a runtime is making it."""
        return self.started and self.pid is None and self.exit_code is None

    def pids(self) -> list[int]:
        """What runs of it, and of what it left behind: everything in its control group, else in its session."""
        if self.leaf:
            with contextlib.suppress(OSError):
                return [int(pid) for pid in invoke.read_whole(f"{self.leaf}/cgroup.procs").split()]
        return in_session(self.session, self.container_id) if self.session else []

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


def in_session(session: int, container_id: str) -> list[int]:
    """The processes of a session in groups of the container: should its number have been given to another process
    since, that is none of the container's."""
    found = []
    group = container_id.encode()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            state, its_session = _stat(name)
            if its_session == session and state != b"Z" and group in invoke.read_whole(f"/proc/{name}/cgroup"):
                found.append(int(name))
    return found


def _stat(pid: int | str) -> tuple[bytes, int]:
    """State and session of a process (proc(5), /proc/pid/stat); OSError when it is gone."""
    state, _parent, _group, session = invoke.read_whole(f"/proc/{pid}/stat").rpartition(b")")[2].split(maxsplit=4)[:4]
    return state, int(session)


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
        self._sessions: dict[int, int] = {}  # of what has ended while starts are under way

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
        self._watch_endings()
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
                known.remove_leaf()  # it runs in the container's group
                self._watch_endings()
            else:
                return partial(mounts.uncover, procs)
        return lambda: None

    def _next_turn(self) -> None:
        if self._turns:
            self._turns.pop(0)
        if self._turns:
            self._turns[0]()

    def _watch_endings(self) -> None:
        """Whose pid a runtime is still to tell can end before: then its session is asked for before it is reaped."""
        if any(known.is_starting and not known.leaf for known in self._known.values()):
            self._loop.on_ending = self._ending
        else:
            self._loop.on_ending = None
            self._sessions.clear()

    def _ending(self, pid: int) -> None:
        self._sessions[pid] = _stat(pid)[1]

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
        """Make the exec's own control group; it runs in the container's where that cannot be had."""
        if known.cgroup:
            return ["--cgroup", known.cgroup]
        if not self._leaf_folder:
            return []
        name = f"exec-{known.exec_id}"
        try:
            os.mkdir(f"{self._leaf_folder}/{name}")
        except OSError:
            return []
        known.leaf = f"{self._leaf_folder}/{name}"
        return ["--cgroup", f"{self._leaf_prefix}{name}"] if not self._leaf_covered else []

    def _started(self, known: Exec, code: int, listener: console.ConsoleSocket | None, answer: Answer) -> None:
        try:
            if code != 0:
                raise OSError(invoke.last_words(f"exec-{known.exec_id}.log", code))
            known.pid = invoke.read_pid(f"exec-{known.exec_id}.pid")
        except (OSError, ValueError) as error:
            self._failed(known, listener)
            answer(wire.failure(error if isinstance(error, OSError) else OSError(str(error))))
            return
        if not known.leaf:
            with contextlib.suppress(OSError):
                known.session = self._sessions.get(known.pid) or _stat(known.pid)[1]
        self._watch_endings()
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
        self._watch_endings()
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
