"""The shim: from the fork in the zygote to the discarding of an ended container.

Owns the container's mounts, streams, log and exit record, and answers the daemon. `wire` tells the conversation.
"""

import contextlib
import ctypes
import os
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from engine.shim import console, invoke, mounts, oom, procguard, remains, wire
from engine.shim.execs import Execs
from engine.shim.log import open_log
from engine.shim.loop import READ, Loop, Timer
from engine.shim.stdio import Stdio

PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
# After discard, clients may still be reading what the container wrote; one that reads nothing for this long from then
# on is cut off.
LINGER_SECONDS = 60.0
# How long the start of a container that is no longer wanted may still take before the runtime is killed in it.
UNWANTED_START_SECONDS = 5.0
# After how long without any daemon a shim looks whether one can still find it, and how often it looks again.
ALONE_SECONDS = 2.0

_prctl = ctypes.CDLL(None).prctl

Answer = Callable[[wire.Message], None]


class Monitor:
    """One container's run."""

    def __init__(self, settings: dict[str, Any], held: list[int]) -> None:
        self._settings = settings
        self._container_id = str(settings["container_id"])
        self._held = held
        self._loop = Loop(self._reaped, self._told_to_end)
        self._connections: list[socket.socket] = []
        self._runtime = invoke.Runtime(settings["runtime"])
        self._log = open_log(settings["log"], self._log_trouble)
        self._stdio = Stdio(
            self._loop,
            terminal=settings["terminal"],
            open_stdin=settings["open_stdin"],
            stdin_once=settings["stdin_once"],
            spill_dir=settings["spill_dir"],
            log=self._log,
            daemons=self._daemons,
            owner=settings["owner"],
        )
        self._execs = Execs(self._loop, self._runtime, settings, self._tell, self._daemons)
        self._console: console.ConsoleSocket | None = None
        self._init_pid: int | None = None
        self._started_at = 0
        self._phase = "ready"
        self._record: wire.Message | None = None
        self._mounted: list[str] = []
        self._oom: oom.Watch | None = None
        self._discards: list[Answer] = []  # who wants the end of it all
        self._host_ends = False
        self._socket_inode = 0
        self._alone: Timer | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)

    def prepare(self) -> None:
        """Everything that can fail before the container runs."""
        if self._settings["mounts"] or self._settings["covered"] or self._settings["leaf_way"] == "covered":
            mounts.own_namespace()
        for path in self._settings["covered"]:
            mounts.cover(path)
        for step in self._settings["mounts"]:
            mounts.apply(step)
            self._mounted.append(step["target"])
        os.chdir(self._settings["run_dir"])
        for name in (wire.SOCKET_FILE, wire.EXIT_FILE):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
        self._listener.bind(wire.SOCKET_FILE)
        os.chmod(wire.SOCKET_FILE, 0o600)
        self._socket_inode = os.stat(wire.SOCKET_FILE).st_ino
        self._listener.listen(8)
        self._loop.watch(self._listener.fileno(), READ, self._accept)
        self._loop.catch_signals()

    def serve(self, first: socket.socket) -> None:
        self._adopt(first)
        self._send(first, {"event": "ready", "pid": os.getpid()})
        self._loop.run()

    def close(self) -> None:
        """Give back what only the end of the process gives back otherwise."""
        for connection in tuple(self._connections):
            self._drop(connection)
        self._loop.close()

    # connections

    def _accept(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._adopt(self._listener.accept()[0])

    def _adopt(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, wire.CONTROL_BUFFER)
        self._connections.append(connection)
        self._loop.watch(connection.fileno(), READ, partial(self._readable, connection))

    def _readable(self, connection: socket.socket, _events: int) -> None:
        try:
            message, descriptors = wire.receive(connection)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            message, descriptors = None, []
        if message is None:
            self._drop(connection)
            return

        number = message.get("id")

        def answer(results: wire.Message) -> None:
            self._send(connection, {"id": number, **results})

        try:
            results = self._perform(message, descriptors, answer)
        except (OSError, LookupError, ValueError) as error:
            results = wire.failure(error)
        finally:
            invoke.close_all(descriptors)
        if results is not None:
            answer(results)

    def _send(self, connection: socket.socket, message: wire.Message) -> None:
        if connection not in self._connections:
            return
        try:
            wire.send(connection, message)
        except OSError:  # gone, or does not read: it must come back and say hello
            self._drop(connection)

    def _tell(self, message: wire.Message) -> None:
        for connection in tuple(self._connections):
            self._send(connection, message)

    def _daemons(self) -> frozenset[socket.socket]:
        return frozenset(self._connections)

    def _drop(self, connection: socket.socket) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
            self._loop.forget(connection.fileno())
            connection.close()
            if self._alone is None:
                self._alone = self._loop.after(ALONE_SECONDS, self._look_around)

    def _look_around(self) -> None:
        """End what no daemon can find any more: it would stay for ever. Another daemon may come for all else."""
        self._alone = None
        if self._connections or self._discards:
            return
        if self._phase == "ready" or not self._can_be_found():
            self._discard(lambda _results: None)
        else:
            self._alone = self._loop.after(ALONE_SECONDS, self._look_around)

    def _can_be_found(self) -> bool:
        try:
            return os.stat(f"{self._settings['run_dir']}/{wire.SOCKET_FILE}").st_ino == self._socket_inode
        except OSError:
            return False

    # requests

    def _perform(self, message: wire.Message, descriptors: list[int], answer: Answer) -> wire.Message | None:
        """The results of a request, or None when `answer` will be called with them later."""
        match message.get("op"):
            case "hello":
                return self._state()
            case "hold":
                self._held.extend(descriptors)
                descriptors.clear()
            case "run":
                self._run(answer)
                return None
            case "attach":
                self._attach(message, descriptors)
            case "prepare_exec":
                self._execs.prepare(message)
            case "start_exec":
                self._require_running()
                self._execs.start(message["exec_id"], answer)
                return None
            case "kill":
                self._kill(message)
            case "exec_pids":
                return {"pids": self._execs.get(message["exec_id"]).pids()}
            case "resize":
                self._streams(message).resize(message["rows"], message["columns"])
            case "truncate_log":
                self._log.truncate()
            case "discard":
                self._discard(answer)
                return None
            case unknown:
                raise ValueError(f"unknown request {unknown!r}")
        return {}

    def _state(self) -> wire.Message:
        return {
            "protocol": wire.PROTOCOL,
            "container_id": self._container_id,
            "pid": os.getpid(),
            "phase": self._phase,
            "init_pid": self._init_pid,
            "started_at": self._started_at,
            "record": self._record,
            "execs": self._execs.states(),
        }

    def _streams(self, message: wire.Message) -> Stdio:
        exec_id = message.get("exec_id")
        return self._execs.get(exec_id).stdio if exec_id else self._stdio

    def _kill(self, message: wire.Message) -> None:
        if not message.get("everything"):
            os.kill(self._target(message), message["signal"])
            return
        pids = self._execs.get(message["exec_id"]).pids()
        if not pids:
            raise ProcessLookupError("nothing of it is running")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, message["signal"])

    def _target(self, message: wire.Message) -> int:
        exec_id = message.get("exec_id")
        if exec_id:
            known = self._execs.get(exec_id)
            pid = None if known.reaped else known.pid
        else:
            pid = self._init_pid if self._phase == "running" else None
        if pid is None:
            raise ProcessLookupError("process is not running")
        return pid

    def _require_running(self) -> None:
        if self._phase != "running":
            raise ProcessLookupError(f"container {self._container_id} is not running")

    def _attach(self, message: wire.Message, descriptors: list[int]) -> None:
        stdio = self._streams(message)
        wanted = {wire.STDOUT: message["stdout"], wire.STDERR: message["stderr"]}
        streams = frozenset(stream for stream, asked in wanted.items() if asked)
        sock = socket.socket(fileno=descriptors.pop(0))
        stdio.attach(sock, stdin=message["stdin"], streams=streams, close_input=message["close_stdin_on_eof"])

    # life

    def _run(self, answer: Answer) -> None:
        if self._phase != "ready":
            raise FileExistsError(f"container {self._container_id} has already been started")
        self._phase = "starting"
        arguments = ["run", "--detach", "--pid-file", os.path.abspath(wire.PID_FILE)]
        arguments += ["--bundle", self._settings["bundle"]]
        if self._settings["terminal"]:
            size = self._settings["console_size"]
            take = partial(self._stdio.set_master, size=(size[0], size[1]) if size else None)
            self._console = console.ConsoleSocket(self._loop, "console.sock", take)
            arguments += ["--console-socket", self._console.path]
        try:
            procguard.check(f"{self._settings['bundle']}/rootfs", self._settings["guarded"])
            done = partial(self._ran, answer)
            self._runtime.start([*arguments, self._container_id], self._stdio.child_ends, wire.LOG_FILE, done)
        except OSError:
            self._phase = "failed"
            raise

    def _ran(self, answer: Answer, code: int) -> None:
        if self._console is not None:
            self._console.close()
        self._stdio.close_child_ends()
        try:
            if code != 0:
                raise OSError(invoke.last_words(wire.LOG_FILE, code))
            self._init_pid = invoke.read_pid(wire.PID_FILE)
        except (OSError, ValueError) as error:
            self._phase = "failed"
            self._stdio.close()
            self._stdio.finish()
            answer(wire.failure(error if isinstance(error, OSError) else OSError(str(error))))
            self._end_if_unwanted()
            self._leave_if_host_ends()
            return
        self._phase = "running"
        self._started_at = time.time_ns()
        answer({"init_pid": self._init_pid, "started_at": self._started_at})
        self._stdio.begin()
        ended = self._runtime.claim(self._init_pid)
        if ended is not None:
            self._ended(ended)
        elif self._settings["oom_file"]:
            self._oom = oom.Watch(self._loop, self._settings["oom_file"], lambda: self._tell({"event": "oom"}))
        self._end_if_unwanted()
        self._end_with_host()

    def _reaped(self, pid: int, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        code = 128 - code if code < 0 else code
        self._log.reaped(pid)
        if self._runtime.reaped(pid, code):
            return
        if pid == self._init_pid and self._phase == "running":
            self._ended(code)
        elif not self._execs.reaped(pid, code):
            self._runtime.stray(pid, code)

    def _ended(self, code: int) -> None:
        self._phase = "draining"
        finished_at = time.time_ns()
        oom_killed = oom.kills(self._settings["oom_file"]) > 0
        if self._oom is not None:
            oom_killed = oom_killed or self._oom.noticed > 0
            self._oom.close()
        if self._settings["shared_pid"]:
            # Without a pid namespace of its own, init's end does not end the others.
            with contextlib.suppress(OSError):
                self._runtime.start(
                    ["kill", "--all", self._container_id, "KILL"], (0, 1, 1), "kill.log", lambda _code: None
                )

        def drained() -> None:
            self._phase = "exited"
            self._record = {
                "container_id": self._container_id,
                "init_pid": self._init_pid,
                "exit_code": code,
                "oom_killed": oom_killed,
                "started_at": self._started_at,
                "finished_at": finished_at,
            }
            with contextlib.suppress(OSError):  # a full tmpfs: the daemon, if there, still hears it
                invoke.write_atomically(wire.EXIT_FILE, self._record)
            self._tell({"event": "exit", "record": self._record})
            self._stdio.finish()
            self._end_if_unwanted()
            self._leave_if_host_ends()

        self._stdio.drain(drained)

    def _log_trouble(self, error: OSError) -> None:
        self._tell({"event": "log_trouble", "error": str(error)})

    # the end of the host

    def _told_to_end(self) -> None:
        """SIGTERM: heeded only when the host ends and no daemon has ended the container before."""
        if not self._host_ends and invoke.host_ends():
            self._host_ends = True
            self._end_with_host()
            self._leave_if_host_ends()

    def _end_with_host(self) -> None:
        if self._host_ends and self._phase == "running" and self._init_pid is not None:
            self._signal_init(self._settings["stop_signal"])
            self._loop.after(self._settings["stop_seconds"], partial(self._signal_init, signal.SIGKILL))

    def _signal_init(self, number: int) -> None:
        if self._phase == "running" and self._init_pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._init_pid, number)

    def _leave_if_host_ends(self) -> None:
        """Nothing is put away: the boot does that, and no systemd is left that a runtime could ask for it."""
        if self._host_ends and self._phase in ("ready", "failed", "exited"):
            self._log.close()
            self._loop.stop()

    # the end

    def _discard(self, answer: Answer) -> None:
        if self._phase == "gone":
            answer({})
            return
        self._discards.append(answer)
        if self._phase == "starting":
            self._loop.after(UNWANTED_START_SECONDS, self._cut_start)
        self._end_if_unwanted()

    def _end_if_unwanted(self) -> None:
        if not self._discards:
            return
        if self._phase in ("ready", "failed", "exited"):
            self._put_away()
        elif self._phase == "running" and self._init_pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._init_pid, signal.SIGKILL)

    def _cut_start(self) -> None:
        if self._phase == "starting":
            self._runtime.kill()

    def _put_away(self) -> None:
        state = f"{self._settings['runtime']['root']}/{self._container_id}"
        forced = ["--force"] if self._phase == "failed" else []  # slow, but a failed start may have left anything
        exists = self._phase == "exited" or (bool(forced) and os.path.isdir(state))
        if self._phase == "exited" and remains.remove(self._settings["bundle"], state, self._settings["groups"]):
            exists = False
        self._phase = "discarded"
        self._stdio.close()
        self._stdio.finish()
        self._execs.close()
        invoke.close_all(self._held)
        self._held = []
        if exists:
            try:
                self._runtime.start(["delete", *forced, self._container_id], (0, 1, 1), wire.LOG_FILE, self._deleted)
                return
            except OSError:
                pass
        self._deleted(0)

    def _deleted(self, code: int) -> None:
        trouble = invoke.last_words(wire.LOG_FILE, code) if code else ""
        for target in reversed(self._mounted):
            try:
                mounts.unmount(target)
            except OSError as error:
                trouble = trouble or str(error)
        self._log.close()
        self._loop.forget(self._listener.fileno())
        self._listener.close()
        for name in (wire.SOCKET_FILE, wire.PID_FILE, wire.LOG_FILE, wire.SETTINGS_FILE, "kill.log"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
        os.chdir("/")
        self._phase = "gone"
        for answer in self._discards:
            answer({"trouble": trouble})
        self._linger(time.monotonic())

    def _linger(self, since: float) -> None:
        waiting = [self._stdio, *self._execs.lingering()]
        attachments = [attachment for stdio in waiting for attachment in stdio.attachments]
        for attachment in attachments:
            if time.monotonic() - max(attachment.progress, since) > LINGER_SECONDS:
                attachment.drop()
        if attachments or self._log.lingering:
            self._loop.after(0.2, partial(self._linger, since))
        else:
            self._loop.stop()


def run_shim(run_dir: str, control: int, held: list[int]) -> None:
    """The life of a shim; in the child of the zygote's fork."""
    os.setsid()
    _prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _prctl(PR_SET_NAME, b"berth-shim", 0, 0, 0)
    first = socket.socket(fileno=control)
    try:
        monitor = Monitor(invoke.load_settings(run_dir), held)
        monitor.prepare()
    except (OSError, LookupError, ValueError) as error:
        wire.send(first, {"event": "failed", **wire.failure(error)})
        return
    monitor.serve(first)
