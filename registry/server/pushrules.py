"""What may be pushed although the caller may push: immutable tags, quotas, and addresses in layers (`urls`)."""

from __future__ import annotations

import base64
import contextlib
import re
import time
from urllib.parse import urlsplit

from registry import errors
from registry.config import Settings
from registry.digest import Digest
from registry.errors import ManifestUnknown, RegistryError
from registry.manifest import Manifest
from registry.patterns import matches
from registry.store.repositories import Repositories

_USAGE_SECONDS = 300.0
# Nobody is refused by an older count: what was deleted makes room at once.
_REFUSAL_SECONDS = 5.0


class Refused(RegistryError):
    """A rule of the administrator's forbids what the caller's rights would allow."""


class PushRules:
    """Checks before content is accepted or removed."""

    def __init__(self, settings: Settings, repositories: Repositories) -> None:
        self._settings = settings
        self._repositories = repositories
        self._usage: dict[str, tuple[float, dict[str, int]]] = {}

    def reload(self, settings: Settings) -> None:
        """Go by other rules from the next push on."""
        self._settings = settings

    def is_immutable(self, repository: str, tag: str) -> bool:
        """Whether the tag may never change once it exists. Rules are `repository-pattern[:tag-pattern]`."""
        for rule in self._settings.immutable_tags:
            name, _, pattern = rule.partition(":")
            if matches(name, repository) and matches(pattern or "*", tag):
                return True
        return False

    async def check_push(self, repository: str, tags: tuple[str, ...], manifest: Manifest) -> None:
        """Refuse a manifest that breaks a rule."""
        for tag in tags:
            if self.is_immutable(repository, tag):
                await self._check_unchanged(repository, tag, manifest)
        self._check_addresses(manifest)
        _check_data(manifest)
        await self.check_quota(repository, len(manifest.data))

    async def _check_unchanged(self, repository: str, tag: str, manifest: Manifest) -> None:
        try:
            current = await self._repositories.resolve(repository, tag)
        except ManifestUnknown:
            return
        if current != Digest.of(manifest.data, current.algorithm):
            raise Refused(errors.DENIED, {"tag": tag}, message=f"the tag {tag} is immutable")

    async def check_delete(self, repository: str, reference: str) -> None:
        """Refuse to delete an immutable tag, or a manifest that one names."""
        if not self._settings.immutable_tags:
            return
        if ":" not in reference:
            if self.is_immutable(repository, reference):
                raise Refused(errors.DENIED, {"tag": reference}, message=f"the tag {reference} is immutable")
            return
        for tag in await self._repositories.tags(repository) or ():
            if not self.is_immutable(repository, tag):
                continue
            # One whose link is damaged protects nothing.
            with contextlib.suppress(ManifestUnknown):
                if await self._repositories.resolve(repository, tag) == reference:
                    raise Refused(errors.DENIED, {"tag": tag}, message=f"the immutable tag {tag} names this manifest")

    def _check_addresses(self, manifest: Manifest) -> None:
        """Layers with `urls`: http or https without fragment, and within the configured lists where there are any."""
        allow, deny = self._settings.url_allow, self._settings.url_deny
        for item in manifest.blobs():
            for url in item.urls or ():
                parts = urlsplit(url)
                refused = parts.scheme not in ("http", "https") or not parts.netloc or bool(parts.fragment)
                refused |= bool(allow) and not any(re.search(pattern, url) for pattern in allow)
                refused |= any(re.search(pattern, url) for pattern in deny)
                if refused:
                    raise RegistryError(errors.MANIFEST_INVALID, {"url": url}, message="invalid URL on layer")

    def has_quota(self, repository: str) -> bool:
        """Whether any quota counts what is pushed there."""
        return any(_is_below(repository, prefix) for prefix in self._settings.quotas)

    async def check_quota(self, repository: str, added_bytes: int, digest: Digest | None = None) -> None:
        """Refuse what would take the repository's part of the storage over its quota."""
        for prefix, limit in self._settings.quotas.items():
            if not _is_below(repository, prefix):
                continue
            for age_seconds in (_USAGE_SECONDS, _REFUSAL_SECONDS):
                sizes = await self._sizes(prefix, age_seconds)
                if (digest is not None and digest in sizes) or sum(sizes.values()) + added_bytes <= limit:
                    break
            else:
                raise Refused(errors.QUOTA_EXCEEDED, {"prefix": prefix, "limit": limit})

    def note_blob(self, repository: str, digest: Digest, size: int) -> None:
        """A blob was added: it counts from now on."""
        for prefix, (_, sizes) in self._usage.items():
            if _is_below(repository, prefix):
                sizes[digest] = size

    async def _sizes(self, prefix: str, age_seconds: float) -> dict[str, int]:
        """Each distinct blob below a prefix with its size; counted again when the last count is older than that."""
        known = self._usage.get(prefix)
        if known is not None and time.monotonic() - known[0] < age_seconds:
            return known[1]
        sizes: dict[str, int] = {}
        for repository in await self._repositories.names("_layers"):
            if _is_below(repository, prefix):
                for digest, _ in await self._repositories.linked_blobs(repository):
                    if digest not in sizes:
                        sizes[digest] = await self._repositories.blobs.stat(digest) or 0
        self._usage[prefix] = (time.monotonic(), sizes)
        return sizes


def _check_data(manifest: Manifest) -> None:
    """Content that stands in a descriptor itself (`data`) must be what the descriptor says: clients may use it as such,
    without ever asking for the blob."""
    for item in manifest.references():
        if item.data is None:
            continue
        try:
            data = base64.b64decode(item.data, validate=True)
        except ValueError:
            data = b""
        digest = item.checked_digest()
        if len(data) != item.size or Digest.of(data, digest.algorithm) != digest:
            raise RegistryError(errors.MANIFEST_INVALID, {"digest": item.digest}, message="embedded data is not valid")


def _is_below(repository: str, prefix: str) -> bool:
    name = prefix.rstrip("/")
    return not name or repository == name or repository.startswith(name + "/")
