"""Containers end with the host: asked first, with their own signal and their own time, as dockerd does at its end.

A daemon that stops leaves its containers alone. When the whole host stops, that would mean a SIGTERM for every process
at once, and that whoever does not listen (the first process of a container has no default for it) holds the host up for
a minute and a half before it is killed. What restart policies want stays on record and happens after the boot.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from engine.containers.lifecycle import Lifecycle
from engine.containers.store import ContainerStore
from engine.containers.supervisor import Supervisor
from engine.errors import EngineError

log = logging.getLogger(__name__)


class Halt:
    """Ends all containers when the host stops."""

    def __init__(
        self,
        store: ContainerStore,
        lifecycle: Lifecycle,
        supervisor: Supervisor,
        host_is_stopping: Callable[[], Awaitable[bool]],
    ) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._supervisor = supervisor
        self._host_is_stopping = host_is_stopping

    async def with_host(self) -> None:
        """End every container if the host stops; nothing otherwise."""
        if not await self._host_is_stopping():
            return
        self._supervisor.hold_restarts()
        ids = [container.id for container in self._store]
        log.info("the host stops, and the containers with it")
        await asyncio.gather(*(self._end(container_id) for container_id in ids))

    async def _end(self, container_id: str) -> None:
        try:
            await self._lifecycle.end_with_host(container_id)
        except (EngineError, OSError) as error:
            log.warning("container %s could not be ended: %s", container_id, error)
