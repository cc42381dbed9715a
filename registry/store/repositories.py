"""Repositories: which blobs, manifests and tags a name may serve. A blob without a link here is invisible to its
clients.

The engine pushes to the embedded registry through this module too: it links blobs and puts a manifest, and moves no
bytes. Writes go in an order that a crash cannot make wrong: bytes, then the revision, then the tag's history, then the
tag.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Sequence, Set

from registry.digest import Digest, InvalidDigest
from registry.errors import BlobsMissing, ManifestUnknown
from registry.manifest import Manifest, media_type_of, parse_manifest
from registry.reference import is_tag
from registry.store import paths
from registry.store.blobs import BlobStore
from registry.store.hot import Fingerprint, FingerprintCache, StoredManifest
from registry.store.leases import Leases
from registry.tasks import run_blocking

_HOT_MANIFEST_BYTES = 16 * 1024 * 1024
_LEASE_AFTER_ANSWER_SECONDS = 3600.0
_GRACE_SECONDS = 3600.0
_THREAD_WORTH_BYTES = 64 * 1024
_REMEMBERED_HOMES = 10_000
# As many pushes may be under way, or cut off, before a list of tags is not worth keeping.
_FEW_UNFINISHED = 16
_TAG_LINK = "current/link"


class Repositories:
    """Links, manifests and tags by repository name. Names have been checked by the caller (`is_repository_path`)."""

    def __init__(self, blobs: BlobStore, leases: Leases, grace_seconds: float = _GRACE_SECONDS) -> None:
        self.blobs = blobs
        self.leases = leases
        # How long collectors spare what is young.
        self.grace_seconds = grace_seconds
        self._driver = blobs.driver
        self._hot_manifests: FingerprintCache[StoredManifest] = FingerprintCache(
            self._driver, 20_000, _HOT_MANIFEST_BYTES
        )
        self._hot_links: FingerprintCache[Digest] = FingerprintCache(self._driver, 50_000)
        # The tags, and what may become one without the folder's changing.
        self._hot_tags: FingerprintCache[tuple[list[str], list[str]]] = FingerprintCache(self._driver, 1_000)
        # Lists of tags that are being read.
        self._readings: dict[str, asyncio.Future[None]] = {}
        self._homes: OrderedDict[Digest, str] = OrderedDict()

    # -- blobs

    def hot_blob(self, repository: str, digest: Digest) -> tuple[Digest, int] | None:
        """Like `blob`, answered from memory and two stats, or None when that does not suffice."""
        target = self._hot_links.get(paths.layer_link(repository, digest), self._young)
        if target is None:
            return None
        mark = self._driver.fingerprint(paths.blob_data(target))
        if mark is None or self.leases.is_condemned(target) or mark[1] * 1e-9 < self._young:
            return None
        self.leases.remember(target, _LEASE_AFTER_ANSWER_SECONDS)
        return target, mark[2]

    async def blob(self, repository: str, digest: Digest) -> tuple[Digest, int] | None:
        """Under which digest the repository's blob is stored, and its size; None when the repository has no such blob.

        Whoever is told of a blob may refer to it without sending it, so the answer is leased for an hour. A lease is
        known to this process only; collectors in others go by the age of bytes and link, which are made young.
        """
        path = paths.layer_link(repository, digest)
        mark = self._driver.fingerprint(path)
        target = await self._read_link(path)
        if target is None:
            return None
        self.leases.remember(target, _LEASE_AFTER_ANSWER_SECONDS)
        await self.leases.settled(target)
        blob_path = paths.blob_data(target)
        stat, linked = await asyncio.gather(self._driver.stat(blob_path), self._modified(path, mark))
        if stat is None or not await self._renew(path, linked) or not await self._renew(blob_path, stat.modified):
            return None
        if linked < self._young:
            mark = self._driver.fingerprint(path)
        self._hot_links.put(path, mark, target)
        self._remember_home(digest, repository)
        return target, stat.size

    async def target(self, repository: str, digest: Digest) -> Digest | None:
        """Under which digest the link says that a blob is stored, which need not be there."""
        return await self._read_link(paths.layer_link(repository, digest))

    @property
    def _young(self) -> float:
        """Since when something must have been written or touched to be young for the rest of a push."""
        return time.time() - self.grace_seconds / 3

    async def _modified(self, path: str, mark: Fingerprint | None) -> float:
        if mark is not None:
            return mark[1] * 1e-9
        found = await self._driver.stat(path)
        return 0.0 if found is None else found.modified

    async def _renew(self, path: str, modified: float) -> bool:
        """Have collectors spare what somebody is told of now; whether it is there."""
        return modified > self._young or await self._driver.touch(path)

    def home(self, digest: Digest) -> str | None:
        """A repository that lately had the blob. It may be gone from there by now, and not be for everybody to see."""
        return self._homes.get(digest)

    def _remember_home(self, digest: Digest, repository: str) -> None:
        self._homes[digest] = repository
        self._homes.move_to_end(digest)
        if len(self._homes) > _REMEMBERED_HOMES:
            self._homes.popitem(last=False)

    async def link_blob(self, repository: str, digest: Digest) -> None:
        """Let the repository serve a blob that is in the store."""
        self.leases.remember(digest, _LEASE_AFTER_ANSWER_SECONDS)
        await self._driver.write_all([(paths.layer_link(repository, digest), digest.encode())])
        self._remember_home(digest, repository)

    async def publish_blob(self, repository: str, digest: Digest, upload_id: str) -> None:
        """The same for the bytes of an upload, which is gone then."""
        self.leases.remember(digest, _LEASE_AFTER_ANSWER_SECONDS)
        link = (paths.layer_link(repository, digest), digest.encode())
        source = paths.upload_data(repository, upload_id)
        spent = (paths.upload_folder(repository, upload_id), [paths.STARTED])
        await self._driver.publish(source, paths.blob_data(digest), [link], [spent])
        self._remember_home(digest, repository)

    async def unlink_blob(self, repository: str, digest: Digest) -> bool:
        """Stop serving a blob; whether it was served. Its bytes stay for the collector."""
        path = paths.layer_link(repository, digest)
        self._hot_links.discard(path)
        return await self._driver.remove(path, durable=True)

    async def mount(self, source: str, target: str, digest: Digest) -> tuple[Digest, int] | None:
        """Link a blob of one repository into another; like `blob`, None when the source has no such blob."""
        found = self.hot_blob(source, digest) or await self.blob(source, digest)
        if found is None:
            return None
        await self._driver.write_all([(paths.layer_link(target, digest), found[0].encode())], unless_same=True)
        return found

    async def exists(self, repository: str) -> bool:
        """Whether anything was ever pushed there."""
        return not {"_layers", "_manifests"}.isdisjoint(await self._driver.names(paths.repository(repository)))

    # -- manifests

    def hot_manifest(self, repository: str, reference: str) -> StoredManifest | None:
        """Like `manifest`, answered from memory and one stat, or None when that does not suffice."""
        if ":" not in reference:
            return self._hot_manifests.get(paths.tag_current(repository, reference))
        try:
            path = paths.revision_link(repository, Digest.parse(reference))
        except InvalidDigest:
            return None
        return self._hot_manifests.get(path, self._young)

    async def manifest(self, repository: str, reference: str) -> StoredManifest:
        """The manifest a tag or digest names; `ManifestUnknown` when there is none, `InvalidDigest` for nonsense.

        Whoever asks by digest may be about to name it in an index, so it is made young like a blob.
        """
        if ":" in reference:
            path = paths.revision_link(repository, Digest.parse(reference))
        elif is_tag(reference):
            path = paths.tag_current(repository, reference)
        else:
            raise ManifestUnknown(repository, reference)
        mark = self._driver.fingerprint(path)
        digest = await self._read_link(path)
        if digest is None:
            raise ManifestUnknown(repository, reference)
        if ":" in reference:
            if not await self._renew(path, await self._modified(path, mark)):
                raise ManifestUnknown(repository, reference)
            mark = self._driver.fingerprint(path)
        try:
            data = await self._driver.read(paths.blob_data(digest))
        except FileNotFoundError as error:
            raise ManifestUnknown(repository, reference) from error
        if len(data) > _THREAD_WORTH_BYTES:
            media_type = await run_blocking(media_type_of, data)
        else:
            media_type = media_type_of(data)
        stored = StoredManifest(digest, media_type, data)
        self._hot_manifests.put(path, mark, stored, len(data))
        return stored

    async def resolve(self, repository: str, tag: str) -> Digest:
        """The digest a tag names now; `ManifestUnknown` when there is no such tag."""
        digest = await self._read_link(paths.tag_current(repository, tag))
        if digest is None:
            raise ManifestUnknown(repository, tag)
        return digest

    async def has_manifest(self, repository: str, digest: Digest) -> bool:
        """Whether the repository serves this manifest."""
        return await self._driver.stat(paths.revision_link(repository, digest)) is not None

    async def put_manifest(
        self,
        repository: str,
        reference: str,
        data: bytes,
        media_type: str = "",
        *,
        check: bool = True,
        sparse_index: bool = True,
        tags: Sequence[str] = (),
    ) -> Digest:
        """Store a manifest under a tag or its digest; the digest it has.

        `check` demands that the repository holds what the manifest refers to (`BlobsMissing` otherwise), children of an
        index excepted when `sparse_index`. `ManifestInvalid` and `DigestMismatch` as their names say.
        """
        manifest = parse_manifest(data, media_type)
        expected = Digest.parse(reference) if ":" in reference else None
        if check:
            await self._check_references(repository, manifest, sparse_index)
        references = tuple(Digest.parse(item.digest) for item in manifest.references())
        async with self.leases.hold(*references):
            digest = await self.blobs.digest_of(data, expected)
            self.leases.remember(digest, _LEASE_AFTER_ANSWER_SECONDS)
            await self.leases.settled(digest)
            link = digest.encode()
            files = [(paths.blob_data(digest), data), (paths.revision_link(repository, digest), link)]
            for tag in dict.fromkeys((*(() if expected else (reference,)), *tags)):
                files.append((paths.tag_history_link(repository, tag, digest), link))
                files.append((paths.tag_current(repository, tag), link))
            await self._driver.write_all(files, unless_same=True)
        return digest

    async def _check_references(self, repository: str, manifest: Manifest, sparse_index: bool) -> None:
        missing: list[str] = []
        children = () if sparse_index else manifest.manifests
        for descriptor in (*manifest.blobs(), *(child for child in children if not child.is_manifest)):
            if descriptor.urls and descriptor is not manifest.config:
                continue
            digest = descriptor.checked_digest()
            if self.hot_blob(repository, digest) is None and await self.blob(repository, digest) is None:
                missing.append(str(digest))
        inner = [child for child in children if child.is_manifest]
        if inner:
            present = await self._driver.stat_all([paths.revision_link(repository, c.checked_digest()) for c in inner])
            missing += [child.digest for child, there in zip(inner, present, strict=True) if there is None]
        if missing:
            raise BlobsMissing(missing)

    async def delete_manifest(self, repository: str, digest: Digest) -> list[str]:
        """Stop serving a manifest and drop every tag that names it; those tags. `ManifestUnknown` when not served.

        The revision goes last: whoever asks again after a crash finds what is left to do.
        """
        dropped = await self._drop_tags(repository, digest)
        if await self._driver.remove(paths.revision_link(repository, digest), durable=True):
            # Pushed again meanwhile: a tag without its revision would lose its content to the collector.
            dropped += await self._drop_tags(repository, digest)
        elif not dropped:
            raise ManifestUnknown(repository, digest)
        return dropped

    async def _drop_tags(self, repository: str, digest: Digest) -> list[str]:
        naming = [
            tag
            for tag in await self._driver.names(paths.tags(repository))
            if await self._read_link(paths.tag_current(repository, tag)) == digest
        ]
        for tag in naming:
            # They lie in one folder: syncing it once is enough.
            await self._driver.remove_tree(paths.tag_folder(repository, tag), durable=tag == naming[-1])
        return naming

    async def delete_tag(self, repository: str, tag: str) -> None:
        """Remove one tag with its history; the manifest stays. `ManifestUnknown` when there is no such tag."""
        if not await self._driver.remove_tree(paths.tag_folder(repository, tag), durable=True):
            raise ManifestUnknown(repository, tag)

    # -- lists

    async def tags(self, repository: str) -> list[str] | None:
        """The sorted tags; None when the repository has never had one. The list is shared: do not change it.

        What a push has made a folder for, and no link yet, is no tag: the push goes on, or was cut off by a crash.
        """
        path = paths.tags(repository)
        hot = self._known_tags(repository, path)
        reading = self._readings.get(path)
        if hot is None and reading is not None:
            # A long list is read once for all who ask meanwhile. Should it have changed since, the second look tells.
            await asyncio.wait([reading])
            hot = self._known_tags(repository, path)
        return await self._read_tags(repository, path) if hot is None else hot

    def _known_tags(self, repository: str, path: str) -> list[str] | None:
        known = self._hot_tags.get(path)
        if known is None:
            return None
        names, unfinished = known
        for tag in unfinished:
            if self._driver.fingerprint(paths.tag_current(repository, tag)) is not None:
                return None
        return names

    async def _read_tags(self, repository: str, path: str) -> list[str] | None:
        mark = self._driver.fingerprint(path)
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if mark is not None:
            self._readings[path] = ended
        try:
            names, unfinished = await self._driver.split_names(path, _TAG_LINK)
            if not names and await self._driver.stat(path) is None:
                return None
            if len(unfinished) <= _FEW_UNFINISHED:
                self._hot_tags.put(path, mark, (names, unfinished))
            return names
        finally:
            ended.set_result(None)
            if self._readings.get(path) is ended:
                del self._readings[path]

    async def unfinished_tags(self, repository: str) -> list[str]:
        """What is no tag, or not yet one: pushes under way, and those that were cut off."""
        return (await self._driver.split_names(paths.tags(repository), _TAG_LINK))[1]

    async def revisions(self, repository: str) -> list[Digest]:
        """The digests of all manifests the repository serves."""
        found: list[Digest] = []
        folder = paths.revisions(repository)
        for algorithm in await self._driver.names(folder):
            for encoded in await self._driver.names(f"{folder}/{algorithm}"):
                try:
                    found.append(Digest.parse(f"{algorithm}:{encoded}"))
                except InvalidDigest:
                    continue
        links = [paths.revision_link(repository, digest) for digest in found]
        present = await self._driver.stat_all(links)
        return [digest for digest, there in zip(found, present, strict=True) if there is not None]

    async def linked_blobs(self, repository: str, but: Set[str] = frozenset()) -> list[tuple[Digest, float]]:
        """The blobs the repository may serve, with the time each was linked or touched; leaving some out."""
        found: list[Digest] = []
        folder = paths.layers(repository)
        for algorithm in await self._driver.names(folder):
            for encoded in await self._driver.names(f"{folder}/{algorithm}"):
                if f"{algorithm}:{encoded}" not in but:
                    with contextlib.suppress(InvalidDigest):
                        found.append(Digest.parse(f"{algorithm}:{encoded}"))
        present = await self._driver.stat_all([paths.layer_link(repository, digest) for digest in found])
        return [(digest, stat.modified) for digest, stat in zip(found, present, strict=True) if stat is not None]

    async def names(self, marker: str = "_manifests") -> list[str]:
        """All repositories, ordered as registry:2 orders them: depth first, `/` before any other character."""
        found = await self._driver.find_folders(paths.REPOSITORIES, marker)
        return await run_blocking(sorted, found, key=catalog_key)

    async def broken_links(self, repository: str) -> list[str]:
        """The paths of links to blobs and manifests that name nothing, within the repository's folder."""
        found = [paths.revision_link(repository, digest) for digest in await self.revisions(repository)]
        found += [paths.layer_link(repository, digest) for digest, _ in await self.linked_blobs(repository)]
        start = len(paths.repository(repository)) + 1
        return [path[start:] for path in found if await self._read_link(path) is None]

    async def delete_repository(self, repository: str) -> bool:
        """Remove a repository's links, tags and uploads, not repositories nested in its name; whether it existed."""
        existed = False
        for folder in (paths.manifests(repository), paths.layers(repository), paths.uploads(repository)):
            existed |= await self._driver.remove_tree(folder, durable=True)
        return existed

    async def _read_link(self, path: str) -> Digest | None:
        """What a link names. An empty one, as a crash of registry:2 leaves them, is as good as none: a push replaces
        it."""
        try:
            return Digest.parse((await self._driver.read(path)).decode("ascii", "replace"))
        except (FileNotFoundError, InvalidDigest):
            return None


def catalog_key(name: str) -> str:
    """What repositories are ordered by: no character of a name comes before that which stands here for `/`."""
    return name.replace("/", "\0")
