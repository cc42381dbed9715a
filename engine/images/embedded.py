"""The registry inside this process, seen by pull and push: same store, so nothing is copied.

A push links blobs that the store has already and writes a manifest; a pull reads what is there. Both only after the
authorisation that any client needs, with the same words when it is refused.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any, Protocol

from registry.client.credentials import AuthConfig
from registry.client.failures import NoCredentials, RemoteError
from registry.client.fetch import RemoteManifest
from registry.digest import Digest, InvalidDigest
from registry.errors import BlobUnknown, ManifestUnknown, RegistryError
from registry.manifest import Descriptor, Manifest, parse_manifest
from registry.reference import Reference
from registry.store.blobs import BlobWriter
from registry.store.repositories import Repositories

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


class Gate(Protocol):
    """What is asked of the registry's access control."""

    async def authenticate(self, username: str, password: str) -> Any: ...
    async def identify(self, authorization: str | None) -> Any: ...
    def authorize(self, identity: Any, repository: str, action: str) -> bool: ...


class Rules(Protocol):
    """What the registry refuses although the caller may push: immutable tags, quotas."""

    async def check_push(self, repository: str, tags: tuple[str, ...], manifest: Manifest) -> None: ...
    async def check_quota(self, repository: str, added_bytes: int, digest: Digest | None = None) -> None: ...
    def note_blob(self, repository: str, digest: Digest, size: int) -> None: ...


class Upstreams(Protocol):
    """The registry's pull-through cache: ``route`` is None for a repository that is pushed to it."""

    def route(self, repository: str) -> object | None: ...


class Embedded:
    """The embedded registry: ``gate`` decides, ``repositories`` hold; ``addresses`` are the (host, port) it listens on.

    ``names`` are further host names of this machine under which it is known. ``pushed`` is told of manifests written
    here, ``rules`` are asked before. Repositories of ``upstreams`` are left to HTTP.
    """

    def __init__(
        self,
        gate: Gate,
        repositories: Repositories,
        addresses: Collection[tuple[str, int]],
        names: Collection[str] = (),
        *,
        pushed: Callable[[str, str, Digest, bytes, str], None] | None = None,
        rules: Rules | None = None,
        upstreams: Upstreams | None = None,
    ) -> None:
        self._gate = gate
        self.repositories = repositories
        self._pushed = pushed
        self._upstreams = upstreams
        self.rules = rules
        self._hosts = frozenset(
            f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
            for host, port in addresses
            for name in ({host} | set(names) | set(LOCAL_NAMES) if _covers_loopback(host) else {host} | set(names))
        )

    def is_at(self, domain: str) -> bool:
        """Whether a reference's domain is this registry."""
        return domain.lower() in self._hosts

    def serves(self, reference: Reference) -> bool:
        """Whether a repository's content lies in the shared store."""
        foreign = self._upstreams is not None and self._upstreams.route(reference.path) is not None
        return self.is_at(reference.domain) and not foreign

    async def authenticate(self, auth: AuthConfig) -> Any:
        """The identity behind credentials. ``RemoteError`` 401 when they are wrong."""
        pair = auth.basic()
        if pair is None:
            return await self._gate.identify(None)
        identity = await self._gate.authenticate(*pair)
        if identity is None:
            raise RemoteError("GET", "/v2/", 401, "UNAUTHORIZED", "authentication required")
        return identity

    async def source(self, path: str, auth: AuthConfig) -> EmbeddedSource:
        """A repository to pull from, if ``auth`` may. Raises ``RemoteError``, ``NoCredentials``."""
        await self._require(path, auth, ("pull",))
        return EmbeddedSource(self.repositories, path)

    async def target(self, path: str, auth: AuthConfig) -> EmbeddedTarget:
        """A repository to push to, if ``auth`` may. Raises ``RemoteError``, ``NoCredentials``."""
        identity = await self._require(path, auth, ("pull", "push"))
        return EmbeddedTarget(self, path, identity)

    def may_pull(self, identity: Any, path: str) -> bool:
        """Whether an identity may read another repository, to mount from it."""
        return self._gate.authorize(identity, path, "pull")

    def pushed(self, path: str, reference: str, digest: Digest, data: bytes, media_type: str) -> None:
        """Tell whoever listens to the registry's notices of a manifest that was written here."""
        if self._pushed is not None:
            self._pushed(path, reference, digest, data, media_type)

    async def _require(self, path: str, auth: AuthConfig, actions: tuple[str, ...]) -> Any:
        identity = await self.authenticate(auth)
        if all(self._gate.authorize(identity, path, action) for action in actions):
            return identity
        if auth.basic() is None:
            raise NoCredentials
        raise RemoteError("GET", f"/v2/{path}", 403, "DENIED", "requested access to the resource is denied")


class EmbeddedSource:
    """One repository of the embedded registry, read."""

    def __init__(self, repositories: Repositories, path: str) -> None:
        self._repositories = repositories
        self._path = path

    async def manifest(self, reference: str) -> RemoteManifest:
        """The manifest of a tag or digest. ``RemoteError`` 404 when there is none."""
        try:
            stored = await self._repositories.manifest(self._path, reference)
        except (ManifestUnknown, InvalidDigest) as error:
            url = f"/v2/{self._path}/manifests/{reference}"
            raise RemoteError("GET", url, 404, "MANIFEST_UNKNOWN", "manifest unknown") from error
        return RemoteManifest(stored.data, stored.media_type, stored.digest)

    async def tags(self) -> list[str]:
        """Every tag."""
        found = await self._repositories.tags(self._path)
        if found is None:
            raise RemoteError("GET", f"/v2/{self._path}/tags/list", 404, "NAME_UNKNOWN")
        return list(found)

    async def read(self, descriptor: Descriptor) -> bytes:
        """A configuration blob. ``RemoteError`` 404 unless the repository serves it."""
        digest = descriptor.checked_digest()
        if await self._repositories.blob(self._path, digest) is None:
            raise self._unknown(digest)
        return await self._repositories.blobs.read(digest)

    async def fetch(self, descriptor: Descriptor, writer: BlobWriter, progress: Callable[[int], None]) -> None:
        """Nothing is moved: the caller looks into the shared store first, so the blob is not there."""
        raise self._unknown(descriptor.digest)

    def _unknown(self, digest: str) -> RemoteError:
        return RemoteError("GET", f"/v2/{self._path}/blobs/{digest}", 404, "BLOB_UNKNOWN", "blob unknown to registry")


class EmbeddedTarget:
    """One repository of the embedded registry, written: links only."""

    def __init__(self, embedded: Embedded, path: str, identity: Any) -> None:
        self._embedded = embedded
        self._repositories = embedded.repositories
        self._path = path
        self._identity = identity

    async def has(self, digest: Digest) -> bool:
        """Whether the repository serves the blob already."""
        return await self._repositories.blob(self._path, digest) is not None

    async def mount(self, digest: Digest, source: str) -> str | None:
        """Link from another repository the pusher may read; None when that worked."""
        if not self._embedded.may_pull(self._identity, source):
            return ""
        found = await self._repositories.blob(source, digest)
        if found is None:
            return ""
        rules = self._embedded.rules
        if rules is not None:
            await _checked(rules.check_quota(self._path, found[1], digest))
        if await self._repositories.mount(source, self._path, digest) is None:
            return ""
        if rules is not None:
            rules.note_blob(self._path, digest, found[1])
        return None

    async def upload(
        self, digest: Digest, path: Path, size: int, progress: Callable[[int], None], location: str = ""
    ) -> None:
        """Link a blob that is in the shared store; ``path`` is that blob."""
        if await self._repositories.blobs.stat(digest) is None:
            raise BlobUnknown(digest)
        rules = self._embedded.rules
        if rules is not None:
            await _checked(rules.check_quota(self._path, size, digest))
        await self._repositories.link_blob(self._path, digest)
        if rules is not None:
            rules.note_blob(self._path, digest, size)
        progress(size)

    async def put_manifest(self, reference: str, data: bytes, media_type: str) -> Digest:
        """Store the manifest under a tag or digest; its digest."""
        if self._embedded.rules is not None:
            tags = () if ":" in reference else (reference,)
            await _checked(self._embedded.rules.check_push(self._path, tags, parse_manifest(data, media_type)))
        digest = await self._repositories.put_manifest(self._path, reference, data, media_type)
        self._embedded.pushed(self._path, reference, digest, data, media_type)
        return digest


async def _checked(check: Awaitable[None]) -> None:
    """A rule's refusal as a client over HTTP would get it."""
    try:
        await check
    except RegistryError as error:
        raise RemoteError("PUT", "", error.status, error.code.name, error.message) from error


def _covers_loopback(host: str) -> bool:
    if host in ("", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
