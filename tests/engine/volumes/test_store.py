"""Volumes in the journal."""

from __future__ import annotations

from pathlib import Path

from engine.journal import Journal
from engine.tasks import run_blocking
from engine.volumes.model import Volume
from engine.volumes.store import VolumeStore


async def test_what_was_put_is_there_after_a_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    await run_blocking(journal.open_sync)
    store = VolumeStore(journal)
    kept = Volume(name="kept", created_at=5, labels={"a": "b"}, options={}, mountpoint="/x")
    await store.put(Volume(name="zz", created_at=1))
    await store.put(kept)
    await store.put(Volume(name="gone", created_at=1))
    await store.delete("gone")
    await store.delete("never")
    assert [v.name for v in store] == ["kept", "zz"]
    assert len(store) == 2
    await journal.aclose()
    await run_blocking(journal.open_sync)
    again = VolumeStore(journal)
    await run_blocking(again.load)
    assert again.get("kept") == kept
    assert again.get("gone") is None
    await journal.aclose()
