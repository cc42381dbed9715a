"""Runs health checks: one task per running container that has one, for as long as this run of it lasts.

A probe is a process in the container, run by its shim; its result is saved and, when the health changes, told as a
``health_status`` event. A paused container is not probed. The task ends with the run, without being told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import struct
from collections.abc import Callable

from engine.clock import SECOND, now_ns
from engine.containers.assembly import Assembly
from engine.containers.health import (
    KEPT_OUTPUT,
    UNHEALTHY,
    HealthPlan,
    health_plan,
    judge,
    kept_text,
    next_delay,
    timeout_words,
)
from engine.containers.journalist import Journalist
from engine.containers.live import Live
from engine.containers.model import Container, Health, HealthProbe, Status, replace_state
from engine.containers.settings import ExecSettings
from engine.errors import EngineError, os_words
from engine.names import new_id
from engine.runtime.oci import RuntimeFailure
from engine.runtime.shims import ExecSpec, Shim, ShimLost
from engine.tasks import KeyedLocks, Nursery

log = logging.getLogger(__name__)

_CHUNK = 32 * 1024
_HEADER = struct.Struct(">BxxxL")
_PROBE_FAILED = -1
_DEATH_SECONDS = 5.0
_DRAIN_SECONDS = 0.5
_START_SECONDS = 30.0
"""A probe's own time begins when it runs; this is for the runtime to get it there."""

OnUnhealthy = Callable[[Container], None]


class Prober:
    """Health checks of all containers.

    ``on_unhealthy`` is called with a container that has just turned unhealthy, and may not wait.
    """

    def __init__(
        self,
        journalist: Journalist,
        assembly: Assembly,
        locks: KeyedLocks,
        nursery: Nursery,
        on_unhealthy: OnUnhealthy,
    ) -> None:
        self._records = journalist
        self._assembly = assembly
        self._locks = locks
        self._nursery = nursery
        self._on_unhealthy = on_unhealthy

    def begin(self, container_id: str, live: Live) -> None:
        """Probe the container that has just been started, or adopted after a restart of the daemon."""
        container = self._records.store.get(container_id)
        plan = health_plan(container.config) if container is not None else None
        if container is not None and plan is not None:
            self._nursery.start(
                self._watch(container_id, live, plan, container.state.started_at), name=f"health {container_id[:12]}"
            )

    async def _watch(self, container_id: str, live: Live, plan: HealthPlan, started_at: int) -> None:
        shim = live.shim
        while shim is not None:
            container = self._current(container_id, started_at)
            if container is None:
                return
            status = container.state.health.status if container.state.health else ""
            delay = next_delay(plan, status, now_ns() - started_at) / SECOND
            if await live.ended_within(delay):
                return
            container = self._current(container_id, started_at)
            if container is None or container.state.status is Status.PAUSED:
                continue
            probe = await self._probe(container, shim, plan)
            if live.ended.is_set():
                return
            await self._settle(container_id, plan, probe, started_at)

    def _current(self, container_id: str, started_at: int) -> Container | None:
        """The record, while it still is about the same run."""
        container = self._records.store.get(container_id)
        if container is None or not container.is_running or container.state.started_at != started_at:
            return None
        return container

    async def _settle(self, container_id: str, plan: HealthPlan, probe: HealthProbe, started_at: int) -> None:
        async with self._locks(container_id):
            container = self._current(container_id, started_at)
            if container is None:
                return
            before = container.state.health or Health()
            after = judge(before, plan, probe, started_at)
            container = replace_state(container, health=after)
            await self._records.save(container)
            if after.status == before.status:
                return
            self._records.event(container, f"health_status: {after.status}")
        if after.status == UNHEALTHY:
            self._on_unhealthy(container)

    async def _probe(self, container: Container, shim: Shim, plan: HealthPlan) -> HealthProbe:
        start = now_ns()
        try:
            code, output = await self._run(container, shim, plan)
        except (EngineError, RuntimeFailure, OSError, ShimLost, LookupError) as error:
            code, output = _PROBE_FAILED, getattr(error, "message", "") or os_words(error)
        self._records.measures.probed(failed=code != 0)
        return HealthProbe(start=start, end=now_ns(), exit_code=code, output=output)

    async def _run(self, container: Container, shim: Shim, plan: HealthPlan) -> tuple[int, str]:
        """Exit code and output of one probe; a probe beyond its time is killed."""
        exec_id = new_id()
        settings = ExecSettings(cmd=plan.command, user=container.config.user)
        process = await self._assembly.exec_process(container, settings)
        about = {"execID": exec_id}
        self._records.event(container, f"exec_create: {settings.command}", about)
        await shim.prepare_exec(ExecSpec(exec_id, process))
        stream = await shim.attach(stdin=False, stdout=True, stderr=True, exec_id=exec_id)
        output = bytearray()
        with stream:
            self._records.event(container, f"exec_start: {settings.command}", about)
            try:
                async with asyncio.timeout(_START_SECONDS):
                    await shim.start_exec(exec_id)
                async with asyncio.timeout(plan.timeout / SECOND):
                    await _collect(stream, output)
                    code = await shim.wait_exec(exec_id)
                text = kept_text(output)
            except TimeoutError:
                await _kill(shim, exec_id)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_DRAIN_SECONDS):
                        await _collect(stream, output)
                code, text = _PROBE_FAILED, timeout_words(plan.timeout, kept_text(output))
        self._records.event(container, "exec_die", {**about, "exitCode": str(code)})
        return code, text


async def _kill(shim: Shim, exec_id: str) -> None:
    with contextlib.suppress(OSError, ShimLost, LookupError, TimeoutError):
        await shim.kill_exec(exec_id, signal.SIGKILL)
        async with asyncio.timeout(_DEATH_SECONDS):
            await shim.wait_exec(exec_id)


async def _collect(stream: socket.socket, output: bytearray) -> None:
    """Read docker's frames to the end; ``output`` gets what they hold, one byte more than is kept at the most."""
    loop = asyncio.get_running_loop()
    pending = bytearray()
    while data := await loop.sock_recv(stream, _CHUNK):
        pending += data
        while len(pending) >= _HEADER.size:
            (_, length) = _HEADER.unpack_from(pending)
            end = _HEADER.size + length
            if len(pending) < end:
                break
            output += pending[_HEADER.size : end][: max(0, KEPT_OUTPUT + 1 - len(output))]
            del pending[:end]
