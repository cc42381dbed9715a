"""Pull-through cache: repositories below a prefix (or asked for with `ns=`, as containerd does) come from other
registries.

What is fetched is stored like anything pushed, and streamed to the client while it is stored; concurrent pulls of the
same thing fetch it once. A tag is checked with its upstream; while that is down, the cached tag serves. Expiry is
retention: it drops tags nobody pulled for the upstream's time to live and leaves blobs to the collector, so nothing
that is shared can break.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar
from urllib.parse import urlsplit

from registry.client.credentials import AuthConfig
from registry.client.failures import ConnectionFailed, NoCredentials, RemoteError
from registry.client.fetch import RemoteSource
from registry.client.hosts import Endpoint, HostPolicy
from registry.client.session import RegistrySession, Transport
from registry.config import Retention, Settings, Upstream
from registry.digest import Digest
from registry.errors import BlobUnknown, DigestMismatch, ManifestUnknown
from registry.manifest import ACCEPTED, Descriptor
from registry.store.blobs import BlobStore, BlobWriter
from registry.store.driver import STREAM_CHUNK
from registry.store.hot import StoredManifest
from registry.store.repositories import Repositories
from registry.tasks import Background, open_to_read, run_blocking

log = logging.getLogger("berth.registry.proxy")

T = TypeVar("T")
_HUB_HOSTS = ("registry-1.docker.io", "index.docker.io", "docker.io")
_FRESH_SECONDS = 5.0
_SOURCES_REMEMBERED = 512


class UpstreamFailed(Exception):
    """The upstream gave no usable answer, and nothing is cached."""


@dataclass(frozen=True, slots=True)
class Route:
    """A repository that comes from elsewhere: its upstream and its name there."""

    upstream: Upstream
    remote: str


class Download:
    """One blob on its way in; any number of clients read along."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.finished = False
        self.failure: BaseException | None = None
        self._path: str | None = None
        self._spool: IO[bytes] | None = None
        self._opened = asyncio.Event()
        self._progress = asyncio.Event()

    async def begin(self, path: Path | None) -> None:
        """The bytes can be read at `path`; without one a nameless local file is kept until the end."""
        if path is not None:
            self._path = os.fspath(path)
        else:
            self._spool = await run_blocking(tempfile.TemporaryFile, "wb", buffering=0)
        self._opened.set()

    async def open(self) -> int:
        """A descriptor for `read`; FileNotFoundError when the download is over."""
        await self._opened.wait()
        if self._path is not None:
            return await open_to_read(self._path)
        if self._spool is None:
            raise FileNotFoundError("the download is over")
        return os.dup(self._spool.fileno())

    async def note(self, data: bytes) -> None:
        """More bytes have arrived."""
        if self._spool is not None:
            await run_blocking(_write_sync, self._spool, data)
        self.advance()

    def advance(self) -> None:
        """There is more to read, or the end was reached."""
        self._progress.set()
        self._progress = asyncio.Event()

    def finish(self, failure: BaseException | None = None) -> None:
        """No more comes."""
        self.failure = failure
        self.finished = True
        spool, self._spool = self._spool, None
        if spool is not None:
            spool.close()
        self._opened.set()
        self.advance()

    async def read(self, descriptor: int) -> AsyncIterator[bytes]:
        """The bytes as they arrive; ends early, with the failure, when the download fails."""
        position = 0
        try:
            while position < self.size:
                finished, progress = self.finished, self._progress
                data = await run_blocking(os.pread, descriptor, min(STREAM_CHUNK, self.size - position), position)
                if data:
                    position += len(data)
                    yield data
                elif finished:
                    raise ConnectionResetError("the upstream's blob ended early") from self.failure
                else:
                    await progress.wait()
        finally:
            os.close(descriptor)

    async def wait(self) -> None:
        """Until it is over; raises its failure."""
        while not self.finished:
            await self._progress.wait()
        if self.failure is not None:
            raise self.failure


class _Tee:
    """Writes to the store, and tells the download what came."""

    def __init__(self, writer: BlobWriter, download: Download) -> None:
        self._writer = writer
        self._download = download

    @property
    def size(self) -> int:
        return self._writer.size

    async def write(self, data: bytes) -> None:
        await self._writer.write(data)
        await self._download.note(data)


def _write_sync(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


class PullThrough:
    """Finds upstreams for names, and brings in what is asked for."""

    def __init__(self, settings: Settings, blobs: BlobStore, repositories: Repositories) -> None:
        self._blobs = blobs
        self._repositories = repositories
        self._transport = Transport(HostPolicy())
        self._sources: dict[Route, RemoteSource] = {}
        self._checked: dict[tuple[str, str], float] = {}
        # Tags that were served from the cache when they were asked for last, because the upstream could not be asked.
        self._stale: set[tuple[str, str]] = set()
        self._flights: dict[tuple[str, str], asyncio.Future[StoredManifest]] = {}
        self._downloads: dict[str, Download] = {}
        self._background = Background()
        # For metrics: what was asked for, by kind and whether it was here, and the bytes that had to be brought in.
        self.lookups: Counter[tuple[str, bool]] = Counter()
        self.pulled_bytes: Counter[str] = Counter()
        self.reload(settings)

    def reload(self, settings: Settings) -> None:
        """Go by other upstreams from the next question on; what is being fetched comes from where it was asked for."""
        self._upstreams = sorted(settings.upstreams, key=lambda upstream: -len(upstream.prefix))
        self._default = next((upstream for upstream in self._upstreams if upstream.is_default), None)
        self._sources.clear()
        self._checked.clear()

    @property
    def is_active(self) -> bool:
        """Whether anything comes from elsewhere."""
        return bool(self._upstreams)

    async def aclose(self) -> None:
        """Cancel downloads, close connections."""
        await self._background.aclose()
        await self._transport.aclose()

    def retention(self) -> tuple[Retention, ...]:
        """The rules that make cached content expire."""
        return tuple(
            Retention(
                (f"{upstream.prefix}/**" if upstream.prefix else "**",),
                keep_seconds=upstream.ttl_seconds,
                keep_pulled_seconds=upstream.ttl_seconds,
            )
            for upstream in self._upstreams
            if upstream.ttl_seconds > 0
        )

    async def local_name(self, repository: str, namespace: str, is_reading: bool) -> str:
        """The name a repository has here when a client asks for it as a mirror of `namespace`; without one, where a
        reader finds what nobody ever pushed here: below the default upstream."""
        for upstream in self._upstreams:
            if upstream.prefix and namespace in (*upstream.namespaces, urlsplit(upstream.url).netloc):
                inside = repository == upstream.prefix or repository.startswith(upstream.prefix + "/")
                return repository if inside else f"{upstream.prefix}/{repository}"
        default = self._default if is_reading and self.route(repository) is None else None
        if default is None or await self._repositories.exists(repository):
            return repository
        return f"{default.prefix}/{repository}"

    def route(self, repository: str) -> Route | None:
        """Where a repository comes from; None for one that is pushed to us."""
        for upstream in self._upstreams:
            if not upstream.prefix:
                remote = repository
            elif repository.startswith(upstream.prefix + "/"):
                remote = repository[len(upstream.prefix) + 1 :]
            else:
                continue
            if "/" not in remote and urlsplit(upstream.url).hostname in _HUB_HOSTS:
                remote = f"library/{remote}"
            return Route(upstream, remote)
        return None

    def is_read_only(self, repository: str) -> bool:
        """Whether pushes are refused: the name belongs to an upstream."""
        return self.route(repository) is not None

    def is_stale(self, repository: str, reference: str) -> bool:
        """Whether a tag was last served without its upstream's word."""
        return (repository, reference) in self._stale

    async def manifest(self, repository: str, reference: str, route: Route) -> StoredManifest:
        """The manifest, fetched or refreshed where needed. `ManifestUnknown`, `UpstreamFailed`."""
        local = await self._local(repository, reference)
        key = (repository, reference)
        if local is not None and (":" in reference or self._checked.get(key, 0.0) > time.monotonic() - _FRESH_SECONDS):
            self.lookups["manifest", True] += 1
            return local
        stored = await self._once(key, lambda: self._refresh(repository, reference, route, local))
        self.lookups["manifest", local is not None and local.digest == stored.digest] += 1
        return stored

    async def _local(self, repository: str, reference: str) -> StoredManifest | None:
        try:
            return self._repositories.hot_manifest(repository, reference) or await self._repositories.manifest(
                repository, reference
            )
        except ManifestUnknown:
            return None

    async def _once(self, key: tuple[str, str], work: Callable[[], Awaitable[StoredManifest]]) -> StoredManifest:
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.get_running_loop().create_future()
            self._flights[key] = flight
            self._background.start(self._fly(key, flight, work), f"fetch {key[0]}:{key[1]}")
        return await asyncio.shield(flight)

    async def _fly(
        self,
        key: tuple[str, str],
        flight: asyncio.Future[StoredManifest],
        work: Callable[[], Awaitable[StoredManifest]],
    ) -> None:
        try:
            result = await work()
        except asyncio.CancelledError:
            flight.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - handed to everybody who waits
            flight.set_exception(error)
            flight.exception()
        else:
            flight.set_result(result)
        finally:
            self._flights.pop(key, None)

    async def _refresh(
        self, repository: str, reference: str, route: Route, local: StoredManifest | None
    ) -> StoredManifest:
        source = self._source(route)
        try:
            if local is not None and await self._current_digest(source, reference) == local.digest:
                self._note_fresh(repository, reference)
                return local
            remote = await source.manifest(reference)
        except (RemoteError, ConnectionFailed, NoCredentials, DigestMismatch, OSError) as error:
            if isinstance(error, RemoteError) and error.status == 404:
                raise ManifestUnknown(repository, reference) from error
            if local is not None:
                self._stale.add((repository, reference))
                log.warning(
                    "upstream %s: %s; %s:%s serves from cache", route.upstream.url, error, repository, reference
                )
                return local
            if isinstance(error, RemoteError) and error.status in (401, 403):
                # Docker Hub's answer for what does not exist; or the credentials of the upstream are wrong.
                log.warning("upstream %s refused %s:%s: %s", route.upstream.url, route.remote, reference, error)
                raise ManifestUnknown(repository, reference) from error
            raise UpstreamFailed(f"{route.upstream.url}: {error}") from error
        await self._repositories.put_manifest(repository, reference, remote.data, remote.media_type, check=False)
        self.pulled_bytes["manifest"] += len(remote.data)
        self._note_fresh(repository, reference)
        return await self._repositories.manifest(repository, reference)

    def _note_fresh(self, repository: str, reference: str) -> None:
        self._checked[(repository, reference)] = time.monotonic()
        self._stale.discard((repository, reference))

    async def _current_digest(self, source: RemoteSource, tag: str) -> str | None:
        """What the tag names upstream now, asked with HEAD, which registries do not count as a pull."""
        path = f"{source.path}/manifests/{tag}"
        scope = f"repository:{source.path}:pull"
        async with source.session.request("HEAD", path, scope=scope, headers={"Accept": ", ".join(ACCEPTED)}) as answer:
            return answer.headers.get("Docker-Content-Digest")

    def _source(self, route: Route) -> RemoteSource:
        # By upstream, not by address: two upstreams may be one registry with different credentials.
        source = self._sources.get(route)
        if source is None:
            parts = urlsplit(route.upstream.url)
            endpoint = Endpoint(route.upstream.url, parts.netloc)
            auth = AuthConfig(username=route.upstream.username, password=route.upstream.password)
            source = RemoteSource(RegistrySession(self._transport, endpoint, auth), route.remote)
            if len(self._sources) >= _SOURCES_REMEMBERED:
                self._sources.pop(next(iter(self._sources)))
            self._sources[route] = source
        return source

    async def blob_size(self, digest: Digest, route: Route) -> int:
        """The size of a blob upstream. `BlobUnknown`, `UpstreamFailed`."""
        source = self._source(route)
        scope = f"repository:{source.path}:pull"
        try:
            async with source.session.request("HEAD", f"{source.path}/blobs/{digest}", scope=scope) as answer:
                return int(answer.headers.get("Content-Length", ""))
        except RemoteError as error:
            if error.status in (401, 403, 404):
                raise BlobUnknown(digest) from error
            raise UpstreamFailed(f"{route.upstream.url}: {error}") from error
        except (ConnectionFailed, NoCredentials, ValueError) as error:
            raise UpstreamFailed(f"{route.upstream.url}: {error}") from error

    async def blob(self, repository: str, digest: Digest, route: Route) -> tuple[int, AsyncIterator[bytes] | None]:
        """Bring a blob in: its size, and its bytes as they arrive, or None when it is in the store already."""
        download = self._downloads.get(digest)
        if download is None:
            # The store may have it from another repository; this one gets its link without asking for the bytes, but
            # only after the upstream said that this repository has it.
            size = await self.blob_size(digest, route)
            if await self._blobs.stat(digest) == size:
                await self._repositories.link_blob(repository, digest)
                return size, None
            download = self._downloads.get(digest)
            if download is None:
                download = await self._begin(repository, digest, route, size)
        elif await self.blob_size(digest, route) != download.size:
            raise BlobUnknown(digest)
        try:
            descriptor = await download.open()
        except FileNotFoundError:
            await self._ended(download, digest, route)
            await self._repositories.link_blob(repository, digest)
            return download.size, None
        return download.size, download.read(descriptor)

    async def _ended(self, download: Download, digest: Digest, route: Route) -> None:
        try:
            await download.wait()
        except Exception as error:
            raise UpstreamFailed(f"{route.upstream.url}: blob {digest}: {error}") from error

    async def _begin(self, repository: str, digest: Digest, route: Route, size: int) -> Download:
        download = self._downloads[digest] = Download(size)
        try:
            writer = await self._blobs.writer(digest.algorithm)
            await download.begin(writer.local_path)
        except BaseException as error:
            self._downloads.pop(digest, None)
            download.finish(error)
            raise
        self._background.start(self._download(repository, digest, route, download, writer), f"download {digest}")
        return download

    async def _download(
        self, repository: str, digest: Digest, route: Route, download: Download, writer: BlobWriter
    ) -> None:
        descriptor = Descriptor(digest=str(digest), size=download.size)
        try:
            async with self._repositories.leases.hold(digest), writer:
                await self._source(route).fetch(descriptor, _Tee(writer, download), _ignore)
                await writer.commit(digest)
                await self._repositories.link_blob(repository, digest)
            self.pulled_bytes["blob"] += download.size
        except asyncio.CancelledError:
            download.finish(ConnectionResetError("the registry is shutting down"))
            raise
        except Exception as error:  # noqa: BLE001 - told to every reader; the upstream can fail in any way
            log.warning("blob %s from %s: %s", digest, route.upstream.url, error)
            download.finish(error)
        else:
            download.finish()
        finally:
            self._downloads.pop(digest, None)

    async def tags(self, repository: str, route: Route) -> list[str] | None:
        """The upstream's tags, or the cached ones while it cannot be asked."""
        try:
            return sorted(await self._source(route).tags())
        except (RemoteError, ConnectionFailed, NoCredentials, OSError):
            return await self._repositories.tags(repository)


def _ignore(_: int) -> None:
    """Progress is told by the bytes themselves."""
