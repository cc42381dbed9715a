"""Containers that start with the daemon: who waits for whom, and what becomes of a start that fails.

A container waits for those whose namespaces it joins, for its links, and for the services that Compose wrote down as
its dependencies, with Compose's conditions. It waits for a bounded time and then starts all the same: a late database
is no reason to keep everything else down. A start that fails goes through the restart policy's back-off, like an exit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from engine.containers.links import link_targets
from engine.containers.model import Container, Status
from engine.containers.namespaces import joined_container
from engine.containers.store import ContainerStore
from engine.containers.supervisor import Supervisor
from engine.errors import EngineError
from engine.tasks import Nursery

log = logging.getLogger(__name__)

PROJECT_LABEL, SERVICE_LABEL = "com.docker.compose.project", "com.docker.compose.service"
DEPENDENCY_LABEL = "com.docker.compose.depends_on"
START_PATIENCE_SECONDS = 30.0
CONDITION_PATIENCE_SECONDS = 120.0
_LOOK_SECONDS = 0.1


class Condition(StrEnum):
    """What is waited for, in Compose's words."""

    STARTED = "service_started"
    HEALTHY = "service_healthy"
    COMPLETED = "service_completed_successfully"


@dataclass(frozen=True, slots=True)
class Need:
    """One container that another one waits for."""

    container_id: str
    condition: Condition = Condition.STARTED


def needs_of(
    container: Container,
    find: Callable[[str], Container | None],
    services: Mapping[tuple[str, str], Sequence[str]],
) -> tuple[Need, ...]:
    """What ``container`` waits for; ``services`` has the ids of a Compose project's service. Pure."""
    host = container.host_config
    names = [joined_container(mode) for mode in (host.network_mode, host.ipc_mode, host.pid_mode)]
    names += [target for target, _ in link_targets(container)]
    needs = [Need(other.id) for name in names if name and (other := find(name)) is not None]
    project = container.labels.get(PROJECT_LABEL, "")
    for entry in filter(None, container.labels.get(DEPENDENCY_LABEL, "").split(",")):
        service, _, rest = entry.partition(":")
        wanted = rest.partition(":")[0]
        condition = Condition(wanted) if wanted in tuple(Condition) else Condition.STARTED
        needs += [Need(other, condition) for other in services.get((project, service), ())]
    return tuple(dict.fromkeys(need for need in needs if need.container_id != container.id))


def without_circles(needs: Mapping[str, Sequence[Need]]) -> dict[str, tuple[Need, ...]]:
    """The same without what would make containers wait for each other. Pure."""
    kept: dict[str, list[Need]] = {container_id: [] for container_id in needs}

    def leads_to(start: str, goal: str) -> bool:
        return start == goal or any(leads_to(need.container_id, goal) for need in kept.get(start, ()))

    for container_id, wanted in needs.items():
        for need in wanted:
            if not leads_to(need.container_id, container_id):
                kept[container_id].append(need)
    return {container_id: tuple(wanted) for container_id, wanted in kept.items()}


class Boot:
    """Starts what is to run, each after what it needs."""

    def __init__(self, store: ContainerStore, supervisor: Supervisor, nursery: Nursery) -> None:
        self._store = store
        self._supervisor = supervisor
        self._nursery = nursery
        self._attempted: dict[str, asyncio.Event] = {}

    def begin(self, wanted: Iterable[str]) -> None:
        """Start these containers, in the background."""
        containers = [container for one in wanted if (container := self._store.get(one)) is not None]
        self._attempted = {container.id: asyncio.Event() for container in containers}
        services: dict[tuple[str, str], list[str]] = {}
        for container in self._store:
            key = (container.labels.get(PROJECT_LABEL, ""), container.labels.get(SERVICE_LABEL, ""))
            if all(key):
                services.setdefault(key, []).append(container.id)
        needs = without_circles({one.id: needs_of(one, self._find, services) for one in containers})
        for container_id, wanted_first in needs.items():
            self._nursery.start(self._start(container_id, wanted_first), name=f"start {container_id[:12]}")

    def _find(self, name: str) -> Container | None:
        try:
            return self._store.find(name)
        except EngineError:
            return None

    async def _start(self, container_id: str, needs: Sequence[Need]) -> None:
        try:
            for need in needs:
                await self._wait_for(need, container_id)
            await self._supervisor.start_again(container_id)
        finally:
            self._attempted[container_id].set()

    async def _wait_for(self, need: Need, who: str) -> None:
        attempt = self._attempted.get(need.container_id)
        try:
            if attempt is not None:
                async with asyncio.timeout(START_PATIENCE_SECONDS):
                    await attempt.wait()
            async with asyncio.timeout(CONDITION_PATIENCE_SECONDS):
                while not self._is_met(need):  # noqa: ASYNC110 - health and exits come from many places, none in a hurry
                    await asyncio.sleep(_LOOK_SECONDS)
        except TimeoutError:
            log.warning("container %s starts without waiting longer for %s", who, need.container_id)

    def _is_met(self, need: Need) -> bool:
        """Whether the condition holds, or never will."""
        container = self._store.get(need.container_id)
        if container is None or need.condition is Condition.STARTED:
            return True
        state = container.state
        if need.condition is Condition.HEALTHY:
            return not container.is_running or state.health is None or state.health.status == "healthy"
        return state.status not in (Status.RUNNING, Status.RESTARTING)
