"""Finding, listing, history, tags: docker's rules and words."""

from __future__ import annotations

import json

import msgspec
import pytest

from engine.errors import InvalidParameter, NotFound
from engine.filters import Filters
from engine.images.model import HistoryEntry, ImageDocument
from engine.images.service import LIST_FILTERS, familiar_match, is_id_prefix, new_reference
from engine.images.store import ImageStore
from registry.reference import Reference

from .conftest import Shop, tar_of


def filters(**values: str) -> Filters:
    return Filters.parse(msgspec.json.encode({k: [v] for k, v in values.items()}).decode(), LIST_FILTERS)


async def test_found_by_every_name(shop: Shop) -> None:
    image = await shop.make("busybox", {"a": b"1"})
    encoded = image.digest.encoded
    for name in (
        "busybox",
        "busybox:latest",
        "docker.io/library/busybox",
        image.id,
        encoded,
        encoded[:12],
        f"sha256:{encoded[:8]}",
    ):
        assert shop.service.get(name).id == image.id
    assert shop.service.get(f"busybox@{image.id}").id == image.id


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "No such image: nothing:latest"),
        ("a/b:c", "No such image: a/b:c"),
        ("f" * 64, "No such image: " + "f" * 64),
        ("sha256:" + "0" * 12, "No such image: sha256:000000000000"),
    ],
)
async def test_unknown(shop: Shop, name: str, words: str) -> None:
    with pytest.raises(NotFound, match=f"^{words}$"):
        shop.service.get(name)


async def test_no_reference_at_all(shop: Shop) -> None:
    with pytest.raises(InvalidParameter, match="must be lowercase"):
        shop.service.get("UPPER")
    with pytest.raises(InvalidParameter, match="invalid reference format"):
        shop.service.get("a b")


async def test_a_name_wins_over_an_id(shop: Shop) -> None:
    image = await shop.make("", {"a": b"1"})
    other = await shop.make("", {"b": b"2"})
    await shop.service.tag(other, image.digest.encoded[:8], "latest")
    assert shop.service.get(image.digest.encoded[:8]).id == other.id


async def test_list_filters(shop: Shop) -> None:
    one = await shop.make("app:1", {"a": b"1"}, changes=["LABEL tier=web"])
    two = await shop.make("x.io/app:2", {"b": b"22"})
    loose = await shop.make("", {"c": b"3"})

    def listed(**values: str) -> list[str]:
        return [row.image.id for row in shop.service.list(filters(**values))]

    assert listed() == [loose.id, two.id, one.id]
    assert listed(dangling="true") == [loose.id]
    assert listed(dangling="false") == [two.id, one.id]
    assert listed(label="tier=web") == listed(label="tier") == [one.id]
    assert listed(label="tier=db") == []
    assert listed(reference="app") == listed(reference="app:1") == [one.id]
    assert listed(reference="*/app:*") == [two.id]
    assert listed(before="x.io/app:2") == [one.id]
    assert listed(since="app:1") == [loose.id, two.id]
    assert listed(until="24h") == []
    assert listed(until=one.document.created or "") == []
    several = Filters.parse(json.dumps({"until": [loose.document.created, two.document.created]}), {"until"})
    assert [row.image.id for row in shop.service.list(several)] == [one.id]
    assert listed(reference="docker.io/library/app") == listed(reference="docker.io/library/app:*") == [one.id]
    assert listed(reference="x.io/app") == [two.id]
    with pytest.raises(InvalidParameter):
        listed(until="whenever")
    with pytest.raises(NotFound):
        listed(before="nothing")


class Users:
    """Two containers, one of which runs, stand on every image."""

    def containers_of(self, image_id: str) -> list[tuple[str, bool]]:
        return [("a" * 64, True), ("b" * 64, False)]


async def test_containers_are_counted_where_they_are_asked_for(shop: Shop) -> None:
    await shop.make("app", {"a": b"1"})
    assert shop.service.list(Filters())[0].containers == -1
    assert shop.service.list(Filters(), containers=True)[0].containers == 0
    shop.service.users = Users()
    assert shop.service.list(Filters(), containers=True)[0].containers == 2


async def test_shared_size(shop: Shop) -> None:
    await shop.make("one", {"a": b"12345"})
    parent = shop.service.get("one")
    entry = HistoryEntry(created="2026-01-01T00:00:00Z")
    await shop.service.create_from_diff(parent, ImageDocument(os="linux", architecture="amd64"), None, entry)
    rows = shop.service.list(Filters(), all_images=True, shared_size=True)
    assert [row.shared_size for row in rows] == [5, 5]


async def test_parents_are_shown_only_on_request(shop: Shop) -> None:
    parent = await shop.make("", {"a": b"1"})
    document = ImageDocument(os="linux", architecture="amd64", created="2026-01-01T00:00:00Z")
    diff = shop.blobs.temp_dir() / "diff"
    diff.write_bytes(tar_of({"b": b"22"}))
    child = await shop.service.create_from_diff(parent, document, diff, HistoryEntry(created_by="RUN x"))
    assert child.parent == parent.id and child.size == 3
    assert [row.image.id for row in shop.service.list(Filters())] == [child.id]
    assert len(shop.service.list(Filters(), all_images=True)) == 2
    rows = shop.service.history(child)
    assert [(row.id, row.created_by, row.size) for row in rows] == [(child.id, "RUN x", 2), (parent.id, "", 1)]


async def test_tag_moves_a_name(shop: Shop) -> None:
    one, two = await shop.make("app", {"a": b"1"}), await shop.make("", {"b": b"2"})
    assert await shop.service.tag(two, "app", "") == "app:latest"
    assert shop.service.get("app").id == two.id
    assert shop.service.names(one.id) == ((), ())
    assert shop.actions()[-1] == ("tag", "app:latest")


@pytest.mark.parametrize(
    ("repository", "tag", "words"),
    [
        ("A", "b", "must be lowercase"),
        ("a", "b c", "invalid tag format"),
        ("a@sha256:" + "0" * 64, "", "refusing to create a tag with a digest reference"),
        ("a", "sha256:" + "0" * 64, "refusing to create a tag with a digest reference"),
        ("", "", "invalid reference format"),
    ],
)
def test_names_that_may_not_be_given(repository: str, tag: str, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        new_reference(repository, tag)


def test_reference_patterns_stop_at_slashes() -> None:
    reference = Reference.parse("quay.io/team/app:1")
    assert familiar_match("quay.io/*/app", reference)
    assert familiar_match("*/*/*:1", reference)
    assert not familiar_match("*/app", reference)


def test_id_prefixes() -> None:
    image_id = "sha256:abc" + "0" * 61
    assert is_id_prefix(image_id, "abc") and is_id_prefix(image_id, "sha256:ab")
    assert not is_id_prefix(image_id, "busybox")


async def test_everything_is_there_after_a_restart(shop: Shop) -> None:
    image = await shop.make("busybox:1", {"a": b"1"}, changes=["ENV A=1"])
    await shop.service.name(image, Reference.parse(f"busybox@{image.id}"))
    again = ImageStore(shop.journal)
    again.restore()
    assert again.get(image.id) == shop.service.get("busybox:1")
    assert again.tagged() == shop.store.tagged()
    assert again.forms(image.diff_ids[0]) == shop.store.forms(image.diff_ids[0])
    assert again.blobs() == shop.store.blobs()
    assert again.layer_keys() == frozenset(image.layers)
    assert image.id in await again.roots()


async def test_no_tag_reads_like_a_digest(shop: Shop) -> None:
    image = await shop.make("", {"a": b"1"})
    with pytest.raises(InvalidParameter, match="ambiguous tag using digest algorithm as name"):
        await shop.service.tag(image, "sha256:sometag", "")
    assert await shop.service.tag(image, "sha256-like", "x") == "sha256-like:x"
