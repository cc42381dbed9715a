"""Giving blobs back: only what nobody needs, also while others load and remove the same content."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from engine.errors import EngineError
from engine.images import content
from engine.images.model import LayerBlob
from engine.tasks import run_to_end
from registry.digest import Digest
from registry.store import paths

from .conftest import Shop, config_of, tar_of
from .test_archive import docker_archive

LAYERS = [tar_of({f"f{index}": b"x" * index}) for index in range(4)]


async def test_only_unneeded_unlinked_unleased_blobs_go(shop: Shop) -> None:
    image = await shop.make("app", {"a": b"1"})
    linked, leased, free = [await shop.blobs.put(name) for name in (b"linked", b"leased", b"free")]
    await shop.repositories.link_blob("team/app", linked)
    shop.leases._until.clear()
    async with shop.leases.hold(leased):
        await shop.release([linked, leased, free, image.digest, Digest.of(b"never there")])
        assert await shop.digests() == {linked, leased, image.id, *image.diff_ids}
    assert not shop.blobs.local_path(free).parent.exists()


async def test_manifests_of_repositories_stay(shop: Shop) -> None:
    digest = await shop.blobs.put(b"manifest")
    link = paths.revision_link("team/app", digest)
    await shop.repositories.blobs.driver.write(link, digest.encode())
    (shop.root / "registry" / paths.layers("team/app")).mkdir(parents=True, exist_ok=True)
    await shop.release([digest])
    assert digest in await shop.digests()


async def test_who_comes_while_a_blob_is_removed_finds_nothing_of_it(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await shop.blobs.put(b"wanted again")
    begun, go_on = asyncio.Event(), asyncio.Event()
    remove = shop.blobs.delete

    async def slowly(condemned: Digest) -> bool:
        begun.set()
        await go_on.wait()
        return await remove(condemned)

    monkeypatch.setattr(shop.blobs, "delete", slowly)
    await shop.release([digest])
    await begun.wait()

    async def look() -> int | None:
        async with shop.leases.hold(digest):
            return await shop.blobs.stat(digest)

    looking = asyncio.create_task(look())
    await asyncio.sleep(0.01)
    assert not looking.done()
    go_on.set()
    assert await looking is None and await shop.digests() == set()


def interrupted_packing(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], Awaitable[object]]) -> None:
    """Let ``meanwhile`` happen when a layer is compressed, and not yet stored."""

    async def run(*arguments: Any) -> Any:
        found = await run_to_end(*arguments)
        await meanwhile()
        return found

    monkeypatch.setattr(content, "run_to_end", run)


async def test_an_image_that_goes_while_its_layer_is_packed_leaves_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = await shop.make("app", {"a": b"1"})
    interrupted_packing(monkeypatch, lambda: shop.remover.remove("app", force=True))
    async with shop.content.packed(image.diff_ids[0]) as form:
        assert form.digest in await shop.digests()
    assert await shop.digests() == set()


async def test_a_layer_that_is_packed_again_while_its_last_form_is_released_keeps_its_bytes(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = await shop.make("app", {"a": b"1"})
    async with shop.content.packed(image.diff_ids[0]) as form:
        kept = await shop.blobs.read(form.digest)
    await shop.remover.remove("app", force=True)
    await shop.make("app", {"a": b"1"})
    await shop.blobs.put(kept, form.digest)  # as if it was about to be released
    change = shop.store.set_forms

    async def released_before(diff_id: str, forms: Sequence[LayerBlob]) -> None:
        await shop.release([form.digest])
        await shop.release.settled()
        await change(diff_id, forms)

    monkeypatch.setattr(shop.store, "set_forms", released_before)
    async with shop.content.packed(image.diff_ids[0]):
        pass
    assert form.digest in await shop.digests()


async def test_loads_and_removals_at_once_leave_whole_images(shop: Shop) -> None:
    chooser = random.Random(7)
    archives = {}
    for number in range(4):
        layers = [LAYERS[number], LAYERS[(number + 1) % 4]]
        archives[f"app:{number}"] = docker_archive(config_of(*layers), layers, [f"app:{number}"])

    async def one(name: str) -> None:
        for _ in range(6):
            match chooser.randrange(4):
                case 0:
                    with contextlib.suppress(EngineError):
                        await shop.remover.remove(name, force=True)
                case 1:
                    image = shop.service.find(name)
                    if image is not None:
                        with contextlib.suppress(EngineError):
                            async with shop.content.packed(image.diff_ids[0]):
                                pass
                case _:
                    await shop.load(archives[name])

    await asyncio.gather(*(one(name) for name in archives for _ in range(2)))
    stored = await shop.digests()
    for image in shop.store.all():
        assert image.id in stored
        assert all(key in shop.layers.known for key in image.layers)
        assert all(any(form.digest in stored for form in shop.store.forms(diff_id)) for diff_id in image.diff_ids)
    assert set(shop.layers.known) == set(shop.store.layer_keys())
    for image in shop.store.all():
        await shop.remover.remove(image.id, force=True)
    assert await shop.digests() == set()
    assert not shop.layers.known
