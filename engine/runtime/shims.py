"""The daemon's side of the shims: start one per container run, find them again after a restart, talk to them.

A `Shim` object may come and go with the daemon; the process it stands for does not. What it reports arrives as events
(`Exited`, `ExecExited`, `OutOfMemory`, `Lost`), each at least once per daemon, whether the connection was there or not.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine.kernel.mount import MountStep
from engine.runtime.cgroups import Cgroups
from engine.runtime.channel import Channel, connect_sync
from engine.runtime.oci import Runtime, RuntimeFailure
from engine.shim import wire
from engine.tasks import Nursery, run_blocking

log = logging.getLogger(__name__)

SPAWN_SECONDS = 10.0  # mounts may touch slow disks; nothing else of a spawn takes longer than a millisecond
RUN_SECONDS = 120.0
LEAVE_SECONDS = 2.0


class ShimLost(Exception):
    """The shim ended without an exit record: what its container did or does is unknown."""


@dataclass(frozen=True, slots=True)
class LogSpec:
    """Where and how the container's output is kept; `attrs` go into every entry."""

    driver: str
    path: str
    options: Mapping[str, str] = field(default_factory=dict)
    attrs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ShimSpec:
    """All that a shim must know; `console_size` is (rows, columns).

    `hold_fds` stay open in the shim until the container's end is discarded. `shared_pid` says that the container has no
    pid namespace of its own, so that its other processes must be killed when its first one has ended.
    """

    container_id: str
    run_dir: Path
    bundle: Path
    runtime: Runtime
    mounts: tuple[MountStep, ...]
    terminal: bool
    open_stdin: bool
    stdin_once: bool
    console_size: tuple[int, int] | None
    log: LogSpec
    spill_dir: Path
    hold_fds: tuple[int, ...]
    cgroup_path: str
    shared_pid: bool = False


@dataclass(frozen=True, slots=True)
class ExecSpec:
    """A process object (OCI runtime spec, `process`) to run in a running container."""

    exec_id: str
    process: Mapping[str, Any]
    terminal: bool = False
    open_stdin: bool = False
    console_size: tuple[int, int] | None = None
    cgroup: str = ""


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """How a container ended; times are Unix nanoseconds, a signal's exit code is 128 + its number."""

    exit_code: int
    oom_killed: bool
    started_at: int
    finished_at: int


@dataclass(frozen=True, slots=True)
class ExecState:
    """What a shim knows of an exec; `exit_code` is None while it runs or before it starts."""

    started: bool
    pid: int | None
    exit_code: int | None
    finished_at: int


@dataclass(frozen=True, slots=True)
class Exited:
    record: ExitRecord


@dataclass(frozen=True, slots=True)
class ExecExited:
    exec_id: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """The kernel ran out of the container's memory and is killing in it; the container may live on."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The shim is gone and left no exit record."""


ShimEvent = Exited | ExecExited | OutOfMemory | Lost


def _record_of(document: Mapping[str, Any]) -> ExitRecord:
    return ExitRecord(
        exit_code=document["exit_code"],
        oom_killed=document["oom_killed"],
        started_at=document["started_at"],
        finished_at=document["finished_at"],
    )


async def read_exit_record(run_dir: Path) -> ExitRecord | None:
    """What an ended shim has written, if it has."""
    return await run_blocking(_read_exit_record_sync, run_dir)


def _read_exit_record_sync(run_dir: Path) -> ExitRecord | None:
    try:
        return _record_of(json.loads((run_dir / wire.EXIT_FILE).read_bytes()))
    except (OSError, ValueError, KeyError):
        return None


class Shim:
    """A living shim. Calls raise ShimLost when it is gone; builtin exceptions for what it refuses."""

    def __init__(self, container_id: str, run_dir: Path, nursery: Nursery) -> None:
        self.container_id = container_id
        self.run_dir = run_dir
        self.pid = 0
        self.init_pid: int | None = None
        self.started_at = 0
        self._nursery = nursery
        self._channel: Channel | None = None
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._exited: asyncio.Future[ExitRecord] = asyncio.get_running_loop().create_future()
        self._execs: dict[str, asyncio.Future[int]] = {}
        self._listeners: list[Callable[[ShimEvent], None]] = []
        self._discarded = False

    # events

    def subscribe(self, listener: Callable[[ShimEvent], None]) -> Callable[[], None]:
        """Call `listener` for every event from now on (not for an exit already known); returns how to stop that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    @property
    def exit_record(self) -> ExitRecord | None:
        """The exit, where it is known by now."""
        if self._exited.done() and self._exited.exception() is None:
            return self._exited.result()
        return None

    async def wait_exit(self) -> ExitRecord:
        """The container's end; its log is complete by then. ShimLost when the shim went without a record."""
        return await asyncio.shield(self._exited)

    async def wait_exec(self, exec_id: str) -> int:
        """The exit code of an exec that was started, now or before the daemon was. ShimLost when the shim went."""
        known = self._execs.get(exec_id)
        if known is None:
            state = (await self.exec_states()).get(exec_id)
            if state is None:
                raise LookupError(f"no exec {exec_id}")
            known = self._exec_future(exec_id)
            if state.exit_code is not None:
                known.set_result(state.exit_code)
        return await asyncio.shield(known)

    # life

    async def run(self) -> int:
        """Start the container's process; its pid. RuntimeFailure in docker's words when it cannot be started."""
        async with asyncio.timeout(RUN_SECONDS):
            try:
                answer = await self._ask("run")
            except OSError as error:
                raise RuntimeFailure.of_create(str(error)) from error
        self.init_pid = answer["init_pid"]
        self.started_at = answer["started_at"]
        return answer["init_pid"]  # type: ignore[no-any-return]

    async def attach(
        self, *, stdin: bool, stdout: bool, stderr: bool, exec_id: str | None = None, close_stdin_on_eof: bool = False
    ) -> socket.socket:
        """A non-blocking stream socket (ours to close) carrying the asked streams; `wire` says what flows on it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs:
                for end in (ours, theirs):
                    with contextlib.suppress(OSError):
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, wire.CONTROL_BUFFER)
                ours.setblocking(False)
                await self._ask(
                    "attach",
                    (theirs.fileno(),),
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    exec_id=exec_id,
                    close_stdin_on_eof=close_stdin_on_eof,
                )
        except BaseException:
            ours.close()
            raise
        return ours

    async def prepare_exec(self, spec: ExecSpec) -> None:
        """Make an exec's streams, so that it can be attached to before it starts. FileExistsError when it is known."""
        await run_blocking(_write_json_sync, self.run_dir / f"exec-{spec.exec_id}.json", dict(spec.process))
        size = list(spec.console_size) if spec.console_size else None
        await self._ask(
            "prepare_exec",
            exec_id=spec.exec_id,
            terminal=spec.terminal,
            open_stdin=spec.open_stdin,
            console_size=size,
            cgroup=spec.cgroup,
        )

    async def start_exec(self, exec_id: str) -> int:
        """Run a prepared exec; its pid.

        RuntimeFailure when it cannot be started, ProcessLookupError when init has ended.
        """
        self._exec_future(exec_id)
        async with asyncio.timeout(RUN_SECONDS):
            try:
                return (await self._ask("start_exec", exec_id=exec_id))["pid"]  # type: ignore[no-any-return]
            except (ProcessLookupError, FileExistsError):
                raise
            except OSError as error:
                self._execs.pop(exec_id, None)
                raise RuntimeFailure.of_exec(str(error)) from error

    async def exec(self, spec: ExecSpec) -> int:
        """Prepare and start at once, for an exec that nobody attaches to."""
        await self.prepare_exec(spec)
        return await self.start_exec(spec.exec_id)

    async def exec_states(self) -> dict[str, ExecState]:
        """Every exec the shim remembers; a daemon that was away learns their exit codes here."""
        execs = (await self._ask("hello"))["execs"]
        return {exec_id: ExecState(**state) for exec_id, state in execs.items()}

    async def kill(self, number: int | signal.Signals) -> None:
        """Signal init. ProcessLookupError when it has ended."""
        await self._ask("kill", signal=int(number))

    async def kill_exec(self, exec_id: str, number: int | signal.Signals) -> None:
        await self._ask("kill", signal=int(number), exec_id=exec_id)

    async def resize(self, rows: int, cols: int, exec_id: str | None = None) -> None:
        """OSError when there is no terminal (yet)."""
        await self._ask("resize", rows=rows, columns=cols, exec_id=exec_id)

    async def truncate_log(self) -> None:
        """Empty the log and remove what was rotated away."""
        await self._ask("truncate_log")

    async def hold(self, descriptors: tuple[int, ...]) -> None:
        """Keep copies of descriptors open until discard."""
        for start in range(0, len(descriptors), wire.MAX_DESCRIPTORS):
            await self._ask("hold", descriptors[start : start + wire.MAX_DESCRIPTORS])

    async def discard(self) -> None:
        """Delete what the runtime keeps of an ended (or never started) container, unmount, and let the shim end.

        Clients still reading its output keep being served by what is left of the shim. A shim already gone is fine.
        """
        self._discarded = True
        try:
            trouble = (await self._ask("discard")).get("trouble")
        except ShimLost:
            return
        if trouble:
            log.warning("container %s: clean-up: %s", self.container_id, trouble)

    def close(self) -> None:
        """Stop talking; the shim lives on."""
        if self._channel is not None:
            self._channel.close()

    # connection

    def _connect(self, sock: socket.socket) -> Channel:
        self._channel = Channel(sock, self._event, self._ended)
        return self._channel

    async def _hello(self) -> None:
        """Learn the whole state, and tell listeners what they missed."""
        assert self._channel is not None
        state = await self._channel.ask("hello")
        if state["container_id"] != self.container_id:
            raise ConnectionError(f"the shim in {self.run_dir} belongs to {state['container_id']}")
        self.pid = state["pid"]
        self.init_pid = state["init_pid"]
        self.started_at = state["started_at"]
        if not self._ready.done():
            self._ready.set_result(None)
        for exec_id, known in state["execs"].items():
            if known["exit_code"] is not None and exec_id in self._execs:
                self._event({"event": "exec_exit", "exec_id": exec_id, "exit_code": known["exit_code"]})
        if state["record"] is not None:
            self._event({"event": "exit", "record": state["record"]})

    async def _ask(self, op: str, descriptors: tuple[int, ...] = (), **fields: Any) -> wire.Message:
        if self._channel is None:
            raise ShimLost(f"the shim of container {self.container_id} is gone")
        try:
            return await self._channel.ask(op, descriptors, **fields)
        except ConnectionError as error:
            raise ShimLost(f"the shim of container {self.container_id} is gone") from error

    def _event(self, message: wire.Message) -> None:
        event: ShimEvent | None = None
        match message["event"]:
            case "ready":
                self.pid = message["pid"]
                _resolve(self._ready, None)
            case "failed":
                if not self._ready.done():
                    self._ready.set_exception(wire.exception(message))
            case "exit":
                record = _record_of(message["record"])
                if _resolve(self._exited, record):
                    event = Exited(record)
            case "exec_exit":
                known = self._exec_future(message["exec_id"])
                if _resolve(known, message["exit_code"]):
                    event = ExecExited(message["exec_id"], message["exit_code"])
            case "oom":
                event = OutOfMemory()
            case "log_trouble":
                log.error("container %s: writing its log: %s", self.container_id, message["error"])
        if event is not None:
            self._publish(event)

    def _publish(self, event: ShimEvent) -> None:
        for listener in tuple(self._listeners):
            listener(event)

    def _exec_future(self, exec_id: str) -> asyncio.Future[int]:
        known = self._execs.get(exec_id)
        if known is None:
            known = self._execs[exec_id] = asyncio.get_running_loop().create_future()
        return known

    def _ended(self) -> None:
        if not self._ready.done():
            self._ready.set_exception(ShimLost(f"the shim of container {self.container_id} died at its start"))
        if not self._discarded:
            self._nursery.start(self._find_out(), name=f"lost-shim-{self.container_id[:12]}")

    async def _find_out(self) -> None:
        """The connection ended: cut off (then say hello again), or is the shim gone?"""
        sock = connect_sync(str(self.run_dir / wire.SOCKET_FILE))
        if sock is not None:
            self._connect(sock)
            with contextlib.suppress(OSError):
                await self._hello()
                return
            self.close()
        record = await read_exit_record(self.run_dir)
        lost = ShimLost(f"the shim of container {self.container_id} is gone")
        for known in self._execs.values():
            if not known.done():
                _fail(known, lost)
        if record is not None:
            if _resolve(self._exited, record):
                self._publish(Exited(record))
        elif not self._exited.done():
            _fail(self._exited, lost)
            self._publish(Lost())


def _resolve(future: asyncio.Future[Any], value: Any) -> bool:
    if future.done():
        return False
    future.set_result(value)
    return True


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    future.set_exception(error)
    future.exception()  # nobody may be waiting; that is no fault


def _write_json_sync(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document))


def build_id() -> str:
    """Identifies the shim's code, so that an updated daemon does not fork shims from an old zygote."""
    digest = hashlib.sha256(sys.version.encode())
    for source in sorted(Path(wire.__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:8]


class Shims:
    """Owns the connection to the zygote."""

    def __init__(self, exec_root: Path, nursery: Nursery) -> None:
        self._exec_root = exec_root
        self._nursery = nursery
        self._cgroups: Cgroups | None = None
        self._zygote: Channel | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = asyncio.Lock()
        self._living: weakref.WeakSet[Shim] = weakref.WeakSet()

    async def start(self) -> None:
        """Connect to the zygote that lives, or start one."""
        self._cgroups = await run_blocking(Cgroups.detect_sync)
        await self._connected()

    async def aclose(self) -> None:
        """Leave; containers run on. The zygote ends too if it has no shims."""
        for shim in tuple(self._living):
            shim.close()
        if self._zygote is None:
            return
        leaving = False
        with contextlib.suppress(OSError):
            leaving = (await self._zygote.ask("leave"))["leaving"]
        self._zygote.close()
        if self._process is None:
            return
        if leaving:
            await run_blocking(_reap_sync, self._process)
        elif self._process.poll() is None:
            self._process.returncode = 0  # it is meant to outlive us: no ResourceWarning
        self._process = None

    async def spawn(self, spec: ShimSpec) -> Shim:
        """Fork a shim, mount, make the streams; nothing of the container runs yet.

        OSError says what could not be made.
        """
        zygote = await self._connected()
        assert self._cgroups is not None
        settings = _settings(spec, self._cgroups.oom_file(spec.cgroup_path))
        await run_blocking(_write_json_sync, spec.run_dir / wire.SETTINGS_FILE, settings)
        shim = Shim(spec.container_id, spec.run_dir, self._nursery)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        first, rest = spec.hold_fds[: wire.MAX_DESCRIPTORS - 1], spec.hold_fds[wire.MAX_DESCRIPTORS - 1 :]
        shim._connect(ours)
        try:
            with theirs:
                shim.pid = (await zygote.ask("spawn", (theirs.fileno(), *first), run_dir=str(spec.run_dir)))["pid"]
            async with asyncio.timeout(SPAWN_SECONDS):
                await shim._ready
            if rest:
                await shim.hold(rest)
        except BaseException:
            shim._discarded = True
            shim._ready.cancel()
            shim.close()
            raise
        self._living.add(shim)
        return shim

    async def find(self, container_id: str, run_dir: Path) -> Shim | None:
        """The living shim of a container from before; None when there is none (`read_exit_record` may know more)."""
        sock = connect_sync(str(run_dir / wire.SOCKET_FILE))
        if sock is None:
            return None
        shim = Shim(container_id, run_dir, self._nursery)
        shim._connect(sock)
        try:
            async with asyncio.timeout(SPAWN_SECONDS):
                await shim._hello()
        except (OSError, TimeoutError):
            shim._discarded = True
            shim.close()
            return None
        self._living.add(shim)
        return shim

    async def _connected(self) -> Channel:
        async with self._starting:
            if self._zygote is None or not self._zygote.open:
                path = str(self._exec_root / f"zygote-{await run_blocking(build_id)}.sock")
                sock = connect_sync(path)
                if sock is None:
                    sock = await run_blocking(self._start_zygote_sync, path)
                channel = Channel(sock, lambda _event: None, lambda: log.warning("the zygote has ended"))
                async with asyncio.timeout(SPAWN_SECONDS):
                    await channel.ask("hello")
                self._zygote = channel
            return self._zygote

    def _start_zygote_sync(self, path: str) -> socket.socket:
        if self._process is not None:
            self._process.poll()
        self._exec_root.mkdir(mode=0o711, parents=True, exist_ok=True)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = str(Path(wire.__file__).with_name("__main__.py"))
        with theirs, open(self._exec_root / "zygote.log", "ab") as complaints:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", program, path, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        return ours


def _reap_sync(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(LEAVE_SECONDS)
    except subprocess.TimeoutExpired:
        log.warning("the zygote did not end in %s s", LEAVE_SECONDS)
        process.returncode = 0


def _settings(spec: ShimSpec, oom_file: str) -> dict[str, Any]:
    return {
        "container_id": spec.container_id,
        "run_dir": os.path.abspath(spec.run_dir),
        "bundle": os.path.abspath(spec.bundle),
        "runtime": {"path": spec.runtime.path, "args": list(spec.runtime.args), "root": spec.runtime.root},
        "mounts": [asdict(step) for step in spec.mounts],
        "terminal": spec.terminal,
        "open_stdin": spec.open_stdin,
        "stdin_once": spec.stdin_once,
        "console_size": spec.console_size,
        "log": {
            "driver": spec.log.driver,
            "path": spec.log.path,
            "options": dict(spec.log.options),
            "attrs": dict(spec.log.attrs),
        },
        "spill_dir": os.path.abspath(spec.spill_dir),
        "oom_file": oom_file,
        "shared_pid": spec.shared_pid,
    }
