"""Snapshots as full copies: for data roots on which overlayfs does not work (itself an overlay, some network disks).

``<data root>/snapshots/<key>/{root,base.json}``: the copy, and the facts of every entry when it was made, which the
container's changes are measured against.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from engine.kernel import placement, quota
from engine.kernel.mount import MountStep
from engine.snapshots.base import Change, ChangeKind, DiffInfo, LayerKey, Stopped, Usage
from engine.snapshots.layers import Layers
from engine.snapshots.trash import Trash
from engine.snapshots.workers import Workers
from engine.tasks import KeyedLocks, run_blocking

_IMAGE = "image-"


class CopyingSnapshotter:
    """The ``Snapshotter`` for hosts without overlayfs. Call ``start`` once before use."""

    name = "vfs"
    upper = "root"

    def __init__(self, data_root: Path, layers: Layers, workers: Workers, trash: Trash) -> None:
        self.root = data_root / "snapshots"
        self._view = data_root / "view"
        self._layers = layers
        self._workers = workers
        self._trash = trash
        self._locks = KeyedLocks()

    async def start(self) -> None:
        """Make the folders, sweep snapshots whose making was cut short."""
        for path in await run_blocking(self._start_sync):
            await self._trash.take(path)

    def _start_sync(self) -> list[Path]:
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._view.mkdir(exist_ok=True, mode=0o700)
        placement.unrelated_sync(self.root)
        return [path for path in self.root.iterdir() if path.suffix == ".new"]

    async def prepare(self, key: str, layers: Sequence[LayerKey], size_limit: str | None = None) -> None:
        if size_limit is not None:
            raise ValueError(quota.UNSUPPORTED)
        await self._copy(key, layers, init=True)

    async def _copy(self, key: str, layers: Sequence[LayerKey], *, init: bool) -> None:
        new, place = self.root / f"{key}.new", self.root / key
        await self._layers.require(layers)
        await run_blocking(_make_sync, new, place)
        try:
            like = str(self._layers.root_like(layers)) if layers else ""
            folders = [str(self._layers.folder(layer)) for layer in layers]
            args = {"layers": folders, "dest": str(new / "root"), "like_root": like, "init": init}
            await self._workers.run("stack", {**args, "facts": str(new / "base.json")})
            await run_blocking(new.rename, place)
        except BaseException:
            await self._trash.take(new)
            raise

    async def require(self, layers: Sequence[LayerKey]) -> None:
        """Nothing: a snapshot has all of it in itself."""

    async def exists(self, key: str) -> bool:
        return await run_blocking((self.root / key / "root").is_dir)

    async def mount_steps(
        self,
        key: str,
        layers: Sequence[LayerKey],
        target: str,
        read_only: bool = False,
        *,
        transient: bool = False,
    ) -> tuple[MountStep, ...]:
        return (MountStep(str(self.root / key / "root"), target, "", ("bind", "ro") if read_only else ("bind",)),)

    async def image_steps(self, layers: Sequence[LayerKey], target: str) -> tuple[MountStep, ...]:
        """One shared copy per stack, kept: other containers may still show it."""
        key = _IMAGE + hashlib.sha256("\n".join(layers).encode()).hexdigest()[:24]
        async with self._locks(key):
            if not await self.exists(key):
                await self._copy(key, layers, init=False)
        return await self.mount_steps(key, layers, target, read_only=True)

    async def remove(self, key: str) -> None:
        await self._trash.take(self.root / key)

    async def changes(self, key: str, layers: Sequence[LayerKey]) -> list[Change]:
        place = self.root / key
        args = {"folder": str(place / "root"), "facts": str(place / "base.json")}
        batches = await self._workers.run("stack_changes", args)
        return [Change(path, ChangeKind(kind)) for batch in batches for path, kind in batch]

    async def write_diff(self, key: str, layers: Sequence[LayerKey], out: Path) -> DiffInfo:
        place = self.root / key
        args = {"folder": str(place / "root"), "facts": str(place / "base.json"), "out": str(out)}
        found = await self._workers.run("stack_diff", args)
        return DiffInfo(f"sha256:{found['diff_id']}", found["tar_bytes"], found["size_bytes"])

    async def usage(self, key: str) -> Usage:
        return (await self.usages(key))[0]

    async def usages(self, *keys: str) -> list[Usage]:
        folders = [str(self.root / key / "root") for key in keys]
        found = await self._workers.run("usage", {"folders": folders}, lane="prompt") if keys else ()
        return [Usage(size, inodes) for size, inodes in found]

    @contextlib.asynccontextmanager
    async def view(self, key: str, layers: Sequence[LayerKey], *, writable: bool) -> AsyncIterator[Stopped]:
        target = str(self._view)
        yield Stopped(target, await self.mount_steps(key, layers, target, read_only=not writable))

    async def keys(self) -> list[str]:
        return await run_blocking(self._keys_sync)

    def _keys_sync(self) -> list[str]:
        folders = (path for path in self.root.iterdir() if not path.name.startswith(_IMAGE))
        return sorted(path.name for path in folders if (path / "root").is_dir())


def _make_sync(new: Path, place: Path) -> None:
    if place.exists():
        raise FileExistsError(17, "the snapshot exists already", str(place))
    (new / "root").mkdir(parents=True)
