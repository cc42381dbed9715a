"""docker cp, export and diff: a container's files, whether it runs or not, with the words clients expect.

A running container's own mount namespace is entered, so that volumes are seen as it sees them. For any other, a worker
mounts its root, volumes and binds for itself. Reading takes no lock. Writing to the root of a container that does not
run holds the container's lock, lest it be started over the same files meanwhile; an upload that stalls ends, so that
a client can hold the lock only while it really sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import posixpath
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

from engine.containers.accounts import Accounts
from engine.containers.assembly import NAME_FILES, mount_table
from engine.containers.host import HostFacts
from engine.containers.journalist import Journalist
from engine.containers.model import Container
from engine.containers.namespaces import joined_container
from engine.containers.remap import has_inner_ids, ids_of
from engine.errors import Forbidden, InvalidParameter, NotFound, SystemFailure, os_words
from engine.kernel.idmap import user_namespace_sync
from engine.snapshots.archive import Archives, PathStat
from engine.snapshots.base import BindMount, ByteSource, Change, LayerKey, RootView, Running, Snapshotter
from engine.tasks import KeyedLocks, run_blocking
from engine.volumes.service import VolumeService

__all__ = ["Archiver", "PathStat", "worded"]

STALL_SECONDS = 30


class Archiver:
    """What the archive, export and changes endpoints call; ``reference`` is what the client typed."""

    def __init__(
        self,
        journalist: Journalist,
        archives: Archives,
        snapshotter: Snapshotter,
        volumes: VolumeService,
        accounts: Accounts,
        locks: KeyedLocks,
        directory: Callable[[str], Path],
        facts: HostFacts,
        data_root: Path,
    ) -> None:
        self._records = journalist
        self._archives = archives
        self._snapshotter = snapshotter
        self._volumes = volumes
        self._accounts = accounts
        self._locks = locks
        self._directory = directory
        self._facts = facts
        self._data_root = data_root

    async def stat(self, reference: str, path: str) -> PathStat:
        """The path as it is, a link at its end not followed. Raises ``NotFound``."""
        container = self._records.store.find(reference)
        with worded(path, reference):
            async with self._view(container, path) as view:
                return await self._archives.stat(view, path)

    @contextlib.asynccontextmanager
    async def get(self, reference: str, path: str) -> AsyncIterator[tuple[PathStat, AsyncIterator[bytes]]]:
        """The path's stat, known before the first byte, and its tar stream. Raises ``NotFound``."""
        container = self._records.store.find(reference)
        async with contextlib.AsyncExitStack() as stack:
            with worded(path, reference):
                view = await stack.enter_async_context(self._view(container, path))
                found, chunks = await stack.enter_async_context(self._archives.get(view, path))
            self._records.event(container, "archive-path")
            yield found, _worded_chunks(chunks, path, reference)

    async def put(
        self, reference: str, path: str, body: ByteSource, *, keep_kinds: bool = False, take_owner: bool = False
    ) -> None:
        """Extract an archive into the existing folder ``path``.

        ``keep_kinds``: a folder and something else never replace each other. ``take_owner``: everything belongs to the
        container's user. Raises ``NotFound``, ``InvalidParameter``, ``Forbidden``.
        """
        container = self._records.store.find(reference)
        owner = await self._owner(container) if take_owner else None
        with worded(path, reference):
            async with contextlib.AsyncExitStack() as stack:
                if not container.is_running:
                    await stack.enter_async_context(self._locks(container.id))
                    container = self._records.store.require(container.id)
                    body = _moving(body)
                view = await stack.enter_async_context(self._view(container, path, writable=True))
                await self._archives.put(view, path, body, keep_kinds=keep_kinds, owner=owner)
        self._records.event(container, "extract-to-dir")

    async def _owner(self, container: Container) -> tuple[int, int] | None:
        if not container.config.user:
            return None
        user = await self._accounts.resolve(container)
        return user.uid, user.gid

    @contextlib.asynccontextmanager
    async def export(self, reference: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """The container's own files as a tar, without what is mounted on them."""
        container = self._records.store.find(reference)
        async with contextlib.AsyncExitStack() as stack:
            with worded("/", reference):
                view = await stack.enter_async_context(self._view(container, "/", own_only=True))
                chunks = await stack.enter_async_context(self._archives.export(view))
            self._records.event(container, "export")
            yield _worded_chunks(chunks, "/", reference)

    async def changes(self, reference: str) -> list[Change]:
        """What differs from the image, sorted by path."""
        container = self._records.store.find(reference)
        with worded("/", reference), self._records.measures.container_action("changes"):
            return await self._snapshotter.changes(container.id, _layers(container))

    @contextlib.asynccontextmanager
    async def _view(
        self, container: Container, path: str, *, writable: bool = False, own_only: bool = False
    ) -> AsyncIterator[RootView]:
        """The files among which ``path`` is looked for."""
        read_only = container.host_config.readonly_rootfs
        async with contextlib.AsyncExitStack() as stack:
            binds = () if own_only else await self._binds(container, stack)
            if container.is_running and container.state.pid:
                yield Running(container.state.pid, read_only, binds, bare=_is_the_kernels(container, path))
                return
            view = await stack.enter_async_context(
                self._snapshotter.view(container.id, _layers(container), writable=writable)
            )
            yield replace(view, binds=binds, read_only=read_only)

    async def _binds(self, container: Container, stack: contextlib.AsyncExitStack) -> tuple[BindMount, ...]:
        """Volumes, binds and the files about names, outer ones first; a bind whose source is gone is left out."""
        binds = []
        for point in container.mounts:
            source = point.source
            if point.type == "volume":
                path = await stack.enter_async_context(self._volumes.in_use(point.name, container.id))
                options = point.wish.volume_options if point.wish else None
                source = str(path / options.subpath) if options and options.subpath else str(path)
            elif point.type != "bind":
                continue
            if await run_blocking(Path(source).exists):
                binds.append(BindMount(source, point.destination, not point.rw))
        if not container.is_running:
            binds = await self._with_inner_ids(container, binds, stack)
            binds += await run_blocking(self._name_files_sync, container)
        return tuple(sorted(binds, key=lambda bind: bind.target.count("/")))

    async def _with_inner_ids(
        self, container: Container, binds: list[BindMount], stack: contextlib.AsyncExitStack
    ) -> list[BindMount]:
        """Folders of the host as a container with ids of its own sees them."""
        ids = ids_of(container.host_config, self._facts)
        if ids is None or not binds:
            return binds
        table, root = await mount_table(), str(self._data_root)
        namespace = await run_blocking(user_namespace_sync, ids.inverse)
        stack.callback(os.close, namespace)
        mapping = f"/proc/{os.getpid()}/fd/{namespace}"
        return [bind if has_inner_ids(bind.source, root, table) else replace(bind, mapping=mapping) for bind in binds]

    def _name_files_sync(self, container: Container) -> list[BindMount]:
        """``/etc/hosts`` and its like as the container last had them; those of a container whose network it joins."""
        folder = self._directory(joined_container(container.host_config.network_mode) or container.id)
        taken = {point.destination for point in container.mounts}
        return [
            BindMount(str(folder / Path(target).name), target, container.host_config.readonly_rootfs)
            for target in NAME_FILES
            if target not in taken and (folder / Path(target).name).exists()
        ]


def _is_the_kernels(container: Container, path: str) -> bool:
    """Whether it is named as one in /proc, /sys or /dev; there, clients see the folders that those are mounted on.

    Not so shared memory, and what is mounted in /dev at the user's wish.
    """
    clean = "/" + posixpath.normpath(f"/{path}").lstrip("/")
    top = clean.split("/")[1]
    shown = ["/dev/shm", *(point.destination for point in container.mounts)] if top == "dev" else []
    return top in ("proc", "sys", "dev") and not any(f"{clean}/".startswith(f"{place}/") for place in shown)


def _layers(container: Container) -> tuple[LayerKey, ...]:
    return tuple(LayerKey(key) for key in container.layers)


async def _moving(body: ByteSource) -> AsyncIterator[bytes]:
    """The body, or an error when nothing of it arrives for a while."""
    iterator = aiter(body)
    while True:
        try:
            async with asyncio.timeout(STALL_SECONDS):
                chunk = await anext(iterator, None)
        except TimeoutError as error:
            raise SystemFailure(f"the upload stalled for {STALL_SECONDS} seconds") from error
        if chunk is None:
            return
        yield chunk


@contextlib.contextmanager
def worded(path: str, container: str) -> Iterator[None]:
    """Turn the errors of a worker into kinds with docker's sentences."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"Could not find the file {path} in container {container}") from error
    except NotADirectoryError as error:
        if error.filename is None:
            raise InvalidParameter(error.strerror or str(error)) from error
        raise SystemFailure(f"lstat {path}: not a directory") from error
    except OSError as error:
        if error.errno == errno.EROFS and error.filename is None:
            raise Forbidden(error.strerror or str(error)) from error
        raise SystemFailure(os_words(error)) from error
    except ValueError as error:
        raise SystemFailure(str(error)) from error


async def _worded_chunks(chunks: AsyncIterator[bytes], path: str, container: str) -> AsyncIterator[bytes]:
    """Only the stream's own errors are worded: what the client's connection does to its reader passes through."""
    iterator = aiter(chunks)
    while True:
        with worded(path, container):
            chunk = await anext(iterator, None)
        if chunk is None:
            return
        yield chunk
