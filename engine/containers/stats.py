"""docker stats: what a container uses now, sampled once a second for as long as somebody listens.

One collector serves all listeners of a container; each listener keeps the newest sample only, so a slow one never
holds up another. Counters come from the container's control groups and from its network namespace.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from engine.clock import now_ns
from engine.containers.assembly import Assembly
from engine.containers.live import LiveTable
from engine.containers.model import Container
from engine.containers.namespaces import joined_container
from engine.containers.store import ContainerStore
from engine.errors import NotFound
from engine.runtime.cgroups import Cgroups
from engine.runtime.cgroupstats import NANOSECONDS_PER_TICK, CgroupStats
from engine.tasks import Nursery, run_blocking

PERIOD_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """The counters of one network interface since it was made, as the container sees it."""

    rx_bytes: int = 0
    rx_packets: int = 0
    rx_errors: int = 0
    rx_dropped: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    tx_errors: int = 0
    tx_dropped: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """A container's counters at ``read_at`` (nanoseconds since the epoch); 0 and all empty when nothing runs.

    ``system_cpu`` is the CPU time of the whole machine in nanoseconds, idle time included: what ``cgroup.cpu_total``
    is compared with. ``memory_limit`` is the machine's memory where the container has no lower limit.
    """

    read_at: int = 0
    cgroup: CgroupStats = field(default_factory=CgroupStats)
    system_cpu: int = 0
    online_cpus: int = 0
    memory_limit: int = 0
    traffic: Mapping[str, Traffic] = field(default_factory=dict)


NOTHING = Sample()
Mailbox = asyncio.Queue[Sample | None]
"""Holds the newest sample; None says that the container is gone."""


class Collectors:
    """The collectors of all containers that somebody listens to."""

    def __init__(
        self,
        store: ContainerStore,
        live: LiveTable,
        assembly: Assembly,
        cgroups: Cgroups,
        memory_total: int,
        nursery: Nursery,
    ) -> None:
        self._store = store
        self._live = live
        self._assembly = assembly
        self._cgroups = cgroups
        self._memory_total = memory_total
        self._nursery = nursery
        self._listeners: dict[str, set[Mailbox]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def cgroup_version(self) -> int:
        """1 or 2: documents differ."""
        return self._cgroups.version

    async def sample(self, container: Container) -> Sample:
        """The counters now; ``NOTHING`` when it does not run."""
        if not container.is_running:
            return NOTHING
        pid = container.state.pid if self._has_own_interfaces(container) else 0
        path = self._assembly.cgroup_path(container)
        return await run_blocking(_read_sync, self._cgroups, path, pid, self._memory_total)

    def _has_own_interfaces(self, container: Container) -> bool:
        """Whether its namespace's traffic is its own (or of the container it joined), not the host's."""
        joined = joined_container(container.host_config.network_mode)
        if joined is None:
            return container.host_config.network_mode != "host"
        try:
            other = self._store.find(joined)
        except NotFound:
            return False
        return other.host_config.network_mode != "host"

    @contextlib.asynccontextmanager
    async def listen(self, container_id: str) -> AsyncIterator[AsyncIterator[Sample]]:
        """Samples as long as the context is open; they end when the container is removed."""
        mailbox: Mailbox = asyncio.Queue(1)
        listeners = self._listeners.setdefault(container_id, set())
        listeners.add(mailbox)
        if container_id not in self._tasks:
            self._tasks[container_id] = self._nursery.start(
                self._collect(container_id, listeners), name=f"stats {container_id[:12]}"
            )
        try:
            yield _opened(mailbox)
        finally:
            listeners.discard(mailbox)
            if not listeners and self._listeners.get(container_id) is listeners:
                self._forget(container_id)

    def _forget(self, container_id: str) -> None:
        del self._listeners[container_id]
        self._tasks.pop(container_id).cancel()

    async def _collect(self, container_id: str, listeners: set[Mailbox]) -> None:
        try:
            while (container := self._store.get(container_id)) is not None:
                next_at = time.monotonic() + PERIOD_SECONDS
                taken = await self.sample(container)
                for mailbox in listeners:
                    _post(mailbox, taken)
                await self._pause(container_id, next_at - time.monotonic())
        finally:
            for mailbox in listeners:
                _post(mailbox, None)

    async def _pause(self, container_id: str, seconds: float) -> None:
        """Until the next sample is due, or the container is gone."""
        if self._store.get(container_id) is None:
            return
        removed = self._live[container_id].waiters.removal()
        await asyncio.wait([removed], timeout=max(0.0, seconds))
        removed.cancel()


def _post(mailbox: Mailbox, sample: Sample | None) -> None:
    if mailbox.full():
        mailbox.get_nowait()
    mailbox.put_nowait(sample)


async def _opened(mailbox: Mailbox) -> AsyncIterator[Sample]:
    while (sample := await mailbox.get()) is not None:
        yield sample


def _read_sync(cgroups: Cgroups, path: str, pid: int, memory_total: int) -> Sample:
    counters = cgroups.stats_sync(path)
    limit = counters.memory_limit
    return Sample(
        read_at=now_ns(),
        cgroup=counters,
        system_cpu=parse_cpu_time(_text_sync("/proc/stat")),
        online_cpus=os.sysconf("SC_NPROCESSORS_ONLN"),
        memory_limit=limit if 0 < limit < memory_total else memory_total,
        traffic=parse_interfaces(_text_sync(f"/proc/{pid}/net/dev")) if pid else {},
    )


def _text_sync(path: str) -> str:
    """The file, or nothing when its process has just ended."""
    with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as file:
        return file.read()
    return ""


def parse_cpu_time(text: str) -> int:
    """The machine's CPU time in nanoseconds from /proc/stat: user to softirq, as docker counts (proc_stat(5))."""
    first = text.partition("\n")[0].split()
    return sum(map(int, first[1:8])) * NANOSECONDS_PER_TICK if first[:1] == ["cpu"] else 0


def parse_interfaces(text: str) -> dict[str, Traffic]:
    """The interfaces of /proc/PID/net/dev but the loopback (proc_pid_net(5))."""
    found: dict[str, Traffic] = {}
    for line in text.splitlines()[2:]:
        name, _, numbers = line.partition(":")
        values = [int(value) for value in numbers.split()]
        if name.strip() != "lo" and len(values) >= 16:
            found[name.strip()] = Traffic(*values[0:4], *values[8:12])
    return found
