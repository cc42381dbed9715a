import os
import time
from collections.abc import Awaitable
from pathlib import Path

import pytest

from registry.clock import SteadyClock
from registry.config import Retention
from registry.digest import Digest
from registry.errors import ManifestUnknown
from registry.manifest import OCI_INDEX, Descriptor, Index, encode
from registry.store import paths
from registry.store.collector import Collector, keeps, verify
from registry.store.leases import Leases
from registry.store.pulls import PullTimes
from registry.store.repositories import Repositories
from registry.store.uploads import Uploads

from .conftest import Store, open_store


def age_everything(store: Store) -> None:
    """As if all of it had been pushed long ago."""
    for path in store.root.rglob("*"):
        os.utime(path, (1000, 1000))


def reopened(store: Store) -> tuple[Store, Collector]:
    """The store as another process sees it: without leases."""
    fresh = open_store(store.root)
    return fresh, Collector(fresh.blobs, fresh.repositories, fresh.leases)


async def digests(store: Store) -> set[str]:
    return {str(digest) async for digest in store.blobs.digests()}


async def test_a_clock_set_ahead_takes_nothing_away(store: Store) -> None:
    wall, passed = [time.time()], [0.0]
    clock = SteadyClock(lambda: wall[0], lambda: passed[0])
    fresh = open_store(store.root)
    rule = Retention(("**",), keep_seconds=3600)
    careful = Collector(fresh.blobs, fresh.repositories, fresh.leases, retention=(rule,), clock=clock)
    uploads = Uploads(fresh.blobs, fresh.repositories, clock)
    await store.image("r", "v1")
    orphan = await store.blobs.put(b"on its way")
    upload = await uploads.start("r")
    wall[0] += 30 * 86400
    report = await careful.collect(untagged=True)
    assert (report.removed_tags, report.removed_blobs) == ([], []) and orphan in await digests(store)
    assert await uploads.purge(7 * 86400) == []
    rash = Collector(fresh.blobs, fresh.repositories, fresh.leases, retention=(rule,), clock=lambda: wall[0])
    assert (await rash.collect(dry_run=True)).removed_tags == ["r:v1"], "what the clock alone would have done"
    passed[0], wall[0] = passed[0] + 90_000, wall[0] + 90_000
    assert await uploads.purge(7 * 86400) == [f"r/{upload}"], "a clock that has stood for a day is believed"


async def test_a_clock_set_back_takes_nothing_away(store: Store) -> None:
    await store.image("r", "v1")
    orphan = await store.blobs.put(b"on its way")
    fresh, _ = reopened(store)
    collector = Collector(fresh.blobs, fresh.repositories, fresh.leases, clock=lambda: time.time() - 30 * 86400)
    assert (await collector.collect(untagged=True)).removed_blobs == [] and orphan in await digests(store)


async def test_what_is_used_stays_and_the_rest_goes(store: Store) -> None:
    await store.image("r", "v1")
    orphan = await store.blobs.put(b"orphan")
    unreferenced = await store.blob("r", b"pushed, never used")
    before = await digests(store)
    age_everything(store)
    store, collector = reopened(store)
    dry = await collector.collect(dry_run=True)
    assert await digests(store) == before
    report = await collector.collect()
    assert sorted(report.removed_blobs) == sorted(dry.removed_blobs) == sorted([str(orphan), str(unreferenced)])
    assert await digests(store) == before - {orphan, unreferenced}
    assert await store.repositories.blob("r", unreferenced) is None
    assert (await store.repositories.manifest("r", "v1")).data
    assert [damage async for damage in verify(store.blobs, store.repositories)] == []


async def test_the_young_the_leased_and_the_engines_are_spared(store: Store) -> None:
    young, leased, engines = [await store.blobs.put(name) for name in (b"young", b"leased", b"engine")]
    linked = await store.blob("r", b"linked a moment ago")
    for digest in (leased, engines, linked):
        os.utime(store.blobs.local_path(digest), (1000, 1000))
    fresh = open_store(store.root)

    async def roots() -> list[Digest]:
        return [engines]

    collector = Collector(fresh.blobs, fresh.repositories, fresh.leases, extra_roots=roots)
    async with fresh.leases.hold(leased):
        report = await collector.collect()
    assert report.removed_blobs == [] and await digests(store) == {young, leased, engines, linked}


async def test_children_of_kept_indexes_and_referrers_are_kept(store: Store) -> None:
    child = await store.image("r", "child")
    subject = Descriptor(digest=str(child), size=1)
    referrer = await store.image("r", "sig", b"signature", subject=subject)
    index = Index(media_type=OCI_INDEX, manifests=[Descriptor(digest=str(child), size=1)])
    top = await store.repositories.put_manifest("r", "multi", encode(index))
    stray = await store.image("r", "stray", b"stray")
    for tag in ("child", "sig", "stray"):
        await store.repositories.delete_tag("r", tag)
    age_everything(store)
    store, collector = reopened(store)
    report = await collector.collect(untagged=True)
    assert report.removed_manifests == [f"r@{stray}"]
    assert set(await store.repositories.revisions("r")) == {child, referrer, top}
    assert [damage async for damage in verify(store.blobs, store.repositories)] == []


async def test_a_sha512_push_of_registry2_survives(store: Store) -> None:
    content = await store.blobs.put(b"layer")
    alias = Digest.of(b"layer", "sha512")
    link = store.root / f"docker/registry/v2/repositories/r/_layers/sha512/{alias.encoded}/link"
    link.parent.mkdir(parents=True)
    link.write_bytes(content.encode())
    config = await store.blob("r", b"{}")
    document = (
        b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"digest":"%b","size":2},'
        b'"layers":[{"digest":"%b","size":5}]}' % (config.encode(), alias.encode())
    )
    await store.repositories.put_manifest("r", "v1", document)
    age_everything(store)
    store, collector = reopened(store)
    assert (await collector.collect()).removed_blobs == []
    assert await store.repositories.blob("r", alias) == (content, 5)


async def test_retention_keeps_what_a_rule_keeps(store: Store) -> None:
    for number in range(5):
        await store.image("ci/app", f"b{number}", b"%d" % number)
        folder = store.root / f"docker/registry/v2/repositories/ci/app/_manifests/tags/b{number}/current/link"
        os.utime(folder, (1000 + number, 1000 + number))
    await store.image("other", "old")
    pulls = PullTimes(store.blobs.driver)
    pulls.note("ci/app", "b0")
    rule = Retention(("ci/**",), keep_last=2, keep_pulled_seconds=3600, keep_tags=("b1",))
    collector = Collector(store.blobs, store.repositories, Leases(), retention=[rule], pulls=pulls)
    report = await collector.collect()
    assert report.removed_tags == ["ci/app:b2"]
    assert await store.repositories.tags("ci/app") == ["b0", "b1", "b3", "b4"]
    assert await store.repositories.tags("other") == ["old"]


def test_each_criterion_keeps_on_its_own() -> None:
    nothing = Retention(("**",))
    assert not keeps(nothing, "t", 0, 0.0, 0.0)
    assert keeps(Retention(("**",), keep_last=1), "t", 0, 1e9, 1e9)
    assert keeps(Retention(("**",), keep_seconds=10), "t", 9, 5, 1e9)
    assert keeps(Retention(("**",), keep_pulled_seconds=10), "t", 9, 1e9, 5)
    assert keeps(Retention(("**",), keep_tags=("v*",)), "v1", 9, 1e9, 1e9)


async def test_verify_finds_damage(store: Store) -> None:
    await store.image("r", "v1")
    rotten, gone = Digest.of(b"layer"), Digest.of(b"{}")
    store.blobs.local_path(rotten).write_bytes(b"Layer")
    await store.blobs.delete(gone)
    found = {damage.where: damage.what async for damage in verify(store.blobs, store.repositories)}
    assert "content has digest" in found[str(rotten)]
    assert any(str(gone) in what and "missing" in what for what in found.values())


async def test_pull_times_survive_a_restart(store: Store) -> None:
    pulls = PullTimes(store.blobs.driver)
    await pulls.load()
    pulls.note("r", "v1")
    await pulls.save()
    again = PullTimes(store.blobs.driver)
    await again.load()
    assert time.time() - again.last("r", "v1") < 60 and again.last("r", "v2") == 0.0


async def test_a_blob_pushed_again_while_it_is_collected_is_there_afterwards(store: Store) -> None:
    blob = await store.blobs.put(b"again")
    async with store.leases.condemn(blob) as may_go:
        assert may_go
        assert await store.repositories.blob("r", blob) is None
        await store.blobs.delete(blob)
    upload_id = await store.uploads.start("r")
    async with store.uploads.held("r", upload_id) as upload:
        await upload.write([b"again"])
        await store.uploads.commit(upload, blob)
    assert await store.repositories.blob("r", blob) == (blob, 5)
    with pytest.raises(ManifestUnknown):
        await store.repositories.resolve("r", "none")


async def test_a_blob_that_another_process_is_about_to_place_is_spared(store: Store) -> None:
    """Content is renamed into its folder: taking the folder away in between would break a push."""
    digest = Digest.of(b"manifest")
    folder = store.root / paths.blob_folder(digest)
    folder.mkdir(parents=True)
    temporary = folder / "data.1.tmp"
    temporary.write_bytes(b"manifest")
    fresh, collector = reopened(store)
    assert (await collector.collect()).removed_blobs == []
    temporary.rename(folder / "data")
    assert await fresh.blobs.read(digest) == b"manifest"
    (folder / "data").unlink()
    age_everything(store)
    assert (await collector.collect()).removed_blobs == [str(digest)] and not folder.exists()


async def test_what_another_process_told_of_during_the_mark_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links and manifests that nothing needs are old when the collector looks, and young when it comes to take them."""
    child = await store.image("r", "child", b"needed")
    blob = await store.blob("r", b"of an image that went")
    await store.repositories.delete_tag("r", "child")
    age_everything(store)
    server = open_store(store.root)
    fresh, collector = reopened(store)
    linked = fresh.repositories.linked_blobs

    async def told_meanwhile(*arguments: object) -> list[tuple[Digest, float]]:
        found = await linked(*arguments)  # type: ignore[arg-type]
        assert await server.repositories.blob("r", blob) == (blob, 21)
        return found

    monkeypatch.setattr(fresh.repositories, "linked_blobs", told_meanwhile)
    monkeypatch.setattr(fresh.repositories, "revisions", lambda name: told_of_child(name))

    async def told_of_child(name: str) -> list[Digest]:
        found = await server.repositories.revisions(name)
        original = collector._tagged

        async def tagged(*arguments: object) -> set[Digest]:
            keep = await original(*arguments)  # type: ignore[arg-type]
            assert child not in keep and (await server.repositories.manifest("r", str(child))).digest == child
            return keep

        monkeypatch.setattr(collector, "_tagged", tagged)
        return found

    report = await collector.collect(untagged=True)
    assert (report.removed_manifests, report.removed_links, report.removed_blobs) == ([], 0, [])
    index = Index(media_type=OCI_INDEX, manifests=[Descriptor(digest=str(child), size=1)])
    await server.repositories.put_manifest("r", "multi", encode(index), sparse_index=False)
    assert [damage async for damage in verify(store.blobs, store.repositories)] == []


async def test_what_somebody_is_told_of_is_young_for_collectors_elsewhere(store: Store) -> None:
    digest = await store.image("r", "v1")
    layer = Digest.of(b"layer")
    await store.repositories.mount("r", "other", layer)
    data = paths.blob_data(layer)
    server = open_store(store.root).repositories

    async def young_after(answer: Awaitable[object]) -> set[str]:
        age_everything(store)
        assert await answer
        files = [path for path in store.root.rglob("*") if path.is_file() and path.stat().st_mtime > 1000]
        return {str(path.relative_to(store.root)) for path in files}

    for _ in range(2):  # the second answer comes from memory, as far as there is one
        assert await young_after(server.blob("r", layer)) >= {data, paths.layer_link("r", layer)}
        assert paths.revision_link("r", digest) in await young_after(server.manifest("r", str(digest)))
        assert await young_after(server.mount("r", "other", layer)) >= {data, paths.layer_link("other", layer)}
    assert await server.blob("r", layer) and await server.manifest("r", str(digest))
    assert server.hot_blob("r", layer) is not None and server.hot_manifest("r", str(digest)) is not None
    age_everything(store)
    assert server.hot_blob("r", layer) is None and server.hot_manifest("r", str(digest)) is None
    assert not any("current" in path for path in await young_after(server.manifest("r", "v1")))


async def test_a_manifest_pushed_again_is_young(store: Store) -> None:
    digest = await store.image("r", "v1")
    await store.repositories.delete_tag("r", "v1")
    age_everything(store)
    server = open_store(store.root)
    await server.repositories.put_manifest("r", str(digest), await store.blobs.read(digest))
    _, collector = reopened(store)
    assert (await collector.collect(untagged=True)).removed_manifests == []


async def test_a_tag_pushed_after_it_was_found_to_be_old_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.image("r", "v1", b"one")
    age_everything(store)
    fresh, _ = reopened(store)
    collector = Collector(fresh.blobs, fresh.repositories, fresh.leases, retention=[Retention(("**",))])
    stat_all = fresh.blobs.driver.stat_all

    async def push_after(places: list[str]) -> object:
        found = await stat_all(places)
        if places == [paths.tag_current("r", "v1")]:
            await store.image("r", "v1", b"two")
        return found

    monkeypatch.setattr(fresh.blobs.driver, "stat_all", push_after)
    assert (await collector.collect()).removed_tags == []
    assert await store.repositories.tags("r") == ["v1"]


async def test_half_a_tag_goes_when_it_is_old(store: Store) -> None:
    await store.image("r", "v1")
    folder = store.root / paths.tag_folder("r", "v1")
    (folder / "current" / "link").unlink()
    collector = Collector(store.blobs, store.repositories, Leases())
    os.utime(folder, (1000, 1000))
    assert (await collector.collect()).removed_tags == [], "its push may go on"
    os.utime(folder / "current", (1000, 1000))
    assert (await collector.collect()).removed_tags == [] and not (folder / "current").exists()
    os.utime(folder, (1000, 1000))
    assert (await collector.collect()).removed_tags == ["r:v1"] and not folder.exists()


async def test_a_short_grace_period_is_kept_to(store: Store) -> None:
    """What is told of must be young for as long as the collectors go by."""
    blob = await store.blob("r", b"x")
    server = Repositories(open_store(store.root).blobs, Leases(), grace_seconds=30)
    paths_of = [store.blobs.local_path(blob), store.root / paths.layer_link("r", blob)]
    for _ in range(2):
        for path in paths_of:
            os.utime(path, (time.time() - 20, time.time() - 20))
        assert (server.hot_blob("r", blob) or await server.blob("r", blob)) == (blob, 1)
        assert all(time.time() - path.stat().st_mtime < 10 for path in paths_of)


def cut_off(store: Store, *targets: str) -> list[Path]:
    """As a crash leaves a push: what it is about to rename is there."""
    unfinished = [store.root / f"{target}.1.tmp" for target in targets]
    for path in unfinished:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return unfinished


async def test_pushes_that_were_cut_off_leave_nothing_in_the_end(store: Store) -> None:
    digest = await store.image("whole", "v1")
    links = [paths.revision_link, paths.layer_link]
    found = cut_off(
        store,
        *(link(repository, Digest.of(b"lost")) for link in links for repository in ("whole", "half")),
        paths.tag_history_link("half", "v1", Digest.of(b"lost")),
        paths.tag_current("half", "v1"),
        paths.tag_current("whole", "v2"),
        paths.blob_data(digest),
        paths.state("clock"),
    )
    young, collector = reopened(store)
    assert (await collector.collect(grace_seconds=0)).removed_unfinished == 0 and all(map(Path.exists, found))
    assert await young.repositories.names() == ["half", "whole"]
    lost = cut_off(store, paths.blob_data(Digest.of(b"lost")))
    age_everything(store)
    assert (await collector.collect(dry_run=True)).removed_unfinished == 0 and all(map(Path.exists, found))
    report = await collector.collect()
    assert report.removed_unfinished == len(found) and not any(map(Path.exists, [*found, *lost]))
    assert await young.repositories.names() == ["whole"] and not (store.root / paths.layers("half")).exists()
    assert await young.repositories.tags("whole") == ["v1"]
    assert not (store.root / paths.tag_folder("whole", "v2")).exists()
    assert await young.repositories.revisions("whole") == [digest]


async def test_a_repository_that_was_emptied_stays_in_the_catalog(store: Store) -> None:
    """As registry:2 has it; and its name does not begin to mean another one's, of an upstream."""
    digest = await store.image("r", "v1")
    await store.repositories.delete_manifest("r", digest)
    age_everything(store)
    fresh, collector = reopened(store)
    await collector.collect()
    assert await digests(store) == set() and not (store.root / paths.revision_link("r", digest)).parent.exists()
    assert await fresh.repositories.names() == ["r"] and await fresh.repositories.tags("r") == []


async def test_a_tag_whose_link_comes_at_the_last_moment_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = await store.image("r", "v1")
    link = store.root / paths.tag_current("r", "v1")
    link.rename(link.with_name("link.1.tmp"))
    age_everything(store)
    _, collector = reopened(store)
    unfinished = collector._repositories.unfinished_tags

    async def finish_after(repository: str) -> list[str]:
        found = await unfinished(repository)
        link.parent.mkdir(exist_ok=True)
        link.write_bytes(digest.encode())
        return found

    monkeypatch.setattr(collector._repositories, "unfinished_tags", finish_after)
    assert (await collector.collect()).removed_tags == []
    assert await store.repositories.resolve("r", "v1") == digest


async def test_one_empty_link_does_not_stop_collections_and_is_told(store: Store) -> None:
    await store.image("r", "v1")
    orphan = await store.blobs.put(b"orphan")
    lost, gone = Digest.of(b"lost", "sha512"), await store.image("r", "v2", b"other")
    broken = [paths.layer_link("r", lost), paths.revision_link("r", gone), paths.tag_current("r", "v2")]
    (store.root / broken[0]).parent.mkdir(parents=True)
    for path in broken:
        (store.root / path).unlink(missing_ok=True)
        (store.root / path).write_bytes(b"")
    found = [damage.where async for damage in verify(store.blobs, store.repositories)]
    assert found == [*(f"r: {path.partition('/r/')[2]}" for path in (broken[1], broken[0])), "r:v2"]
    os.utime(store.blobs.local_path(orphan), (1000, 1000))
    _, collector = reopened(store)
    assert (await collector.collect()).removed_blobs == [str(orphan)]
