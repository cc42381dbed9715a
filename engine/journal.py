"""The journal: what clients were told of, kept in one SQLite database (WAL) under the data root.

Documents by kind and key; the only module that knows SQL. One writer thread owns the connection; writes that arrive
while it works are committed together. ``await put`` returns when the document survives a kill of the daemon; with
``durable=True`` also when it survives a loss of power (the write-ahead log is synced). All else does so a tenth of a
second later.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
SYNC_SECONDS = 0.1

_SCHEMA = """
CREATE TABLE document (kind TEXT NOT NULL, key TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (kind, key)) WITHOUT
ROWID;
"""


@dataclass(frozen=True, slots=True)
class Put:
    """Write or replace one document."""

    kind: str
    key: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove one document; absent is fine."""

    kind: str
    key: str


Change = Put | Delete


@dataclass(slots=True)
class _Job:
    changes: Sequence[Change]
    durable: bool
    done: asyncio.Future[None]


class JournalClosed(RuntimeError):
    """A write after ``aclose``."""


class Journal:
    """Open it, ``load`` what was, then ``put`` and ``delete`` from the event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._database: sqlite3.Connection | None = None
        self._closing = False
        self._sync_at: float | None = None  # by when (time.monotonic) the log is to be synced

    def open_sync(self, patience_seconds: float = 5.0) -> None:
        """Open or create the database; wait ``patience_seconds`` for another process to let go of it.

        Raises ``sqlite3.DatabaseError`` when it is not one of ours or stays locked.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self._path, patience_seconds, check_same_thread=False, isolation_level=None)
        try:
            _prepare(database, self._path)
        except sqlite3.Error:
            database.close()
            raise
        self._database = database
        self._closing = False

    def load(self, kind: str) -> dict[str, bytes]:
        """Every document of ``kind`` by key; for the start of the daemon, before the first write."""
        assert self._database is not None, "the journal is not open"
        rows = self._database.execute("SELECT key, body FROM document WHERE kind=? ORDER BY key", (kind,))
        return {key: bytes(body) for key, body in rows}

    async def put(self, kind: str, key: str, body: bytes, *, durable: bool = True) -> None:
        """Write one document."""
        await self.batch([Put(kind, key, body)], durable=durable)

    async def delete(self, kind: str, key: str, *, durable: bool = True) -> None:
        """Remove one document."""
        await self.batch([Delete(kind, key)], durable=durable)

    async def batch(self, changes: Sequence[Change], *, durable: bool = True) -> None:
        """Apply all changes in one transaction: all of them or none survive a crash."""
        loop = asyncio.get_running_loop()
        if self._database is None or self._closing:
            raise JournalClosed(f"journal {self._path} is not open")
        if self._thread is None:
            self._loop = loop
            self._thread = threading.Thread(target=self._write_forever, name="berth-journal", daemon=True)
            self._thread.start()
        done: asyncio.Future[None] = loop.create_future()
        self._jobs.put(_Job(changes, durable, done))
        # The transaction happens whether or not the caller is cancelled; do not let a cancelled caller hide its error.
        await asyncio.shield(done)

    async def aclose(self) -> None:
        """Finish what was asked for and close the database."""
        self._closing = True
        if self._thread is not None:
            self._jobs.put(None)
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)
            self._thread = None
        if self._database is not None:
            self._database.close()
            self._database = None

    def _write_forever(self) -> None:
        while True:
            try:
                jobs = [self._jobs.get(timeout=self._patience())]
            except queue.Empty:
                self._sync_sync()
                continue
            while True:
                try:
                    jobs.append(self._jobs.get_nowait())
                except queue.Empty:
                    break
            work = [job for job in jobs if job is not None]
            if work:
                self._commit_sync(work)
            if len(work) < len(jobs):
                return

    def _patience(self) -> float | None:
        return None if self._sync_at is None else max(self._sync_at - time.monotonic(), 0.0)

    def _sync_sync(self) -> None:
        """What was written without being waited for is safe from now on."""
        self._sync_at = None
        try:
            descriptor = os.open(f"{self._path}-wal", os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            log.error("the journal could not be synced: %s", error)

    def _commit_sync(self, jobs: list[_Job]) -> None:
        error: Exception | None = None
        try:
            self._transaction_sync(jobs, durable=any(job.durable for job in jobs))
        except (sqlite3.Error, ValueError) as caught:  # ValueError: a text that cannot be encoded
            if len(jobs) > 1:
                # One bad change must not take along those that happened to arrive with it.
                for job in jobs:
                    self._commit_sync([job])
                return
            error = caught
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(_settle, jobs, error)
        except RuntimeError:
            return  # the loop is gone: nobody is left to be told, the data is written

    def _transaction_sync(self, jobs: list[_Job], durable: bool) -> None:
        database = self._database
        assert database is not None
        database.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        database.execute("BEGIN IMMEDIATE")
        try:
            for job in jobs:
                for change in job.changes:
                    _apply(database, change)
            database.execute("COMMIT")
        except (sqlite3.Error, ValueError):
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
        if durable:
            self._sync_at = None
        elif self._sync_at is None:
            self._sync_at = time.monotonic() + SYNC_SECONDS


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=NORMAL")
    database.execute("PRAGMA locking_mode=EXCLUSIVE")
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version == 0:
        database.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version={SCHEMA_VERSION};COMMIT;")
    elif version != SCHEMA_VERSION:
        raise sqlite3.DatabaseError(f"{path} has schema {version}, this berth knows {SCHEMA_VERSION}")


def _apply(database: sqlite3.Connection, change: Change) -> None:
    match change:
        case Put(kind, key, body):
            database.execute("INSERT OR REPLACE INTO document VALUES (?, ?, ?)", (kind, key, body))
        case Delete(kind, key):
            database.execute("DELETE FROM document WHERE kind=? AND key=?", (kind, key))


def _settle(jobs: list[_Job], error: Exception | None) -> None:
    for job in jobs:
        if job.done.done():
            continue
        if error is None:
            job.done.set_result(None)
        else:
            job.done.set_exception(error)
