"""Trees in and out as tar streams, through workers that entered a view: what docker cp, export and copy-up stand on.

Errors are built-in ones, of the path inside the view; a stream that fails half-way raises from its iterator. Leaving a
stream's context early kills its worker.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from engine.snapshots import pipes
from engine.snapshots.base import ByteSource, LayerKey, RootView, Running, Snapshotter
from engine.snapshots.layers import Layers, step_data
from engine.snapshots.workers import Job, Workers
from engine.tasks import run_blocking


@dataclass(frozen=True, slots=True)
class PathStat:
    """A path in a view; ``mode`` has Go's ``os.FileMode`` bits, ``link_target`` is absolute and fully resolved."""

    name: str
    size: int
    mode: int
    mtime_ns: int
    link_target: str

    @property
    def is_folder(self) -> bool:
        """Go's ModeDir."""
        return bool(self.mode & 1 << 31)


class Archives:
    """Reads and writes trees of views."""

    def __init__(self, workers: Workers, layers: Layers, snapshotter: Snapshotter) -> None:
        self._workers = workers
        self._layers = layers
        self._snapshotter = snapshotter

    async def stat(self, view: RootView, path: str) -> PathStat:
        """The path as it is; a link at its end is not followed unless a slash ends the path."""
        return PathStat(**await self._workers.run("path_stat", {"view": view_data(view), "path": path}, lane="prompt"))

    @contextlib.asynccontextmanager
    async def get(self, view: RootView, path: str) -> AsyncIterator[tuple[PathStat, AsyncIterator[bytes]]]:
        """The path's stat and archive, with docker's names: rebased to the last element of what was asked."""
        args = {"view": view_data(view), "path": path}
        async with self._reading("path_get", args) as (job, chunks):
            yield PathStat(**await job.first_part()), chunks

    @contextlib.asynccontextmanager
    async def export(self, view: RootView) -> AsyncIterator[AsyncIterator[bytes]]:
        """The container's own root file system, without what is mounted on it."""
        async with self._reading("export", {"view": view_data(view)}) as (_, chunks):
            yield chunks

    @contextlib.asynccontextmanager
    async def _reading(self, name: str, args: dict[str, Any]) -> AsyncIterator[tuple[Job, AsyncIterator[bytes]]]:
        read_end, write_end = pipes.make_pipe()
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            ours.callback(os.close, read_end)
            theirs.callback(os.close, write_end)
            async with self._workers.job(name, args, fds=[write_end], lane="prompt") as job:
                theirs.close()
                yield job, _checked(job, read_end)

    async def put(
        self,
        view: RootView,
        path: str,
        body: ByteSource,
        *,
        keep_kinds: bool = False,
        owner: tuple[int, int] | None = None,
    ) -> None:
        """Extract an archive (any compression) into the existing folder ``path``, links followed.

        ``keep_kinds`` refuses to replace a folder by something else and the reverse; ``owner`` overrides the archive's.
        """
        args = {"view": view_data(view), "path": path, "keep_kinds": keep_kinds, "owner": owner}
        read_end, write_end = pipes.make_pipe()
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            ours.callback(os.close, write_end)
            theirs.callback(os.close, read_end)
            async with self._workers.job("path_put", args, fds=[read_end], lane="prompt") as job:
                theirs.close()
                await _feed(job, write_end, body)
                ours.close()
                await job.result()

    async def copy_up(self, key: str, layers: Sequence[LayerKey], folder: str, volume: Path) -> None:
        """Fill the empty folder ``volume`` with what the snapshot has at ``folder``, its own owner and mode included.

        A path that is missing or no folder leaves the volume as it is.
        """
        places = [self._layers.folder(layer) for layer in layers]
        if await run_blocking(_is_surely_absent_sync, places, folder):
            return
        async with self._snapshotter.view(key, layers, writable=False) as view:
            read_end, write_end = pipes.make_pipe()
            with contextlib.ExitStack() as ends:
                ends.callback(os.close, read_end)
                ends.callback(os.close, write_end)
                out = {"view": view_data(view), "path": folder}
                async with (
                    self._workers.job("folder_out", out, fds=[write_end], lane="prompt") as packing,
                    self._workers.job("folder_in", {"folder": str(volume)}, fds=[read_end], lane="prompt") as filling,
                ):
                    ends.close()
                    found = await packing.result()
                    if found:
                        await filling.result()

    async def make_folder(self, key: str, layers: Sequence[LayerKey], folder: str) -> None:
        """Make a folder of the snapshot, and those on the way, where they are missing: root's, mode 0755.

        NotADirectoryError when something else has its name.
        """
        places = [self._layers.folder(layer) for layer in reversed(layers)]
        if await run_blocking(_is_surely_folder_sync, places, folder):
            return
        async with self._snapshotter.view(key, layers, writable=True) as view:
            await self._workers.run("make_folder", {"view": view_data(view), "path": folder}, lane="prompt")


async def _checked(job: Job, fd: int) -> AsyncIterator[bytes]:
    """The pipe's bytes, then the job's verdict on them."""
    async for chunk in pipes.read_all(fd):
        yield chunk
    await job.result()


async def _feed(job: Job, fd: int, body: ByteSource) -> None:
    """Hand the body to the job until either is done; a job that stopped listening says why in its result."""
    with contextlib.suppress(BrokenPipeError):
        async for chunk in body:
            if job.outcome.done():
                return
            await pipes.write(fd, chunk)


def view_data(view: RootView) -> dict[str, Any]:
    """A view as job arguments."""
    binds = [[bind.source, bind.target, bind.read_only, bind.mapping] for bind in view.binds]
    common = {"read_only": view.read_only, "binds": binds}
    if isinstance(view, Running):
        return {"init_pid": view.init_pid, "bare": view.bare, **common}
    return {"target": view.target, "steps": step_data(view.steps), **common}


def _is_surely_folder_sync(layers: Sequence[Path], folder: str) -> bool:
    """Whether it is a folder, told without a worker from the layers, top first; no link or removal lies on the way."""
    parts = PurePosixPath("/" + folder).parts[1:]
    for layer in layers:
        place = layer
        for part in parts:
            place /= part
            try:
                if not stat.S_ISDIR(place.lstat().st_mode):
                    return False
            except FileNotFoundError:
                break
        else:
            return True
    return False


def _is_surely_absent_sync(layers: Sequence[Path], folder: str) -> bool:
    """Whether no layer can have ``folder``, told without a worker: none has the path, and no link lies on the way."""
    parts = PurePosixPath("/" + folder).parts[1:]
    if not parts or ".." in parts:
        return False
    for layer in layers:
        place = layer
        for part in parts:
            place /= part
            try:
                mode = place.lstat().st_mode
            except (FileNotFoundError, NotADirectoryError):
                break
            if stat.S_ISLNK(mode):
                return False
        else:
            return False
    return True
