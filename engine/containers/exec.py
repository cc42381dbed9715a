"""Exec instances: further processes in a running container.

An instance lives in memory from ``create`` until its container ends (its exit code may be asked for until then); the
process and its stdio belong to the shim, so a daemon restart does not end it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.containers.assembly import Assembly
from engine.containers.journalist import Journalist
from engine.containers.live import LiveTable, StreamChoice
from engine.containers.model import Container, Status
from engine.containers.settings import ExecSettings
from engine.containers.signals import parse_signal
from engine.errors import (
    Conflict,
    EngineError,
    InvalidParameter,
    SystemFailure,
    is_paused,
    is_restarting,
    no_such_exec,
    not_running,
)
from engine.names import new_id
from engine.runtime.oci import RuntimeFailure
from engine.runtime.shims import ExecSpec, ShimLost
from engine.tasks import Nursery

log = logging.getLogger(__name__)

NOT_PREPARED = 126
"""The exit code of an instance that never became a process, as dockerd has it."""
SETTLE_SECONDS = 5.0
REMEMBERED = 1000
"""How many ended instances can still be asked for their exit code."""


@dataclass(slots=True)
class Exec:
    """One instance. ``exit_code`` is None until it has ended."""

    id: str
    container_id: str
    settings: ExecSettings
    running: bool = False
    started: bool = False
    exit_code: int | None = None
    pid: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once its exit code is known."""


class Execs:
    """All exec instances."""

    def __init__(self, journalist: Journalist, live: LiveTable, assembly: Assembly, nursery: Nursery) -> None:
        self._records = journalist
        self._live = live
        self._assembly = assembly
        self._nursery = nursery
        self._by_id: dict[str, Exec] = {}

    def create(self, reference: str, settings: ExecSettings) -> Exec:
        """Make an instance. Raises ``Conflict`` when the container does not run, ``InvalidParameter`` without a
        command."""
        container = self._records.store.find(reference)
        if not settings.cmd:
            raise InvalidParameter("No exec command specified")
        _check_executable(container, reference)
        self._forget_oldest()
        self._assembly.expect_process()
        instance = Exec(new_id(), container.id, settings)
        self._by_id[instance.id] = instance
        self._records.event(container, f"exec_create: {instance.settings.command}", {"execID": instance.id})
        return instance

    def find(self, exec_id: str) -> Exec:
        """By id. Raises ``NotFound``."""
        instance = self._by_id.get(exec_id)
        if instance is None:
            raise no_such_exec(exec_id)
        return instance

    def of_container(self, container_id: str) -> list[str]:
        """The ids of a container's running instances, as inspect shows them."""
        return [e.id for e in self._by_id.values() if e.container_id == container_id and e.running]

    def _forget_oldest(self) -> None:
        """Whoever wants an exit code asks soon; a container that is probed for years must not fill the memory."""
        if len(self._by_id) >= 2 * REMEMBERED:
            ended = [e.id for e in self._by_id.values() if e.exit_code is not None]
            for exec_id in ended[:-REMEMBERED]:
                del self._by_id[exec_id]

    def forget(self, container_id: str) -> None:
        """Drop a container's instances: it is gone."""
        self._drop(container_id, lambda _: True)

    def ended(self, container_id: str) -> None:
        """Its container ended: what has not been started never will be; exit codes can still be asked for."""
        self._drop(container_id, lambda instance: not instance.started)

    def _drop(self, container_id: str, which: Callable[[Exec], bool]) -> None:
        for exec_id in [e.id for e in self._by_id.values() if e.container_id == container_id and which(e)]:
            del self._by_id[exec_id]

    def claim(self, exec_id: str) -> Exec:
        """Take the right to start it, before anything is sent to the client. Raises ``Conflict`` when it was
        started."""
        instance = self.find(exec_id)
        if instance.started:
            state = "is already running" if instance.running else "has already run"
            raise Conflict(f"Error: Exec command {exec_id} {state}")
        _check_executable(self._records.store.require(instance.container_id), instance.container_id)
        instance.started = True
        return instance

    async def prepare(
        self, instance: Exec, choice: StreamChoice | None, console_size: tuple[int, int] | None
    ) -> socket.socket | None:
        """Make its stdio in the shim; the stream is for a client that stays attached.

        Raises ``SystemFailure`` when its user is unknown; it has ended then.
        """
        container = self._records.store.require(instance.container_id)
        shim = self._live[container.id].require_shim()
        settings = instance.settings
        try:
            process = await self._assembly.exec_process(container, settings)
        except EngineError:
            instance.exit_code = NOT_PREPARED
            raise
        size = console_size or settings.console_size
        if size == (0, 0):
            size = None
        await shim.prepare_exec(
            ExecSpec(
                instance.id,
                process,
                terminal=settings.tty,
                open_stdin=choice is not None and choice.stdin,
                console_size=size,
            )
        )
        if choice is None:
            return None
        return await shim.attach(
            stdin=choice.stdin, stdout=choice.stdout, stderr=choice.stderr, exec_id=instance.id, close_stdin_on_eof=True
        )

    async def start(self, instance: Exec) -> None:
        """Run it. Raises ``InvalidParameter`` or ``SystemFailure`` when the runtime refuses; the exit code is kept."""
        container = self._records.store.require(instance.container_id)
        shim = self._live[container.id].require_shim()
        self._records.event(container, f"exec_start: {instance.settings.command}", {"execID": instance.id})
        try:
            instance.pid = await shim.start_exec(instance.id)
        except (ProcessLookupError, ShimLost) as error:  # the container has just ended
            instance.exit_code = NOT_PREPARED
            raise not_running(container.id) from error
        except RuntimeFailure as error:
            instance.exit_code = error.exit_hint
            message = error.message
            raise (InvalidParameter if error.exit_hint in (126, 127) else SystemFailure)(message) from error
        instance.running = True
        self._nursery.start(self._watch(container, instance), name=f"exec {instance.id[:12]}")

    async def _watch(self, container: Container, instance: Exec) -> None:
        shim = self._live[container.id].shim
        if shim is None:
            return
        try:
            instance.exit_code = await shim.wait_exec(instance.id)
        except ShimLost:
            instance.exit_code = 137
        instance.running = False
        instance.over.set()
        self._records.event(container, "exec_die", {"execID": instance.id, "exitCode": str(instance.exit_code)})

    async def settle(self, instance: Exec) -> None:
        """Its streams have ended, so it has: wait until its exit code is known, which may come a moment later."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS):
                await instance.over.wait()

    async def resize(self, exec_id: str, rows: int, columns: int) -> None:
        """Change the size of its terminal."""
        instance = self.find(exec_id)
        if not instance.started:
            raise Conflict(f"cannot resize a stopped exec: {exec_id}")
        container = self._records.store.get(instance.container_id)
        if container is not None:
            _check_executable(container, container.id)
        shim = self._live[instance.container_id].shim
        if shim is not None:
            try:
                await shim.resize(rows, columns, exec_id=exec_id)
            except LookupError as error:
                raise no_such_exec(exec_id) from error  # the shim has forgotten it, or does not know it yet
            except OSError:
                return  # docker does not mind one that has no terminal

    async def kill(self, exec_id: str, signal_name: str, *, everything: bool = False) -> None:
        """Signal its process, or everything of it with what it left behind (an extension of berth). Raises
        ``Conflict`` when there is none."""
        instance = self.find(exec_id)
        number = parse_signal(signal_name or "SIGKILL")
        shim = self._live[instance.container_id].shim
        if shim is None or not (instance.running or everything):
            raise _not_running(exec_id)
        try:
            await shim.kill_exec(exec_id, number, everything=everything)
        except (LookupError, ProcessLookupError) as error:
            raise _not_running(exec_id) from error

    async def pids(self, exec_id: str) -> list[int]:
        """What runs of it, also what it left behind (an extension of berth). Raises ``Conflict`` when nothing does."""
        instance = self.find(exec_id)
        shim = self._live[instance.container_id].shim
        try:
            found = await shim.exec_pids(exec_id) if shim is not None else []
        except LookupError:
            found = []  # the shim has forgotten it
        if not found:
            raise _not_running(exec_id)
        return found


def _not_running(exec_id: str) -> Conflict:
    return Conflict(f"exec {exec_id} is not running")


def _check_executable(container: Container, reference: str) -> None:
    match container.state.status:
        case Status.PAUSED:
            raise is_paused(reference)
        case Status.RESTARTING:
            raise is_restarting(container.id)
        case Status.RUNNING:
            return
        case _:
            raise not_running(container.id)
