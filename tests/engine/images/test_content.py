"""What is held, what goes, and what a killed daemon left behind."""

from __future__ import annotations

import pytest

from engine.errors import SystemFailure
from engine.snapshots.base import LayerKey
from registry.digest import Digest

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
        await shop.content.packed(image.diff_ids[0])


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
