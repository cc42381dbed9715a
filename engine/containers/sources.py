"""Where a container's mounts come from: volumes, host folders, images; made present for one run.

What is needed on the host only for the run is undone with it; an image is shown to this container alone.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from engine.containers.model import Container
from engine.containers.mounts import MountPoint
from engine.containers.subpaths import subpath_sync
from engine.errors import InvalidParameter, os_words
from engine.kernel.idmap import IdMap
from engine.kernel.mount import MountStep
from engine.snapshots.base import LayerKey, Snapshotter
from engine.tasks import run_blocking
from engine.volumes.service import VolumeService

IMAGES = "images"


class Sources:
    """Prepares the sources of mounts."""

    def __init__(self, volumes: VolumeService, snapshotter: Snapshotter) -> None:
        self._volumes = volumes
        self._snapshotter = snapshotter

    async def prepare(
        self, container: Container, run_dir: Path, undo: contextlib.AsyncExitStack, ids: IdMap | None = None
    ) -> tuple[tuple[MountPoint, ...], list[MountStep]]:
        """The mounts with their sources, and what the shim has to mount so that these are there.

        Volumes are mounted, missing host folders of ``-v`` are made (root's of ``ids``), and images appear below the
        run folder, in the shim's mount namespace only. Raises an ``EngineError``.
        """
        shown: list[MountPoint] = []
        steps: list[MountStep] = []
        for number, point in enumerate(container.mounts):
            if point.type == "image":
                source, added = await self._image(point, str(run_dir / IMAGES / str(number)))
                steps += added
                shown.append(msgspec.structs.replace(point, source=source))
            else:
                shown.append(await self._source(container, point, undo, ids))
        return tuple(shown), steps

    async def _source(
        self, container: Container, point: MountPoint, undo: contextlib.AsyncExitStack, ids: IdMap | None
    ) -> MountPoint:
        if point.type == "volume":
            path = await self._volumes.mount(
                point.name, container.id, destination=point.destination, rw=point.rw, propagation=point.propagation
            )
            undo.push_async_callback(self._volumes.unmount, point.name, container.id)
            options = point.wish.volume_options if point.wish else None
            if options is not None and options.subpath:
                path = await run_blocking(subpath_sync, path, options.subpath)
            return msgspec.structs.replace(point, source=str(path))
        if point.type == "bind":
            await run_blocking(_ensure_bind_source_sync, point, ids)
        return point

    async def _image(self, point: MountPoint, target: str) -> tuple[str, list[MountStep]]:
        keys = tuple(LayerKey(key) for key in point.layers)
        steps = list(await self._snapshotter.image_steps(keys, target))
        options = point.wish.image_options if point.wish else None
        if options is None or not options.subpath:
            return target, steps
        part = f"{target}-part"
        return part, [*steps, MountStep(target, part, "", ("bind", "ro"), subpath=options.subpath)]


def _ensure_bind_source_sync(point: MountPoint, ids: IdMap | None) -> None:
    if os.path.lexists(point.source):
        return
    options = point.wish.bind_options if point.wish else None
    if not (point.create_source or (options and options.create_mountpoint)):
        raise InvalidParameter(f'invalid mount config for type "bind": bind source path does not exist: {point.source}')
    try:
        missing = [path for path in (Path(point.source), *Path(point.source).parents) if not os.path.lexists(path)]
        os.makedirs(point.source, mode=0o755, exist_ok=True)
        if ids is not None:
            for path in missing:
                os.chown(path, *ids.root)
    except NotADirectoryError:
        return  # the runtime finds the right words for a path through a file
    except OSError as error:
        words = f"error while creating mount source path '{point.source}': mkdir {os_words(error)}"
        raise InvalidParameter(words) from error
