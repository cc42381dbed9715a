"""The bytes behind images: configuration and layer blobs, unpacked layers, and when both may go.

An image is registered only when every layer is unpacked with its diff ID verified and every blob is stored; only the
layer of a commit, which was made here, is unpacked behind its back (``layers`` unpacks what is missing, whatever the
reason). While an operation needs layers or blobs that no image names yet, it holds them here; what is left unheld,
unnamed and under no container is removed. Layers that arrive as plain tar are kept so until a push first needs them
compressed: loading, committing and saving never pay for compression.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import uuid
from asyncio import TaskGroup
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from isal import isal_zlib

from engine.clock import now_ns
from engine.errors import SystemFailure
from engine.images.members import plain_digest_sync
from engine.images.model import Image, LayerBlob, parse_document
from engine.images.store import ImageStore, merge_blobs
from engine.snapshots.base import Layer, LayerKey, Progress, hex_of
from engine.snapshots.layers import BlobSource
from engine.tasks import KeyedLocks, Nursery, run_in, run_to_end
from registry.digest import Digest
from registry.errors import BlobUnknown
from registry.manifest import DOCKER_LAYER, DOCKER_LAYER_GZIP, OCI_LAYER, Descriptor, Manifest, parse_manifest
from registry.reference import Reference
from registry.store.blobs import BlobStore
from registry.store.leases import Leases

log = logging.getLogger(__name__)

PLAIN_TYPES = frozenset({OCI_LAYER, DOCKER_LAYER})
_ABANDONED_SECONDS = 86400.0
# How the names of our unfinished files in the blob store's folder begin.
TEMPORARY = ("load-", "import-", "pack-", "commit-")
_CHUNK = 1 << 20
# isal's level 1: half the time of level 2 for two per cent more bytes on system trees.
_LEVEL = 1

Unpacking = Callable[[str, int], None]
"""Told the diff ID of a layer and how many bytes of its blob are unpacked."""

Release = Callable[[Sequence[Digest]], Awaitable[None]]
"""Gives blobs back to the store's collector: it deletes those that nothing else needs."""


class LayerFolders(Protocol):
    """What is asked of ``engine.snapshots``' ``Layers``."""

    def has(self, key: LayerKey) -> bool: ...
    def find(self, parents: Sequence[str], diff_id: str) -> LayerKey | None: ...
    def size(self, key: LayerKey) -> int: ...
    def folder(self, key: LayerKey) -> Path: ...
    async def unpack(
        self, source: BlobSource, diff_id: str, parents: Sequence[str] = (), progress: Progress | None = None
    ) -> LayerKey: ...
    async def remove(self, key: LayerKey) -> None: ...
    async def settle(self) -> None: ...
    def all(self) -> list[Layer]: ...


class LayerUsers(Protocol):
    """Who stands on layers, be the image still there or not; ``daemon.py`` plugs the container store in."""

    def layers_in_use(self) -> Collection[str]:
        """The keys of those layers."""


class ImageContent:
    """Blobs and layers of images.

    ``blobs`` and ``leases`` are the registry's, shared with it; ``layers`` unpacks; ``release`` (may be set later) is
    the collector's way to take blobs back; ``users`` (likewise) keep layers of images that are gone. With a
    ``nursery``, layers that were made here are unpacked in the background.
    """

    def __init__(
        self,
        store: ImageStore,
        blobs: BlobStore,
        layers: LayerFolders,
        leases: Leases,
        release: Release | None = None,
        nursery: Nursery | None = None,
    ) -> None:
        self.store = store
        self.blobs = blobs
        self.leases = leases
        self.release = release
        self.folders = layers
        self.users: LayerUsers | None = None
        self._nursery = nursery
        self._held: Counter[str] = Counter()
        self._unpacking: Counter[str] = Counter()
        self._candidates: set[tuple[str, LayerKey]] = set()
        self._garbage: set[Digest] = set()
        self._packing = KeyedLocks()
        self._fetches = KeyedLocks()

    @contextlib.asynccontextmanager
    async def hold(
        self, diff_ids: Iterable[str], digests: Iterable[Digest] = (), *, keep_blobs: bool = False
    ) -> AsyncIterator[None]:
        """Keep layers and blobs from removal inside the context; afterwards what no image names goes.

        ``keep_blobs`` spares the blobs, so that the next attempt of what failed finds them.
        """
        held, leased = tuple(diff_ids), tuple(digests)
        self._held.update(held)
        try:
            async with self.leases.hold(*leased):
                yield
        finally:
            self._held.subtract(held)
            self._held += Counter()
            if not keep_blobs:
                self._garbage.update(leased)
            await self.reclaim()

    async def sweep(self) -> None:
        """Remove what a killed daemon left half done; for its start, before any operation."""
        await run_in("disk", _sweep_temporary_sync, self.blobs.temp_dir())
        await self.blobs.clear_temporary(_ABANDONED_SECONDS)  # also where no registry does
        used = self.store.layer_keys()
        self._candidates.update((layer.diff_id, layer.key) for layer in self.folders.all() if layer.key not in used)
        await self._sweep()

    async def register(
        self,
        config: bytes,
        blobs: Mapping[str, LayerBlob],
        manifests: Sequence[Descriptor],
        *,
        names: Sequence[Reference] = (),
        parent: str = "",
        progress: Unpacking | None = None,
        top_size: int | None = None,
    ) -> Image:
        """Make an image of a configuration document whose layer blobs are stored. Unpacks what is not yet unpacked.

        ``blobs`` gives the stored form by diff ID; layers other images already have may be left out. The image and its
        ``names`` appear together. ``top_size`` says that the topmost layer was made here, of so many content bytes: it
        may then be unpacked later. Raises ``ValueError`` for a bad document or a layer that is not what its diff ID
        promises.
        """
        document = parse_document(config)
        diff_ids = document.rootfs.diff_ids
        # Nothing may come between looking and holding, or a removal could take the layers of a parent away.
        forms = {**{d: known[0] for d in diff_ids if (known := self.store.forms(d))}, **blobs}
        if missing := [d for d in diff_ids if d not in forms]:
            raise ValueError(f"no content for layer {missing[0]}")
        image_id = Digest.of(config)
        digests = [image_id, *(b.digest for b in forms.values()), *(Digest.parse(m.digest) for m in manifests)]
        async with self.hold(diff_ids, digests):
            await self.blobs.put(config, image_id)
            later = top_size is not None and self._may_wait(diff_ids[-1])
            wanted = diff_ids[:-1] if later else diff_ids
            unpacked = await self.unpack(wanted, {d: self._place(b) for d, b in forms.items()}, progress)
            sizes = [self.folders.size(key) for key in unpacked]
            if later and top_size is not None:
                unpacked.append(_shared_key(diff_ids[-1]))
                sizes.append(top_size)
            image = Image(
                str(image_id),
                document,
                tuple(unpacked),
                tuple(sizes),
                tuple(manifests),
                str(parent),
                config_size=len(config),
            )
            image = await self.store.add(image, forms, names, now_ns=now_ns())
            if later and self._nursery is not None:
                self._nursery.start(self._unpack_later(image), name=f"unpack {diff_ids[-1][:19]}")
            return image

    def _may_wait(self, diff_id: str) -> bool:
        """Whether a layer made here is new. A diff holds every folder above its entries, so it will be shared."""
        return self._nursery is not None and not self.folders.has(_shared_key(diff_id))

    async def _unpack_later(self, image: Image) -> None:
        async with self.hold(image.diff_ids):
            if self.store.get(image.id) is None:
                return
            try:
                await self.layers(image)
            except (OSError, ValueError, SystemFailure) as error:
                log.warning("image %s will be unpacked when it is used: %s", image.id, error)

    async def unpack(
        self,
        diff_ids: Sequence[str],
        sources: Mapping[str, Path],
        progress: Unpacking | None = None,
        claims: Mapping[str, Digest] | None = None,
    ) -> list[LayerKey]:
        """Unpack a stack of layers in parallel; the caller holds their diff IDs. Raises ``ValueError``, ``OSError``.

        ``sources`` are tars, compressed or not, by diff ID; for others the stored form is read. ``claims`` are the
        digests of those sources that come from outside, see ``unpack_one``.
        """
        told = claims or {}
        async with one_error(), TaskGroup() as group:
            tasks = [
                group.create_task(
                    self.unpack_one(diff_id, diff_ids[:index], sources.get(diff_id), progress, told.get(diff_id))
                )
                for index, diff_id in enumerate(diff_ids)
            ]
        return [task.result() for task in tasks]

    async def unpack_one(
        self,
        diff_id: str,
        parents: Sequence[str],
        source: Path | None,
        progress: Unpacking | None = None,
        claim: Digest | None = None,
    ) -> LayerKey:
        """Unpack one layer over the stack ``parents`` (diff IDs) unless it is there; the caller holds its diff ID.

        ``claim`` is the digest of a source that is only said to be the layer. It is proven even where the layer is
        there already: a form that is kept under a diff ID is what other images are saved and pushed with.
        """
        source = source or self._place(await self.stored_form(diff_id))
        is_new = self.folders.find(parents, diff_id) is None
        if claim is not None and not (is_new and not self._unpacking[diff_id]):
            await self._prove(diff_id, source, claim)
        told: Progress | None = None
        if progress is not None:
            report = progress

            def told(count: int) -> None:
                report(diff_id, count)

        self._unpacking[diff_id] += 1  # the first one's source is what is unpacked, and so proven
        try:
            key = await self.folders.unpack(BlobSource(source), diff_id, parents, told)
        finally:
            self._unpacking[diff_id] -= 1
            self._unpacking += Counter()
        if told is not None and is_new:  # a small layer is unpacked before its worker says how far it is
            told((await run_in("disk", source.stat)).st_size)
        self._candidates.add((diff_id, key))
        return key

    async def _prove(self, diff_id: str, source: Path, digest: Digest) -> None:
        """Raise ``ValueError`` unless ``source``, whose bytes have this digest, is the layer."""
        if digest == diff_id or any(form.digest == digest for form in self.store.forms(diff_id)):
            return
        actual = await run_to_end("hash", plain_digest_sync, source)
        if actual != diff_id:
            raise ValueError(f"layer is {actual}, not {diff_id}")

    async def present(self, diff_id: str, parents: Sequence[str], blob: LayerBlob) -> LayerBlob | None:
        """A stored form of a layer that is unpacked already, ``blob`` if it is known to be one; None means work."""
        key = self.folders.find(parents, diff_id)
        if key is None:
            return None
        known = self.store.forms(diff_id)
        is_known = blob.digest == diff_id or any(form.digest == blob.digest for form in known)
        for form in (blob, *known) if is_known else known:
            if await self.blobs.stat(form.digest) == form.size:
                self._candidates.add((diff_id, key))
                return form
        return None

    @contextlib.asynccontextmanager
    async def fetching(self, digest: Digest) -> AsyncIterator[None]:
        """Let one download of a blob go on at a time; whoever waited looks into the store again."""
        async with self._fetches(digest):
            yield

    def graph_data(self, image: Image) -> dict[str, str] | None:
        """Where the layers lie, under the names that docker's overlay2 driver uses."""
        folders = [str(self.folders.folder(key)) for key in reversed(image.layers)]
        if not folders:
            return None
        top = Path(folders[0]).parent
        data = {"MergedDir": str(top / "merged"), "UpperDir": folders[0], "WorkDir": str(top / "work")}
        return {"LowerDir": ":".join(folders[1:]), **data} if folders[1:] else data

    async def kept_manifest(self, image: Image) -> tuple[Manifest, list[LayerBlob]] | None:
        """The newest kept manifest whose layer blobs are all stored, and those blobs."""
        for descriptor in image.image_manifests:
            forms = await self._forms_of(image, descriptor)
            if forms is not None:
                return forms
        return None

    async def _forms_of(self, image: Image, descriptor: Descriptor) -> tuple[Manifest, list[LayerBlob]] | None:
        try:
            manifest = parse_manifest(await self.blobs.read(Digest.parse(descriptor.digest)), descriptor.media_type)
        except (BlobUnknown, ValueError):
            return None
        if len(manifest.layers) != len(image.diff_ids):
            return None
        forms = [LayerBlob(layer.checked_digest(), layer.size, layer.media_type) for layer in manifest.layers]
        for index, (form, diff_id) in enumerate(zip(forms, image.diff_ids, strict=True)):
            if await self.blobs.stat(form.digest) != form.size:
                return None
            known = next((f for f in self.store.forms(diff_id) if f.digest == form.digest), None)
            if known is not None:
                forms[index] = LayerBlob(form.digest, form.size, form.media_type, known.sources)
        return manifest, forms

    def _place(self, blob: LayerBlob) -> Path:
        return self.blobs.local_path(blob.digest)

    async def layers(self, image: Image) -> tuple[LayerKey, ...]:
        """The unpacked layers of ``image``; those that were lost are unpacked again from their blobs."""
        if all(self.folders.has(key) for key in image.layers):
            return image.layers
        forms = [form.digest for diff_id in image.diff_ids for form in self.store.forms(diff_id)]
        async with self.hold(image.diff_ids, forms):
            keys = tuple(await self.unpack(image.diff_ids, {}))
            known = self.store.get(image.id)
            if known is not None and keys != known.layers:
                await self.store.replace_image(replace(known, layers=keys))
        return keys

    async def mend(self, key: LayerKey) -> None:
        """Have a lost layer unpacked again, if an image has it. Raises as ``unpack``."""
        image = next((image for image in self.store.all() if key in image.layers), None)
        if image is not None:
            await self.layers(image)

    async def measure(self, path: Path, diff_id: str = "") -> tuple[str, int]:
        """The diff ID (computed unless given) and the size of a plain tar."""
        size = (await run_in("hash", path.stat)).st_size
        return diff_id or await run_in("hash", _digest_sync, path), size

    async def adopt_plain(self, path: Path, diff_id: str, size: int) -> LayerBlob:
        """Take over a finished plain tar (on the store's file system) as a layer blob."""
        digest = Digest.parse(diff_id)
        await self.adopt(path, digest, size)
        return LayerBlob(digest, size, OCI_LAYER)

    async def adopt(self, path: Path, digest: Digest, size: int) -> None:
        """Take over a finished file as the blob ``digest``, which the caller has verified and holds."""
        if await self.blobs.stat(digest) == size:
            await run_in("disk", path.unlink)
        else:
            await self.blobs.adopt(path, digest)

    async def stored_form(self, diff_id: str) -> LayerBlob:
        """A stored form of the layer whose bytes are really there."""
        for form in self.store.forms(diff_id):
            if await self.blobs.stat(form.digest) is not None:
                return form
        raise SystemFailure(f"the content of layer {diff_id} is not stored here")

    async def packed_already(self, diff_id: str) -> LayerBlob | None:
        """A compressed form of the layer, if one is stored."""
        for form in self.store.forms(diff_id):
            if form.media_type not in PLAIN_TYPES and await self.blobs.stat(form.digest) == form.size:
                return form
        return None

    @contextlib.asynccontextmanager
    async def packed(self, diff_id: str) -> AsyncIterator[LayerBlob]:
        """A compressed form of the layer, held; made now if only the plain one is stored, which is given back then."""
        async with contextlib.AsyncExitStack() as held:
            async with self._packing(diff_id):
                form = await self.stored_form(diff_id)
                if form.media_type in PLAIN_TYPES:
                    form = await self._pack(diff_id, form, held)
                else:
                    await held.enter_async_context(self.leases.hold(form.digest))
            yield form

    async def _pack(self, diff_id: str, form: LayerBlob, held: contextlib.AsyncExitStack) -> LayerBlob:
        """Compress a layer; its new form is ``held`` from before it is stored, as its last image may go meanwhile."""
        async with self.hold((diff_id,), (form.digest,)):
            target = self.blobs.temp_dir() / f"pack-{uuid.uuid4().hex}"
            try:
                digest, size = await run_to_end("hash", _gzip_sync, self.blobs.local_path(form.digest), target)
                await held.enter_async_context(self.hold((), (digest,)))
                await self.adopt(target, digest, size)
            finally:
                target.unlink(missing_ok=True)
            packed = LayerBlob(digest, size, DOCKER_LAYER_GZIP)
            known = [f for f in self.store.forms(diff_id) if f.digest != form.digest]
            await self.store.set_forms(diff_id, merge_blobs(known, packed))
        return packed

    def discard(self, image: Image, orphans: Mapping[str, Sequence[LayerBlob]]) -> None:
        """Note what a removed image leaves behind; ``reclaim`` takes it away."""
        self._garbage.add(image.digest)
        self._garbage.update(Digest.parse(m.digest) for m in image.manifests)
        for forms in orphans.values():
            self._garbage.update(form.digest for form in forms)
        self._candidates.update(zip(image.diff_ids, image.layers, strict=True))

    async def layers_let_go(self) -> None:
        """A container is gone: what only it stood on goes too. Costs nothing when there is no such layer."""
        if self._candidates:
            await self._sweep()

    async def reclaim(self) -> None:
        """Remove layers nobody stands on and give back blobs that no image needs."""
        await self._sweep()
        if not self._garbage:
            return
        needed = self.store.blobs()
        garbage = [d for d in self._garbage if d not in needed and not self.leases.protects(d)]
        self._garbage.clear()
        if garbage and self.release is not None:
            if self._candidates and not await self._settled():
                self._garbage.update(garbage)
                return
            await self.release(garbage)

    async def _settled(self) -> bool:
        """Have what containers still stand on brought to disk before the blobs go that could bring it back."""
        try:
            await self.folders.settle()
        except OSError as error:
            log.warning("blobs of removed images stay for now: %s", error)
            return False
        return True

    async def _sweep(self) -> None:
        if not self._candidates:
            return
        named = self.store.layer_keys()
        used = frozenset(self.users.layers_in_use()) if self.users is not None else frozenset()
        unnamed = {(d, key) for d, key in self._candidates if key not in named}
        unused = {(d, key) for d, key in unnamed if key not in used and not self._held[d]}
        self._candidates = unnamed - unused
        for diff_id, key in unused:
            if self._held[diff_id]:  # since the look above
                self._candidates.add((diff_id, key))
            else:
                await self.folders.remove(key)


def _shared_key(diff_id: str) -> LayerKey:
    return LayerKey(hex_of(diff_id))


@contextlib.asynccontextmanager
async def one_error() -> AsyncIterator[None]:
    """Several layers may fail at once; the caller is told of the first."""
    try:
        yield
    except ExceptionGroup as group:
        raise group.exceptions[0] from group


def _sweep_temporary_sync(folder: Path) -> None:
    for path in folder.iterdir():
        if not path.name.startswith(TEMPORARY):
            continue  # the registry's own, which other processes may be writing
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _digest_sync(path: Path) -> str:
    with path.open("rb") as source:
        return "sha256:" + hashlib.file_digest(source, "sha256").hexdigest()


def _gzip_sync(source: Path, target: Path) -> tuple[Digest, int]:
    """Compress with a fixed header, so that equal content gives equal bytes; both sides leave the loop alone."""
    hasher = hashlib.sha256()
    size = 0
    packer = isal_zlib.compressobj(level=_LEVEL, wbits=31)
    with source.open("rb", buffering=0) as reader, target.open("xb", buffering=0) as writer:
        os.posix_fadvise(reader.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while True:
            chunk = reader.read(_CHUNK)
            data = packer.compress(chunk) if chunk else packer.flush()
            writer.write(data)
            hasher.update(data)
            size += len(data)
            if not chunk:
                return Digest.of_hasher(hasher), size
