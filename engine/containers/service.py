"""What one can do with containers: the single door for the API.

Finding, listing and waiting answer from frozen records without a lock. Everything that changes a container is in the
file named after it (create, lifecycle, removal, exec); this class only resolves names and forwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator
from dataclasses import dataclass

import msgspec

from engine.containers import listing
from engine.containers.assembly import Assembly
from engine.containers.create import CreateRequest, Creator
from engine.containers.exec import Execs
from engine.containers.journalist import Journalist
from engine.containers.lifecycle import Lifecycle
from engine.containers.links import follow_rename, link_targets, links_of
from engine.containers.listing import ListQuery
from engine.containers.live import Exit, LiveTable, PendingAttach, StreamChoice
from engine.containers.logs import LogQuery, read_log, truncate_log_sync
from engine.containers.model import Container, Status
from engine.containers.removal import Remover
from engine.errors import (
    Conflict,
    EngineError,
    InvalidParameter,
    NotFound,
    NotModified,
    SystemFailure,
    is_paused,
    not_running,
)
from engine.filters import Filters
from engine.images.service import ImageService
from engine.names import is_valid_name
from engine.networks.service import NetworkService
from engine.tasks import KeyedLocks, run_blocking


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a prune removed."""

    ids: tuple[str, ...]
    reclaimed_bytes: int


class ContainerService:
    """Operations on containers by any reference a user may type."""

    def __init__(
        self,
        journalist: Journalist,
        live: LiveTable,
        creator: Creator,
        lifecycle: Lifecycle,
        remover: Remover,
        execs: Execs,
        assembly: Assembly,
        images: ImageService,
        networks: NetworkService,
        locks: KeyedLocks,
    ) -> None:
        self._records = journalist
        self._live = live
        self._creator = creator
        self._lifecycle = lifecycle
        self._remover = remover
        self.execs = execs
        self.assembly = assembly
        self._images = images
        self._networks = networks
        self._locks = locks

    def find(self, reference: str) -> Container:
        """By name, id or prefix. Raises ``NotFound``."""
        return self._records.store.find(reference)

    def select(self, query: ListQuery) -> list[Container]:
        """What ``docker ps`` shows."""
        context = listing.Context(self._image_ids, self._network_names, self._records.store.find)
        return listing.select(self._records.store.newest_first(), query, context)

    def _image_ids(self, reference: str) -> Collection[str]:
        """An image and all that were made from it; none for what names no image."""
        try:
            image = self._images.find(reference)
        except EngineError:
            return set()
        return {str(image.id), *self._images.descendants(image)} if image is not None else set()

    def _network_names(self, reference: str) -> Collection[str]:
        try:
            return {self._networks.find(reference).name, reference}
        except NotFound:
            return {reference}

    def link_names(self) -> dict[str, list[str]]:
        """The names that containers have by ``--link`` in others (``/container/alias``), by container id."""
        names: dict[str, list[str]] = {}
        for container in self._records.store:
            for target, alias in link_targets(container):
                with contextlib.suppress(EngineError):
                    names.setdefault(self.find(target).id, []).append(f"/{container.name}/{alias}")
        return names

    def shown_links(self, container: Container) -> list[str]:
        """Its links as inspect shows them: ``/name:/container/alias``."""
        pairs = zip(links_of(container.host_config), link_targets(container), strict=True)
        return [f"/{self._name_of(target, name)}:/{container.name}/{alias}" for (name, alias), (target, _) in pairs]

    def _name_of(self, reference: str, last_known: str) -> str:
        try:
            return self.find(reference).name
        except EngineError:
            return last_known

    def image_names(self, containers: Iterable[Container]) -> dict[tuple[str, str], str]:
        """What to call the image of each, by ``(image, image_id)``: the name given at create while it still means that
        image, else the id. Many containers share few images, so each name is looked up once.
        """
        pairs = {(container.image, container.image_id) for container in containers}
        return {pair: self._image_name(*pair) for pair in pairs}

    def _image_name(self, name: str, image_id: str) -> str:
        image = self._images.find(name) if name else None
        return name if image is not None and str(image.id) == image_id else image_id

    async def create(self, request: CreateRequest) -> tuple[Container, list[str]]:
        """See ``Creator.create``."""
        with self._records.measures.container_action("create"):
            return await self._creator.create(request)

    async def start(self, reference: str) -> None:
        """Run it; with ``--rm`` a container that cannot be started is removed."""
        container = self.find(reference)
        try:
            await self._lifecycle.start(container.id)
        except NotModified:
            raise
        except EngineError:
            if container.host_config.auto_remove and not self.find(container.id).is_running:
                await self._remover.auto_remove(container.id)
            raise

    async def stop(self, reference: str, *, seconds: int | None = None, signal_name: str = "") -> None:
        """Ask it to end, then kill it."""
        container = self.find(reference)
        with _failing(f"cannot stop container: {reference}"):
            await self._lifecycle.stop(container.id, seconds=seconds, signal_name=signal_name)

    async def restart(self, reference: str, *, seconds: int | None = None, signal_name: str = "") -> None:
        """Stop and start."""
        container = self.find(reference)
        with _failing(f"Cannot restart container {reference}"):
            await self._lifecycle.restart(container.id, seconds=seconds, signal_name=signal_name)

    async def kill(self, reference: str, signal_name: str) -> None:
        """Send a signal. Clients know a failure by how its sentence begins."""
        try:
            await self._lifecycle.kill(self.find(reference).id, signal_name)
        except EngineError as error:
            raise type(error)(f"Cannot kill container: {reference}: {error.message}") from error

    async def pause(self, reference: str) -> None:
        """Freeze."""
        await self._lifecycle.pause(self.find(reference).id)

    async def unpause(self, reference: str) -> None:
        """Thaw."""
        await self._lifecycle.unpause(self.find(reference).id)

    async def remove(self, reference: str, *, force: bool, volumes: bool) -> None:
        """Remove it."""
        await self._remover.remove(self.find(reference).id, force=force, volumes=volumes, reference=reference)

    async def remove_link(self, reference: str, alias: str) -> None:
        """Take one ``--link`` away. Raises ``NotFound`` when there is none of that name."""
        container = self.find(reference)
        if not alias:
            raise Conflict("Conflict, cannot remove the default link name of the container")
        async with self._locks(container.id):
            container = self._records.store.require(container.id)
            links = container.host_config.links or ()
            kept = tuple(link for link in links if link.rpartition(":")[2] != alias)
            if len(kept) == len(links):
                raise NotFound(f"Could not get parent container: no link {alias} of container {container.name}")
            host = msgspec.structs.replace(container.host_config, links=kept or None)
            await self._records.save(msgspec.structs.replace(container, host_config=host), durable=True)

    async def rename(self, reference: str, new_name: str) -> None:
        """Give it another name. Raises ``Conflict`` when the name is taken, ``InvalidParameter`` when it is none."""
        container = self.find(reference)
        name = new_name.removeprefix("/")
        if not name:
            raise InvalidParameter("Neither old nor new names may be empty")
        if not is_valid_name(name):
            raise InvalidParameter(
                f"Error when allocating new name: Invalid container name (/{name}), "
                "only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
            )
        async with self._locks(container.id):
            container = self._records.store.require(container.id)
            if name == container.name:
                raise InvalidParameter("Renaming a container with the same name as its current name")
            try:
                self._records.store.reserve_name(name, container.id)
            except Conflict as error:
                raise Conflict(f"Error when allocating new name: {error.message}") from error
            renamed = msgspec.structs.replace(container, name=name)
            await self._records.save(renamed, durable=True)
            self._records.store.release_name(container.name, container.id)
            await self._networks.rename_container(container.id, name)
        await self._follow_rename(container, name)
        self._records.event(renamed, "rename", {"oldName": f"/{container.name}"})

    async def _follow_rename(self, renamed: Container, new: str) -> None:
        """Links to a container that was renamed lead to it still."""
        for linking in self._records.store:
            if follow_rename(linking, renamed, new) is linking:
                continue
            async with self._locks(linking.id):
                now = self._records.store.get(linking.id)
                if now is not None:
                    await self._records.save(follow_rename(now, renamed, new), durable=True)

    def wait(self, reference: str, condition: str) -> asyncio.Future[Exit]:
        """A future of the exit. Conditions: ``not-running`` (default), ``next-exit``, ``removed``."""
        container = self.find(reference)
        waiters = self._live[container.id].waiters
        match condition:
            case "" | "not-running":
                if container.is_running or container.state.status is Status.RESTARTING:
                    return waiters.next_exit()
                done: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
                done.set_result(Exit(container.state.exit_code, container.state.error))
                return done
            case "next-exit":
                return waiters.next_exit()
            case "removed":
                return waiters.removal()
            case _:
                raise InvalidParameter(f'invalid condition: "{condition}"')

    async def resize(self, reference: str, rows: int, columns: int) -> None:
        """Change the size of its terminal; before the start, the size it starts with."""
        container = self.find(reference)
        live = self._live[container.id]
        if not container.is_running or live.shim is None:
            if container.state.status is Status.CREATED:
                live.console_size = (rows, columns)
            raise not_running(container.id)
        with contextlib.suppress(OSError):  # docker does not mind one that has no terminal
            await live.shim.resize(rows, columns)
        self._records.event(container, "resize", {"height": str(rows), "width": str(columns)})

    async def attach(self, container: Container, choice: StreamChoice) -> socket.socket | asyncio.Future[socket.socket]:
        """The stream of a running container, or a future of it for one that will be started. Raises ``Conflict``."""
        if container.state.status is Status.PAUSED:
            raise Conflict(f"container {container.id} is paused, unpause the container before attach")
        if container.state.status is Status.RESTARTING:
            raise Conflict(f"container {container.id} is restarting, wait until the container is running")
        live = self._live[container.id]
        if container.is_running and live.shim is not None:
            stream = await live.shim.attach(
                stdin=choice.stdin,
                stdout=choice.stdout,
                stderr=choice.stderr,
                close_stdin_on_eof=container.config.stdin_once,
            )
            self._records.event(container, "attach")
            return stream
        live.pending_attaches[:] = [one for one in live.pending_attaches if not one.stream.done()]
        pending = PendingAttach(choice, asyncio.get_running_loop().create_future())
        live.pending_attaches.append(pending)
        self._records.event(container, "attach")
        return pending.stream

    def detached(self, container: Container) -> None:
        """A client left by the detach keys."""
        self._records.event(container, "detach")

    def logs(self, container: Container, query: LogQuery) -> AsyncGenerator[bytes, None]:
        """The log, ready for the wire. Raises ``InvalidParameter`` when the driver keeps none."""
        path = self.assembly.log_path(container)
        if path is None:
            raise InvalidParameter("configured logging driver does not support reading")
        live = self._live[container.id]
        return read_log(
            path,
            query,
            framed=not container.config.tty,
            ended=lambda: not self._runs(container.id),
            end_event=live.ended,
        )

    def _runs(self, container_id: str) -> bool:
        container = self._records.store.get(container_id)
        return container is not None and container.is_running

    async def truncate_log(self, container: Container) -> None:
        """Empty the log, rotated files included. Raises ``InvalidParameter`` when the driver keeps none."""
        path = self.assembly.log_path(container)
        if path is None:
            raise InvalidParameter("configured logging driver does not support reading")
        async with self._locks(container.id):
            shim = self._live[container.id].shim
            if shim is not None:
                await shim.truncate_log()
            else:
                await run_blocking(truncate_log_sync, path)

    async def prune(self, filters: Filters, until_ns: int | None) -> Pruned:
        """Remove every stopped container that the filters let through."""
        removed: list[str] = []
        reclaimed = 0
        for container in self._records.store.newest_first():
            if container.is_running or container.state.status in (Status.RESTARTING, Status.REMOVING):
                continue
            if not filters.match_labels(container.labels) or filters.excludes_labels(container.labels):
                continue
            if until_ns is not None and container.created_at > until_ns:
                continue
            size = await self.assembly.writable_size(container.id)
            try:
                await self._remover.remove(container.id)
            except EngineError:
                continue
            removed.append(container.id)
            reclaimed += size
        self._records.pruned(reclaimed)
        return Pruned(tuple(removed), reclaimed)

    def require_running(self, reference: str) -> Container:
        """A running container. Raises ``Conflict``."""
        container = self.find(reference)
        if not container.is_running:
            raise not_running(container.id)
        if container.state.status is Status.PAUSED:
            raise is_paused(reference)
        return container


@contextlib.contextmanager
def _failing(what: str) -> Iterator[None]:
    """Whatever goes wrong is a failure of the daemon's, as dockerd has it, and says what it kept from happening."""
    try:
        yield
    except (NotModified, NotFound):
        raise
    except EngineError as error:
        raise SystemFailure(f"{what}: {error.message}") from error
