"""Snapshots as overlayfs mounts: the way taken wherever the kernel and the data root's file system offer it.

``<data root>/snapshots/<key>/{diff,work}``; the stack below is the init layer and the image's layers, by short names
relative to ``layers/l``, so that 127 layers fit one page of options.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from engine.kernel import placement, quota
from engine.kernel.mount import MountStep
from engine.sizes import parse_size
from engine.snapshots.base import Change, ChangeKind, DiffInfo, LayerKey, Stopped, Usage
from engine.snapshots.layers import Layers, step_data, unsynced
from engine.snapshots.trash import Trash
from engine.snapshots.workers import Workers
from engine.tasks import run_blocking


class OverlaySnapshotter:
    """The ``Snapshotter`` for overlayfs. Call ``start`` once before use."""

    name = "overlay2"
    upper = "diff"

    def __init__(self, data_root: Path, layers: Layers, workers: Workers, trash: Trash) -> None:
        self.root = data_root / "snapshots"
        self._view = data_root / "view"
        self._layers = layers
        self._workers = workers
        self._trash = trash
        self._quota: quota.ProjectQuota | None = None
        self.default_size_limit: str | None = None

    @property
    def can_limit(self) -> bool:
        """Whether a snapshot can have a size, which takes a file system with project quotas."""
        return self._quota is not None

    async def start(self) -> None:
        """Make the folders, sweep snapshots whose making was cut short."""
        for path in await run_blocking(self._start_sync):
            await self._trash.take(path)

    def _start_sync(self) -> list[Path]:
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._view.mkdir(exist_ok=True, mode=0o700)
        placement.unrelated_sync(self.root)
        self._quota = quota.probe_sync(self.root, quota.SNAPSHOTS)
        return [*self.root.glob("*.new"), *self.root.glob("*/view-*")]

    async def prepare(self, key: str, layers: Sequence[LayerKey], size_limit: str | None = None) -> None:
        if size_limit is not None and self._quota is None:
            raise ValueError(quota.UNSUPPORTED)
        size_limit = size_limit or self.default_size_limit
        max_bytes = parse_size(size_limit) if size_limit is not None else 0
        init = await self._layers.init_layer(layers)
        await run_blocking(self._prepare_sync, key, self._layers.links / init, max_bytes)

    def _prepare_sync(self, key: str, init: Path, max_bytes: int) -> None:
        place = self.root / key
        if place.exists():
            raise FileExistsError(17, "the snapshot exists already", str(place))
        new = self.root / f"{key}.new"
        for name in ("diff", "work"):
            (new / name).mkdir(parents=True, exist_ok=True)
        root = init.stat()
        (new / "diff").chmod(stat.S_IMODE(root.st_mode))
        os.chown(new / "diff", root.st_uid, root.st_gid)
        if max_bytes and self._quota is not None:
            self._quota.limit_sync(new, max_bytes)
        new.rename(place)

    async def require(self, layers: Sequence[LayerKey]) -> None:
        await self._layers.require(layers)

    async def exists(self, key: str) -> bool:
        return await run_blocking((self.root / key / "diff").is_dir)

    async def mount_steps(
        self,
        key: str,
        layers: Sequence[LayerKey],
        target: str,
        read_only: bool = False,
        *,
        transient: bool = False,
    ) -> tuple[MountStep, ...]:
        lowers = await self._layers.stack(layers)
        if read_only:
            return (self._layers.overlay_step([f"../../snapshots/{key}/diff", *lowers], target),)
        # An unsynced mount leaves a mark in its work folder that would refuse the next mount.
        await run_blocking(shutil.rmtree, self.root / key / "work" / "work" / "incompat", ignore_errors=True)
        return (self._writable(key, lowers, target, "work", synced=not transient),)

    def _writable(self, key: str, lowers: Sequence[str], target: str, work: str, *, synced: bool) -> MountStep:
        place = self.root / key
        step = self._layers.overlay_step(lowers, target, upper=place / "diff", work=place / work)
        return step if synced else unsynced(step)

    async def image_steps(self, layers: Sequence[LayerKey], target: str) -> tuple[MountStep, ...]:
        await self._layers.require(layers)
        lowers = self._layers.link_names(layers) or [await self._layers.init_layer(())]
        return (self._layers.overlay_step(lowers, target),)

    async def remove(self, key: str) -> None:
        await self._trash.take(self.root / key)

    async def changes(self, key: str, layers: Sequence[LayerKey]) -> list[Change]:
        lowers = await self._layers.stack(layers)
        step = self._layers.overlay_step(lowers, str(self._view))
        batches = await self._workers.run(
            "changes",
            {"upper": str(self.root / key / "diff"), "steps": step_data((step,)), "lower": str(self._view)},
            lane="prompt",
        )
        return [Change(path, ChangeKind(kind)) for batch in batches for path, kind in batch]

    async def write_diff(self, key: str, layers: Sequence[LayerKey], out: Path) -> DiffInfo:
        found = await self._workers.run("write_diff", {"upper": str(self.root / key / "diff"), "out": str(out)})
        return DiffInfo(f"sha256:{found['diff_id']}", found["tar_bytes"], found["size_bytes"])

    async def usage(self, key: str) -> Usage:
        return (await self.usages(key))[0]

    async def usages(self, *keys: str) -> list[Usage]:
        folders = [str(self.root / key / "diff") for key in keys]
        found = await self._workers.run("usage", {"folders": folders}, lane="prompt") if keys else ()
        return [Usage(size, inodes) for size, inodes in found]

    @contextlib.asynccontextmanager
    async def view(self, key: str, layers: Sequence[LayerKey], *, writable: bool) -> AsyncIterator[Stopped]:
        if writable:
            # The end of a synced mount writes back all of the data root's file system: a work folder of its own, with
            # the mark of an unsynced mount, comes and goes with the view instead.
            lowers = await self._layers.stack(layers)
            work = f"view-{secrets.token_hex(6)}"
            try:
                yield Stopped(str(self._view), (self._writable(key, lowers, str(self._view), work, synced=False),))
            finally:
                await self._trash.take(self.root / key / work)
            return
        # What a reader needs to have there (places to mount volumes on) goes to memory, never to the snapshot.
        scratch, target = MountStep("tmpfs", str(self._view), "tmpfs", ("mode=700",)), str(self._view / "root")
        lowers = [f"../../snapshots/{key}/diff", *await self._layers.stack(layers)]
        step = self._layers.overlay_step(lowers, target, upper=self._view / "diff", work=self._view / "work")
        yield Stopped(target, (scratch, step))

    async def keys(self) -> list[str]:
        return await run_blocking(self._list_sync)

    def _list_sync(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir() if (path / "diff").is_dir())
