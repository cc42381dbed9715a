"""What one can do with volumes: create, list, remove, prune, and mount them for containers.

A volume is in use while a container's record names it (asked through ``VolumeUsers``) or while somebody who is about
to write such a record holds it; neither can be removed. Volumes with a file system of their own are mounted for their
first running container and unmounted after the last.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from engine.clock import now_ns
from engine.errors import Conflict, EngineError, InvalidParameter, NotFound, SystemFailure, no_such_volume, os_words
from engine.events import EventBus
from engine.filters import Filters
from engine.names import new_id
from engine.tasks import KeyedLocks, Nursery, run_blocking
from engine.volumes.local import LocalFolders
from engine.volumes.model import (
    ANONYMOUS_LABEL,
    LOCAL,
    Usage,
    Volume,
    check_name,
    check_options,
    mount_request,
    size_limit,
)
from engine.volumes.store import VolumeStore

log = logging.getLogger(__name__)

LIST_FILTERS = frozenset({"dangling", "driver", "label", "name"})
PRUNE_FILTERS = frozenset({"all", "label", "label!"})


class VolumeUsers(Protocol):
    """Who refers to volumes; plugged in by the composition root."""

    def users_of_volume(self, name: str) -> Collection[str]:
        """Identifiers of the containers, running or not, whose record names the volume."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a prune removed: names, and bytes that became free."""

    names: tuple[str, ...]
    reclaimed: int


class VolumeService:
    """All volumes of this daemon."""

    def __init__(
        self,
        root: Path,
        store: VolumeStore,
        events: EventBus,
        nursery: Nursery,
        users: VolumeUsers,
        *,
        is_closed: bool = False,
    ) -> None:
        """``is_closed``: other users of the host cannot reach what is in volumes, nor run it."""
        self._folders = LocalFolders(root, is_closed=is_closed)
        self._store = store
        self._events = events
        self._nursery = nursery
        self._users = users
        self._locks = KeyedLocks()
        self._holds: dict[str, set[str]] = {}
        self._mounted: dict[str, set[str]] = {}
        self._uses = itertools.count()
        self._unwanted: set[str] = set()  # to be removed when nobody reads them any more

    async def restore(self, running: Mapping[str, Collection[str]]) -> None:
        """Bring journal and disk together at start; ``running`` names, by volume, the containers that use it now.

        A folder without a record becomes a volume (it was restored by hand, or made by another engine); a record
        without a folder is a creation or removal that was cut short and is forgotten; so is an anonymous volume of a
        container whose creation was cut short.
        """
        await run_blocking(self._folders.prepare_sync)
        self._store.load()
        folders = await run_blocking(self._folders.names_sync)
        for volume in list(self._store):
            place = str(self.path(volume.name))
            if volume.name not in folders:
                log.warning("volume %s has no folder and is forgotten", volume.name)
                await self._store.delete(volume.name)
            elif volume.made_for and not self._users.users_of_volume(volume.name):
                await self._remove_locked(volume.name)
                del folders[volume.name]
            elif volume.mountpoint != place or volume.made_for:
                await self._store.put(msgspec.structs.replace(volume, mountpoint=place, made_for=""))
        for name, changed in folders.items():
            if self._store.get(name) is None:
                await self._store.put(Volume(name=name, created_at=changed, mountpoint=str(self.path(name))))
        self._mounted = {name: set(users) for name, users in running.items() if users}
        for volume in self._store:
            if volume.needs_mount and volume.name not in self._mounted:
                await run_blocking(self._folders.unmount_sync, volume.name)

    def path(self, name: str) -> Path:
        """Where the volume's data lie on the host."""
        return self._folders.data(name)

    def exists(self, name: str) -> bool:
        """Whether there is a volume of that name."""
        return self._store.get(name) is not None

    def get(self, name: str) -> Volume:
        """The volume. Raises ``NotFound``."""
        volume = self._store.get(name)
        if volume is None:
            raise no_such_volume(name)
        return volume

    async def create(
        self,
        name: str = "",
        driver: str = "",
        options: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        holder: str = "",
    ) -> Volume:
        """The volume of that name, made when there is none; without a name, a new anonymous one.

        ``holder`` keeps it from being removed until ``release``. Raises ``InvalidParameter`` and ``NotFound`` (driver).
        """
        wanted = dict(labels) if labels is not None else None
        made_for = ""
        if not name:
            name = new_id()
            wanted = {**(wanted or {}), ANONYMOUS_LABEL: ""}
            made_for = holder
        async with self._locks(name):
            if holder:
                self._holds.setdefault(name, set()).add(holder)
            try:
                return await self._create_locked(name, driver, options, wanted, made_for)
            except BaseException:
                self._drop_hold(name, holder)
                raise

    async def _create_locked(
        self,
        name: str,
        driver: str,
        options: Mapping[str, str] | None,
        labels: dict[str, str] | None,
        made_for: str,
    ) -> Volume:
        if driver not in ("", LOCAL):
            raise NotFound(f'create {name}: error looking up volume plugin {driver}: plugin "{driver}" not found')
        existing = self._store.get(name)
        if existing is not None:
            return existing
        try:
            check_name(name)
            check_options(options or {}, quota=self._folders.can_limit)
        except ValueError as error:
            raise InvalidParameter(f"create {name}: {error}") from error
        volume = Volume(
            name=name,
            created_at=now_ns(),
            labels=labels,
            options=dict(options) if options is not None else None,
            mountpoint=str(self.path(name)),
            made_for=made_for,
        )
        # Record first: a folder that nobody knows would be taken for somebody's data at the next start.
        await self._store.put(volume)
        try:
            await run_blocking(self._folders.create_sync, name, size_limit(options or {}))
        except OSError as error:
            await self._store.delete(name)
            raise SystemFailure(
                f"create {name}: error while creating volume root path '{self.path(name).parent}': "
                f"mkdir {os_words(error)}"
            ) from error
        self._events.publish("volume", "create", name, {"driver": volume.driver})
        return volume

    async def keep(self, names: Iterable[str]) -> None:
        """The container that they were made for is on record, or is by the same transaction of the journal."""
        for volume in [volume for name in names if (volume := self._store.get(name)) is not None and volume.made_for]:
            await self._store.put(msgspec.structs.replace(volume, made_for=""), durable=False)

    def release(self, holder: str) -> None:
        """End all holds of ``holder``: its own record names the volumes now, or it will never exist."""
        for name in [name for name, holders in self._holds.items() if holder in holders]:
            self._drop_hold(name, holder)

    def _drop_hold(self, name: str, holder: str) -> None:
        holders = self._holds.get(name)
        if holders is not None:
            holders.discard(holder)
            if not holders:
                del self._holds[name]

    def users(self, name: str) -> tuple[str, ...]:
        """Everyone who keeps the volume from being removed, each once."""
        found = [*self._users.users_of_volume(name), *self._holds.get(name, ()), *self._mounted.get(name, ())]
        return tuple(dict.fromkeys(user.partition("/")[0] for user in found))

    def list(self, filters: Filters) -> tuple[Volume, ...]:
        """All volumes that pass the filters (``LIST_FILTERS``), by name."""
        dangling = filters.boolean("dangling") if "dangling" in filters else None
        return tuple(
            volume
            for volume in self._store
            if filters.matches_pattern("name", volume.name)
            and filters.matches("driver", volume.driver)
            and filters.match_labels(volume.labels or {})
            and (dangling is None or dangling is not bool(self.users(volume.name)))
        )

    async def remove(self, name: str, *, force: bool = False) -> None:
        """Remove the volume and its data. Raises ``NotFound`` (unless forced) and ``Conflict`` when it is in use."""
        async with self._locks(name):
            if self._store.get(name) is None:
                if force:
                    return
                raise no_such_volume(name)
            users = self.users(name)
            if users:
                raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
            await self._remove_locked(name)

    async def remove_with_container(self, name: str) -> None:
        """Remove a volume whose container is gone; where a copy out of that still runs, as soon as this has ended.

        Raises ``Conflict`` when another container uses it.
        """
        async with self._locks(name):
            if self._store.get(name) is None:
                return
            if name in self._mounted and not self._wanting(name):
                self._unwanted.add(name)
                return
        await self.remove(name)

    def _wanting(self, name: str) -> bool:
        return bool(self._users.users_of_volume(name)) or name in self._holds

    async def _remove_locked(self, name: str) -> None:
        volume = self.get(name)
        try:
            gone = await run_blocking(self._folders.discard_sync, name)
        except OSError as error:
            raise SystemFailure(f"remove {name}: {os_words(error)}") from error
        await self._store.delete(name)
        if gone is not None:
            # Deleting may take long; what is cut short is finished at the next start.
            self._nursery.start(run_blocking(self._folders.empty_trash_sync, gone), name=f"delete volume {name[:12]}")
        self._events.publish("volume", "destroy", name, {"driver": volume.driver})

    async def prune(self, filters: Filters, *, anonymous_only: bool = True) -> Pruned:
        """Remove unused volumes that pass ``PRUNE_FILTERS``; named ones only with the filter ``all``."""
        every = filters.boolean("all") or not anonymous_only
        names: list[str] = []
        reclaimed = 0
        for volume in self._store:
            labels = volume.labels or {}
            if not (every or volume.is_anonymous) or not filters.match_labels(labels):
                continue
            if filters.excludes_labels(labels) or self.users(volume.name):
                continue
            size = await run_blocking(self._folders.size_sync, volume.name)
            try:
                await self.remove(volume.name)
            except (Conflict, NotFound):
                continue  # somebody was quicker: it is used now, or gone
            except EngineError as error:
                log.warning("could not prune volume %s: %s", volume.name, error)
                continue
            names.append(volume.name)
            reclaimed += size
        self._events.publish("volume", "prune", "", {"reclaimed": str(reclaimed)})
        return Pruned(tuple(names), reclaimed)

    async def mount(
        self, name: str, container_id: str, *, destination: str = "", rw: bool = True, propagation: str = ""
    ) -> Path:
        """Make the volume's data present for a container that starts; returns their place. Twice is once."""
        known = container_id in self._mounted.get(name, ())
        path = await self._present(name, container_id)
        if known:
            return path  # taken over from the daemon before this one, which told of it
        attributes = {
            "driver": self.get(name).driver,
            "container": container_id,
            "destination": destination,
            "read/write": "true" if rw else "false",
            "propagation": propagation,
        }
        self._events.publish("volume", "mount", name, attributes)
        return path

    async def _present(self, name: str, user: str) -> Path:
        async with self._locks(name):
            volume = self.get(name)
            path = self._folders.data(name)
            # A folder that somebody deleted by hand is made again, as dockerd does.
            await run_blocking(self._folders.create_sync, name, size_limit(volume.options or {}))
            if volume.needs_mount and not await run_blocking(self._folders.is_mounted_sync, name):
                try:
                    await run_blocking(self._folders.mount_sync, name, mount_request(volume.options or {}))
                except OSError as error:
                    raise SystemFailure(f"error while mounting volume '{path}': {os_words(error)}") from error
            self._mounted.setdefault(name, set()).add(user)
        return path

    async def unmount(self, name: str, container_id: str) -> None:
        """The container ended. The volume's file system goes with its last user; not mounted is fine."""
        if await self._absent(name, container_id):
            volume = self._store.get(name)
            driver = volume.driver if volume else LOCAL
            self._events.publish("volume", "unmount", name, {"driver": driver, "container": container_id})

    async def _absent(self, name: str, user: str) -> bool:
        """Drop one use; whether there was one."""
        async with self._locks(name):
            users = self._mounted.get(name)
            if users is None or user not in users:
                return False
            users.discard(user)
            if not users:
                del self._mounted[name]
                volume = self._store.get(name)
                if volume is not None and volume.needs_mount:
                    try:
                        await run_blocking(self._folders.unmount_sync, name)
                    except OSError as error:
                        log.warning("could not unmount volume %s: %s", name, error)
                if volume is not None and name in self._unwanted and not self._wanting(name):
                    try:
                        await self._remove_locked(name)
                    except EngineError as error:
                        log.warning("volume %s of a removed container stays: %s", name, error)
                self._unwanted.discard(name)
        return True

    @contextlib.asynccontextmanager
    async def in_use(self, name: str, container_id: str) -> AsyncIterator[Path]:
        """The volume's data present for the time of the block (copying into it before a container starts)."""
        use = f"{container_id}/{next(self._uses)}"  # its own: the container may start or end meanwhile
        path = await self._present(name, use)
        try:
            yield path
        finally:
            await self._absent(name, use)

    async def is_empty(self, name: str) -> bool:
        """Whether the image's files may be copied into the volume."""
        return await run_blocking(self._folders.is_empty_sync, name)

    async def usage(self) -> tuple[Usage, ...]:
        """Sizes and references of all volumes; reads every folder."""
        found = []
        for volume in self._store:
            size = await run_blocking(self._folders.size_sync, volume.name)
            found.append(Usage(volume, size, len(set(self._users.users_of_volume(volume.name)))))
        return tuple(found)
