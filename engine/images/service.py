"""What one can do with images: find by what a user typed, list, inspect, history, tag, create from a diff.

Reading works on frozen records and takes no lock. Changes of names and of the set of images go through one lock, so
that a removal never races with a tag.
"""

from __future__ import annotations

import asyncio
import fnmatch
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import msgspec

from engine.clock import SECOND, now_ns, parse_rfc3339
from engine.errors import InvalidParameter, NotFound, no_such_image
from engine.events import EventBus
from engine.filters import Filters, until_instant
from engine.images.content import ImageContent
from engine.images.model import HistoryEntry, Image, ImageDocument, LayerBlob, RootFS, encode_document
from engine.images.store import ImageStore
from engine.snapshots.base import LayerKey
from registry.digest import Digest
from registry.manifest import Descriptor, Platform
from registry.reference import InvalidReference, Reference

LIST_FILTERS = frozenset({"dangling", "label", "label!", "before", "since", "reference", "until"})


class ImageUsers(Protocol):
    """Who stands on an image; ``daemon.py`` plugs the container store in."""

    def containers_of(self, image_id: str) -> Sequence[tuple[str, bool]]:
        """Container IDs made from the image, and whether each runs."""


class NoUsers:
    """Nobody uses any image; for the time before containers exist."""

    def containers_of(self, image_id: str) -> Sequence[tuple[str, bool]]:
        """None."""
        return ()


@dataclass(frozen=True, slots=True)
class Listed:
    """One row of the image list. Counts are -1 where they were not asked for."""

    image: Image
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    shared_size: int = -1
    containers: int = -1


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One step of ``docker history``, newest first."""

    id: str
    created: int
    created_by: str
    tags: tuple[str, ...]
    size: int
    comment: str


class ImageService:
    """Images by name.

    ``store`` is restored; ``content`` unpacks and keeps bytes; ``events`` is told of every change; ``users`` (set
    later by the composition root as ``service.users``) answers which containers stand on an image.
    """

    def __init__(self, store: ImageStore, content: ImageContent, events: EventBus, users: ImageUsers | None = None):
        self.store = store
        self.content = content
        self.events = events
        self.users: ImageUsers = users or NoUsers()
        self.lock = asyncio.Lock()

    # finding

    def get(self, name: str) -> Image:
        """The image a user means by name, digest, ID or a prefix of it. Raises ``NotFound``, ``InvalidParameter``."""
        found = self.find(name)
        if found is not None:
            return found
        reference = parse_reference(name) if not _is_hex_id(name) else None
        raise no_such_image(reference.familiar if reference is not None else name)

    def find(self, name: str) -> Image | None:
        """Like ``get``, but None when there is none. Raises ``InvalidParameter`` for what is no reference at all."""
        if _is_hex_id(name):
            return self.store.get(f"sha256:{name.removeprefix('sha256:')}")
        by_id = self.store.find(name)
        try:
            reference = Reference.parse(name)
        except InvalidReference as error:
            if len(by_id) == 1:
                return by_id[0]
            if by_id or name.startswith("sha256:"):
                raise no_such_image(name) from error
            raise InvalidParameter(str(error)) from error
        image_id = self.resolve(reference)
        if image_id is not None:
            return self.store.get(image_id)
        return by_id[0] if len(by_id) == 1 else None

    def resolve(self, reference: Reference) -> str | None:
        """The image ID of a reference; a digest may be of a manifest or of the image itself."""
        if reference.digest is None:
            return self.store.resolve_name(str(reference))
        named = self.store.resolve_name(str(reference.with_digest(reference.digest)))
        if named is None and self.store.get(reference.digest) is not None:
            repositories = {r.name for r in self.store.references(reference.digest)}
            return str(reference.digest) if reference.name in repositories else None
        return named

    async def layers(self, image: Image) -> tuple[LayerKey, ...]:
        """The unpacked layers of an image, bottom first; unpacks again what is missing from its blobs."""
        return await self.content.layers(image)

    def holding(self, image: Image | None) -> AbstractAsyncContextManager[None]:
        """Keep the layers of an image from removal inside the context: until a container stands on them."""
        return self.content.hold(image.diff_ids) if image is not None else nullcontext()

    def descendants(self, image: Image) -> set[str]:
        """The ids of all images that were made from it, and from those."""
        found: set[str] = set()
        waiting: list[str] = [image.id]
        while waiting:
            children = self.store.children(waiting.pop()) - found
            found |= children
            waiting += children
        return found

    def names(self, image_id: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """RepoTags and RepoDigests as docker shows them."""
        references = self.store.references(image_id)
        return (
            tuple(r.familiar for r in references if r.digest is None),
            tuple(r.familiar for r in references if r.digest is not None),
        )

    # listing

    def list(
        self, filters: Filters, *, all_images: bool = False, shared_size: bool = False, containers: bool = False
    ) -> list[Listed]:
        """The images that pass ``filters``, newest first; ``all_images`` adds parents of other images.

        ``shared_size`` and ``containers`` fill in those numbers.
        """
        before, since = self._instant(filters, "before"), self._instant(filters, "since")
        until = min((until_instant(value, now_ns()) for value in filters.get("until")), default=None)
        dangling_given = "dangling" in filters
        dangling = filters.boolean("dangling")
        rows: list[Listed] = []
        for image in self.store.all():
            created = image.created_ns or 0
            if (before is not None and created >= before) or (since is not None and created <= since):
                continue
            if until is not None and created >= until:
                continue
            if not filters.match_labels(image.labels) or filters.excludes_labels(image.labels):
                continue
            row = self._row(image, filters, all_images)
            if row is None or (dangling_given and dangling != (not row.tags)):
                continue
            rows.append(row)
        rows.sort(key=lambda row: (-(row.image.created_ns or 0), row.image.id))
        if shared_size:
            rows = [replace(row, shared_size=self._shared_size(row.image)) for row in rows]
        if containers:
            rows = [replace(row, containers=len(self.containers_of(row.image))) for row in rows]
        return rows

    def _row(self, image: Image, filters: Filters, all_images: bool) -> Listed | None:
        references = self.store.references(image.id)
        patterns = filters.get("reference")
        shown = [r for r in references if not patterns or any(familiar_match(p, r) for p in patterns)]
        if not shown:
            if references or patterns:
                return None
            if not all_images and self.store.children(image.id):
                return None
        tags = tuple(r.familiar for r in shown if r.digest is None)
        digests = tuple(r.familiar for r in shown if r.digest is not None)
        return Listed(image, tags, digests)

    def _instant(self, filters: Filters, key: str) -> int | None:
        instants = [self.get(name).created_ns or 0 for name in filters.get(key)]
        if not instants:
            return None
        return max(instants) if key == "before" else min(instants)

    def _shared_size(self, image: Image) -> int:
        pairs = zip(image.diff_ids, image.layer_sizes, strict=True)
        return sum(size for diff_id, size in pairs if self.store.users(diff_id) > 1)

    # history

    def history(self, image: Image) -> tuple[HistoryRow, ...]:
        """How the image came to be, newest first; IDs only where the step's own image is here."""
        sizes = iter(image.layer_sizes)
        entries = image.document.history or [HistoryEntry()] * len(image.layer_sizes)
        rows: list[HistoryRow] = []
        for entry in entries:
            size = 0 if entry.empty_layer else next(sizes, 0)
            rows.append(HistoryRow("<missing>", _seconds(entry.created), entry.created_by, (), size, entry.comment))
        rows.reverse()
        at: Image | None = image
        for index, row in enumerate(rows):
            if at is None:
                break
            rows[index] = replace(row, id=str(at.id), tags=self.names(at.id)[0])
            at = self.store.get(at.parent) if at.parent else None
        return tuple(rows)

    # changing

    async def tag(self, image: Image, repository: str, tag: str) -> str:
        """Let ``repository:tag`` mean ``image``; returns the familiar name. Raises ``InvalidParameter``."""
        reference = new_reference(repository, tag)
        await self.name(image, reference)
        self.publish("tag", image.id, reference.familiar, image.labels)
        return reference.familiar

    async def name(self, image: Image, reference: Reference) -> None:
        """Let ``reference`` mean ``image`` without an event. Raises ``NotFound`` when it was removed meanwhile."""
        async with self.lock:
            if not await self.store.tag(reference, image.id, now_ns=now_ns()):
                raise no_such_image(image.id)

    async def create_from_layer(
        self,
        parent: Image | None,
        document: ImageDocument,
        layer: tuple[str, LayerBlob] | None,
        entry: HistoryEntry,
        names: Sequence[Reference] = (),
        *,
        top_size: int | None = None,
    ) -> Image:
        """A new image: ``parent``'s layers, then ``layer`` (diff ID and stored form; None adds none).

        ``document`` says everything but layers and history, which follow from ``parent`` and ``entry``. The caller
        holds the layer. ``top_size`` is for a layer made here, see ``ImageContent.register``.
        """
        diff_ids = list(parent.diff_ids) if parent is not None else []
        history = list(parent.document.history or ()) if parent is not None else []
        if len(diff_ids) != sum(not e.empty_layer for e in history):
            history = [HistoryEntry()] * len(diff_ids)
        if layer is not None:
            diff_ids.append(layer[0])
        history.append(msgspec.structs.replace(entry, empty_layer=layer is None))
        document = msgspec.structs.replace(document, rootfs=RootFS("layers", diff_ids), history=history)
        blobs = {layer[0]: layer[1]} if layer is not None else {}
        return await self.content.register(
            encode_document(document),
            blobs,
            (),
            names=names,
            parent=parent.id if parent is not None else "",
            top_size=top_size,
        )

    async def create_from_diff(
        self,
        parent: Image | None,
        document: ImageDocument,
        diff: Path | None,
        entry: HistoryEntry,
        diff_id: str = "",
        content_bytes: int | None = None,
    ) -> Image:
        """``create_from_layer`` over the plain tar at ``diff``, which is taken over (None for no new layer).

        The tar must lie on the blob store's file system (``content.blobs.temp_dir()``). ``diff_id`` is the digest of
        the tar and ``content_bytes`` the size of its content where the caller knows them: for a diff that ``snapshots``
        wrote, which is then unpacked in the background.
        """
        if diff is None:
            return await self.create_from_layer(parent, document, None, entry)
        diff_id, size = await self.content.measure(diff, diff_id)
        async with self.content.hold((diff_id,), (Digest.parse(diff_id),)):
            blob = await self.content.adopt_plain(diff, diff_id, size)
            return await self.create_from_layer(parent, document, (diff_id, blob), entry, top_size=content_bytes)

    def publish(self, action: str, actor_id: str, name: str, labels: Mapping[str, str] | None = None) -> None:
        """One image event with docker's attributes: the image's labels and the name."""
        self.events.publish("image", action, actor_id, {**(labels or {}), "name": name})

    def containers_of(self, image: Image) -> Sequence[tuple[str, bool]]:
        """Who stands on the image."""
        return self.users.containers_of(image.id)

    def descriptor(self, image: Image) -> Descriptor | None:
        """The newest manifest that describes the image, where one is kept."""
        return image.image_manifests[0] if image.image_manifests else None


def require_platform(image: Image, wanted: Platform, reference: str) -> None:
    """Raise ``NotFound`` where the image is for another platform: a client may pull the one it wants."""
    if not image.suits(wanted):
        raise NotFound(
            f"image with reference {reference} was found but its platform ({shown_platform(image.platform)}) "
            f"does not match the specified platform ({shown_platform(wanted)})"
        )


def shown_platform(platform: Platform) -> str:
    """``linux/arm/v7``."""
    return "/".join(part for part in (platform.os, platform.architecture, platform.variant) if part)


def parse_reference(name: str) -> Reference:
    """Docker's reference grammar with the engine's error kind."""
    try:
        return Reference.parse(name)
    except InvalidReference as error:
        raise InvalidParameter(str(error)) from error


def new_reference(repository: str, tag: str) -> Reference:
    """The name ``docker tag`` is asked to make; digests may not be made up."""
    try:
        reference = Reference.parse(repository, default_tag=False)
        if reference.digest is not None:
            raise InvalidParameter("refusing to create a tag with a digest reference")
        if reference.familiar_name == "sha256":
            raise InvalidParameter("refusing to create an ambiguous tag using digest algorithm as name")
        if tag:
            if _is_digest(tag):
                raise InvalidParameter("refusing to create a tag with a digest reference")
            return reference.with_tag(tag)
        return reference if reference.tag is not None else reference.with_tag("latest")
    except InvalidReference as error:
        raise InvalidParameter(str(error)) from error


def _is_digest(text: str) -> bool:
    """Whether a tag parameter is really a digest."""
    try:
        Digest.parse(text)
    except ValueError:
        return False
    return True


def familiar_match(pattern: str, reference: Reference) -> bool:
    """Docker's ``reference`` filter: Go's path.Match on the familiar or full name, with or without its tag."""
    names = (reference.familiar, reference.familiar_name, str(reference), reference.name)
    return any(_path_match(pattern, name) for name in names)


def _path_match(pattern: str, text: str) -> bool:
    # Go's ``*`` stops at a slash: compare segment by segment.
    patterns, parts = pattern.split("/"), text.split("/")
    return len(patterns) == len(parts) and all(
        fnmatch.fnmatchcase(part, piece) for piece, part in zip(patterns, parts, strict=True)
    )


def _is_hex_id(name: str) -> bool:
    encoded = name.removeprefix("sha256:")
    return len(encoded) == 64 and not set(encoded) - set("0123456789abcdef")


def is_id_prefix(image_id: str, name: str) -> bool:
    """Whether a user meant the image by its ID: a prefix of it, with or without ``sha256:``."""
    return image_id.startswith(name) or image_id.removeprefix("sha256:").startswith(name)


def _seconds(created: str | None) -> int:
    try:
        return parse_rfc3339(created) // SECOND if created else 0
    except ValueError:
        return 0
