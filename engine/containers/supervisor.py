"""What happens when a process ends, and what happens when the daemon starts.

One watcher task per running container waits for its shim's word. An exit is handled under the container's lock, in this
order: the record (journal), what the run held (network, volumes, shim), the events, those who wait; then the restart or
the removal. ``restore`` goes through all records once at start: it adopts what lives, records what ended meanwhile,
undoes starts that no client was told of, finishes removals, and starts what its policy wants to run.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from engine.clock import now_ns
from engine.containers import model, policy
from engine.containers.assembly import Assembly
from engine.containers.journalist import Journalist
from engine.containers.lifecycle import Lifecycle
from engine.containers.live import Exit, Live, LiveTable
from engine.containers.model import Container, Status
from engine.containers.prober import Prober
from engine.errors import EngineError, NotFound, NotModified
from engine.runtime.shims import ExitRecord, OutOfMemory, Shim, ShimEvent, ShimLost, Shims, read_exit_record
from engine.tasks import KeyedLocks, Nursery

log = logging.getLogger(__name__)

Remove = Callable[[str], Awaitable[None]]


class Supervisor:
    """Watches running containers and decides what follows an exit."""

    def __init__(
        self,
        journalist: Journalist,
        live: LiveTable,
        assembly: Assembly,
        lifecycle: Lifecycle,
        shims: Shims,
        locks: KeyedLocks,
        nursery: Nursery,
        prober: Prober,
        remove: Remove,
        forget_execs: Callable[[str], None],
    ) -> None:
        self._records = journalist
        self._live = live
        self._assembly = assembly
        self._lifecycle = lifecycle
        self._shims = shims
        self._locks = locks
        self._nursery = nursery
        self._prober = prober
        self._remove = remove
        self._forget_execs = forget_execs
        self._stopping = False
        self._restarts_held = False

    def watch(self, container_id: str, live: Live) -> None:
        """Wait in the background for the end of the container that has just been started or adopted."""
        shim = live.require_shim()

        def noticed(event: ShimEvent) -> None:
            if isinstance(event, OutOfMemory):
                self._nursery.start(self._out_of_memory(container_id), name=f"oom {container_id[:12]}")

        shim.subscribe(noticed)
        self._nursery.start(self._watch(container_id, live, shim), name=f"watch {container_id[:12]}")
        self._prober.begin(container_id, live)

    def close(self) -> None:
        """The daemon stops: exits that come now belong to the next daemon."""
        self._stopping = True

    def hold_restarts(self) -> None:
        """The host stops: what is to run again is put on record as waiting for that, and waits for the next daemon."""
        self._restarts_held = True

    async def _watch(self, container_id: str, live: Live, shim: Shim) -> None:
        try:
            record = await self._exit_of(shim, container_id)
        except ShimLost:
            return
        if self._stopping:
            return
        await self._nursery.shielded(self._handle_exit(container_id, live, record), name=f"exit {container_id[:12]}")

    async def _out_of_memory(self, container_id: str) -> None:
        """Memory ran out while it runs: the kernel kills in it, or makes it wait if that is off (dockerd says oom)."""
        async with self._locks(container_id):
            container = self._records.store.get(container_id)
            if container is None or not container.is_running:
                return
            if not container.state.oom_killed:
                container = model.replace_state(container, oom_killed=True)
                await self._records.save(container)
            self._records.event(container, "oom")

    async def _exit_of(self, shim: Shim, container_id: str) -> ExitRecord:
        try:
            return await shim.wait_exit()
        except ShimLost:
            run_dir = self._assembly.run_dir(container_id)
            record = await read_exit_record(run_dir)
            if record is not None:
                return record
            if self._stopping:
                raise
            log.error("the shim of container %s is gone; its processes are ended", container_id)
            await self._assembly.kill_leftover(container_id)
            return ExitRecord(model.LOST_EXIT_CODE, oom_killed=False, started_at=0, finished_at=now_ns())

    async def _handle_exit(self, container_id: str, live: Live, record: ExitRecord, *, before_us: bool = False) -> None:
        """Put an exit on record and draw the conclusions.

        ``before_us``: it ended while no daemon ran, and whether it runs again is decided when all are restored.
        """
        async with self._locks(container_id):
            container = self._records.store.get(container_id)
            if container is None:
                return
            oom_killed, oom_told = record.oom_killed or container.state.oom_killed, container.state.oom_killed
            again = not before_us and self._wants_restart(container, live, record)
            after = (model.restarting if again else model.exited)(
                container, record.exit_code, record.finished_at, oom_killed=oom_killed
            )
            if container.state.status is Status.REMOVING:
                after = model.removing(after, volumes=container.state.removes_volumes)
            after = self._assembly.without_facts(after)
            await self._records.save(after)
            live.ended.set()
            self._forget_execs(container_id)
            if oom_killed and not oom_told:
                self._records.event(after, "oom")
            ran_for = max(0, record.finished_at - container.state.started_at)
            self._records.event(
                after, "die", {"exitCode": str(record.exit_code), "execDuration": str(ran_for // 1_000_000_000)}
            )
            # With --rm the client waits for the removal: let the putting away and the removal share one wait.
            live.waiters.exited(Exit(record.exit_code))
            await self._assembly.put_away(after, live)
        if again and self._restarts_held:
            return
        if again:
            delay = live.back_off.next_delay(ran_for)
            live.restart_task = self._nursery.start(
                self._restart(container_id, delay), name=f"restart {container_id[:12]}"
            )
        elif self._is_to_go(after, live):
            await self._auto_remove(container_id)

    def _is_to_go(self, container: Container, live: Live) -> bool:
        """Whether ``--rm`` ends a container that has just exited."""
        if container.state.status is Status.REMOVING or live.restarted_by_hand:
            return False
        return container.host_config.auto_remove

    def _wants_restart(self, container: Container, live: Live, record: ExitRecord) -> bool:
        if container.state.status is Status.REMOVING:
            return False
        return policy.wants_restart(
            container.host_config.restart_policy,
            record.exit_code,
            container.state.restart_count,
            manually_stopped=container.state.manually_stopped,
        )

    async def _auto_remove(self, container_id: str) -> None:
        with contextlib.suppress(NotFound):
            try:
                await self._remove(container_id)
            except EngineError as error:
                log.warning("container %s could not be removed after its end: %s", container_id, error)

    async def start_again(self, container_id: str) -> None:
        """Start what runs with the daemon; where that fails and the policy wants it, try again in the background."""
        container = self._records.store.get(container_id)
        if container is not None and container.state.manually_stopped:  # by hand, but under another daemon
            await self._records.save(model.replace_state(container, manually_stopped=False))
        delay = await self._attempt(container_id)
        if delay is not None:
            again = self._restart(container_id, delay)
            self._live[container_id].restart_task = self._nursery.start(again, name=f"restart {container_id[:12]}")

    async def _restart(self, container_id: str, delay: float | None) -> None:
        """Start again after the back-off; a start that fails is tried again while the policy wants it."""
        while delay is not None:
            await asyncio.sleep(delay)
            delay = await self._attempt(container_id)

    async def _attempt(self, container_id: str) -> float | None:
        """Start it as its policy does; after how long it is to be tried again, where that failed."""
        live = self._live[container_id]
        try:
            await self._lifecycle.start(container_id, by_hand=False)
            return None
        except (NotModified, NotFound):
            return None
        except EngineError as error:
            log.warning("container %s could not be started again: %s", container_id, error)
        container = self._records.store.get(container_id)
        if container is None:
            return None
        if not policy.wants_restart(
            container.host_config.restart_policy,
            container.state.exit_code,
            container.state.restart_count,
            manually_stopped=container.state.manually_stopped,
        ):
            live.waiters.exited(Exit(container.state.exit_code, container.state.error))
            return None
        waiting = model.replace_state(
            container, status=Status.RESTARTING, restart_count=container.state.restart_count + 1
        )
        await self._records.save(waiting)
        return live.back_off.next_delay(0)

    # The start of the daemon.

    async def restore(self, run_root: Path) -> list[str]:
        """Bring records and reality together; returns the ids of containers that are to be started now, in order."""
        records = list(self._records.store)
        async with asyncio.TaskGroup() as group:
            for container in records:
                group.create_task(self._restore_one(container))
        await self._sweep_run_root(run_root)
        await self._assembly.sweep()
        return self._to_start(records)

    async def _restore_one(self, container: Container) -> None:
        try:
            await self._reconcile(container)
        except Exception as error:  # no container keeps the daemon from starting for the others
            log.exception("container %s could not be restored: %s", container.id, error)

    async def _reconcile(self, container: Container) -> None:
        live = self._live[container.id]
        if not container.is_running:
            live.ended.set()
        run_dir = self._assembly.run_dir(container.id)
        shim = await self._shims.find(container.id, run_dir)
        record = await read_exit_record(run_dir)
        if shim is not None and container.is_running:
            live.shim = shim
            if record is None:
                await self._adopt(container, live, shim)
            else:
                await self._handle_exit(container.id, live, record, before_us=True)
            return
        if shim is not None:
            await self._end_shim(shim)
        if container.is_running:
            await self._handle_exit(container.id, live, record or await self._lost(container), before_us=True)
            return
        await self._assembly.drop_run_dir(run_dir)
        if container.state.status is Status.RESTARTING:
            # The daemon that waited for its next run is gone; whether there is one is decided when all are restored.
            await self._records.save(model.replace_state(container, status=Status.EXITED))
        elif container.state.status is Status.REMOVING or (
            container.host_config.auto_remove and container.state.status is Status.EXITED
        ):
            await self._auto_remove(container.id)

    async def _lost(self, container: Container) -> ExitRecord:
        log.warning("container %s ended while the daemon was away and left no record", container.id)
        await self._assembly.kill_leftover(container.id)
        return ExitRecord(model.LOST_EXIT_CODE, oom_killed=False, started_at=0, finished_at=now_ns())

    async def _adopt(self, container: Container, live: Live, shim: Shim) -> None:
        await self._assembly.adopt(container, live, shim)
        # A pause or unpause that was cut short: no client was told of it, so the record is right.
        await (self._assembly.freeze if container.state.status is Status.PAUSED else self._assembly.thaw)(container)
        self.watch(container.id, live)

    async def _end_shim(self, shim: Shim) -> None:
        """End a run that the record knows nothing of: a start no client was told of, or an exit not yet put away."""
        try:
            await shim.discard()
        except OSError as error:
            log.warning("container %s: ending its earlier run: %s", shim.container_id, error)

    async def _sweep_run_root(self, run_root: Path) -> None:
        """End shims of containers that nobody knows (a create or removal cut short) and drop their run folders."""
        for run_dir in await self._assembly.run_dirs(run_root):
            if self._records.store.get(run_dir.name) is not None:
                continue
            shim = await self._shims.find(run_dir.name, run_dir)
            if shim is not None:
                await self._end_shim(shim)
            await self._assembly.drop_run_dir(run_dir)

    def _to_start(self, before: Sequence[Container]) -> list[str]:
        wanted = []
        for old in before:
            now = self._records.store.get(old.id)
            if now is None or now.is_running or now.state.status in (Status.REMOVING, Status.DEAD):
                continue
            was_running = old.is_running or old.state.status is Status.RESTARTING
            if self._live[now.id].restart_task is None and policy.starts_with_daemon(
                now.host_config.restart_policy,
                now.state.exit_code,
                ever_started=now.state.started_at != 0,
                manually_stopped=now.state.manually_stopped,
                was_running=was_running,
            ):
                wanted.append(now)
        return [c.id for c in sorted(wanted, key=lambda c: c.created_at)]
