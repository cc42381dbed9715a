"""docker cp, export and diff: a container's files, whether it runs or not, with the words clients expect.

A running container's own mount namespace is entered, so that volumes are seen as it sees them. For any other, a worker
mounts its root, volumes and binds for itself. Reading takes no lock; writing to the root of a container that does not
run holds the container's lock, lest it be started over the same files meanwhile, and never while waiting for a client:
the upload is spooled first.
"""

from __future__ import annotations

import contextlib
import errno
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

from engine.containers.accounts import Accounts
from engine.containers.journalist import Journalist
from engine.containers.model import Container
from engine.errors import Forbidden, InvalidParameter, NotFound, SystemFailure
from engine.snapshots.archive import Archives, PathStat
from engine.snapshots.base import BindMount, ByteSource, Change, LayerKey, RootView, Running, Snapshotter
from engine.tasks import KeyedLocks, run_blocking
from engine.volumes.service import VolumeService

__all__ = ["Archiver", "PathStat", "worded"]

_SPOOL_STEP = 1 << 20


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
        spool_dir: Path,
    ) -> None:
        self._records = journalist
        self._archives = archives
        self._snapshotter = snapshotter
        self._volumes = volumes
        self._accounts = accounts
        self._locks = locks
        self._spool_dir = spool_dir

    async def stat(self, reference: str, path: str) -> PathStat:
        """The path as it is, a link at its end not followed. Raises ``NotFound``."""
        container = self._records.store.find(reference)
        with worded(path, reference):
            async with self._view(container) as view:
                return await self._archives.stat(view, path)

    @contextlib.asynccontextmanager
    async def get(self, reference: str, path: str) -> AsyncIterator[tuple[PathStat, AsyncIterator[bytes]]]:
        """The path's stat, known before the first byte, and its tar stream. Raises ``NotFound``."""
        container = self._records.store.find(reference)
        async with contextlib.AsyncExitStack() as stack:
            with worded(path, reference):
                view = await stack.enter_async_context(self._view(container))
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
            if container.is_running:
                async with self._view(container) as view:
                    await self._archives.put(view, path, body, keep_kinds=keep_kinds, owner=owner)
            else:
                with await run_blocking(_temporary_sync, self._spool_dir) as spool:
                    await _spool(body, spool)
                    await self._put_spooled(container, path, spool.fileno(), keep_kinds, owner)
        self._records.event(container, "extract-to-dir")

    async def _put_spooled(
        self, container: Container, path: str, archive: int, keep_kinds: bool, owner: tuple[int, int] | None
    ) -> None:
        async with self._locks(container.id):
            container = self._records.store.require(container.id)
            async with self._view(container, writable=True) as view:
                await self._archives.put_file(view, path, archive, keep_kinds=keep_kinds, owner=owner)

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
                view = await stack.enter_async_context(self._view(container, own_only=True))
                chunks = await stack.enter_async_context(self._archives.export(view))
            self._records.event(container, "export")
            yield _worded_chunks(chunks, "/", reference)

    async def changes(self, reference: str) -> list[Change]:
        """What differs from the image, sorted by path."""
        container = self._records.store.find(reference)
        with worded("/", reference):
            return await self._snapshotter.changes(container.id, _layers(container))

    @contextlib.asynccontextmanager
    async def _view(
        self, container: Container, *, writable: bool = False, own_only: bool = False
    ) -> AsyncIterator[RootView]:
        read_only = container.host_config.readonly_rootfs
        async with contextlib.AsyncExitStack() as stack:
            binds = () if own_only else await self._binds(container, stack)
            if container.is_running and container.state.pid:
                yield Running(container.state.pid, read_only, binds)
                return
            view = await stack.enter_async_context(
                self._snapshotter.view(container.id, _layers(container), writable=writable)
            )
            yield replace(view, binds=binds, read_only=read_only)

    async def _binds(self, container: Container, stack: contextlib.AsyncExitStack) -> tuple[BindMount, ...]:
        """Volumes and binds, outer ones first; a bind whose source is gone is left out."""
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
        return tuple(sorted(binds, key=lambda bind: bind.target.count("/")))


def _layers(container: Container) -> tuple[LayerKey, ...]:
    return tuple(LayerKey(key) for key in container.layers)


def _temporary_sync(folder: Path) -> IO[bytes]:
    return tempfile.TemporaryFile(dir=folder, buffering=0)


async def _spool(body: ByteSource, spool: IO[bytes]) -> None:
    """The whole upload to a file, in large steps, and back to its beginning."""
    pending = bytearray()
    async for chunk in body:
        pending += chunk
        if len(pending) >= _SPOOL_STEP:
            await run_blocking(spool.write, pending)
            pending = bytearray()
    await run_blocking(spool.write, pending)
    spool.seek(0)


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
        raise SystemFailure(_sentence(error)) from error
    except ValueError as error:
        raise SystemFailure(str(error)) from error


def _sentence(error: OSError) -> str:
    words = (error.strerror or str(error)).lower()
    return f"{error.filename}: {words}" if error.filename else words


async def _worded_chunks(chunks: AsyncIterator[bytes], path: str, container: str) -> AsyncIterator[bytes]:
    """Only the stream's own errors are worded: what the client's connection does to its reader passes through."""
    iterator = aiter(chunks)
    while True:
        with worded(path, container):
            chunk = await anext(iterator, None)
        if chunk is None:
            return
        yield chunk
