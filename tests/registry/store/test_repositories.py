import asyncio
import os
from typing import Any

import pytest

from registry.digest import Digest, InvalidDigest
from registry.errors import BlobsMissing, DigestMismatch, ManifestInvalid, ManifestUnknown
from registry.manifest import (
    DOCKER_LAYER_FOREIGN,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    ImageManifest,
    Index,
    encode,
)
from registry.store import paths

from .conftest import Store, open_store


async def test_a_manifest_is_served_by_tag_and_digest_unchanged(store: Store) -> None:
    digest = await store.image("a/b", "v1")
    for reference in ("v1", str(digest)):
        stored = await store.repositories.manifest("a/b", reference)
        assert (stored.digest, stored.media_type) == (digest, OCI_MANIFEST)
        assert Digest.of(stored.data) == digest
        assert store.repositories.hot_manifest("a/b", reference) == stored
    assert await store.repositories.tags("a/b") == ["v1"]
    assert await store.repositories.revisions("a/b") == [digest]


async def test_nothing_is_seen_through_another_repository(store: Store) -> None:
    digest = await store.image("mine", "v1")
    blob = await store.blob("mine", b"secret")
    with pytest.raises(ManifestUnknown):
        await store.repositories.manifest("theirs", str(digest))
    assert await store.repositories.blob("theirs", blob) is None
    assert store.repositories.hot_blob("theirs", blob) is None
    assert await store.repositories.mount("nowhere", "theirs", blob) is None


async def test_mounting_links_without_copying(store: Store) -> None:
    blob = await store.blob("a", b"shared")
    assert await store.repositories.mount("a", "b", blob) == (blob, 6)
    assert await store.repositories.blob("b", blob) == (blob, 6)


async def test_changes_of_another_process_are_seen_at_once(store: Store) -> None:
    first = await store.image("r", "latest", b"one")
    assert (await store.repositories.manifest("r", "latest")).digest == first
    assert await store.repositories.tags("r") == ["latest"]
    other = open_store(store.root)
    second = await other.image("r", "latest", b"two")
    await other.image("r", "new", b"three")
    assert store.repositories.hot_manifest("r", "latest") is None
    assert (await store.repositories.manifest("r", "latest")).digest == second
    assert await store.repositories.tags("r") == ["latest", "new"]
    await other.repositories.delete_manifest("r", second)
    assert store.repositories.hot_manifest("r", str(second)) is None
    blob = await store.blob("r", b"x")
    assert store.repositories.hot_blob("r", blob) or await store.repositories.blob("r", blob)
    await other.repositories.unlink_blob("r", blob)
    assert store.repositories.hot_blob("r", blob) is None


async def test_a_manifest_needs_its_blobs(store: Store) -> None:
    document = ImageManifest(
        config=Descriptor(digest=str(Digest.of(b"c")), size=1),
        layers=[Descriptor(digest=str(Digest.of(b"l")), size=1), Descriptor(digest=str(Digest.of(b"f")), urls=["u"])],
    )
    with pytest.raises(BlobsMissing) as caught:
        await store.repositories.put_manifest("r", "v1", encode(document))
    assert caught.value.digests == [str(Digest.of(b"c")), str(Digest.of(b"l"))]
    assert await store.repositories.tags("r") is None


async def test_a_sparse_index_is_a_matter_of_policy(store: Store) -> None:
    document = encode(Index(media_type=OCI_INDEX, manifests=[Descriptor(digest=str(Digest.of(b"x")), size=1)]))
    assert await store.repositories.put_manifest("r", "v1", document)
    with pytest.raises(BlobsMissing):
        await store.repositories.put_manifest("r", "v2", document, sparse_index=False)


async def test_an_index_of_layers_is_not_sparse(store: Store) -> None:
    """BuildKit's caches are such; registry:2 takes them."""
    layer = await store.blob("r", b"layer")
    entries = [Descriptor(media_type=OCI_LAYER_GZIP, digest=str(layer), size=5)]
    document = Index(media_type=OCI_INDEX, manifests=entries)
    assert await store.repositories.put_manifest("r", "v1", encode(document), sparse_index=False)
    entries.append(Descriptor(media_type=OCI_LAYER_GZIP, digest=str(Digest.of(b"x")), size=1))
    with pytest.raises(BlobsMissing) as caught:
        await store.repositories.put_manifest("r", "v2", encode(document), sparse_index=False)
    assert caught.value.digests == [str(Digest.of(b"x"))]


async def test_a_foreign_layer_may_be_missing_where_it_says_what_to_ask_instead(store: Store) -> None:
    config = await store.blob("r", b"{}")
    layer = Descriptor(media_type=DOCKER_LAYER_FOREIGN, digest=str(Digest.of(b"f")), size=1, urls=["https://x/f"])
    document = ImageManifest(config=Descriptor(digest=str(config), size=2), layers=[layer])
    assert await store.repositories.put_manifest("r", "v1", encode(document))
    layer.urls = None
    with pytest.raises(BlobsMissing):
        await store.repositories.put_manifest("r", "v2", encode(document))


async def test_bytes_must_match_their_digest(store: Store) -> None:
    await store.image("r", "v1")
    data = (await store.repositories.manifest("r", "v1")).data
    with pytest.raises(DigestMismatch):
        await store.repositories.put_manifest("r", str(Digest.of(b"other")), data)
    sha512 = Digest.of(data, "sha512")
    assert await store.repositories.put_manifest("r", str(sha512), data) == sha512
    assert (await store.repositories.manifest("r", str(sha512))).data == data
    with pytest.raises(InvalidDigest):
        await store.repositories.manifest("r", "sha256:short")
    with pytest.raises(ManifestInvalid):
        await store.repositories.put_manifest("r", "v1", b"{}")


async def test_deleting_a_manifest_drops_its_tags_only(store: Store) -> None:
    digest = await store.image("r", "one")
    data = (await store.repositories.manifest("r", "one")).data
    await store.repositories.put_manifest("r", "two", data)
    other = await store.image("r", "three", b"else")
    assert await store.repositories.delete_manifest("r", digest) == ["one", "two"]
    assert await store.repositories.tags("r") == ["three"]
    assert await store.repositories.resolve("r", "three") == other
    with pytest.raises(ManifestUnknown):
        await store.repositories.delete_manifest("r", digest)
    await store.repositories.delete_tag("r", "three")
    assert (await store.repositories.manifest("r", str(other))).digest == other
    assert await store.repositories.tags("r") == []


async def test_what_was_deleted_stays_away_after_a_power_loss(store: Store, synced: list[str]) -> None:
    digest = await store.image("r", "one")
    for tag in ("two", "three"):
        await store.repositories.put_manifest("r", tag, await store.blobs.read(digest))
    blob = await store.blob("r", b"blob")
    synced.clear()
    await store.repositories.delete_tag("r", "three")
    assert synced == ["tags"]
    await store.repositories.delete_manifest("r", digest)
    assert synced == ["tags", "tags", digest.encoded], "the tags before the revision"
    await store.repositories.unlink_blob("r", blob)
    assert synced == ["tags", "tags", digest.encoded, blob.encoded]
    upload_id = await store.uploads.start("r")
    await store.uploads.cancel("r", upload_id)
    assert len(synced) == 4, "an upload may be there again, and is purged then"


@pytest.mark.parametrize("dies_at", ["the first tag", "the second tag", "the revision"])
async def test_a_deletion_that_was_cut_off_can_be_gone_on_with(
    store: Store, monkeypatch: pytest.MonkeyPatch, dies_at: str
) -> None:
    digest = await store.image("r", "one")
    await store.repositories.put_manifest("r", "two", await store.blobs.read(digest))
    driver = store.blobs.driver
    steps = {"the first tag": 0, "the second tag": 1, "the revision": 2}[dies_at]

    def mortal(remove: Any) -> Any:
        async def instead(*arguments: Any, **more: Any) -> bool:
            nonlocal steps
            if steps == 0:
                raise OSError("killed")
            steps -= 1
            return bool(await remove(*arguments, **more))

        return instead

    with monkeypatch.context() as dying:
        for name in ("remove", "remove_tree"):
            dying.setattr(driver, name, mortal(getattr(driver, name)))
        with pytest.raises(OSError, match="killed"):
            await store.repositories.delete_manifest("r", digest)
    await store.repositories.delete_manifest("r", digest)
    assert await store.repositories.tags("r") == [] == await store.repositories.revisions("r")


async def test_a_tag_without_its_revision_can_be_deleted(store: Store) -> None:
    """An earlier version removed the revision first."""
    digest = await store.image("r", "v1")
    (store.root / paths.revision_link("r", digest)).unlink()
    assert await store.repositories.delete_manifest("r", digest) == ["v1"]
    with pytest.raises(ManifestUnknown):
        await store.repositories.delete_manifest("r", digest)


async def test_a_tag_that_is_pushed_during_the_deletion_keeps_no_manifest_that_is_gone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await store.image("r", "one")
    data = await store.blobs.read(digest)
    remove = store.blobs.driver.remove

    async def push_before(path: str, durable: bool = False) -> bool:
        await store.repositories.put_manifest("r", "two", data)
        return await remove(path, durable)

    monkeypatch.setattr(store.blobs.driver, "remove", push_before)
    assert await store.repositories.delete_manifest("r", digest) == ["one", "two"]
    assert await store.repositories.tags("r") == []


async def test_what_names_nothing_yet_is_no_tag(store: Store) -> None:
    await store.image("r", "v1")
    folder = store.root / paths.tags("r")
    link = folder / "v2" / "current" / "link"
    link.parent.mkdir(parents=True)
    link.with_name("link.1.tmp").write_bytes(b"")
    for _ in range(2):
        assert await store.repositories.tags("r") == ["v1"]
    link.with_name("link.1.tmp").rename(link)  # which the folder of the tags does not show
    assert await store.repositories.tags("r") == ["v1", "v2"]
    for number in range(40):
        (folder / f"cut-off-{number}").mkdir()
    assert await store.repositories.tags("r") == ["v1", "v2"]
    (folder / "cut-off-1" / "current").mkdir()
    (folder / "cut-off-1" / "current" / "link").write_bytes(b"")
    assert await store.repositories.tags("r") == ["cut-off-1", "v1", "v2"]


async def test_the_list_of_tags_is_kept_although_a_push_was_cut_off(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.image("r", "v1")
    (store.root / paths.tags("r") / "cut-off").mkdir()
    tags = await store.repositories.tags("r")
    monkeypatch.setattr(store.blobs.driver, "split_names", None)
    assert await store.repositories.tags("r") is tags


async def test_a_list_of_tags_is_read_once_for_all_who_ask_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.image("r", "v1")
    split_names, reads = store.blobs.driver.split_names, 0

    async def counted(path: str, holding: str) -> tuple[list[str], list[str]]:
        nonlocal reads
        reads += 1
        found = await split_names(path, holding)
        if reads == 2:
            await store.image("r", "v2", b"pushed when the list had been read")
        return found

    monkeypatch.setattr(store.blobs.driver, "split_names", counted)
    assert await asyncio.gather(*(store.repositories.tags("r") for _ in range(5))) == [["v1"]] * 5 and reads == 1
    await store.image("r", "v0", b"else")
    first = asyncio.ensure_future(store.repositories.tags("r"))
    await asyncio.sleep(0)
    later = await asyncio.gather(*(store.repositories.tags("r") for _ in range(2)))
    assert (await first, later) == (["v0", "v1"], [["v0", "v1", "v2"]] * 2)
    assert not store.repositories._readings


@pytest.mark.parametrize("content", [b"", b"sha256:short", b"sha256:" + b"a" * 64 + b"\n"])
async def test_broken_links_are_none(store: Store, content: bytes) -> None:
    """registry:2 leaves empty ones after a crash: what they stood for can be pushed again."""
    digest = await store.image("r", "v1")
    blob = await store.blob("r", b"blob")
    for path in (paths.tag_current("r", "v1"), paths.revision_link("r", digest), paths.layer_link("r", blob)):
        (store.root / path).unlink()
        (store.root / path).write_bytes(content)
    for reference in ("v1", str(digest)):
        with pytest.raises(ManifestUnknown):
            await store.repositories.manifest("r", reference)
    assert await store.repositories.blob("r", blob) is None
    await store.blob("r", b"blob")
    await store.image("r", "v1")
    assert await store.repositories.blob("r", blob) == (blob, 4)
    for reference in ("v1", str(digest)):
        assert (await store.repositories.manifest("r", reference)).digest == digest


async def test_repositories_are_ordered_as_registry2_orders_them(store: Store) -> None:
    for name in ("a-b", "a/b", "a", "b"):
        await store.image(name, "x")
    await store.blob("only-blobs", b"1")
    assert await store.repositories.names() == ["a", "a/b", "a-b", "b"]
    assert await store.repositories.delete_repository("a")
    assert await store.repositories.names() == ["a/b", "a-b", "b"]
    assert not await store.repositories.delete_repository("a")


async def test_an_old_blob_somebody_asks_for_is_young_again(store: Store) -> None:
    blob = await store.blob("r", b"old")
    await store.repositories.blob("r", blob)
    path: Any = store.blobs.local_path(blob)
    os.utime(path, (1, 1))
    assert store.repositories.hot_blob("r", blob) is None
    assert await store.repositories.blob("r", blob) == (blob, 3)
    assert path.stat().st_mtime > 1000
    assert store.repositories.hot_blob("r", blob) == (blob, 3)
