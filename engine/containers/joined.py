"""What a container takes over from another (``container:X``): its network, pid and IPC namespaces, and its users' ids.

Who joins one namespace joins the user namespace that this belongs to, as with dockerd: nobody else may use it fully.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.containers import rundir
from engine.containers.host import HostFacts
from engine.containers.model import Container
from engine.containers.namespaces import joined_container
from engine.containers.remap import check_remapped, ids_of
from engine.containers.store import ContainerStore
from engine.errors import Conflict, InvalidParameter, SystemFailure, not_running, os_words
from engine.kernel.idmap import IdMap, idmap_of_process_sync, same_user_namespace_sync
from engine.tasks import run_blocking


@dataclass(frozen=True, slots=True)
class Users:
    """The ids of a container's users, and the process whose user namespace it joins, 0 for one of its own."""

    ids: IdMap
    owner_pid: int = 0


class Joined:
    """Finds what is joined."""

    def __init__(self, store: ContainerStore, facts: HostFacts, run_dir: Callable[[str], Path]) -> None:
        self._store = store
        self._facts = facts
        self._run_dir = run_dir

    def with_shared_names(self, container: Container) -> Container:
        """A container in another's network is called as that one is. Raises ``NotFound``."""
        joined = joined_container(container.host_config.network_mode)
        if joined is None:
            return container
        owner = self._store.find(joined).config
        config = msgspec.structs.replace(container.config, hostname=owner.hostname, domainname=owner.domainname)
        return msgspec.structs.replace(container, config=config)

    def pids(self, container: Container) -> dict[str, int]:
        """The processes whose ``ipc`` and ``pid`` namespaces are joined."""
        host = container.host_config
        modes = (("ipc", host.ipc_mode), ("pid", host.pid_mode))
        return {kind: self._owner(name, kind) for kind, mode in modes if (name := joined_container(mode)) is not None}

    def _owner(self, reference: str, kind: str) -> int:
        """The process whose namespace is joined. Raises ``SystemFailure``: the container's own settings are fine."""
        other = self._store.find(reference)
        if not other.is_running:
            raise SystemFailure(f"failed to join {kind.upper()} namespace: {not_running(other.id).message}")
        return other.state.pid

    def network_pid(self, container: Container) -> int | None:
        """The process whose network is joined."""
        joined = joined_container(container.host_config.network_mode)
        if joined is None:
            return None
        other = self._store.find(joined)
        if other.id == container.id:
            raise SystemFailure("cannot join own network")
        if not other.is_running:
            raise Conflict(f"cannot join network of a non running container: {other.id}")
        return other.state.pid

    async def users(self, container: Container) -> Users | None:
        """Whose ids a container has; None: the host's.

        Raises ``Conflict`` where those that it joins do not agree, and ``InvalidParameter`` where it was created
        without ids of its own, with what cannot be had with them.
        """
        ids = ids_of(container.host_config, self._facts)
        if ids is None:
            return None
        try:
            check_remapped(container.host_config, self._facts)
        except ValueError as error:
            raise InvalidParameter(str(error)) from error
        network = self.network_pid(container)
        pids = [*([] if network is None else [network]), *self.pids(container).values()]
        if not pids:
            return Users(ids)
        try:
            if not await run_blocking(same_user_namespace_sync, pids):
                raise Conflict("cannot join the namespaces of containers that are in different user namespaces")
            found = await run_blocking(idmap_of_process_sync, pids[0])
        except OSError as error:
            raise SystemFailure(f"failed to join USER namespace: {os_words(error)}") from error
        if found != ids:
            raise Conflict("cannot join the namespaces of a container that does not have this daemon's user namespace")
        return Users(ids, pids[0])

    async def shared_memory(
        self, container: Container, owner: tuple[int, int], undo: contextlib.AsyncExitStack
    ) -> str | None:
        """The /dev/shm that several containers see: mounted on the host, because a private mount cannot be joined."""
        mode = container.host_config.ipc_mode
        joined = joined_container(mode)
        if joined is not None:
            other = self._store.find(joined)
            self._owner(joined, "ipc")
            shared = self._run_dir(other.id) / rundir.SHARED_MEMORY
            if not await run_blocking(shared.is_dir):
                raise Conflict(
                    f"cannot join IPC of container {other.id}: non-shareable IPC "
                    "(hint: use IpcMode:shareable for the donor container)"
                )
            return str(shared)
        if mode != "shareable":
            return None
        folder = self._run_dir(container.id) / rundir.SHARED_MEMORY
        await run_blocking(rundir.mount_shared_memory_sync, folder, container.host_config.shm_size, owner)
        undo.push_async_callback(run_blocking, rundir.unmount_shared_memory_sync, folder)
        return str(folder)
