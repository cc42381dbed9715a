"""Taking images away: untag, delete with docker's conflict rules and words, prune.

An image that only lost a name stays; one that goes takes its unused parents, layers and blobs along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Flag, auto

from engine.clock import now_ns
from engine.errors import Conflict
from engine.filters import Filters
from engine.images.model import Image
from engine.images.service import ImageService, is_id_prefix, parse_reference
from engine.names import short
from engine.snapshots.base import chain_id
from registry.reference import Reference

PRUNE_FILTERS = frozenset({"dangling", "until", "label", "label!"})


@dataclass(frozen=True, slots=True)
class Removed:
    """One line of the answer: a name that is gone, or an image ID or chain ID that is gone."""

    untagged: str = ""
    deleted: str = ""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a prune took away, and the content bytes of the layers that went."""

    removed: tuple[Removed, ...]
    reclaimed: int


class _Check(Flag):
    """Reasons not to delete an image; the first two hold even when forced."""

    CHILDREN = auto()
    RUNNING = auto()
    REFERENCES = auto()
    STOPPED = auto()
    HARD = CHILDREN | RUNNING
    SOFT = REFERENCES | STOPPED


class ImageRemover:
    """Removal over an ``ImageService``, under its lock."""

    def __init__(self, service: ImageService) -> None:
        self._service = service
        self._store = service.store

    async def remove(self, name: str, *, force: bool = False, prune_parents: bool = True) -> list[Removed]:
        """Remove what ``name`` means. Raises ``NotFound`` or ``Conflict`` with docker's words."""
        async with self._service.lock:
            records, reclaimed = await self._remove(name, force, prune_parents)
        await self._service.content.reclaim()
        del reclaimed
        return records

    async def prune(self, filters: Filters) -> Pruned:
        """Remove what nobody uses: untagged images, or with ``dangling=false`` every unused one."""
        only_dangling = filters.boolean("dangling", True)
        until = filters.until(now_ns())
        removed: list[Removed] = []
        reclaimed = 0
        for image in self._store.all():
            if self._store.get(image.id) is None or not self._prunable(image, filters, until):
                continue
            async with self._service.lock:
                records, size = await self._prune_one(image, only_dangling)
            removed += records
            reclaimed += size
        await self._service.content.reclaim()
        self._service.events.publish("image", "prune", "", {"reclaimed": str(reclaimed)})
        return Pruned(tuple(removed), reclaimed)

    def _prunable(self, image: Image, filters: Filters, until: int | None) -> bool:
        if not self._store.references(image.id) and self._store.children(image.id):
            return False
        if until is not None and (image.created_ns is None or image.created_ns > until):
            return False
        return filters.match_labels(image.labels) and not filters.excludes_labels(image.labels)

    async def _prune_one(self, image: Image, only_dangling: bool) -> tuple[list[Removed], int]:
        references = self._store.references(image.id)
        if only_dangling and any(r.digest is None for r in references):
            return [], 0
        removed: list[Removed] = []
        reclaimed = 0
        for name in [str(r) for r in references] or [image.id]:
            if self._store.get(image.id) is None:
                break
            if references and name not in map(str, self._store.references(image.id)):
                continue  # a digest goes with the last tag of its repository
            try:
                records, size = await self._remove(name, False, True)
            except Conflict:
                continue
            removed += records
            reclaimed += size
        return removed, reclaimed

    async def _remove(self, name: str, force: bool, prune_parents: bool) -> tuple[list[Removed], int]:
        image = self._service.get(name)
        records: list[Removed] = []
        if is_id_prefix(image.id, name):
            await self._untag_by_id(image, force, records)
            quiet = False
        else:
            if await self._untag_by_name(image, name, force, records):
                return records, 0
            quiet = True
        reclaimed = await self._delete(image, records, force, prune_parents, quiet)
        return records, reclaimed

    async def _untag_by_name(self, image: Image, name: str, force: bool, records: list[Removed]) -> bool:
        """Remove the given name; True when other names remain, so that nothing more is to be done."""
        references = self._store.references(image.id)
        if not force and is_single(references):
            for container_id, _ in self._service.containers_of(image):
                raise Conflict(
                    f'conflict: unable to remove repository reference "{name}" (must force) - '
                    f"container {short(container_id)} is using its referenced image {short(image.id)}"
                )
        reference = parse_reference(name)
        if reference.digest is not None:
            reference = reference.with_digest(reference.digest)
        await self._untag(image, reference, records)
        rest = self._store.references(image.id)
        same = [r for r in rest if r.name == reference.name]
        if reference.digest is None and all(r.digest is not None for r in same):
            # Without a tag the digests of that repository mean nothing to anybody.
            for leftover in same:
                await self._untag(image, leftover, records, event=False)
            rest = [r for r in rest if r.name != reference.name]
        return bool(rest)

    async def _untag_by_id(self, image: Image, force: bool, records: list[Removed]) -> None:
        references = self._store.references(image.id)
        if not is_single(references):
            return
        self._refuse(image, _Check.HARD if force else _Check.HARD | _Check.STOPPED)
        for reference in references:
            await self._untag(image, reference, records)

    async def _untag(self, image: Image, reference: Reference, records: list[Removed], *, event: bool = True) -> None:
        await self._store.untag(reference)
        records.append(Removed(untagged=reference.familiar))
        if event:
            self._service.publish("untag", image.id, image.id, image.labels)

    async def _delete(self, image: Image, records: list[Removed], force: bool, parents: bool, quiet: bool) -> int:
        """Delete the image and, with ``parents``, its unused untagged ancestors; the bytes of the layers that went."""
        conflict = self._conflict(image, _Check.HARD if force else _Check.HARD | _Check.SOFT)
        if conflict is not None:
            if quiet and (conflict.used or self._store.references(image.id) or self._store.children(image.id)):
                return 0
            raise conflict.error(image)
        for reference in self._store.references(image.id):
            await self._untag(image, reference, records, event=False)
        sizes = dict(zip(image.diff_ids, image.layer_sizes, strict=True))
        image, orphans = await self._store.remove(image.id)
        self._service.content.discard(image, orphans)
        self._service.publish("delete", image.id, image.id, image.labels)
        records.append(Removed(deleted=str(image.id)))
        gone = [i for i, diff_id in enumerate(image.diff_ids) if diff_id in orphans]
        records += [Removed(deleted=chain_id(image.diff_ids[: i + 1])) for i in reversed(gone)]
        reclaimed = sum(sizes[diff_id] for diff_id in orphans)
        parent = self._store.get(image.parent) if parents and image.parent else None
        if parent is not None:
            reclaimed += await self._delete(parent, records, False, True, True)
        return reclaimed

    def _refuse(self, image: Image, checks: _Check) -> None:
        conflict = self._conflict(image, checks)
        if conflict is not None:
            raise conflict.error(image)

    def _conflict(self, image: Image, checks: _Check) -> _Reason | None:
        if _Check.CHILDREN in checks and self._store.children(image.id):
            return _Reason(True, False, "image has dependent child images")
        users = self._service.containers_of(image)
        running = [container_id for container_id, runs in users if runs]
        if _Check.RUNNING in checks and running:
            return _Reason(True, True, f"image is being used by running container {short(running[0])}")
        if _Check.REFERENCES in checks and self._store.references(image.id):
            return _Reason(False, False, "image is referenced in multiple repositories")
        if _Check.STOPPED in checks and users:
            return _Reason(False, True, f"image is being used by stopped container {short(users[0][0])}")
        return None


@dataclass(frozen=True, slots=True)
class _Reason:
    hard: bool
    used: bool
    message: str

    def error(self, image: Image) -> Conflict:
        """The conflict in docker's words."""
        how = "cannot be forced" if self.hard else "must be forced"
        return Conflict(f"conflict: unable to delete {short(image.id)} ({how}) - {self.message}")


def is_single(references: Sequence[Reference]) -> bool:
    """Whether all names lie in one repository with at most one tag among them."""
    if len(references) <= 1:
        return True
    tags = [r for r in references if r.digest is None]
    repositories = {replace(r, tag=None, digest=None) for r in references}
    return len(tags) <= 1 and len(repositories) == 1
