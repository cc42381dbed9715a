"""Collection while serving: mark what is needed, remove the rest, lose nothing that is on its way in or out.

Needed is: every manifest a repository serves with all it refers to; what the engine's images need (`extra_roots`);
what is leased; and whatever was written, linked or touched within the grace period, which covers other processes on
the same folder or bucket: whoever is told there that content exists finds it made young (`Repositories.blob`).

The mark looks at one repository after the other while others push. So nothing goes by what was seen then: what is to
go is taken out of reach first, and its age looked at once more (`StorageDriver.remove_old`). A push that was told of
it before has made it young, and it stays; one that comes later is told that it is not there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from registry.config import Retention
from registry.digest import Digest, InvalidDigest, new_hasher
from registry.errors import BlobUnknown, ManifestInvalid, ManifestUnknown
from registry.manifest import Manifest, parse_manifest
from registry.patterns import matches_any
from registry.store import paths
from registry.store.blobs import BlobStore
from registry.store.leases import Leases
from registry.store.pulls import PullTimes
from registry.store.repositories import Repositories

log = logging.getLogger("berth.registry.collector")

_LONGEST_WRITE_SECONDS = 600.0

Roots = Callable[[], Awaitable[Iterable[Digest]]]


@dataclass(slots=True)
class Report:
    """What a collection did, or would do. Sizes in bytes."""

    dry_run: bool = False
    repositories: int = 0
    kept_blobs: int = 0
    spared_blobs: int = 0
    removed_tags: list[str] = field(default_factory=list)
    removed_manifests: list[str] = field(default_factory=list)
    removed_links: int = 0
    removed_unfinished: int = 0
    removed_blobs: list[str] = field(default_factory=list)
    freed_bytes: int = 0


class Collector:
    """One per store and process. `extra_roots` names what somebody beside the registry needs."""

    def __init__(
        self,
        blobs: BlobStore,
        repositories: Repositories,
        leases: Leases,
        *,
        extra_roots: Roots | None = None,
        retention: Iterable[Retention] = (),
        pulls: PullTimes | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._blobs = blobs
        self._repositories = repositories
        self._driver = blobs.driver
        self._leases = leases
        self.extra_roots = extra_roots
        # The rules in force; a reload puts others here.
        self.retention = tuple(retention)
        self._pulls = pulls
        self._clock = clock
        self._running = asyncio.Lock()

    async def collect(self, *, grace_seconds: float = 3600.0, untagged: bool = False, dry_run: bool = False) -> Report:
        """Apply the retention rules, then mark and sweep. Only one collection runs at a time.

        `untagged` also removes manifests that no tag and no kept index or subject needs.
        """
        async with self._running:
            report = Report(dry_run=dry_run)
            # Taken before anything is read: what is written from now on is younger than this and so is spared.
            limit = self._clock() - grace_seconds
            # However short that is, a write takes its time, and misses what it is about to rename.
            unfinished_limit = min(limit, self._clock() - _LONGEST_WRITE_SECONDS)
            marked: set[str] = set()
            if self.extra_roots is not None:
                marked.update(await self.extra_roots())
            for repository in await self._every_repository():
                report.repositories += 1
                await self._mark_repository(repository, marked, limit, untagged, report)
                if not dry_run:
                    await self._tidy_repository(repository, unfinished_limit, report)
            await self._sweep(marked, limit, report)
            if not dry_run:
                await self._tidy_store(unfinished_limit, report)
                log.info(
                    "collected %d blobs, %d manifests, %d tags: %d bytes",
                    len(report.removed_blobs),
                    len(report.removed_manifests),
                    len(report.removed_tags),
                    report.freed_bytes,
                )
            return report

    async def _every_repository(self) -> list[str]:
        names = set(await self._repositories.names("_manifests"))
        return sorted(names.union(await self._repositories.names("_layers")))

    async def _mark_repository(
        self, repository: str, marked: set[str], limit: float, untagged: bool, report: Report
    ) -> None:
        rules = [rule for rule in self.retention if matches_any(rule.repositories, repository)]
        dropped = await self._retain(repository, rules, limit, report) if rules else set()
        revisions = await self._repositories.revisions(repository)
        manifests = {digest: await self._read(digest) for digest in revisions}
        keep = set(revisions)
        if untagged or rules:
            keep = await self._tagged(repository, manifests, dropped, limit, rules)
        needed: set[str] = set()
        for digest in keep:
            self._mark(digest, manifests.get(digest), needed)
        for digest in revisions:
            if digest in keep:
                continue
            if report.dry_run or await self._drop_revision(repository, digest, limit):
                report.removed_manifests.append(f"{repository}@{digest}")
            else:
                self._mark(digest, manifests.get(digest), needed)
        for digest, linked in await self._repositories.linked_blobs(repository, needed):
            may_go = linked <= limit and not self._leases.protects(digest)
            if may_go and (report.dry_run or await self._drop_link(repository, digest, limit)):
                report.removed_links += 1
            else:
                needed.add(digest)
                needed.update(await self._link_target(repository, digest))
        # registry:2 links a sha512 push under both names; the content lies under the link's target.
        for name in [name for name in needed if not name.startswith("sha256:")]:
            needed.update(await self._link_target(repository, Digest.parse(name)))
        marked.update(needed)

    async def _link_target(self, repository: str, digest: Digest) -> list[str]:
        target = await self._repositories.target(repository, digest)
        return [] if target is None else [str(target)]

    async def _tagged(
        self,
        repository: str,
        manifests: dict[Digest, Manifest | None],
        dropped: set[str],
        limit: float,
        rules: list[Retention],
    ) -> set[Digest]:
        """The manifests to keep: tagged, young, leased, children of kept ones, and referrers of kept ones."""
        keep: set[Digest] = set()
        for tag in await self._repositories.tags(repository) or ():
            if tag in dropped:
                continue
            try:
                keep.add(await self._repositories.resolve(repository, tag))
            except (ManifestUnknown, InvalidDigest):
                continue
        links = [paths.revision_link(repository, digest) for digest in manifests]
        for digest, stat in zip(manifests, await self._driver.stat_all(links), strict=True):
            if (stat is not None and stat.modified > limit) or self._leases.protects(digest):
                keep.add(digest)
            elif self._pulls is not None and rules:
                # Pulled by digest, as clusters do: such manifests need no tag to be in use.
                idle = self._clock() - self._pulls.last(repository, str(digest))
                if any(idle < rule.keep_pulled_seconds for rule in rules):
                    keep.add(digest)
        pending = list(keep)
        subjects: dict[str, list[Digest]] = {}
        for digest, manifest in manifests.items():
            if manifest is not None and manifest.subject is not None:
                subjects.setdefault(manifest.subject.digest, []).append(digest)
        while pending:
            digest = pending.pop()
            manifest = manifests.get(digest)
            children = [Digest.parse(child.digest) for child in manifest.manifests] if manifest is not None else []
            for found in (*children, *subjects.get(digest, ())):
                if found in manifests and found not in keep:
                    keep.add(found)
                    pending.append(found)
        return keep & manifests.keys()

    @staticmethod
    def _mark(digest: Digest, manifest: Manifest | None, needed: set[str]) -> None:
        needed.add(str(digest))
        if manifest is not None:
            needed.update(item.digest for item in manifest.references())

    async def _read(self, digest: Digest) -> Manifest | None:
        try:
            return parse_manifest(await self._blobs.read(digest))
        except (BlobUnknown, ManifestInvalid):
            return None

    async def _retain(self, repository: str, rules: list[Retention], limit: float, report: Report) -> set[str]:
        tags = await self._repositories.tags(repository) or []
        stats = await self._driver.stat_all([paths.tag_current(repository, tag) for tag in tags])
        aged = sorted(
            ((stat.modified if stat is not None else 0.0, tag) for tag, stat in zip(tags, stats, strict=True)),
            reverse=True,
        )
        now = self._clock()
        dropped: set[str] = set()
        for rank, (pushed, tag) in enumerate(aged):
            pulled = self._pulls.last(repository, tag) if self._pulls is not None else 0.0
            if any(keeps(rule, tag, rank, now - pushed, now - pulled) for rule in rules):
                continue
            folder = paths.tag_folder(repository, tag)
            # Pushed meanwhile, it is younger than it was when it was looked at.
            if report.dry_run or await self._driver.remove_old(folder, "current/link", max(pushed, limit)):
                dropped.add(tag)
                report.removed_tags.append(f"{repository}:{tag}")
        return dropped

    async def _drop_revision(self, repository: str, digest: Digest, limit: float) -> bool:
        folder, _, judge = paths.revision_link(repository, digest).rpartition("/")
        if not await self._driver.remove_old(folder, judge, limit):
            return False
        for tag in await self._repositories.tags(repository) or ():
            link = paths.tag_history_link(repository, tag, digest)
            await self._driver.remove_tree(link.rpartition("/")[0])
        return True

    async def _drop_link(self, repository: str, digest: Digest, limit: float) -> bool:
        folder, _, judge = paths.layer_link(repository, digest).rpartition("/")
        return await self._driver.remove_old(folder, judge, limit)

    async def _tidy_repository(self, repository: str, limit: float, report: Report) -> None:
        """Remove what pushes left that were cut off: unfinished files with the folders made for them, and tags that
        name nothing. A push under way has just written into the folder that such a tag's age is told by."""
        for folder in (paths.manifests(repository), paths.layers(repository)):
            report.removed_unfinished += await self._driver.tidy(folder, limit, with_folders=True)
        for tag in await self._repositories.unfinished_tags(repository):
            if await self._driver.remove_old(paths.tag_folder(repository, tag), "current", limit):
                report.removed_tags.append(f"{repository}:{tag}")

    async def _tidy_store(self, limit: float, report: Report) -> None:
        # Folders of blobs are the sweep's: between a folder's being made and a blob's being moved there it may be
        # empty.
        for folder in (paths.BLOBS, paths.STATE):
            report.removed_unfinished += await self._driver.tidy(folder, limit)

    async def _sweep(self, marked: set[str], limit: float, report: Report) -> None:
        async for digest in self._blobs.digests():
            if digest in marked:
                report.kept_blobs += 1
                continue
            async with self._leases.condemn(digest) as may_go:
                # Asked again now: another process may have linked or touched it since the mark.
                # A folder without content is one that another process is just about to fill, or long forgotten.
                places = [paths.blob_data(digest), paths.blob_folder(digest)]
                data, folder = await self._driver.stat_all(places)
                stat = data or folder
                if not may_go or stat is None or stat.modified > limit:
                    report.spared_blobs += 1
                    continue
                if not report.dry_run and not await self._blobs.delete_old(digest, limit):
                    report.spared_blobs += 1
                    continue
                report.removed_blobs.append(str(digest))
                report.freed_bytes += data.size if data is not None else 0


def keeps(rule: Retention, tag: str, rank: int, age_seconds: float, idle_seconds: float) -> bool:
    """Whether a rule keeps a tag that is the `rank`-th youngest, pushed and last pulled so long ago."""
    return (
        rank < rule.keep_last
        or age_seconds < rule.keep_seconds
        or idle_seconds < rule.keep_pulled_seconds
        or matches_any(rule.keep_tags, tag)
    )


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing `verify` found wrong."""

    where: str
    what: str


async def verify(blobs: BlobStore, repositories: Repositories) -> AsyncIterator[Damage]:
    """Hash every blob again and follow every link; yields what is wrong."""
    present: set[str] = set()
    async for digest in blobs.digests():
        hasher = new_hasher(digest.algorithm)
        try:
            await blobs.driver.hash_into(paths.blob_data(digest), hasher)
        except OSError as error:
            yield Damage(str(digest), f"cannot be read: {error}")
            continue
        present.add(str(digest))
        actual = Digest.of_hasher(hasher, digest.algorithm)
        if actual != digest:
            yield Damage(str(digest), f"content has digest {actual}")
    for repository in await repositories.names():
        for link in await repositories.broken_links(repository):
            yield Damage(f"{repository}: {link}", "names nothing")
        for digest in await repositories.revisions(repository):
            async for damage in _verify_manifest(blobs, repositories, repository, digest, present):
                yield damage
        for tag in await repositories.tags(repository) or ():
            try:
                target = await repositories.resolve(repository, tag)
            except (ManifestUnknown, InvalidDigest) as error:
                yield Damage(f"{repository}:{tag}", f"names no manifest: {error}")
                continue
            if not await repositories.has_manifest(repository, target):
                yield Damage(f"{repository}:{tag}", f"names {target}, which the repository does not serve")


async def _verify_manifest(
    blobs: BlobStore, repositories: Repositories, repository: str, digest: Digest, present: set[str]
) -> AsyncIterator[Damage]:
    where = f"{repository}@{digest}"
    try:
        manifest = parse_manifest(await blobs.read(digest))
    except (BlobUnknown, ManifestInvalid) as error:
        yield Damage(where, str(error))
        return
    for item in manifest.blobs():
        if item.urls:
            continue
        if await repositories.blob(repository, Digest.parse(item.digest)) is None:
            missing = "is missing" if item.digest not in present else "is not linked"
            yield Damage(where, f"its blob {item.digest} {missing}")
