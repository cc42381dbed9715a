"""The unpacked layers on disk: unpacking once per content, finding, measuring, removing.

::

    <data root>/layers/<key>/fs           content (see base.py for what a key is)
    <data root>/layers/<key>/layer.json   what is known of it, written before the folder appears under its key
    <data root>/layers/<key>/settled      says that all of it is on disk
    <data root>/layers/l/<link>           short symbolic name of <key>/fs
    <data root>/layers/tmp/<random>       being unpacked; swept at start
    <data root>/layers/init/<stack>/fs    init layers, one per stack of layers that a container was made of

A pull does not wait until what it unpacked is on disk. That happens some seconds later, for all that is new; should the
machine lose its power before, the layer is thrown away at the next start and unpacked again when it is wanted. Nobody
may give up the blob of a layer in use before (``settle``).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.kernel import placement
from engine.kernel.durable import boot_id_sync, sync_file_system_sync
from engine.kernel.mount import MountStep
from engine.snapshots.base import Layer, LayerKey, Progress, chain_id, hex_of
from engine.snapshots.trash import Trash
from engine.snapshots.workers import Workers
from engine.tasks import KeyedLocks, Nursery, run_blocking

log = logging.getLogger(__name__)

LINK_LENGTH = 16
SETTLE_SECONDS = 5.0
# Layers must stay plain: nothing in them may depend on overlay's own bookkeeping attributes.
PLAIN_OPTIONS = ("redirect_dir=off", "metacopy=off", "index=off")
_PARAMETERS = Path("/sys/module/overlay/parameters")


@dataclass(slots=True)
class _Shared:
    """One unpack job and who waits for it. ``outcome`` belongs to the waiters: a failure is theirs to tell."""

    outcome: asyncio.Future[LayerKey | None]
    task: asyncio.Task[None] | None = None
    waiters: int = 0
    listeners: list[Progress] = field(default_factory=list)

    def tell(self, count: int) -> None:
        """Pass progress on to all waiters."""
        for listener in self.listeners:
            listener(count)


@dataclass(frozen=True, slots=True)
class BlobSource:
    """Where a layer's bytes come from: a file (or a part of one), in any compression known to ``feed``."""

    path: Path
    offset: int = 0
    length: int | None = None


class Layers:
    """All layers below one data root. Call ``start`` once before use."""

    def __init__(self, data_root: Path, workers: Workers, trash: Trash, nursery: Nursery) -> None:
        self.root = data_root / "layers"
        self.links = self.root / "l"
        self._tmp = self.root / "tmp"
        self._init = self.root / "init"
        self._workers = workers
        self._trash = trash
        self._nursery = nursery
        self._known: dict[LayerKey, Layer] = {}
        self._links: dict[str, LayerKey] = {}
        self._jobs: dict[tuple[str, bool], _Shared] = {}
        self._locks = KeyedLocks()
        self._arrival = asyncio.Condition()
        self._overlay = True
        self._boot = ""
        self._unsettled: set[LayerKey] = set()
        self._settling: asyncio.Task[None] | None = None
        self._mend: Callable[[LayerKey], Awaitable[None]] | None = None
        self._stacks: set[str] = set()
        self.plain_options: tuple[str, ...] = ()

    async def start(self, *, overlay: bool = True) -> None:
        """Read what is there, sweep what was half done. ``overlay`` says whether overlayfs may be mounted here."""
        self._overlay = overlay
        leftovers, known = await run_blocking(self._load_sync)
        for layer in known:
            self._known[layer.key] = layer
            self._links[layer.link] = layer.key
        for path in leftovers:
            await self._trash.take(path)
        self._settle_soon()

    def mend_with(self, mend: Callable[[LayerKey], Awaitable[None]]) -> None:
        """Who has a layer unpacked again that a container stands on and that was lost."""
        self._mend = mend

    def _load_sync(self) -> tuple[list[Path], list[Layer]]:
        for folder in (self.root, self.links, self._tmp, self._init):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        placement.unrelated_sync(self._tmp)
        self.plain_options = tuple(o for o in PLAIN_OPTIONS if (_PARAMETERS / o.partition("=")[0]).exists())
        with contextlib.suppress(OSError):  # without one, what is there is trusted
            self._boot = boot_id_sync()
        leftovers = list(self._tmp.iterdir())
        known: list[Layer] = []
        for folder in self.root.iterdir():
            if folder in (self.links, self._tmp, self._init):
                continue
            try:
                layer, boot = _read_layer((folder / "layer.json").read_bytes())
            except (OSError, ValueError, KeyError, TypeError):
                leftovers.append(folder)
                continue
            is_settled = not boot or (folder / "settled").exists()
            if not is_settled and boot != self._boot:
                log.warning("layer %s was not on disk when the machine stopped: it will be unpacked again", layer.key)
                leftovers.append(folder)
                continue
            if not is_settled:
                self._unsettled.add(layer.key)
            known.append(layer)
        leftovers += [folder for folder in self._init.iterdir() if _stands_on(folder) is None]
        keys = {layer.link for layer in known}
        for link in self.links.iterdir():
            if link.name not in keys:
                link.unlink()
        for layer in known:
            self._make_link_sync(layer)
        return leftovers, known

    def _make_link_sync(self, layer: Layer) -> None:
        link = self.links / layer.link
        if not link.is_symlink():
            link.symlink_to(f"../{layer.key}/fs")

    def has(self, key: LayerKey) -> bool:
        """Whether the layer ``key`` is there, whole."""
        return key in self._known

    def get(self, key: LayerKey) -> Layer:
        """What is known of a layer; ``KeyError`` if it is not there."""
        return self._known[key]

    def size(self, key: LayerKey) -> int:
        """Content bytes of a layer, measured while it was unpacked."""
        return self._known[key].size_bytes

    def all(self) -> list[Layer]:
        """Every layer."""
        return [*self._known.values()]

    def folder(self, key: LayerKey) -> Path:
        """The content of a layer on the host, for reading."""
        return self.root / key / "fs"

    def find(self, parents: Sequence[str], diff_id: str) -> LayerKey | None:
        """The layer that holds ``diff_id`` where ``parents`` (diff IDs, bottom first) lie below it."""
        if parents:
            bound = LayerKey(hex_of(chain_id([*parents, diff_id])))
            if bound in self._known:
                return bound
        shared = self._known.get(LayerKey(hex_of(diff_id)))
        return None if shared is None or (parents and shared.implied) else shared.key

    def resolve(self, diff_ids: Sequence[str]) -> tuple[LayerKey, ...] | None:
        """The layers of an image, bottom first; None where one is missing."""
        keys = [self.find(diff_ids[:place], diff_id) for place, diff_id in enumerate(diff_ids)]
        found = tuple(key for key in keys if key is not None)
        return found if len(found) == len(keys) else None

    async def unpack(
        self, source: BlobSource, diff_id: str, parents: Sequence[str] = (), progress: Progress | None = None
    ) -> LayerKey:
        """Have the layer ``diff_id`` unpacked; ``parents`` are the diff IDs below it in the image, bottom first.

        Layers of an image may be asked for all at once: one that turns out to be bound waits until its parents have
        been unpacked by somebody (so ask for all of them, inside one TaskGroup). Callers for the same layer share one
        job; it is killed when the last of them is cancelled. ``ValueError`` for damage, a cut blob and a diff ID that
        does not match, ``OSError`` from the disk.
        """
        found = self.find(parents, diff_id)
        if found is not None:
            return found
        job = (chain_id([*parents, diff_id]), bool(parents))
        plain = (diff_id, bool(parents))
        # Shared by diff ID first; whether a layer is bound shows only while it is unpacked.
        key = await self._share(plain, lambda tell: self._unpack_shared(source, diff_id, bool(parents), tell), progress)
        if key is None:
            key = await self._share(job, lambda tell: self._unpack_over(source, diff_id, parents, tell), progress)
        if key is None:
            raise ValueError(f"layer {diff_id} cannot be unpacked over its parents")
        return key

    async def _share(
        self,
        name: tuple[str, bool],
        work: Callable[[Progress], Awaitable[LayerKey | None]],
        progress: Progress | None,
    ) -> LayerKey | None:
        shared = self._jobs.get(name)
        if shared is None:
            shared = self._jobs[name] = _Shared(asyncio.get_running_loop().create_future())
            shared.task = self._nursery.start(self._perform(shared, name, work), name=f"unpack {name[0][:19]}")
        shared.waiters += 1
        if progress is not None:
            shared.listeners.append(progress)
        try:
            return await asyncio.shield(shared.outcome)
        finally:
            shared.waiters -= 1
            if progress is not None:
                shared.listeners.remove(progress)
            if not shared.waiters and shared.task is not None and not shared.outcome.done():
                self._forget(name, shared)
                shared.task.cancel()

    async def _perform(
        self, shared: _Shared, name: tuple[str, bool], work: Callable[[Progress], Awaitable[LayerKey | None]]
    ) -> None:
        try:
            shared.outcome.set_result(await work(shared.tell))
        except asyncio.CancelledError:
            shared.outcome.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - raised by every waiter
            shared.outcome.set_exception(error)
            shared.outcome.exception()  # the waiters may all have gone by now
        finally:
            self._forget(name, shared)

    def _forget(self, name: tuple[str, bool], shared: _Shared) -> None:
        """The job takes no more waiters; one that was started anew under its name stays."""
        if self._jobs.get(name) is shared:
            del self._jobs[name]

    async def _unpack_shared(
        self, source: BlobSource, diff_id: str, has_parents: bool, tell: Progress
    ) -> LayerKey | None:
        """Unpack alone. None says that the layer is bound."""
        key = LayerKey(hex_of(diff_id))
        known = self._known.get(key)
        if known is not None:
            return None if known.implied and has_parents else key
        mode = "alone" if has_parents else "bottom"
        return await self._into_place(source, diff_id, key, mode, (), tell)

    async def _unpack_over(
        self, source: BlobSource, diff_id: str, parents: Sequence[str], tell: Progress
    ) -> LayerKey | None:
        key = LayerKey(hex_of(chain_id([*parents, diff_id])))
        if key in self._known:
            return key
        async with self._arrival:
            await self._arrival.wait_for(lambda: self.resolve(parents) is not None)
        below = self.resolve(parents)
        if below is None:
            raise ValueError("a parent layer was removed meanwhile")
        return await self._into_place(source, diff_id, key, "over", below, tell)

    async def _into_place(
        self, source: BlobSource, diff_id: str, key: LayerKey, mode: str, below: tuple[LayerKey, ...], tell: Progress
    ) -> LayerKey | None:
        tmp = self._tmp / secrets.token_hex(12)
        mounts = mode == "over" and self._overlay
        target = tmp / ("merged" if mounts else "fs")
        await run_blocking(self._make_tmp_sync, tmp)
        try:
            result = await self._workers.run(
                "unpack",
                {
                    "source": str(source.path), "offset": source.offset, "length": source.length,
                    "diff_id": hex_of(diff_id), "target": str(target), "mode": mode,
                    "steps": self._over_steps(tmp, below) if mounts else [],
                    "copies": [str(self.folder(k)) for k in below] if mode == "over" and not mounts else [],
                },
                progress=tell,
            )  # fmt: skip
            if "needs_parents" in result:
                await self._trash.take(tmp)
                return None
            told = result["size_bytes"], result["implied"], result["root_explicit"]
            layer = Layer(key, diff_id, self._free_link(key), *told, below)
            await run_blocking(self._publish_sync, tmp, layer)
        except BaseException:
            await asyncio.shield(self._trash.take(tmp))
            raise
        self._known[key] = layer
        self._links[layer.link] = key
        self._unsettled.add(key)
        self._settle_soon()
        async with self._arrival:
            self._arrival.notify_all()
        return key

    def _settle_soon(self) -> None:
        if self._unsettled and (self._settling is None or self._settling.done()):
            with contextlib.suppress(RuntimeError):  # a daemon that stops leaves it to the next
                self._settling = self._nursery.start(self._settle_later(), name="settle layers")

    async def _settle_later(self) -> None:
        while self._unsettled:
            await asyncio.sleep(SETTLE_SECONDS)
            try:
                await self.settle()
            except OSError as error:
                log.warning("new layers could not be brought to disk: %s", error)
                return

    async def settle(self) -> None:
        """Have every layer on disk, whatever happens to the machine. Costs nothing when they are; OSError when it
        cannot be done."""
        keys = frozenset(self._unsettled)
        if keys:
            await run_blocking(self._settle_sync, keys)
            self._unsettled -= keys

    def _settle_sync(self, keys: Iterable[LayerKey]) -> None:
        sync_file_system_sync(self.root)
        for key in keys:
            with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
                (self.root / key / "settled").touch()

    def _make_tmp_sync(self, tmp: Path) -> None:
        for name in ("fs", "work", "merged"):
            (tmp / name).mkdir(parents=True, mode=0o755)

    def _over_steps(self, tmp: Path, below: Sequence[LayerKey]) -> list[list[Any]]:
        """A mount of ``below`` whose upper folder becomes a layer; unsynced, as plainly unpacked layers are."""
        step = self.overlay_step(self.link_names(below), str(tmp / "merged"), upper=tmp / "fs", work=tmp / "work")
        return step_data((unsynced(step),))

    def _free_link(self, key: LayerKey) -> str:
        length = LINK_LENGTH
        while self._links.get(key[:length], key) != key:  # somebody made two digests with one beginning
            length += 1
        return key[:length]

    def _publish_sync(self, tmp: Path, layer: Layer) -> None:
        _drop_scaffold_sync(tmp)
        (tmp / "layer.json").write_bytes(_layer_json(layer, self._boot))
        try:
            tmp.rename(self.root / layer.key)
        except OSError as error:
            # The same content was unpacked as a bottom layer at the same time; the first one stands.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(tmp)
        self._make_link_sync(layer)

    async def remove(self, key: LayerKey) -> None:
        """Remove a layer and the init layers over it; a missing one is no error."""
        layer = self._known.pop(key, None)
        if layer is None:
            return
        self._links.pop(layer.link, None)
        self._unsettled.discard(key)
        for stack in await run_blocking(self._unlink_sync, layer):
            self._stacks.discard(stack.name)
            await self._trash.take(stack)
        await self._trash.take(self.root / key)

    def _unlink_sync(self, layer: Layer) -> list[Path]:
        (self.links / layer.link).unlink(missing_ok=True)
        return [folder for folder in self._init.iterdir() if layer.key in (_stands_on(folder) or ())]

    # Stacks: what mounts are made of.

    async def require(self, keys: Sequence[LayerKey]) -> None:
        """Have these layers there, those that were lost too. OSError when one is and cannot be had again."""
        for key in keys:
            if key not in self._known and self._mend is not None:
                try:
                    await self._mend(key)
                except ValueError as error:
                    raise OSError(errno.EIO, str(error), str(self.folder(key))) from error
            if key not in self._known:
                raise FileNotFoundError(errno.ENOENT, "the layer is lost, and no image has it", str(self.folder(key)))

    async def stack(self, keys: Sequence[LayerKey]) -> list[str]:
        """Short folder names of a stack and its init layer, top first, relative to ``links``. Raises as ``require``."""
        await self.require(keys)
        return [await self.init_layer(keys), *self.link_names(keys)]

    def link_names(self, keys: Sequence[LayerKey]) -> list[str]:
        """Short folder names, top first as overlay wants them, relative to ``links``."""
        return [self._known[key].link for key in reversed(keys)]

    def overlay_step(
        self, lowers: Sequence[str], target: str, *, upper: Path | None = None, work: Path | None = None
    ) -> MountStep:
        """An overlay mount of ``lowers`` (top first, relative to ``links``), writable where ``upper`` is given."""
        if upper is None and len(lowers) == 1:
            return MountStep(str(self.links / lowers[0]), target, "", ("bind", "ro"))
        options = [f"lowerdir={':'.join(lowers)}"]
        if upper is not None:
            options += [f"upperdir={upper}", f"workdir={work}"]
        else:
            options.append("ro")
        return MountStep("overlay", target, "overlay", (*options, *self.plain_options), str(self.links))

    def root_like(self, keys: Sequence[LayerKey]) -> Path:
        """The layer whose root tells a container's root owner and mode: the topmost explicit one, else the bottom."""
        for key in reversed(keys):
            if self._known[key].root_explicit:
                return self.folder(key)
        return self.folder(keys[0]) if keys else self.root

    async def init_layer(self, keys: Sequence[LayerKey]) -> str:
        """Have the init layer of a stack; returns its folder relative to ``links``."""
        name = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:24]
        place = self._init / name
        if name not in self._stacks:
            async with self._locks(name):
                if not await run_blocking((place / "fs").is_dir):
                    await self._make_init(place, keys)
                self._stacks.add(name)
        return f"../init/{name}/fs"

    async def _make_init(self, place: Path, keys: Sequence[LayerKey]) -> None:
        tmp = self._tmp / secrets.token_hex(12)
        await run_blocking(self._make_tmp_sync, tmp)
        try:
            target = tmp / "merged" if keys else tmp / "fs"
            await self._workers.run(
                "init_layer",
                {
                    "steps": self._over_steps(tmp, keys) if keys else [],
                    "target": str(target),
                    "like_root": str(self.root_like(keys) if keys else tmp / "fs"),
                },
                lane="prompt",
            )
            await run_blocking(self._publish_init_sync, tmp, place, keys)
        except BaseException:
            await asyncio.shield(self._trash.take(tmp))
            raise

    def _publish_init_sync(self, tmp: Path, place: Path, keys: Sequence[LayerKey]) -> None:
        _drop_scaffold_sync(tmp)
        (tmp / "stack.json").write_text(json.dumps(list(keys)))
        tmp.rename(place)


def _stands_on(init: Path) -> list[str] | None:
    """The layers below an init layer; None where that cannot be read, as a loss of power may leave it."""
    try:
        return [str(key) for key in json.loads((init / "stack.json").read_bytes())]
    except (OSError, ValueError, TypeError):
        return None


def _drop_scaffold_sync(tmp: Path) -> None:
    """Remove what only the mount over the parents needed."""
    shutil.rmtree(tmp / "work")
    (tmp / "merged").rmdir()


def unsynced(step: MountStep) -> MountStep:
    """The overlay mount without syncing the file system below it at its end, where the kernel can (Linux 5.10)."""
    major, minor = os.uname().release.split(".")[:2]
    return replace(step, options=(*step.options, "volatile")) if (int(major), int(minor)) >= (5, 10) else step


def step_data(steps: Sequence[MountStep]) -> list[list[Any]]:
    """Mount steps as job arguments."""
    return [[s.source, s.target, s.fstype, list(s.options), s.cwd] for s in steps]


def _layer_json(layer: Layer, boot: str) -> bytes:
    return json.dumps(
        {
            "key": layer.key, "diff_id": layer.diff_id, "link": layer.link, "size_bytes": layer.size_bytes,
            "implied": layer.implied, "root_explicit": layer.root_explicit, "parents": list(layer.parents),
            "boot": boot,
        }
    ).encode()  # fmt: skip


def _read_layer(data: bytes) -> tuple[Layer, str]:
    """A layer, and the boot it was unpacked in; "" for one from when that was not written down."""
    doc = json.loads(data)
    layer = Layer(
        LayerKey(doc["key"]), doc["diff_id"], doc["link"], doc["size_bytes"], doc["implied"], doc["root_explicit"],
        tuple(LayerKey(key) for key in doc["parents"]),
    )  # fmt: skip
    return layer, str(doc.get("boot", ""))
