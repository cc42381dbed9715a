"""Uploads in progress: a file that grows until its digest is claimed, resumable by any process that shares the storage.

The running hash lives in memory, so the usual push is hashed once while it arrives. After a restart, or when another
process appended, the file's size differs from what was hashed, and the bytes are read again at the end.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from registry.digest import EMPTY_SHA256, Digest, Hasher, new_hasher
from registry.errors import DigestMismatch
from registry.store import paths
from registry.store.blobs import BlobStore
from registry.store.driver import Appender
from registry.store.repositories import Repositories

# Takes bytes, and whether they are the last.
Sink = Callable[[memoryview, bool], None]

_SESSIONS_REMEMBERED = 4096


class UploadUnknown(LookupError):
    """No such upload in this repository."""


class UploadBusy(Exception):
    """Another request is writing to this upload right now."""


@dataclass(slots=True)
class _Session:
    """What this process knows of an upload: how far it hashed, and who writes."""

    offset: int
    hasher: Hasher
    algorithm: str
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Uploads:
    """Begins, continues, finishes, cancels and purges uploads."""

    def __init__(self, blobs: BlobStore, repositories: Repositories, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._blobs = blobs
        self._repositories = repositories
        self._driver = blobs.driver
        self._sessions: OrderedDict[tuple[str, str], _Session] = OrderedDict()

    async def start(self, repository: str, algorithm: str = "sha256") -> str:
        """Begin an upload; its id."""
        hasher = new_hasher(algorithm)
        upload_id = str(uuid.uuid4())
        started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode()
        await self._driver.write_new(paths.upload_started(repository, upload_id), started)
        self._remember(repository, upload_id, _Session(0, hasher, algorithm))
        return upload_id

    async def offset(self, repository: str, upload_id: str) -> int:
        """How many bytes have arrived; `UploadUnknown` when there is no such upload."""
        started_path, data_path = paths.upload_started(repository, upload_id), paths.upload_data(repository, upload_id)
        mark = self._driver.fingerprint(data_path)
        if mark is not None and self._driver.fingerprint(started_path) is not None:
            return mark[2]  # as for nearly every PUT: without a visit to a thread
        started, data = await self._driver.stat_all([started_path, data_path])
        if started is None:
            self._sessions.pop((repository, upload_id), None)
            raise UploadUnknown(upload_id)
        return data.size if data is not None else 0

    @asynccontextmanager
    async def held(self, repository: str, upload_id: str, to_append: bool = True) -> AsyncIterator[Upload]:
        """The upload, ours alone while the body runs; what was appended stays, whatever happens."""
        session = self._sessions.get((repository, upload_id))
        if session is None:
            session = self._session(repository, upload_id, await self.offset(repository, upload_id))
        if session.lock.locked():
            # A client that lost its connection and came back at once: its first request is still being wound up.
            try:
                await asyncio.wait_for(session.lock.acquire(), 5.0)
            except TimeoutError as error:
                raise UploadBusy(upload_id) from error
            session.lock.release()
        async with session.lock:
            appender = await self._open(repository, upload_id) if to_append else None
            offset = appender.size if appender is not None else await self.offset(repository, upload_id)
            if session.offset != offset:
                session = self._fresh(repository, upload_id, offset, session)
            upload = Upload(repository, upload_id, session, offset, appender)
            try:
                yield upload
            finally:
                await upload.close()

    async def commit(self, upload: Upload, expected: Digest) -> Digest:
        """Make the upload's bytes a blob of its repository. On `DigestMismatch` the upload is gone."""
        leases = self._repositories.leases
        async with leases.hold(expected):
            await upload.close()
            actual = await self._digest(upload, expected)
            if actual != expected:
                await self.forget(upload.repository, upload.upload_id)
                raise DigestMismatch(expected, actual)
            await self._place(upload, expected)
        return expected

    async def _place(self, upload: Upload, digest: Digest) -> None:
        """Bytes and link together: nobody needs the one without the other. Of the upload nothing is left."""
        if upload.offset:
            await self._repositories.publish_blob(upload.repository, digest, upload.upload_id)
            self._sessions.pop((upload.repository, upload.upload_id), None)
        else:
            await self._driver.write(paths.blob_data(digest), b"")
            await self._repositories.link_blob(upload.repository, digest)
            await self.forget(upload.repository, upload.upload_id)

    async def _digest(self, upload: Upload, expected: Digest) -> Digest:
        session = upload.session
        if session.offset == upload.offset and session.algorithm == expected.algorithm:
            return Digest.of_hasher(session.hasher, session.algorithm)
        if upload.offset == 0:
            return EMPTY_SHA256 if expected.algorithm == "sha256" else Digest.of(b"", expected.algorithm)
        hasher = new_hasher(expected.algorithm)
        data_path = paths.upload_data(upload.repository, upload.upload_id)
        await self._driver.hash_into(data_path, hasher)
        return Digest.of_hasher(hasher, expected.algorithm)

    async def cancel(self, repository: str, upload_id: str) -> None:
        """End an upload and free its space; `UploadUnknown` when there is none."""
        await self.offset(repository, upload_id)
        await self.forget(repository, upload_id)

    async def forget(self, repository: str, upload_id: str) -> None:
        """Remove everything of an upload."""
        self._sessions.pop((repository, upload_id), None)
        await self._driver.remove_folder(*paths.upload(repository, upload_id))

    async def purge(self, older_than_seconds: float, *, dry_run: bool = False) -> list[str]:
        """Remove uploads begun longer ago; `repository/uuid` of each."""
        limit = self._clock() - older_than_seconds
        purged: list[str] = []
        for repository in await self._driver.find_folders(paths.REPOSITORIES, "_uploads"):
            for upload_id in await self._driver.names(paths.uploads(repository)):
                started = await self._started(repository, upload_id)
                if started is None or started >= limit:
                    continue
                purged.append(f"{repository}/{upload_id}")
                if not dry_run:
                    await self.forget(repository, upload_id)
        return purged

    async def _started(self, repository: str, upload_id: str) -> float | None:
        """When an upload began. Where a crash has left nothing that says so, when it was last changed: nobody can go on
        with such a one, but it may be about to begin."""
        started = paths.upload_started(repository, upload_id)
        try:
            text = (await self._driver.read(started)).decode()
            return datetime.fromisoformat(text.strip().replace("Z", "+00:00")).timestamp()
        except (FileNotFoundError, ValueError):
            folder, data = paths.upload_folder(repository, upload_id), paths.upload_data(repository, upload_id)
            changed = await self._driver.stat_all([folder, started, data])
            return max((stat.modified for stat in changed if stat is not None), default=None)
        except OSError:
            return None

    def _session(self, repository: str, upload_id: str, offset: int) -> _Session:
        session = self._sessions.get((repository, upload_id))
        if session is None:
            # Hashed nothing yet: right for an empty file, and told apart from a longer one by its offset.
            session = _Session(0 if offset == 0 else -1, new_hasher(), "sha256")
            self._remember(repository, upload_id, session)
        return session

    def _fresh(self, repository: str, upload_id: str, offset: int, old: _Session) -> _Session:
        session = _Session(0 if offset == 0 else -1, new_hasher(old.algorithm), old.algorithm, old.lock)
        self._remember(repository, upload_id, session)
        return session

    def _remember(self, repository: str, upload_id: str, session: _Session) -> None:
        self._sessions[(repository, upload_id)] = session
        self._sessions.move_to_end((repository, upload_id))
        while len(self._sessions) > _SESSIONS_REMEMBERED:
            self._sessions.popitem(last=False)

    async def _open(self, repository: str, upload_id: str) -> Appender:
        started = paths.upload_started(repository, upload_id)
        try:
            return await self._driver.append(paths.upload_data(repository, upload_id), beside=started)
        except BlockingIOError as error:
            raise UploadBusy(upload_id) from error
        except FileNotFoundError as error:
            self._sessions.pop((repository, upload_id), None)
            raise UploadUnknown(upload_id) from error


class Upload:
    """One upload, held by one request; one that only finishes it has no `appender`."""

    __slots__ = ("_appender", "offset", "repository", "session", "upload_id")

    def __init__(
        self, repository: str, upload_id: str, session: _Session, offset: int, appender: Appender | None
    ) -> None:
        self._appender = appender
        self.repository = repository
        self.upload_id = upload_id
        self.session = session
        self.offset = offset

    async def write(self, chunks: Sequence[bytes | memoryview]) -> None:
        """Append; bytes and running hash advance together."""
        appender = self._appender
        assert appender is not None
        with self._advancing(appender) as hasher:
            await appender.write(chunks, hasher)

    @property
    def sink(self) -> Sink | None:
        """What appends as `write` does, for a thread whose end the upload's task waits for, and closes when it is told
        that nothing follows; None where only the loop can write."""
        appender = self._appender
        threaded = appender.threaded if appender is not None else None
        if appender is None or threaded is None:
            return None

        def append_sync(view: memoryview, is_last: bool) -> None:
            with self._advancing(appender) as hasher:
                threaded.write_sync([view], hasher)
            if is_last:
                self._appender = None
                threaded.close_sync()

        return append_sync

    @contextmanager
    def _advancing(self, appender: Appender) -> Iterator[Hasher | None]:
        """Around a write: what has to take the same bytes, as long as it has taken all that came before."""
        session = self.session
        hasher = session.hasher if session.offset == self.offset else None
        # Should this write fail half-way, the hash no longer matches the file: say so until it is known to have worked.
        session.offset = -1
        yield hasher
        self.offset = appender.size
        if hasher is not None:
            session.offset = self.offset

    async def close(self) -> None:
        """Let go of the file."""
        appender, self._appender = self._appender, None
        if appender is not None:
            await appender.close()
