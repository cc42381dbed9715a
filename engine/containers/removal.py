"""Remove a container: promise it in the journal, end what runs, put everything in the trash, forget it.

A removal that a crash cut short is finished at the next start, because the record says ``removing`` from the first
step on.
Files go by rename, so that nothing is ever "busy"; their deletion goes on behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from engine.containers import model
from engine.containers.assembly import Assembly
from engine.containers.exec import Execs
from engine.containers.journalist import Journalist
from engine.containers.lifecycle import Lifecycle
from engine.containers.live import Exit, LiveTable
from engine.containers.model import Container, Status
from engine.errors import Conflict, EngineError, os_words
from engine.snapshots.base import Snapshotter
from engine.tasks import KeyedLocks
from engine.volumes.service import VolumeService

log = logging.getLogger(__name__)


class Remover:
    """Removes containers."""

    def __init__(
        self,
        journalist: Journalist,
        live: LiveTable,
        lifecycle: Lifecycle,
        assembly: Assembly,
        execs: Execs,
        volumes: VolumeService,
        snapshotter: Snapshotter,
        locks: KeyedLocks,
        layers_let_go: Callable[[], Awaitable[None]],
    ) -> None:
        self._records = journalist
        self._live = live
        self._lifecycle = lifecycle
        self._assembly = assembly
        self._execs = execs
        self._volumes = volumes
        self._snapshotter = snapshotter
        self._locks = locks
        self._layers_let_go = layers_let_go
        self._under_way: dict[str, asyncio.Event] = {}

    async def remove(
        self, container_id: str, *, force: bool = False, volumes: bool = False, reference: str = ""
    ) -> None:
        """Remove it and, with ``volumes``, its anonymous volumes.

        Where somebody else removes what a client called ``reference``, ``force`` waits until that is done. Raises
        ``Conflict`` without it, and when the container runs.
        """
        container = self._records.store.require(container_id)
        while (other := self._under_way.get(container_id)) is not None:
            if not force:
                raise Conflict(f"removal of container {reference or container_id} is already in progress")
            await other.wait()
            if self._records.store.get(container_id) is None:
                if volumes:
                    await self._remove_volumes(container)
                return
        _check_removable(container, force)
        self._under_way[container_id] = done = asyncio.Event()
        try:
            await self._end(container, force)
            async with self._locks(container_id):
                with self._records.measures.container_action("delete"):
                    await self._remove_locked(container_id, force=force, volumes=volumes)
        finally:
            del self._under_way[container_id]
            done.set()

    async def auto_remove(self, container_id: str) -> None:
        """What ``--rm`` promises: the container and its anonymous volumes; of a removal that was cut short, the rest.

        Nothing where somebody removes it already, who has said what becomes of the volumes.
        """
        if container_id in self._under_way:
            log.debug("container %s is being removed already", container_id)
            return
        state = self._records.store.require(container_id).state
        await self.remove(container_id, volumes=state.removes_volumes or state.status is not Status.REMOVING)

    async def _end(self, container: Container, force: bool) -> None:
        live = self._live[container.id]
        async with self._locks(container.id):  # not in the middle of the start that a restart is
            if live.restart_task is not None:
                live.restart_task.cancel()
                live.restart_task = None
            container = self._records.store.require(container.id)
        if container.is_running and force:
            with contextlib.suppress(Conflict):
                await self._lifecycle.kill(container.id, "SIGKILL")

    async def _remove_locked(self, container_id: str, *, force: bool, volumes: bool) -> None:
        container = self._records.store.require(container_id)
        _check_removable(container, force)
        live = self._live[container_id]
        promised = model.removing(container, volumes=volumes)
        if container != promised:
            container = promised
            # On disk before its files go: what is left of a removal that loses its power is finished.
            await self._records.save(container, durable=True)
        live.drop_pending()
        if live.shim is not None:
            await self._assembly.put_away(container, live)
        try:
            await asyncio.gather(self._snapshotter.remove(container_id), self._assembly.trash_directory(container_id))
        except OSError as error:
            words = os_words(error)
            dead = model.replace_state(container, status=Status.DEAD, error=words, removes_volumes=False)
            await self._records.save(dead)
            raise Conflict(f"container {container_id}: its files could not be put in the trash: {words}") from error
        if volumes:  # while the record still says that they are to go: a crash forgets none
            await self._remove_volumes(container)
        await self._records.store.delete(container)
        self._execs.forget(container_id)
        self._records.event(container, "destroy")
        live.waiters.removed(Exit(container.state.exit_code))
        self._live.forget(container_id)
        await self._layers_let_go()

    async def _remove_volumes(self, container: Container) -> None:
        for name in container.anonymous_volumes:
            try:
                await self._volumes.remove_with_container(name)
            except EngineError as error:
                log.info("volume %s of removed container %s stays: %s", name, container.id, error)


def _check_removable(container: Container, force: bool) -> None:
    if force:
        return
    match container.state.status:
        case Status.PAUSED:
            raise Conflict(
                f'cannot remove container "/{container.name}": container is paused and must be unpaused first'
            )
        case Status.RUNNING | Status.RESTARTING:
            raise Conflict(
                f'cannot remove container "/{container.name}": container is {container.state.status.value}: '
                "stop the container before removing or force remove"
            )
