"""Referrers: which manifests of a repository name a given one as their subject (OCI distribution spec 1.1).

registry:2's layout has no index for this, and its own pushes would not be in one. So the index is derived: every
manifest's bytes are read once, ever, and remembered by digest; whether a manifest is still there is asked again when a
folder changed.
"""

from __future__ import annotations

import asyncio
import bisect
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from registry.digest import Digest
from registry.errors import BlobUnknown, ManifestInvalid
from registry.manifest import MAX_MANIFEST_BYTES, OCI_INDEX, Descriptor, parse_manifest
from registry.server.blobs import parse_digest
from registry.server.replies import Reply
from registry.server.requests import Call
from registry.server.tags import next_page, page_size
from registry.store.repositories import Repositories

_REPOSITORIES_REMEMBERED = 256
_READ_TOGETHER = 16
# What an index says besides its descriptors.
_FRAME_BYTES = 128


@dataclass(frozen=True, slots=True)
class _Referrer:
    subject: str
    descriptor: Descriptor


class ReferrerIndex:
    """What refers to what, by repository, derived from the stored manifests."""

    def __init__(self, repositories: Repositories) -> None:
        self._repositories = repositories
        self._read: OrderedDict[str, dict[Digest, _Referrer | None]] = OrderedDict()

    async def referrers(self, repository: str, subject: Digest) -> list[Descriptor]:
        """The descriptors of every manifest whose subject is `subject`, in order of digest."""
        known = self._read.setdefault(repository, {})
        self._read.move_to_end(repository)
        while len(self._read) > _REPOSITORIES_REMEMBERED:
            self._read.popitem(last=False)
        present = await self._repositories.revisions(repository)
        unread = [digest for digest in present if digest not in known]
        for start in range(0, len(unread), _READ_TOGETHER):
            batch = unread[start : start + _READ_TOGETHER]
            for digest, found in zip(batch, await asyncio.gather(*map(self._inspect, batch)), strict=True):
                known[digest] = found
        there = set(present)
        referrers = [known[digest] for digest in sorted(there)]
        return [item.descriptor for item in referrers if item is not None and item.subject == subject]

    async def _inspect(self, digest: Digest) -> _Referrer | None:
        try:
            data = await self._repositories.blobs.read(digest)
            manifest = parse_manifest(data)
        except (BlobUnknown, ManifestInvalid):
            return None
        if manifest.subject is None:
            return None
        descriptor = Descriptor(
            media_type=manifest.media_type,
            digest=str(digest),
            size=len(data),
            artifact_type=manifest.referrer_type,
            annotations=manifest.annotations,
        )
        return _Referrer(manifest.subject.digest, descriptor)


class ReferrerHandlers:
    """Answers `/v2/<name>/referrers/<digest>`."""

    def __init__(self, index: ReferrerIndex) -> None:
        self._index = index

    async def get(self, call: Call) -> Reply:
        """GET: an image index of the referrers, empty when there are none, filtered by `artifactType`."""
        subject = parse_digest(call.reference)
        size = page_size(call)
        found = await self._index.referrers(call.repository, subject)
        headers = {"Content-Type": OCI_INDEX}
        wanted = call.argument("artifactType")
        if wanted is not None:
            found = [descriptor for descriptor in found if descriptor.artifact_type == wanted]
            headers["OCI-Filters-Applied"] = "artifactType"
        last = call.argument("last") or ""
        found = found[bisect.bisect_right(found, last, key=lambda descriptor: descriptor.digest) :]
        page = list(_fitting(found if size is None else found[:size]))
        if page and len(page) < len(found):
            path = f"/v2/{call.repository}/referrers/{subject}"
            filters = {} if wanted is None else {"artifactType": wanted}
            headers |= next_page(call, path, found[len(page) - 1].digest, size, **filters)
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": page}
        return Reply(200, headers, msgspec.json.encode(document))


def _fitting(found: list[Descriptor]) -> Iterator[msgspec.Raw]:
    """As many as go into one manifest, for clients read no larger one; the first in any case."""
    room = MAX_MANIFEST_BYTES - _FRAME_BYTES
    for number, descriptor in enumerate(found):
        encoded = msgspec.json.encode(descriptor)
        room -= len(encoded) + 1
        if number and room < 0:
            return
        yield msgspec.Raw(encoded)
