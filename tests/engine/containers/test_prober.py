"""Health checks run against a shim that answers from a script."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest_asyncio

from engine.clock import SECOND
from engine.containers.assembly import Assembly
from engine.containers.health import with_fresh_health
from engine.containers.journalist import Journalist
from engine.containers.live import Live
from engine.containers.model import Container, Status, exited, paused, started
from engine.containers.prober import Prober
from engine.containers.settings import ContainerConfig, ExecSettings, HealthConfig, HostConfig
from engine.measures import Measures
from engine.runtime.oci import RuntimeFailure
from engine.runtime.shims import ExecSpec, Shim, ShimLost
from engine.shim.wire import header
from engine.tasks import KeyedLocks, Nursery

MS = SECOND // 1000
ID = "a" * 64


class Records:
    """The one container, and what was told."""

    def __init__(self, container: Container) -> None:
        self.container: Container | None = container
        self.events: list[str] = []
        self.saved = asyncio.Event()
        self.store = self
        self.measures = Measures()

    def get(self, container_id: str) -> Container | None:
        return self.container

    async def save(self, container: Container, *, durable: bool = False) -> None:
        self.container = container
        self.saved.set()

    def event(self, container: Container, action: str, extra: object = None) -> None:
        self.events.append(action.partition(" a ")[0])

    async def next_health(self) -> tuple[str, int, str]:
        """Status, last exit code and last output, after the next result."""
        self.saved.clear()
        await asyncio.wait_for(self.saved.wait(), 5)
        assert self.container is not None
        assert self.container.state.health is not None
        health = self.container.state.health
        return health.status, health.log[-1].exit_code, health.log[-1].output


class ScriptedShim:
    """Answers each probe with the next line of its script: an exit code with output, ``hang``, or an exception."""

    def __init__(self, *script: tuple[int, bytes] | str | Exception) -> None:
        self.script = list(script)
        self.killed: list[str] = []
        self.start_delay = 0.0
        self._ends: dict[str, socket.socket] = {}
        self._codes: dict[str, asyncio.Future[int]] = {}

    async def prepare_exec(self, spec: ExecSpec) -> None:
        self._codes[spec.exec_id] = asyncio.get_running_loop().create_future()

    async def attach(self, *, stdin: bool, stdout: bool, stderr: bool, exec_id: str) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._ends[exec_id] = theirs
        return ours

    async def start_exec(self, exec_id: str) -> int:
        await asyncio.sleep(self.start_delay)
        step = self.script.pop(0) if self.script else (0, b"")
        if isinstance(step, Exception):
            self._ends.pop(exec_id).close()
            raise step
        if isinstance(step, str):
            self._ends[exec_id].sendall(header(1, 4) + b"half")
            return 7
        code, output = step
        for chunk in (output[:3], output[3:]):
            self._ends[exec_id].sendall(header(2, len(chunk)) + chunk)
        self._finish(exec_id, code)
        return 7

    def _finish(self, exec_id: str, code: int) -> None:
        self._ends.pop(exec_id).close()
        self._codes[exec_id].set_result(code)

    async def kill_exec(self, exec_id: str, number: int) -> None:
        self.killed.append(exec_id)
        self._finish(exec_id, 137)

    async def wait_exec(self, exec_id: str) -> int:
        return await asyncio.shield(self._codes[exec_id])


class Processes:
    """Makes process objects."""

    async def exec_process(self, container: Container, settings: ExecSettings) -> dict[str, Any]:
        return {"args": list(settings.cmd or ())}


class Bench:
    """A prober of one container."""

    def __init__(self) -> None:
        self.nursery = Nursery("probes")
        self.unhealthy: list[str] = []
        self.live = Live(ID)

    def begin(self, shim: ScriptedShim, **check: Any) -> Records:
        health = HealthConfig(
            **{"test": ("CMD", "a", "b"), "interval": 10 * MS, "timeout": 200 * MS, "retries": 2, **check}
        )
        container = Container(
            id=ID, name="a", created_at=0, image="", image_id="", path="x", args=(),
            config=ContainerConfig(healthcheck=health), host_config=HostConfig(),
        )  # fmt: skip
        records = Records(with_fresh_health(started(container, 5, 1)))
        self.live.shim = cast(Shim, shim)

        def note(container: Container) -> None:
            self.unhealthy.append(container.id)

        prober = Prober(cast(Journalist, records), cast(Assembly, Processes()), KeyedLocks(), self.nursery, note)
        prober.begin(ID, self.live)
        return records

    async def end(self) -> None:
        self.live.ended.set()
        await self.nursery.aclose()


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    await made.end()


async def test_health_and_its_events(bench: Bench) -> None:
    records = bench.begin(ScriptedShim((0, b"all well\n"), (1, b"ill"), (1, b"ill"), (1, b"ill")), interval=30 * MS)
    assert await records.next_health() == ("healthy", 0, "all well\n")
    assert await records.next_health() == ("healthy", 1, "ill")
    assert await records.next_health() == ("unhealthy", 1, "ill")
    assert records.events[:4] == ["exec_create:", "exec_start:", "exec_die", "health_status: healthy"]
    assert records.events.count("health_status: unhealthy") == 1
    await asyncio.sleep(0)
    assert bench.unhealthy == [ID]


async def test_long_output_is_cut(bench: Bench) -> None:
    records = bench.begin(ScriptedShim((0, b"x" * 100_000)))
    assert (await records.next_health())[2] == "x" * 4096 + "..."


async def test_a_probe_beyond_its_time_is_killed(bench: Bench) -> None:
    shim = ScriptedShim("hang")
    records = bench.begin(shim, timeout=50 * MS)
    assert await records.next_health() == ("starting", -1, "Health check exceeded timeout (50ms): half")
    assert len(shim.killed) == 1


async def test_the_time_to_start_a_probe_is_not_its_own(bench: Bench) -> None:
    shim = ScriptedShim((0, b"late"))
    shim.start_delay = 0.08
    assert await bench.begin(shim, timeout=40 * MS).next_health() == ("healthy", 0, "late")


async def test_a_probe_that_cannot_run_counts_as_failed(bench: Bench) -> None:
    records = bench.begin(ScriptedShim(RuntimeFailure("no such file", 127), ShimLost("gone")), interval=30 * MS)
    status, code, output = await records.next_health()
    assert (status, code) == ("starting", -1)
    assert "no such file" in output
    assert (await records.next_health())[0] == "unhealthy"


async def test_nothing_is_probed_while_paused_or_after_the_end(bench: Bench) -> None:
    shim = ScriptedShim()
    records = bench.begin(shim, interval=20 * MS)
    assert records.container is not None
    records.container = paused(records.container)
    await asyncio.sleep(0.06)
    assert records.events == []
    records.container = exited(records.container, 0, 9)
    await asyncio.sleep(0.04)
    assert records.container.state.status is Status.EXITED
    assert records.events == []


async def test_a_container_without_a_check_is_left_alone(bench: Bench) -> None:
    records = bench.begin(ScriptedShim(), test=("NONE",), interval=1 * MS)
    await asyncio.sleep(0.02)
    assert records.events == []
