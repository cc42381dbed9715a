"""What is held, what goes, and what a killed daemon left behind."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from engine.errors import SystemFailure
from engine.images.model import HistoryEntry, Image, ImageDocument, LayerBlob
from engine.images.store import ImageStore
from engine.snapshots.base import LayerKey
from registry.digest import Digest
from registry.manifest import OCI_LAYER_GZIP

from .conftest import Shop, config_of, tar_of


async def test_sweep_removes_leftovers_only(shop: Shop) -> None:
    image = await shop.make("app", {"a": b"1"})
    shop.layers.known[LayerKey("f" * 64)] = 7
    folder = shop.blobs.temp_dir()
    (folder / "load-1").mkdir()
    (folder / "load-1" / "0").write_bytes(b"x")
    (folder / "pack-2").write_bytes(b"x")
    (folder / "upload").write_bytes(b"x")
    await shop.content.sweep()
    assert [path.name for path in folder.iterdir()] == ["upload"]
    assert set(shop.layers.known) == set(image.layers)


async def test_what_is_held_stays_until_it_is_let_go(shop: Shop) -> None:
    image = await shop.make("app", {"a": b"1"})
    async with shop.content.hold(image.diff_ids, (image.digest, Digest.parse(image.diff_ids[0]))):
        await shop.remover.remove("app")
        assert set(shop.layers.known) == set(image.layers)
        assert image.id in await shop.digests()
    assert not shop.layers.known


async def test_a_failed_operation_leaves_no_blob(shop: Shop) -> None:
    digest = await shop.blobs.put(b"layer")
    with pytest.raises(RuntimeError):
        async with shop.content.hold((), (digest,)):
            raise RuntimeError
    assert await shop.digests() == set()
    digest = await shop.blobs.put(b"layer")
    with pytest.raises(RuntimeError):
        async with shop.content.hold((), (digest,), keep_blobs=True):
            raise RuntimeError
    assert await shop.digests() == {digest}


async def test_missing_content_is_named(shop: Shop) -> None:
    image = await shop.make("app", {"a": b"1"})
    await shop.blobs.delete(Digest.parse(image.diff_ids[0]))
    with pytest.raises(SystemFailure, match=f"the content of layer {image.diff_ids[0]} is not stored here"):
        async with shop.content.packed(image.diff_ids[0]):
            pass


async def test_lost_layers_come_back_from_their_blobs(shop: Shop) -> None:
    image = await shop.make("app", {"a": b"1"})
    shop.layers.known.clear()
    assert await shop.service.layers(image) == image.layers
    assert set(shop.layers.known) == set(image.layers)


async def test_a_document_that_asks_for_unknown_layers(shop: Shop) -> None:
    with pytest.raises(ValueError, match="no content for layer"):
        await shop.content.register(config_of(tar_of({"a": b"1"})), {}, ())


async def test_graph_data_names_the_folders(shop: Shop) -> None:
    image = await shop.make("app", {"a": b"1"})
    data = shop.content.graph_data(image)
    assert data is not None and data["UpperDir"] == f"/layers/{image.layers[0]}/fs" and "LowerDir" not in data


class Containers:
    """Containers that stand on these layers."""

    def __init__(self, *keys: str) -> None:
        self.keys = set(keys)

    def layers_in_use(self) -> set[str]:
        return self.keys


async def test_layers_below_a_container_outlive_their_image(shop: Shop) -> None:
    image = await shop.make("app", {"a": b"1"})
    users = shop.content.users = Containers(*image.layers)
    await shop.remover.remove("app", force=True)
    assert set(shop.layers.known) == set(image.layers)
    await shop.content.sweep()  # as a daemon that is started again does
    assert set(shop.layers.known) == set(image.layers)
    await shop.content.layers_let_go()
    assert set(shop.layers.known) == set(image.layers)
    users.keys.clear()
    await shop.content.layers_let_go()
    assert not shop.layers.known


async def test_blobs_of_a_removed_image_stay_until_the_layers_of_its_containers_are_on_disk(shop: Shop) -> None:
    image = await shop.make("app", {"a": b"1"})
    form = shop.content.store.forms(image.diff_ids[0])[0].digest
    shop.content.users = Containers(*image.layers)
    shop.layers.failure = OSError(5, "Input/output error")
    await shop.remover.remove("app", force=True)
    assert await shop.blobs.stat(form) is not None
    shop.layers.failure = None
    await shop.content.reclaim()
    await shop.release.settled()
    assert await shop.blobs.stat(form) is None and shop.layers.settled == 1


async def test_a_lost_layer_is_unpacked_again_for_who_stands_on_it(shop: Shop) -> None:
    image = await shop.make("app", {"a": b"1"})
    shop.layers.known.clear()
    await shop.content.mend(LayerKey("a" * 64))
    assert not shop.layers.known
    await shop.content.mend(image.layers[0])
    assert set(shop.layers.known) == set(image.layers)


async def test_layers_found_under_a_container_at_start_go_with_it(shop: Shop) -> None:
    shop.layers.known.update({LayerKey("a" * 64): 1, LayerKey("b" * 64): 1})
    users = shop.content.users = Containers("a" * 64)
    await shop.content.sweep()
    assert set(shop.layers.known) == {"a" * 64}
    users.keys.clear()
    await shop.content.layers_let_go()
    assert not shop.layers.known


async def committed(shop: Shop, parent: Image | None, files: dict[str, bytes]) -> Image:
    """What a commit makes."""
    data = tar_of(files)
    path = shop.blobs.temp_dir() / "commit-1"
    path.write_bytes(data)
    diff_id = "sha256:" + hashlib.sha256(data).hexdigest()
    document = ImageDocument(os="linux", architecture="amd64")
    size = sum(map(len, files.values()))
    return await shop.service.create_from_diff(parent, document, path, HistoryEntry(), diff_id, size)


async def test_a_commit_is_unpacked_behind_its_answer(shop: Shop) -> None:
    parent = await shop.make("app", {"a": b"1"})
    image = await committed(shop, parent, {"b": b"22"})
    assert shop.layers.unpacked == [parent.diff_ids[0]]
    assert image.layer_sizes == (1, 2)
    assert await shop.service.layers(image) == image.layers
    assert set(shop.layers.known) == set(image.layers)
    assert tuple(map(shop.layers.size, image.layers)) == image.layer_sizes
    again = await committed(shop, parent, {"b": b"22"})
    assert again.layers == image.layers


async def test_a_commit_that_is_removed_at_once_leaves_nothing(shop: Shop) -> None:
    image = await committed(shop, None, {"b": b"2"})
    await shop.remover.remove(image.id)
    while shop.nursery._tasks:
        await asyncio.wait(shop.nursery._tasks)
    assert not shop.layers.known and await shop.digests() == set()


async def test_a_commit_whose_unpacking_was_cut_short_is_healed(shop: Shop) -> None:
    image = await committed(shop, None, {"b": b"2"})
    await shop.nursery.aclose()  # the daemon ends before anything is unpacked
    assert not shop.layers.known
    restored = ImageStore(shop.journal)
    restored.restore()
    shop.content.store = restored
    await shop.content.sweep()
    assert await shop.content.layers(restored.all()[0]) == image.layers
    assert set(shop.layers.known) == set(image.layers)


async def test_a_stored_blob_is_not_a_layers_bytes_because_somebody_says_so(shop: Shop) -> None:
    """A registry names the layer of another image and a blob that is here: pushes of that image would send it."""
    image = await shop.make("app", {"a": b"1"})
    diff_id = image.diff_ids[0]
    blob = LayerBlob(await shop.blobs.put(b"foreign"), 7, OCI_LAYER_GZIP, ("evil/x",))
    (known,) = shop.store.forms(diff_id)
    assert await shop.content.present(diff_id, (), blob) == known
    assert await shop.content.present(diff_id, (), known) == known
    await shop.store.set_forms(diff_id, ())
    assert await shop.content.present(diff_id, (), blob) is None
    with pytest.raises(ValueError, match=f"layer is {blob.digest}, not {diff_id}"):
        await shop.content.unpack_one(diff_id, (), shop.blobs.local_path(blob.digest), claim=blob.digest)
