"""How images are kept: documents in the journal, all of them in memory, content in the blob store.

Three kinds of documents: ``image`` (by image ID), ``reference`` (by full reference, holding an image ID) and ``layer``
(by diff ID, the stored forms of its bytes). Records are frozen and replaced whole; a change is in the journal before
it is visible here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import msgspec

from engine.images.model import Image, ImageDocument, LayerBlob
from engine.journal import Change, Delete, Journal, Put
from engine.names import PrefixIndex
from engine.snapshots.base import LayerKey
from registry.digest import Digest
from registry.manifest import Descriptor
from registry.reference import Reference


class _ImageRecord(msgspec.Struct, omit_defaults=True):
    document: ImageDocument
    layers: list[str] = []
    layer_sizes: list[int] = []
    manifests: list[Descriptor] = []
    parent: str = ""
    last_tag_ns: int = 0
    config_size: int = 0


class _ReferenceRecord(msgspec.Struct):
    image: str


class _BlobRecord(msgspec.Struct, omit_defaults=True):
    digest: str
    size: int
    media_type: str
    sources: list[str] = []


class _LayerRecord(msgspec.Struct):
    blobs: list[_BlobRecord]


class ImageStore:
    """Images, references and layer blobs. ``journal`` must be open; call ``restore`` once before use."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._images: dict[str, Image] = {}
        self._references: dict[str, str] = {}
        self._names_of: dict[str, set[str]] = {}
        self._children: dict[str, set[str]] = {}
        self._layers: dict[str, tuple[LayerBlob, ...]] = {}
        self._users: dict[str, int] = {}
        self._index = PrefixIndex()
        # Memory follows the journal in the same order: one change at a time.
        self._changing = asyncio.Lock()

    def restore(self) -> None:
        """Read the journal; for the start of the daemon."""
        for key, body in self._journal.load("layer").items():
            layer = msgspec.json.decode(body, type=_LayerRecord)
            self._layers[key] = tuple(
                LayerBlob(Digest.parse(b.digest), b.size, b.media_type, tuple(b.sources)) for b in layer.blobs
            )
        for key, body in self._journal.load("image").items():
            record = msgspec.json.decode(body, type=_ImageRecord)
            self._remember(
                Image(
                    key,
                    record.document,
                    tuple(LayerKey(k) for k in record.layers),
                    tuple(record.layer_sizes),
                    tuple(record.manifests),
                    record.parent,
                    record.last_tag_ns,
                    record.config_size,
                )
            )
        for key, body in self._journal.load("reference").items():
            image = msgspec.json.decode(body, type=_ReferenceRecord).image
            if image in self._images:
                self._name(key, image)

    # images

    def get(self, image_id: str) -> Image | None:
        """The image with exactly this ID (``sha256:…``)."""
        return self._images.get(image_id)

    def find(self, prefix: str) -> list[Image]:
        """Up to two images whose ID begins with ``prefix`` (with or without ``sha256:``)."""
        return [self._images[f"sha256:{i}"] for i in self._index.find(prefix.removeprefix("sha256:"))]

    def all(self) -> tuple[Image, ...]:
        """Every image, in no particular order."""
        return tuple(self._images.values())

    def children(self, image_id: str) -> frozenset[str]:
        """IDs of the images that were committed from this one."""
        return frozenset(self._children.get(image_id, ()))

    async def add(
        self, image: Image, blobs: Mapping[str, LayerBlob], names: Sequence[Reference] = (), *, now_ns: int = 0
    ) -> Image:
        """Keep ``image``, its names and the stored forms of its layers (by diff ID), all at once.

        What was known of the image before is kept too.
        """
        async with self._changing:
            known = self._images.get(image.id)
            if known is not None:
                image = replace(
                    image,
                    parent=image.parent or known.parent,
                    manifests=_merge_manifests(image.manifests, known.manifests),
                    last_tag_ns=max(image.last_tag_ns, known.last_tag_ns),
                )
            if any(name.digest is None and self._references.get(str(name)) != image.id for name in names):
                image = replace(image, last_tag_ns=now_ns)
            layers = {diff_id: merge_blobs(self._layers.get(diff_id, ()), blob) for diff_id, blob in blobs.items()}
            changes: list[Change] = [Put("image", image.id, _encode_image(image))]
            changes += [Put("layer", diff_id, _encode_layer(forms)) for diff_id, forms in layers.items()]
            changes += [_put_reference(name, image.id) for name in names]
            await self._journal.batch(changes)
            self._layers.update(layers)
            self._remember(image)
            for name in names:
                self._name(str(name), image.id)
            return image

    async def replace_image(self, image: Image) -> None:
        """Write a changed record of an image that is here; one that is gone stays gone."""
        async with self._changing:
            if image.id in self._images:
                await self._journal.put("image", image.id, _encode_image(image))
                self._images[image.id] = image

    async def set_parent(self, image_id: str, parent_id: str) -> None:
        """Note that an image was committed from another; ignored when either is gone."""
        async with self._changing:
            if image_id in self._images and parent_id in self._images:
                image = replace(self._images[image_id], parent=parent_id)
                await self._journal.put("image", image_id, _encode_image(image))
                self._remember(image)

    async def remove(self, image_id: str) -> tuple[Image, dict[str, tuple[LayerBlob, ...]]]:
        """Forget an image and its names; returns it and the layers no image uses any more, with their stored forms."""
        async with self._changing:
            image = self._images[image_id]
            orphans = {d: self.forms(d) for d in image.diff_ids if self._users.get(d, 0) <= 1}
            changes: list[Change] = [Delete("image", image_id)]
            changes += [Delete("reference", name) for name in self._names_of.get(image_id, ())]
            changes += [Delete("layer", diff_id) for diff_id in orphans]
            await self._journal.batch(changes)
            self._forget(image, orphans)
            return image, orphans

    # references

    def resolve_name(self, reference: str) -> str | None:
        """The image ID a full reference (``docker.io/library/busybox:latest``) stands for."""
        return self._references.get(reference)

    def references(self, image_id: str) -> list[Reference]:
        """Every name and digest of an image, sorted."""
        return [Reference.parse(name, default_tag=False) for name in sorted(self._names_of.get(image_id, ()))]

    def tagged(self) -> dict[str, str]:
        """Every full reference and its image ID."""
        return dict(self._references)

    async def tag(self, reference: Reference, image_id: str, *, now_ns: int) -> bool:
        """Let ``reference`` (tag or digest) mean ``image_id``; False when there is no such image any more."""
        async with self._changing:
            image = self._images.get(image_id)
            if image is None:
                return False
            changes: list[Change] = [_put_reference(reference, image_id)]
            if reference.digest is None:
                image = replace(image, last_tag_ns=now_ns)
                changes.append(Put("image", image_id, _encode_image(image)))
            await self._journal.batch(changes)
            self._images[image_id] = image
            self._name(str(reference), image_id)
            return True

    async def untag(self, reference: Reference) -> None:
        """Forget one name; unknown is fine."""
        name = str(reference)
        async with self._changing:
            if name in self._references:
                await self._journal.delete("reference", name)
                self._unname(name)

    # layer blobs

    def forms(self, diff_id: str) -> tuple[LayerBlob, ...]:
        """The stored forms of a layer's bytes, the preferred one first."""
        return self._layers.get(diff_id, ())

    def users(self, diff_id: str) -> int:
        """How many images stack this layer."""
        return self._users.get(diff_id, 0)

    async def set_forms(self, diff_id: str, forms: Sequence[LayerBlob]) -> None:
        """Replace the stored forms of a layer; ignored when no image uses it any more."""
        async with self._changing:
            if self._users.get(diff_id, 0):
                await self._journal.put("layer", diff_id, _encode_layer(forms))
                self._layers[diff_id] = tuple(forms)

    def layer_keys(self) -> frozenset[LayerKey]:
        """Every unpacked layer some image stands on."""
        return frozenset(key for image in self._images.values() for key in image.layers)

    def blobs(self) -> frozenset[Digest]:
        """Every digest the engine's images need."""
        needed: set[Digest] = set()
        for image in self._images.values():
            needed.add(image.digest)
            needed.update(Digest.parse(m.digest) for m in image.manifests)
        needed.update(blob.digest for forms in self._layers.values() for blob in forms)
        return frozenset(needed)

    async def roots(self) -> frozenset[Digest]:
        """The same, as the registry's collector asks for it."""
        return self.blobs()

    # bookkeeping

    def _remember(self, image: Image) -> None:
        known = self._images.get(image.id)
        if known is not None:
            self._disown(known)
        else:
            for diff_id in set(image.diff_ids):
                self._users[diff_id] = self._users.get(diff_id, 0) + 1
            self._index.add(image.digest.encoded)
        self._images[image.id] = image
        if image.parent:
            self._children.setdefault(image.parent, set()).add(image.id)

    def _forget(self, image: Image, orphans: Iterable[str]) -> None:
        del self._images[image.id]
        self._index.discard(image.digest.encoded)
        for name in tuple(self._names_of.get(image.id, ())):
            self._unname(name)
        for diff_id in set(image.diff_ids):
            self._users[diff_id] -= 1
            if not self._users[diff_id]:
                del self._users[diff_id]
        for diff_id in orphans:
            self._layers.pop(diff_id, None)
        self._disown(image)

    def _disown(self, image: Image) -> None:
        if image.parent in self._children:
            self._children[image.parent].discard(image.id)
            if not self._children[image.parent]:
                del self._children[image.parent]

    def _name(self, name: str, image_id: str) -> None:
        self._unname(name)
        self._references[name] = image_id
        self._names_of.setdefault(image_id, set()).add(name)

    def _unname(self, name: str) -> None:
        image_id = self._references.pop(name, None)
        if image_id is not None:
            self._names_of[image_id].discard(name)
            if not self._names_of[image_id]:
                del self._names_of[image_id]


def merge_blobs(known: Sequence[LayerBlob], blob: LayerBlob) -> tuple[LayerBlob, ...]:
    """Add one stored form to the known ones: the newest first, the sources of equal bytes united."""
    merged = [blob]
    for other in known:
        if other.digest == blob.digest:
            merged[0] = replace(blob, sources=tuple(dict.fromkeys((*blob.sources, *other.sources))))
        else:
            merged.append(other)
    return tuple(merged)


def _merge_manifests(new: Sequence[Descriptor], known: Sequence[Descriptor]) -> tuple[Descriptor, ...]:
    digests = {m.digest for m in new}
    return (*new, *(m for m in known if m.digest not in digests))


def _put_reference(reference: Reference, image_id: str) -> Put:
    return Put("reference", str(reference), msgspec.json.encode(_ReferenceRecord(image_id)))


def _encode_image(image: Image) -> bytes:
    return msgspec.json.encode(
        _ImageRecord(
            image.document,
            list(image.layers),
            list(image.layer_sizes),
            list(image.manifests),
            image.parent,
            image.last_tag_ns,
            image.config_size,
        )
    )


def _encode_layer(forms: Iterable[LayerBlob]) -> bytes:
    return msgspec.json.encode(
        _LayerRecord([_BlobRecord(str(f.digest), f.size, f.media_type, list(f.sources)) for f in forms])
    )
