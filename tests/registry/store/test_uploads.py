import os

import pytest

from registry.digest import Digest
from registry.errors import DigestMismatch
from registry.store import filesystem, placing
from registry.store.uploads import UploadBusy, UploadUnknown

from .conftest import Store, open_store


async def test_chunks_become_a_blob(store: Store) -> None:
    data = os.urandom(700_000)
    upload_id = await store.uploads.start("a/b")
    for start in (0, 300_000):
        async with store.uploads.held("a/b", upload_id) as upload:
            assert upload.offset == start
            await upload.write([data[start : start + 400_000 if start else 300_000]])
    async with store.uploads.held("a/b", upload_id) as upload:
        digest = await store.uploads.commit(upload, Digest.of(data))
    assert await store.blobs.read(digest) == data
    assert await store.repositories.blob("a/b", digest) == (digest, len(data))
    with pytest.raises(UploadUnknown):
        await store.uploads.offset("a/b", upload_id)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_another_process_can_go_on(store: Store, algorithm: str) -> None:
    upload_id = await store.uploads.start("r", algorithm)
    async with store.uploads.held("r", upload_id) as upload:
        await upload.write([b"first "])
    later = open_store(store.root)
    async with later.uploads.held("r", upload_id) as upload:
        assert upload.offset == 6
        await upload.write([b"second"])
        digest = await later.uploads.commit(upload, Digest.of(b"first second", algorithm))
    assert digest.algorithm == algorithm and await later.blobs.read(digest) == b"first second"


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_an_empty_blob_is_a_blob(store: Store, algorithm: str) -> None:
    upload_id = await store.uploads.start("r")
    async with store.uploads.held("r", upload_id) as upload:
        digest = await store.uploads.commit(upload, Digest.of(b"", algorithm))
    assert await store.blobs.stat(digest) == 0


async def test_a_wrong_digest_ends_the_upload_and_stores_nothing(store: Store) -> None:
    upload_id = await store.uploads.start("r")
    async with store.uploads.held("r", upload_id) as upload:
        await upload.write([b"content"])
        with pytest.raises(DigestMismatch):
            await store.uploads.commit(upload, Digest.of(b"other"))
    assert [digest async for digest in store.blobs.digests()] == []
    with pytest.raises(UploadUnknown):
        await store.uploads.cancel("r", upload_id)


async def test_uploads_belong_to_their_repository(store: Store) -> None:
    upload_id = await store.uploads.start("mine")
    with pytest.raises(UploadUnknown):
        await store.uploads.offset("theirs", upload_id)


async def test_two_processes_do_not_mix_their_bytes(store: Store) -> None:
    upload_id = await store.uploads.start("r")
    other = open_store(store.root)
    async with store.uploads.held("r", upload_id) as upload:
        await upload.write([b"mine"])
        with pytest.raises(UploadBusy):
            async with other.uploads.held("r", upload_id):
                raise AssertionError("two have it")
    assert await store.uploads.offset("r", upload_id) == 4


async def test_old_uploads_are_purged(store: Store) -> None:
    old, young = [await store.uploads.start("r") for _ in range(2)]
    folder = store.root / "docker/registry/v2/repositories/r/_uploads"
    (folder / old / "startedat").write_text("2020-01-01T00:00:00Z")
    assert await store.uploads.purge(3600, dry_run=True) == [f"r/{old}"]
    assert await store.uploads.purge(3600) == [f"r/{old}"]
    assert [path.name for path in folder.iterdir()] == [young]


@pytest.mark.parametrize("start", [b"", b"\0" * 20, None])
async def test_uploads_whose_start_was_lost_go_by_their_last_change(store: Store, start: bytes | None) -> None:
    """registry:2 writes it first: what has none may be about to begin, or has lost it in a crash."""
    old, young, growing = [await store.uploads.start("r") for _ in range(3)]
    folder = store.root / "docker/registry/v2/repositories/r/_uploads"
    for upload_id in (old, young, growing):
        started, data = folder / upload_id / "startedat", folder / upload_id / "data"
        data.write_bytes(b"x")
        if start is None:
            started.unlink()
        else:
            started.write_bytes(start)
        for path in (*(folder / upload_id).iterdir(), folder / upload_id) if upload_id != young else ():
            os.utime(path, (1000, 1000))
    os.utime(folder / growing / "data")
    assert await store.uploads.purge(3600) == [f"r/{old}"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([young, growing])


@pytest.mark.parametrize("size", [3000, 300_000])
async def test_a_blob_is_safe_when_its_push_is_answered(
    store: Store, synced: list[str], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(placing, "_has_one_journal", lambda device: True)
    data = os.urandom(size)
    digest = Digest.of(data)
    upload_id = await store.uploads.start("a")
    async with store.uploads.held("a", upload_id) as upload:
        await upload.write([data])
    async with store.uploads.held("a", upload_id) as upload:
        await store.uploads.commit(upload, digest)
    assert synced == ["data", "link", digest.encoded]
    synced.clear()
    async with await store.blobs.writer() as writer:
        await writer.write(data[1:])
        other = await writer.commit()
    assert len(synced) == 2 and synced[1] == other.encoded


async def test_a_sync_that_takes_long_is_not_waited_for_by_others(
    store: Store, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "LONG_SYNC_BYTES", 3)
    async with await store.blobs.writer() as writer:
        await writer.write(b"long")
        synced.append("apart")
        digest = await writer.commit()
    name = synced[1]
    assert synced[:3] == ["apart", name, name] and await store.blobs.stat(digest) == 4


async def test_what_is_pushed_again_takes_the_place_of_what_is_there(store: Store) -> None:
    digest = await store.blob("a", b"whole")
    path = store.blobs.local_path(digest)
    path.write_bytes(b"wrong")  # a disk that lost bytes: of the right size
    upload_id = await store.uploads.start("a")
    async with store.uploads.held("a", upload_id) as upload:
        await upload.write([b"whole"])
    uploaded = store.root / "docker/registry/v2/repositories/a/_uploads" / upload_id / "data"
    os.utime(uploaded, (0, 0))  # begun long ago, and ended only now
    async with store.uploads.held("a", upload_id, to_append=False) as upload:
        await store.uploads.commit(upload, digest)
    assert path.read_bytes() == b"whole" and path.stat().st_mtime > 1_000_000_000
