"""Fakes of what a container's run needs (journal, shim, assembly), and a bench that wires real services to them.

A fake shim ends when it is killed by a signal in ``ends_by``, or by its ``end``.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, cast

from engine.clock import SECOND
from engine.containers.assembly import Assembly
from engine.containers.exec import Execs
from engine.containers.journalist import Journalist
from engine.containers.lifecycle import Lifecycle
from engine.containers.live import Live, LiveTable
from engine.containers.model import Container
from engine.containers.prober import Prober
from engine.containers.removal import Remover
from engine.containers.store import ContainerStore
from engine.containers.supervisor import Supervisor
from engine.errors import EngineError, InvalidParameter, no_such_image, no_such_network
from engine.events import EventBus
from engine.filters import Filters
from engine.journal import Journal
from engine.networks.model import SandboxDocument
from engine.runtime.oci import RuntimeFailure
from engine.runtime.shims import ExecSpec, ExitRecord, Shim, ShimEvent, ShimLost, Shims
from engine.snapshots.base import Snapshotter
from engine.tasks import KeyedLocks, Nursery
from engine.volumes.service import VolumeService
from registry.manifest import Platform


class FakeJournal:
    """Documents in memory; ``failure`` is raised by the next writes."""

    def __init__(self) -> None:
        self.documents: dict[tuple[str, str], bytes] = {}
        self.durable: list[bool] = []
        self.failure: Exception | None = None

    def load(self, kind: str) -> dict[str, bytes]:
        return {key: body for (of, key), body in self.documents.items() if of == kind}

    async def put(self, kind: str, key: str, body: bytes, *, durable: bool = True) -> None:
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        self.documents[kind, key] = body
        self.durable.append(durable)

    async def delete(self, kind: str, key: str, *, durable: bool = True) -> None:
        await asyncio.sleep(0)
        self.documents.pop((kind, key), None)


class FakeShim:
    """A shim whose container runs until something ends it."""

    def __init__(self, container_id: str, pid: int = 4242, *, init_pid: int | None = None) -> None:
        self.container_id = container_id
        self.pid = pid
        self.init_pid = init_pid
        self.ends_by = {9, 15}
        self.signals: list[int] = []
        self.attached: list[dict[str, Any]] = []
        self.sizes: list[tuple[int, int, str | None]] = []
        self.peers: list[socket.socket] = []
        self.prepared: list[ExecSpec] = []
        self.exec_signals: list[tuple[str, int]] = []
        self.exec_processes: list[int] = []
        self.held: list[int] = []
        self.hold_failure: Exception | None = None
        self.run_failure: Exception | None = None
        self.exec_failure: Exception | None = None
        self.is_discarded = False
        self.listeners: list[Callable[[ShimEvent], None]] = []
        self._exit: asyncio.Future[ExitRecord] = asyncio.get_running_loop().create_future()
        self._execs: dict[str, asyncio.Future[int]] = {}

    @property
    def exit_record(self) -> ExitRecord | None:
        return self._exit.result() if self._exit.done() and self._exit.exception() is None else None

    def subscribe(self, listener: Callable[[ShimEvent], None]) -> None:
        self.listeners.append(listener)

    def tell(self, event: ShimEvent) -> None:
        for listener in self.listeners:
            listener(event)

    async def hold(self, descriptors: tuple[int, ...]) -> None:
        if self.hold_failure is not None:
            raise self.hold_failure
        self.held += descriptors

    async def run(self) -> int:
        if self.run_failure is not None:
            raise self.run_failure
        self.init_pid = self.pid
        return self.pid

    def end(self, exit_code: int, *, oom_killed: bool = False, finished_at: int = 100 * SECOND) -> None:
        if not self._exit.done():
            self._exit.set_result(ExitRecord(exit_code, oom_killed, SECOND, finished_at))

    def lose(self) -> None:
        self._exit.set_exception(ShimLost())

    async def wait_exit(self) -> ExitRecord:
        return await asyncio.shield(self._exit)

    async def kill(self, number: int) -> None:
        if self._exit.done():
            raise ProcessLookupError
        self.signals.append(int(number))
        if number in self.ends_by:
            self.end(128 + int(number))

    async def attach(self, **choice: Any) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.attached.append(choice)
        self.peers.append(theirs)
        return ours

    async def resize(self, rows: int, columns: int, exec_id: str | None = None) -> None:
        self.sizes.append((rows, columns, exec_id))

    async def prepare_exec(self, spec: ExecSpec) -> None:
        self.prepared.append(spec)

    async def start_exec(self, exec_id: str) -> int:
        if self.exec_failure is not None:
            raise self.exec_failure
        self._execs[exec_id] = asyncio.get_running_loop().create_future()
        return 77

    def end_exec(self, exec_id: str, outcome: int | Exception) -> None:
        if isinstance(outcome, Exception):
            self._execs[exec_id].set_exception(outcome)
        else:
            self._execs[exec_id].set_result(outcome)

    async def wait_exec(self, exec_id: str) -> int:
        return await asyncio.shield(self._execs[exec_id])

    async def kill_exec(self, exec_id: str, number: int, *, everything: bool = False) -> None:
        self.exec_signals.append((exec_id, number))
        if everything and not self.exec_processes:
            raise ProcessLookupError("nothing of it is running")

    async def exec_pids(self, exec_id: str) -> list[int]:
        return self.exec_processes

    async def discard(self) -> None:
        self.is_discarded = True

    def close_peers(self) -> None:
        for peer in self.peers:
            peer.close()


class FakeAssembled:
    """What an assembly gives to a start."""

    def __init__(self, shim: FakeShim) -> None:
        self.shim = shim


class FakeAssembly:
    """Puts fake runs together; ``log`` tells what was asked of it, in order."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log: list[str] = []
        self.shims: list[FakeShim] = []
        self.failure: Exception | None = None
        self.run_failure: Exception | None = None
        self.trash_failure: OSError | None = None
        self.limits_failure: InvalidParameter | None = None
        self.ends_by = {9, 15}
        self.hold: asyncio.Event | None = None
        self.sizes: dict[str, int] = {}

    def expect_process(self) -> None:
        """Nothing to prepare."""

    def apparmor_profile(self, container: Container) -> str:
        return f"profile of {container.name}"

    def check_limits(self, container: Container) -> None:
        if self.limits_failure is not None:
            raise self.limits_failure

    def with_shared_names(self, container: Container) -> Container:
        return container

    async def assemble(self, container: Container, live: Live, undo: contextlib.AsyncExitStack) -> FakeAssembled:
        self.log.append("assemble")
        undo.callback(self.log.append, "undo")
        if self.hold is not None:
            await self.hold.wait()
        if self.failure is not None:
            raise self.failure
        shim = FakeShim(container.id, 4242 + len(self.shims))
        shim.ends_by, shim.run_failure = self.ends_by, self.run_failure
        self.shims.append(shim)
        live.shim = cast(Shim, shim)
        undo.callback(setattr, live, "shim", None)
        return FakeAssembled(shim)

    async def with_facts(self, container: Container, assembled: FakeAssembled) -> Container:
        return container

    def without_facts(self, container: Container) -> Container:
        return container

    async def put_away(self, container: Container, live: Live) -> None:
        self.log.append("put away")
        live.shim = None

    async def adopt(self, container: Container, live: Live, shim: FakeShim) -> None:
        self.log.append("adopt")

    async def freeze(self, container: Container) -> None:
        self.log.append("freeze")

    async def thaw(self, container: Container) -> None:
        self.log.append("thaw")

    async def kill_leftover(self, container_id: str) -> None:
        self.log.append("kill leftover")

    async def trash_directory(self, container_id: str) -> None:
        if self.trash_failure is not None:
            raise self.trash_failure
        self.log.append("trash")

    async def writable_size(self, container_id: str) -> int:
        return self.sizes.get(container_id, 0)

    async def sweep(self) -> None:
        self.log.append("sweep")

    def run_dir(self, container_id: str) -> Path:
        return self.root / container_id

    def directory(self, container_id: str) -> Path:
        return self.root / "data" / container_id

    def log_path(self, container: Container) -> Path | None:
        if container.host_config.log_config.type == "none":
            return None
        return self.directory(container.id) / f"{container.id}-json.log"

    async def run_dirs(self, run_root: Path) -> list[Path]:
        return sorted(path for path in run_root.iterdir() if path.is_dir())

    async def drop_run_dir(self, run_dir: Path) -> None:
        if not run_dir.is_dir():
            return
        self.log.append(f"drop {run_dir.name}")
        for file in run_dir.iterdir():
            file.unlink()
        run_dir.rmdir()

    async def exec_process(self, container: Container, settings: Any) -> Mapping[str, Any]:
        return {"args": list(settings.cmd or ())}


class FakeShims:
    """Finds the shims that a test says are there."""

    def __init__(self) -> None:
        self.known: dict[str, FakeShim] = {}

    async def find(self, container_id: str, run_dir: Path) -> FakeShim | None:
        return self.known.get(container_id)


class FakeSnapshotter:
    """Remembers what was removed."""

    name = "overlay2"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.removed: list[str] = []
        self.prepared: list[tuple[str, tuple[str, ...], int | None]] = []
        self.failure: Exception | None = None

    async def prepare(self, container_id: str, layers: tuple[str, ...], limit: str | None) -> None:
        if self.failure is not None:
            raise self.failure
        self.prepared.append((container_id, tuple(layers), limit))

    async def remove(self, container_id: str) -> None:
        self.removed.append(container_id)


class FakeVolumeRemover:
    """The part of the volume service that removals need."""

    def __init__(self) -> None:
        self.removed: list[str] = []
        self.failure: EngineError | None = None

    async def remove_with_container(self, name: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.removed.append(name)


class FakeImage:
    """An image by its id."""

    def __init__(self, image_id: str, size: int = 0, config: object = None) -> None:
        self.id = image_id
        self.size = size
        self.config = config
        self.platform = Platform(architecture="amd64", os="linux")

    def suits(self, platform: Platform) -> bool:
        return platform.architecture == self.platform.architecture


class FakeImages:
    """Images by any of their names."""

    def __init__(self, by_name: dict[str, FakeImage] | None = None) -> None:
        self.by_name = by_name or {}
        self.asked: list[str] = []
        self.layer_keys: tuple[str, ...] = ("layer1", "layer2")
        self.held: list[str] = []

    def find(self, name: str) -> FakeImage | None:
        self.asked.append(name)
        return self.by_name.get(name)

    def get(self, name: str) -> FakeImage:
        if name not in self.by_name:
            raise no_such_image(name)
        return self.by_name[name]

    def descendants(self, image: FakeImage) -> set[str]:
        return set()

    async def layers(self, image: FakeImage) -> tuple[str, ...]:
        assert image.id in self.held  # or a removal could take them before the container is there
        return self.layer_keys

    @contextlib.asynccontextmanager
    async def holding(self, image: FakeImage | None) -> AsyncIterator[None]:
        self.held += [image.id] if image is not None else []
        try:
            yield
        finally:
            self.held.clear()


class FakeNetwork:
    """A network by id and name."""

    def __init__(self, network_id: str, name: str) -> None:
        self.id = network_id
        self.name = name


class FakeNetworks:
    """Networks, and what was asked of them."""

    def __init__(self, *networks: FakeNetwork) -> None:
        self.known = networks or (FakeNetwork("n1", "bridge"), FakeNetwork("n2", "front"))
        self.log: list[tuple[str, ...]] = []
        self.failure: EngineError | None = None
        self.wish_failure: EngineError | None = None

    def find(self, reference: str) -> FakeNetwork:
        for network in self.known:
            if reference in (network.id, network.name):
                return network
        raise no_such_network(reference)

    def check_wish(self, name: str, wish: Any) -> None:
        if self.wish_failure is not None:
            raise self.wish_failure

    async def validate_wish(self, mode: str, endpoints: Mapping[str, Any], blank: Any = None) -> dict[str, Any]:
        if self.wish_failure is not None:
            raise self.wish_failure
        if mode in ("host", "none") or mode.startswith("container:"):
            return {}
        known = {network.id: network.name for network in self.known}
        return {known.get(name, name): wish for name, wish in endpoints.items()} or {"bridge": blank}

    async def connect(self, container_id: str, reference: str, wish: Any, ports: Any) -> None:
        if self.failure is not None:
            raise self.failure
        self.log.append(("connect", container_id, reference))

    async def disconnect(self, container_id: str, reference: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.log.append(("disconnect", container_id, reference))

    def sandbox_key(self, document: SandboxDocument) -> str:
        return "" if document.mode.startswith("container:") else f"/run/netns/{document.sandbox_id[:12]}"

    async def rename_container(self, container_id: str, name: str) -> None:
        self.log.append(("rename", container_id, name))


class FakeProber:
    """Remembers whom it was told to probe."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    def begin(self, container_id: str, live: Live) -> None:
        self.begun.append(container_id)


class Bench:
    """Lifecycle, supervisor, remover and execs as the daemon wires them, on fakes."""

    def __init__(self, root: Path, *records: Container) -> None:
        self.journal = FakeJournal()
        self.events = EventBus()
        self.store = ContainerStore(cast(Journal, self.journal))
        self.records = Journalist(self.store, self.events)
        self.live = LiveTable()
        self.assembly = FakeAssembly(root)
        self.locks = KeyedLocks()
        self.nursery = Nursery("bench")
        self.shims = FakeShims()
        self.prober = FakeProber()
        self.snapshotter = FakeSnapshotter(root)
        self.volumes = FakeVolumeRemover()
        self.kept_then: list[list[str]] = []
        assembly = cast(Assembly, self.assembly)
        self.lifecycle = Lifecycle(self.records, self.live, assembly, self.locks)
        self.execs = Execs(self.records, self.live, assembly, self.nursery)
        self.remover = Remover(
            self.records,
            self.live,
            self.lifecycle,
            assembly,
            self.execs,
            cast(VolumeService, self.volumes),
            cast(Snapshotter, self.snapshotter),
            self.locks,
            self.let_go,
        )
        self.supervisor = Supervisor(
            self.records,
            self.live,
            assembly,
            self.lifecycle,
            cast(Shims, self.shims),
            self.locks,
            self.nursery,
            cast(Prober, self.prober),
            self.remover.auto_remove,
            self.execs.ended,
        )
        self.lifecycle.watch_with(self.supervisor.watch)
        for record in records:
            self.store._insert(record)

    async def let_go(self) -> None:
        """Told that layers may be without a container now."""
        self.kept_then.append([record.id for record in self.store])

    def now(self, container_id: str) -> Container:
        """The record as it is."""
        return self.store.require(container_id)

    def adopt(self, record: Container) -> FakeShim:
        """Give a record that says "running" its process, watched as after a start."""
        shim = FakeShim(record.id, record.state.pid, init_pid=record.state.pid)
        self.assembly.shims.append(shim)
        self.live[record.id].shim = cast(Shim, shim)
        self.supervisor.watch(record.id, self.live[record.id])
        return shim

    def actions(self) -> list[str]:
        """All events so far."""
        return [event.action for event in self.events.past(Filters(), 0)]

    def attributes(self, action: str) -> Mapping[str, str]:
        """Of the last event of this action."""
        return [event.attributes for event in self.events.past(Filters(), 0) if event.action == action][-1]

    async def aclose(self) -> None:
        self.supervisor.close()
        await self.nursery.aclose()
        for shim in [*self.assembly.shims, *self.shims.known.values()]:
            shim.close_peers()


async def until(condition: Any) -> None:
    """Let the loop turn until ``condition()`` holds."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


def refused(words: str, exit_hint: int = 127) -> RuntimeFailure:
    """What a runtime says when it cannot start a process."""
    return RuntimeFailure(words, exit_hint)
