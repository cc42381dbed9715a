"""Where images come from and go to: the servers of a repository, the embedded registry among them, behind one face.

Also the one place that turns a registry's failures into the engine's error kinds with docker's sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from engine.errors import EngineError, Forbidden, InvalidParameter, NotFound, SystemFailure, Unauthorized, os_words
from engine.images.embedded import Embedded
from registry.client.credentials import AuthConfig
from registry.client.failures import ConnectionFailed, NoCredentials, RemoteError
from registry.client.fetch import RemoteManifest, RemoteSource
from registry.client.hosts import Endpoint
from registry.client.publish import RemoteTarget
from registry.client.session import RegistrySession, Transport
from registry.digest import Digest
from registry.errors import DigestMismatch
from registry.manifest import Descriptor
from registry.reference import Reference
from registry.store.blobs import BlobWriter


class Source(Protocol):
    """A repository that is pulled from."""

    async def manifest(self, reference: str) -> RemoteManifest: ...
    async def tags(self) -> list[str]: ...
    async def read(self, descriptor: Descriptor) -> bytes: ...
    async def fetch(self, descriptor: Descriptor, writer: BlobWriter, progress: Callable[[int], None]) -> None: ...


class Target(Protocol):
    """A repository that is pushed to."""

    async def has(self, digest: Digest) -> bool: ...
    async def mount(self, digest: Digest, source: str) -> str | None: ...
    async def upload(
        self, digest: Digest, path: Path, size: int, progress: Callable[[int], None], location: str = ""
    ) -> None: ...
    async def put_manifest(self, reference: str, data: bytes, media_type: str) -> Digest: ...


T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Place(Generic[T_co]):
    """A server and the repository on it."""

    host: str
    repository: T_co
    is_mirror: bool = False


class Remotes:
    """Opens repositories. ``embedded`` (may be set later) serves its hosts without HTTP."""

    def __init__(self, transport: Transport, attempts: int = 5, embedded: Embedded | None = None) -> None:
        self.transport = transport
        self.embedded = embedded
        self._attempts = attempts

    async def sources(self, reference: Reference, auth: AuthConfig) -> Sequence[Place[Source]]:
        """The repositories to pull from, best first, all of which answer. Raises the failures of a session."""
        if self.embedded is not None and self.embedded.serves(reference):
            return [Place(reference.domain, await self.embedded.source(reference.path, auth))]
        endpoints = await self.transport.policy.endpoints(reference.domain)
        return [
            Place(s.endpoint.host, RemoteSource(s, reference.path, self._attempts), s.endpoint.is_mirror)
            for s in await self._answering(endpoints, auth)
        ]

    async def target(self, reference: Reference, auth: AuthConfig) -> Target:
        """The repository to push to. Raises the failures of a session."""
        if self.embedded is not None and self.embedded.serves(reference):
            return await self.embedded.target(reference.path, auth)
        endpoints = await self.transport.policy.endpoints(reference.domain, for_push=True)
        return RemoteTarget((await self._answering(endpoints, auth))[0], reference.path)

    async def _answering(self, endpoints: Sequence[Endpoint], auth: AuthConfig) -> list[RegistrySession]:
        """Sessions with the servers that speak the protocol; the last failure if none does.

        Of one host's TLS and plain servers only the first that answers counts.
        """
        found: list[RegistrySession] = []
        failure: ConnectionFailed | None = None
        for endpoint in endpoints:
            if any(session.endpoint.host == endpoint.host for session in found):
                continue
            session = self._session(endpoint, auth)
            try:
                await session.ping()
                found.append(session)
            except ConnectionFailed as error:
                failure = error
        if not found and failure is not None:
            raise failure
        return found

    async def session(self, domain: str, auth: AuthConfig) -> RegistrySession:
        """A session with a host, to log in to."""
        return (await self._answering(await self.transport.policy.endpoints(domain, for_push=True), auth))[0]

    def _session(self, endpoint: Endpoint, auth: AuthConfig) -> RegistrySession:
        # Credentials for Docker Hub are not a mirror's business.
        return RegistrySession(self.transport, endpoint, AuthConfig() if endpoint.is_mirror else auth)


def pull_error(error: Exception, reference: Reference) -> Exception:
    """The kind and sentence of a failed pull; other exceptions come back as they are."""
    if isinstance(error, RemoteError):
        if error.code == "DENIED":
            return NotFound(
                f"pull access denied for {reference.familiar_name}, repository does not exist or may require "
                f"'docker login': {error}"
            )
        if error.code == "MANIFEST_UNKNOWN" or (not error.code and error.status == 404):
            error.code = "MANIFEST_UNKNOWN"
            return NotFound(f"manifest for {reference.familiar} not found: {error}")
        if error.code == "NAME_UNKNOWN":
            return NotFound(f"repository {reference.familiar_name} not found: {error}")
        return SystemFailure(str(error))
    if isinstance(error, NoCredentials):
        url = error.url or f"https://{reference.domain}/v2/{reference.path}/manifests/{reference.object_name}"
        return SystemFailure(f'Head "{url}": {error}')
    return _other(error)


def push_error(error: Exception) -> Exception:
    """The sentence of a failed push."""
    return SystemFailure(str(error)) if isinstance(error, RemoteError) else _other(error)


def inspect_error(error: Exception) -> Exception:
    """The registry's own status and sentence, for whoever asked what it has."""
    if isinstance(error, RemoteError) and error.status in _KINDS:
        return _KINDS[error.status](str(error))
    return push_error(error)


_KINDS = {401: Unauthorized, 403: Forbidden, 404: NotFound}


def download_error(error: Exception, url: str) -> Exception:
    """What a client is told of a URL that cannot be imported."""
    if isinstance(error, RemoteError):
        words = f"failed to GET {url} with status {error.status}"
        kinds = {400: InvalidParameter, 401: Unauthorized, 403: Forbidden, 404: NotFound}
        return kinds.get(error.status, SystemFailure)(words)
    return SystemFailure(str(error))


def login_error(error: Exception, url: str) -> Exception:
    """401 for refused credentials, with docker's words for the registry's own refusal and for a token server's."""
    if isinstance(error, RemoteError) and error.url.endswith("/v2/"):
        words = f"login attempt to {url} failed with status: {error.status} {error.reason}".rstrip()
        return Unauthorized(words) if error.status in (401, 403) else SystemFailure(words)
    if isinstance(error, NoCredentials) or (isinstance(error, RemoteError) and error.status in (401, 403)):
        return Unauthorized(f'Get "{url}": {error}')
    return push_error(error)


def _other(error: Exception) -> Exception:
    if isinstance(error, EngineError):
        return error
    if isinstance(error, ConnectionFailed | NoCredentials):
        return SystemFailure(str(error))
    if isinstance(error, DigestMismatch):
        return SystemFailure(f"filesystem layer verification failed for digest {error.expected}")
    if isinstance(error, ValueError):
        return InvalidParameter(str(error))
    if isinstance(error, OSError):
        return SystemFailure(os_words(error))
    return error
