"""Start, stop, kill, restart, pause: each a list of named steps, each step with its undo.

A start that fails at any step leaves nothing behind: every step registers its undo before the next one acts. Nothing is
promised to the client before the record that says "running" is in the journal; a crash before that is undone by the
supervisor at the next start of the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable

from engine.clock import now_ns
from engine.containers import grace, model
from engine.containers.assembly import Assembly
from engine.containers.health import with_fresh_health
from engine.containers.journalist import Journalist
from engine.containers.live import Exit, Live, LiveTable
from engine.containers.model import Container, Status
from engine.containers.signals import can_be_sent, parse_signal
from engine.errors import (
    Conflict,
    EngineError,
    InvalidParameter,
    NotModified,
    SystemFailure,
    is_restarting,
    not_running,
    os_words,
)
from engine.runtime.oci import RuntimeFailure
from engine.tasks import KeyedLocks

log = logging.getLogger(__name__)

KILL_PATIENCE_SECONDS = 10.0
START_TIMEOUT_SECONDS = 120.0


Watch = Callable[[str, Live], None]


class Lifecycle:
    """Moves containers between states; one at a time per container."""

    def __init__(
        self,
        journalist: Journalist,
        live: LiveTable,
        assembly: Assembly,
        locks: KeyedLocks,
    ) -> None:
        self._records = journalist
        self._live = live
        self._assembly = assembly
        self._locks = locks
        self._watch: Watch = _nobody_watches

    def watch_with(self, watch: Watch) -> None:
        """Who is told of every container that has been started (the supervisor, which needs this class first)."""
        self._watch = watch

    async def start(self, container_id: str, *, by_hand: bool = True) -> None:
        """Run the container. Raises ``NotModified`` when it runs already, ``Conflict`` when it cannot run now,
        ``InvalidParameter`` when its limits contradict each other."""
        async with self._locks(container_id):
            container = self._records.store.require(container_id)
            _check_startable(container)
            live = self._live[container_id]
            if by_hand:
                self._assembly.check_limits(container)
                _cancel_restart(live)
                live.back_off.reset()
                container = model.replace_state(container, restart_count=0, manually_stopped=False)
            await self._start_locked(container, live)

    async def _start_locked(self, container: Container, live: Live) -> None:
        try:
            with self._records.measures.container_action("start"):
                async with asyncio.timeout(START_TIMEOUT_SECONDS):
                    await self._run(container, live)
        except (EngineError, RuntimeFailure, OSError, TimeoutError) as error:
            failure, exit_code = _explain(error)
            live.drop_pending()
            await self._records.save(model.start_failed(container, exit_code, failure.message), durable=True)
            raise failure from error

    async def _run(self, container: Container, live: Live) -> None:
        async with contextlib.AsyncExitStack() as undo:
            live.ended.clear()
            undo.callback(live.ended.set)
            container = self._assembly.with_shared_names(container)
            started = await self._assembly.assemble(container, live, undo)
            for pending in live.pending_attaches:
                choice = pending.choice
                stream = await started.shim.attach(
                    stdin=choice.stdin,
                    stdout=choice.stdout,
                    stderr=choice.stderr,
                    close_stdin_on_eof=container.config.stdin_once,
                )
                if not pending.stream.done():
                    pending.stream.set_result(stream)
                else:
                    stream.close()
            live.pending_attaches.clear()
            pid = await started.shim.run()
            undo.push_async_callback(_kill_quietly, live)
            running = with_fresh_health(model.started(container, pid, now_ns()))
            running = await self._assembly.with_facts(running, started)
            await self._records.save(running, durable=True)
            undo.pop_all()
        self._watch(container.id, live)
        self._records.event(running, "start")

    async def stop(self, container_id: str, *, seconds: int | None = None, signal_name: str = "") -> None:
        """Ask the process to end, then kill it. Raises ``NotModified`` when nothing runs."""
        container = self._records.store.require(container_id)
        number = parse_signal(signal_name) if signal_name else grace.stop_signal(container.config)
        patience = seconds if seconds is not None else grace.stop_seconds(container.config)
        async with self._locks(container_id):
            container = self._records.store.require(container_id)
            live = self._live[container_id]
            _cancel_restart(live)
            if container.state.status is Status.RESTARTING:
                await self._give_up_restart(container, live)
                self._records.event(container, "stop")
                return
            if not container.is_running:
                raise NotModified()
            await self._records.save(model.replace_state(container, manually_stopped=True), durable=True)
        await self._end(container, live, number, patience)
        self._records.event(container, "stop")

    async def _give_up_restart(self, container: Container, live: Live) -> None:
        """Between two runs: no exit comes that would tell those who wait, or the next daemon, that it is over."""
        _cancel_restart(live)
        state = container.state
        stopped = model.exited(container, state.exit_code, state.finished_at)
        await self._records.save(model.replace_state(stopped, manually_stopped=True), durable=True)
        live.waiters.exited(Exit(state.exit_code))

    async def _resume(self, container_id: str) -> None:
        """A signal that ends a frozen container can only do so once it runs on."""
        with contextlib.suppress(EngineError):  # it was faster
            await self.unpause(container_id)

    async def end_for_policy(self, container_id: str) -> None:
        """Kill it as if it had died by itself, so that its restart policy decides what follows."""
        container = self._records.store.require(container_id)
        await self._signal(container, self._live[container_id], signal.SIGKILL)
        self._records.event(container, "kill", {"signal": str(int(signal.SIGKILL))})

    async def end_with_host(self, container_id: str) -> None:
        """End it as ``stop`` does, but by nobody's wish: what its restart policy wants afterwards stays as it is."""
        async with self._locks(container_id):
            container = self._records.store.require(container_id)
            live = self._live[container_id]
            _cancel_restart(live)
            if not container.is_running:
                return
        await self._end(container, live, grace.stop_signal(container.config), grace.host_seconds(container.config))
        await self._await_settled(container_id)

    async def _end(self, container: Container, live: Live, number: int, patience: int) -> None:
        """Signal, wait for so many seconds (negative: for ever), kill, wait again."""
        if can_be_sent(number):
            await self._signal(container, live, number)
            self._records.event(container, "kill", {"signal": str(number)})
        else:
            patience = grace.UNSENT_SECONDS if patience >= 0 else patience
        if container.state.status is Status.PAUSED:
            await self._thaw(container)
        if not await live.ended_within(None if patience < 0 else float(patience)):
            await self._signal(container, live, signal.SIGKILL)
            self._records.event(container, "kill", {"signal": str(int(signal.SIGKILL))})
            if not await live.ended_within(KILL_PATIENCE_SECONDS):
                raise SystemFailure(
                    f"cannot stop container: {container.id}: tried to kill container, but did not receive an exit event"
                )

    async def kill(self, container_id: str, signal_name: str = "") -> None:
        """Send a signal. Raises ``Conflict`` when nothing runs, ``InvalidParameter`` for an unknown signal."""
        number = parse_signal(signal_name or "SIGKILL")
        if not can_be_sent(number):
            raise InvalidParameter(f"the linux daemon does not support signal {number}")
        container = self._records.store.require(container_id)
        live = self._live[container_id]
        ends = _is_final(container, number)
        if container.state.status is Status.RESTARTING and ends:
            async with self._locks(container_id):
                container = self._records.store.require(container_id)
                if container.state.status is Status.RESTARTING:
                    await self._give_up_restart(container, live)
                    self._records.event(container, "kill", {"signal": str(number)})
                    return
        if container.state.status is Status.RESTARTING:
            raise is_restarting(container_id)
        if not container.is_running:
            raise not_running(container_id)
        if ends:
            async with self._locks(container_id):
                container = self._records.store.require(container_id)
                if container.is_running:
                    await self._records.save(model.replace_state(container, manually_stopped=True), durable=True)
        await self._signal(container, live, number)
        if container.state.status is Status.PAUSED and ends:
            await self._resume(container_id)
        self._records.event(container, "kill", {"signal": str(number)})
        if number == signal.SIGKILL and not await live.ended_within(KILL_PATIENCE_SECONDS):
            raise SystemFailure("tried to kill container, but did not receive an exit event")

    async def _signal(self, container: Container, live: Live, number: int) -> None:
        if live.shim is None or live.ended.is_set():
            return
        with contextlib.suppress(ProcessLookupError):
            await live.shim.kill(number)

    async def restart(self, container_id: str, *, seconds: int | None = None, signal_name: str = "") -> None:
        """Stop (if it runs) and start."""
        container = self._records.store.require(container_id)
        live = self._live[container_id]
        live.restarted_by_hand = True
        try:
            with contextlib.suppress(NotModified):
                await self.stop(container_id, seconds=seconds, signal_name=signal_name)
            await self._await_settled(container_id)
            with contextlib.suppress(NotModified):
                await self.start(container_id)
        finally:
            live.restarted_by_hand = False
        self._records.event(container, "restart")

    async def _await_settled(self, container_id: str) -> None:
        """Wait until the supervisor has put away what the last run left."""
        async with self._locks(container_id):
            self._records.store.require(container_id)

    async def pause(self, container_id: str) -> None:
        """Freeze every process. Raises ``Conflict`` when it does not run or is frozen already."""
        async with self._locks(container_id):
            container = self._records.store.require(container_id)
            if container.state.status is Status.RESTARTING:
                raise is_restarting(container_id)
            if container.state.status is Status.PAUSED:
                raise Conflict(f"Container {container_id} is already paused")
            if not container.is_running:
                raise Conflict(f"Container {container_id} is not running")
            await self._assembly.freeze(container)
            await self._records.save(model.paused(container))
        self._records.event(container, "pause")

    async def unpause(self, container_id: str) -> None:
        """Thaw. Raises ``Conflict`` when it is not frozen."""
        async with self._locks(container_id):
            container = self._records.store.require(container_id)
            if container.state.status is not Status.PAUSED:
                raise Conflict(f"Container {container_id} is not paused")
            await self._thaw(container)
            await self._records.save(model.resumed(container))
        self._records.event(container, "unpause")

    async def _thaw(self, container: Container) -> None:
        await self._assembly.thaw(container)

    @contextlib.asynccontextmanager
    async def frozen(self, container: Container) -> AsyncIterator[None]:
        """Freeze a running container for the time of the block (commit)."""
        freeze = container.state.status is Status.RUNNING
        if freeze:
            await self.pause(container.id)
        try:
            yield
        finally:
            if freeze:
                with contextlib.suppress(Conflict):
                    await self.unpause(container.id)


def _nobody_watches(container_id: str, live: Live) -> None:
    raise RuntimeError("no supervisor watches this lifecycle")


def _check_startable(container: Container) -> None:
    match container.state.status:
        case Status.PAUSED:
            raise Conflict("cannot start a paused container, try unpause instead")
        case Status.RUNNING:
            raise NotModified()
        case Status.REMOVING | Status.DEAD:
            raise Conflict("container is marked for removal and cannot be started")


def _is_final(container: Container, number: int) -> bool:
    """Whether a signal sent by hand ends the restarts: its stop signal and KILL do, and any where it has none."""
    stop_signal = container.config.stop_signal
    return not stop_signal or number in (signal.SIGKILL, parse_signal(stop_signal))


def _cancel_restart(live: Live) -> None:
    if live.restart_task is not None and live.restart_task is not asyncio.current_task():
        live.restart_task.cancel()
    live.restart_task = None


async def _kill_quietly(live: Live) -> None:
    if live.shim is not None:
        with contextlib.suppress(OSError):
            await live.shim.kill(signal.SIGKILL)


def _explain(error: Exception) -> tuple[EngineError, int]:
    """The sentence for the client and the exit code that the record keeps."""
    if isinstance(error, RuntimeFailure):
        if error.exit_hint in (126, 127):
            return InvalidParameter(error.message), error.exit_hint
        return SystemFailure(error.message), 128
    if isinstance(error, EngineError):
        return error, 128
    if isinstance(error, TimeoutError):
        return SystemFailure("the container did not start in time"), 128
    return SystemFailure(os_words(error)), 128
