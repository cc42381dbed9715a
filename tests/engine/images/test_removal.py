"""`rmi` and prune: what goes, what stays, and the words of every refusal."""

from __future__ import annotations

import msgspec
import pytest

from engine.errors import Conflict, NotFound
from engine.filters import Filters
from engine.images.model import HistoryEntry, Image, ImageDocument
from engine.images.removal import PRUNE_FILTERS, Removed
from registry.digest import Digest
from registry.reference import Reference

from .conftest import Shop, tar_of


class Users:
    def __init__(self, image_id: str, *containers: tuple[str, bool]) -> None:
        self._image_id, self._containers = image_id, containers

    def containers_of(self, image_id: str) -> list[tuple[str, bool]]:
        return list(self._containers) if image_id == self._image_id else []


def prune(**values: str) -> Filters:
    return Filters.parse(msgspec.json.encode({k: [v] for k, v in values.items()}).decode(), PRUNE_FILTERS)


async def child_of(shop: Shop, parent: Image) -> Image:
    diff = shop.blobs.temp_dir() / "diff"
    diff.write_bytes(tar_of({"b": b"22"}))
    document = ImageDocument(os="linux", architecture="amd64")
    return await shop.service.create_from_diff(parent, document, diff, HistoryEntry())


async def test_the_last_name_takes_everything_along(shop: Shop) -> None:
    image = await shop.make("app", {"a": b"1"})
    await shop.service.tag(image, "other", "1")
    assert await shop.remover.remove("app") == [Removed(untagged="app:latest")]
    assert await shop.remover.remove("other:1") == [
        Removed(untagged="other:1"),
        Removed(deleted=image.id),
        Removed(deleted=image.diff_ids[0]),
    ]
    assert await shop.digests() == set()
    assert not shop.layers.known
    assert [action for action, _ in shop.actions()][-3:] == ["untag", "untag", "delete"]


async def test_a_digest_goes_with_the_last_tag_of_its_repository(shop: Shop) -> None:
    image = await shop.make("app", {"a": b"1"})
    digest = Digest.of(b"m")
    await shop.service.name(image, Reference.parse("app").with_digest(digest))
    records = await shop.remover.remove("app")
    assert [r.untagged for r in records if r.untagged] == ["app:latest", f"app@{digest}"]
    assert records[-1].deleted


async def test_several_names_need_force(shop: Shop) -> None:
    image = await shop.make("app", {"a": b"1"})
    await shop.service.tag(image, "other", "1")
    short = image.digest.encoded[:12]
    words = rf"conflict: unable to delete {short} \(must be forced\) - image is referenced in multiple repositories"
    with pytest.raises(Conflict, match=words):
        await shop.remover.remove(short)
    records = await shop.remover.remove(short, force=True)
    assert {r.untagged for r in records if r.untagged} == {"app:latest", "other:1"}


async def test_used_by_a_stopped_container(shop: Shop) -> None:
    image = await shop.make("app", {"a": b"1"})
    shop.service.users = Users(image.id, ("c" * 64, False))
    short = image.digest.encoded[:12]
    with pytest.raises(Conflict) as refusal:
        await shop.remover.remove("app")
    assert refusal.value.message == (
        f'conflict: unable to remove repository reference "app" (must force) - container {"c" * 12} '
        f"is using its referenced image {short}"
    )
    with pytest.raises(
        Conflict, match=rf"delete {short} \(must be forced\) - image is being used by stopped container c{{12}}"
    ):
        await shop.remover.remove(short)
    assert (await shop.remover.remove("app", force=True))[-1].deleted


async def test_used_by_a_running_container(shop: Shop) -> None:
    image = await shop.make("app", {"a": b"1"})
    shop.service.users = Users(image.id, ("c" * 64, True))
    words = r"\(cannot be forced\) - image is being used by running container c{12}"
    with pytest.raises(Conflict, match=words):
        await shop.remover.remove(image.id, force=True)
    assert await shop.remover.remove("app", force=True) == [Removed(untagged="app:latest")]
    assert shop.store.get(image.id) is not None


async def test_children_hold_their_parent_and_take_it_along(shop: Shop) -> None:
    parent = await shop.make("", {"a": b"1"})
    child = await child_of(shop, parent)
    with pytest.raises(Conflict, match=r"cannot be forced\) - image has dependent child images"):
        await shop.remover.remove(parent.id, force=True)
    deleted = [r.deleted for r in await shop.remover.remove(child.id)]
    assert child.id in deleted and parent.id in deleted


async def test_noprune_leaves_the_parent(shop: Shop) -> None:
    parent = await shop.make("", {"a": b"1"})
    child = await child_of(shop, parent)
    await shop.remover.remove(child.id, prune_parents=False)
    assert shop.store.get(parent.id) is not None
    assert set(shop.layers.known) == set(parent.layers)


async def test_unknown(shop: Shop) -> None:
    with pytest.raises(NotFound, match="No such image: app:latest"):
        await shop.remover.remove("app")


async def test_prune(shop: Shop) -> None:
    tagged = await shop.make("app", {"a": b"1"}, changes=["LABEL keep=1"])
    await shop.make("", {"b": b"22"})
    used = await shop.make("", {"c": b"333"})
    shop.service.users = Users(used.id, ("c" * 64, False))
    pruned = await shop.remover.prune(Filters())
    assert pruned.reclaimed == 2
    assert {image.id for image in shop.store.all()} == {tagged.id, used.id}
    kept = await shop.remover.prune(prune(**{"dangling": "false", "label!": "keep"}))
    assert kept.removed == ()
    await shop.remover.prune(prune(dangling="false"))
    assert {image.id for image in shop.store.all()} == {used.id}


async def test_prune_takes_a_pulled_image_with_its_digests(shop: Shop) -> None:
    image = await shop.make("app", {"a": b"1"})
    await shop.service.tag(image, "x.io/other", "1")
    for name in ("app", "x.io/other"):
        await shop.service.name(image, Reference.parse(name).with_digest(Digest.of(b"m")))
    pruned = await shop.remover.prune(prune(dangling="false"))
    assert shop.store.get(image.id) is None
    assert len([record for record in pruned.removed if record.untagged]) == 4


async def test_shared_blobs_and_linked_blobs_stay(shop: Shop) -> None:
    one = await shop.make("one", {"a": b"1"})
    two = await shop.make("two", {"a": b"1"}, changes=["ENV A=1"])
    await shop.repositories.link_blob("repo", two.digest)
    shop.leases._until.clear()
    await shop.remover.remove("two")
    assert await shop.digests() == {one.id, one.diff_ids[0], two.id}
    assert set(shop.layers.known) == set(one.layers)
