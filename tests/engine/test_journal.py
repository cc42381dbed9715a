"""What was written is there after a reopening; nothing else is."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from engine.journal import SCHEMA_VERSION, SYNC_SECONDS, Delete, Journal, JournalClosed, Put
from engine.tasks import run_blocking


@pytest_asyncio.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    made = Journal(tmp_path / "deep" / "journal.db")
    await run_blocking(made.open_sync)
    yield made
    await made.aclose()


async def reopened(journal: Journal) -> Journal:
    await journal.aclose()
    await run_blocking(journal.open_sync)
    return journal


async def test_documents_survive_by_kind_and_key(journal: Journal) -> None:
    await journal.put("container", "b", b"two")
    await journal.put("container", "a", b"one", durable=False)
    await journal.put("volume", "a", b"other")
    await journal.put("container", "b", b"new")
    await reopened(journal)
    assert list(journal.load("container").items()) == [("a", b"one"), ("b", b"new")]
    assert journal.load("volume") == {"a": b"other"}
    assert journal.load("image") == {}


async def test_deleted_documents_are_gone_and_absent_ones_are_fine(journal: Journal) -> None:
    await journal.put("container", "a", b"one")
    await journal.delete("container", "a")
    await journal.delete("container", "never")
    await reopened(journal)
    assert journal.load("container") == {}


async def test_a_batch_is_all_or_nothing(journal: Journal) -> None:
    await journal.put("container", "a", b"one")
    broken = [Delete("container", "a"), Put("container", "b", b"two"), Put("container", None, b"")]  # type: ignore[arg-type]
    with pytest.raises(sqlite3.IntegrityError):
        await journal.batch(broken)
    await journal.batch([Put("container", "c", b"three"), Put("volume", "v", b"four")])
    await reopened(journal)
    assert journal.load("container") == {"a": b"one", "c": b"three"}
    assert journal.load("volume") == {"v": b"four"}


async def test_a_bad_write_fails_alone(journal: Journal) -> None:
    """Writes that arrive together are committed together, but one that cannot be written must not take others along."""
    writes = [journal.put("container", f"k{number}", b"x") for number in range(20)]
    writes.insert(7, journal.put("container", "\ud800", b"no text"))
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert [n for n, r in enumerate(results) if r is not None] == [7]
    assert isinstance(results[7], UnicodeEncodeError)
    await journal.put("container", "after", b"y")
    await reopened(journal)
    assert len(journal.load("container")) == 21


async def test_a_cancelled_writer_is_written_all_the_same(journal: Journal) -> None:
    write = asyncio.ensure_future(journal.put("container", "a", b"one"))
    await asyncio.sleep(0)
    write.cancel()
    with pytest.raises(asyncio.CancelledError):
        await write
    await reopened(journal)
    assert journal.load("container") == {"a": b"one"}


async def test_closing_finishes_what_was_asked_for(journal: Journal) -> None:
    writes = [asyncio.ensure_future(journal.put("k", str(number), b"x")) for number in range(50)]
    await asyncio.sleep(0)
    await journal.aclose()
    await asyncio.gather(*writes)
    await run_blocking(journal.open_sync)
    assert len(journal.load("k")) == 50


async def test_writes_to_a_closed_journal_are_refused(journal: Journal) -> None:
    await journal.put("k", "a", b"x")
    closing = asyncio.ensure_future(journal.aclose())
    await asyncio.sleep(0)
    with pytest.raises(JournalClosed):
        await asyncio.wait_for(journal.put("k", "late", b"x"), 5)
    await closing
    with pytest.raises(JournalClosed):
        await journal.put("k", "later", b"x")
    await run_blocking(journal.open_sync)
    await journal.put("k", "again", b"x")
    assert journal.load("k") == {"a": b"x", "again": b"x"}


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    def newer() -> None:
        with sqlite3.connect(tmp_path / "j") as database:
            database.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
        database.close()

    await run_blocking(newer)
    with pytest.raises(sqlite3.DatabaseError, match=f"has schema {SCHEMA_VERSION + 1}"):
        await run_blocking(Journal(tmp_path / "j").open_sync)


async def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b"not a database, but long enough to be looked at" * 50)
    with pytest.raises(sqlite3.DatabaseError):
        await run_blocking(Journal(tmp_path / "j").open_sync)


async def test_two_daemons_cannot_share_one(journal: Journal, tmp_path: Path) -> None:
    await journal.put("k", "a", b"x")
    other = Journal(tmp_path / "deep" / "journal.db")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        await run_blocking(other.open_sync, 0.0)


async def test_what_nobody_waits_for_is_on_disk_soon(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    for number in range(3):
        await journal.put("container", str(number), b"one", durable=False)
    assert not synced
    async with asyncio.timeout(5):
        while not synced:
            await asyncio.sleep(0.01)
    await journal.put("container", "a", b"two", durable=False)
    await journal.put("container", "b", b"three")  # has the one before with it
    await asyncio.sleep(3 * SYNC_SECONDS)
    assert [Path(name).suffix for name in synced] == [".db-wal"]
