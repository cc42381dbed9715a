import os
import time
from pathlib import Path

import pytest

from registry.digest import Digest
from registry.errors import BlobUnknown, DigestMismatch
from registry.store.blobs import BlobStore
from registry.store.filesystem import FilesystemDriver


def files_of(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(FilesystemDriver(tmp_path))


async def test_a_written_blob_has_its_true_name(blobs: BlobStore, tmp_path: Path) -> None:
    data = os.urandom(1_300_000)
    async with await blobs.writer() as writer:
        for start in range(0, len(data), 100_000):
            await writer.write(data[start : start + 100_000])
        assert writer.size == len(data)
        digest = await writer.commit(Digest.of(data))
    assert await blobs.stat(digest) == len(data)
    assert blobs.local_path(digest).read_bytes() == data
    assert b"".join([chunk async for chunk in blobs.open(digest, 10, 20)]) == data[10:30]
    assert files_of(tmp_path) == [blobs.local_path(digest)]


async def test_a_wrong_digest_leaves_nothing(blobs: BlobStore, tmp_path: Path) -> None:
    writer = await blobs.writer()
    await writer.write(b"content")
    with pytest.raises(DigestMismatch) as caught:
        await writer.commit(Digest.of(b"other"))
    assert caught.value.actual == Digest.of(b"content")
    with pytest.raises(DigestMismatch):
        await blobs.put(b"content", Digest.of(b"other"))
    assert files_of(tmp_path) == []


async def test_an_abandoned_writer_leaves_nothing(blobs: BlobStore, tmp_path: Path) -> None:
    async with await blobs.writer() as writer:
        await writer.write(b"x" * 1_000_000)
    assert files_of(tmp_path) == []


async def test_the_same_content_twice_is_one_blob_and_young_again(blobs: BlobStore) -> None:
    digest = await blobs.put(b"same")
    os.utime(blobs.local_path(digest), (1, 1))
    async with await blobs.writer() as writer:
        await writer.write(b"same")
        assert await writer.commit() == digest
    assert blobs.local_path(digest).stat().st_mtime > 1000
    assert [found async for found in blobs.digests()] == [digest]


async def test_finished_files_are_adopted(blobs: BlobStore) -> None:
    for _ in range(2):
        file = blobs.temp_dir() / "mine"
        file.write_bytes(b"adopted")
        await blobs.adopt(file, Digest.of(b"adopted"))
        assert not file.exists()
    assert await blobs.read(Digest.of(b"adopted")) == b"adopted"


async def test_missing_blobs_are_unknown(blobs: BlobStore) -> None:
    missing = Digest.of(b"missing")
    assert await blobs.stat(missing) is None and not await blobs.delete(missing)
    with pytest.raises(BlobUnknown):
        await blobs.read(missing)
    with pytest.raises(BlobUnknown):
        [chunk async for chunk in blobs.open(missing)]


async def test_old_unfinished_files_are_cleared(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    old, young, folder = (blobs.temp_dir() / name for name in ("old", "young", "folder"))
    old.write_bytes(b"1")
    young.write_bytes(b"2")
    folder.mkdir()
    (folder / "file").write_bytes(b"3")
    monkeypatch.setattr(time, "time", lambda: young.stat().st_ctime + 7200)
    os.utime(young, (now := young.stat().st_ctime + 7000, now))
    assert await blobs.clear_temporary(3600) == 2
    assert list(blobs.temp_dir().iterdir()) == [young]


async def test_what_was_moved_aside_a_moment_ago_is_not_cleared(blobs: BlobStore) -> None:
    """An old blob that an engine releases may be put back at once."""
    aside = blobs.temp_dir() / "release-1"
    digest = await blobs.put(b"old")
    os.utime(blobs.local_path(digest), (1, 1))
    blobs.local_path(digest).rename(aside)
    assert await blobs.clear_temporary(3600) == 0 and aside.exists()
