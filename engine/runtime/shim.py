"""One living shim as the daemon sees it.

A `Shim` object may come and go with the daemon; the process it stands for does not. What it reports arrives as events
(`Exited`, `ExecExited`, `OutOfMemory`, `Lost`), each once per object, whether the connection was there or not.
"""

import asyncio
import contextlib
import json
import logging
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.errors import os_words
from engine.runtime.channel import Channel, connect_sync
from engine.runtime.model import (
    ExecExited,
    ExecSpec,
    ExecState,
    Exited,
    ExitRecord,
    Lost,
    OutOfMemory,
    ShimEvent,
    ShimLost,
)
from engine.runtime.oci import RuntimeFailure
from engine.shim import wire
from engine.tasks import Nursery, run_blocking

log = logging.getLogger(__name__)

RUN_SECONDS = 120.0


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

    def __init__(self, container_id: str, run_dir: Path, nursery: Nursery, program: str = "") -> None:
        """`program` is what will be run, for the words of a failure."""
        self.container_id = container_id
        self._program = program
        self.run_dir = run_dir
        self.pid = 0
        self.init_pid: int | None = None
        self.started_at = 0
        self._nursery = nursery
        self._channel: Channel | None = None
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._exited: asyncio.Future[ExitRecord] = asyncio.get_running_loop().create_future()
        self._execs: dict[str, asyncio.Future[int]] = {}
        self._programs: dict[str, str] = {}  # of execs that are prepared
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
                raise RuntimeFailure.of_create(os_words(error), self._program) from error
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
        process = dict(spec.process)
        if spec.terminal and spec.console_size:
            # crun does not wait until the shim has sized the terminal that it was sent
            process["consoleSize"] = dict(zip(("height", "width"), spec.console_size, strict=True))
        await run_blocking(write_json_sync, self.run_dir / f"exec-{spec.exec_id}.json", process)
        self._programs[spec.exec_id] = next(iter(spec.process["args"]), "")
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
        program = self._programs.pop(exec_id, "")
        async with asyncio.timeout(RUN_SECONDS):
            try:
                return (await self._ask("start_exec", exec_id=exec_id))["pid"]  # type: ignore[no-any-return]
            except (ProcessLookupError, FileExistsError):
                raise
            except OSError as error:
                self._execs.pop(exec_id, None)
                raise RuntimeFailure.of_exec(os_words(error), program) from error

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

    async def kill_exec(self, exec_id: str, number: int | signal.Signals, *, everything: bool = False) -> None:
        """Signal an exec's process, or `everything` of it, with what the process left behind. ProcessLookupError when
        nothing runs."""
        await self._ask("kill", signal=int(number), exec_id=exec_id, everything=everything)

    async def exec_pids(self, exec_id: str) -> list[int]:
        """What runs of an exec, and of what it left behind (`engine/shim/execs.py` says how that is known)."""
        return (await self._ask("exec_pids", exec_id=exec_id))["pids"]  # type: ignore[no-any-return]

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
        """Delete what the runtime keeps of the container, unmount, and let the shim end. What still runs is killed.

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

    def connect(self, sock: socket.socket) -> None:
        """Talk over this socket from now on."""
        self._channel = Channel(sock, self._event, self._ended)

    async def ready(self) -> None:
        """Mounts and streams are made; raises what prevented that."""
        await self._ready

    def abandon(self) -> None:
        """Stop talking and do not wonder about the end of it."""
        self._discarded = True
        self._ready.cancel()
        self.close()

    async def hello(self) -> None:
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
            self.connect(sock)
            with contextlib.suppress(OSError):
                await self.hello()
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


def write_json_sync(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document))
