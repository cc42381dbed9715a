"""What one can do with volumes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from pathlib import Path

import pytest
import pytest_asyncio

from engine.errors import Conflict, InvalidParameter, NotFound, SystemFailure
from engine.events import EventBus
from engine.filters import Filters
from engine.journal import Journal
from engine.tasks import Nursery, run_blocking
from engine.volumes.model import ANONYMOUS_LABEL
from engine.volumes.service import LIST_FILTERS, PRUNE_FILTERS, VolumeService
from engine.volumes.store import VolumeStore

NO_FILTERS = Filters.parse(None, LIST_FILTERS)


class Users:
    """Containers by the volume they use."""

    def __init__(self) -> None:
        self.by_volume: dict[str, list[str]] = {}

    def users_of_volume(self, name: str) -> Collection[str]:
        return self.by_volume.get(name, [])


class Bench:
    """A service on a journal of its own, that can be started again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.users = Users()
        self.events = EventBus()
        self.nursery = Nursery("volumes")
        self.journal = Journal(root / "journal")

    async def start(self, running: dict[str, list[str]] | None = None) -> VolumeService:
        await self.journal.aclose()
        await run_blocking(self.journal.open_sync)
        service = VolumeService(self.root / "volumes", VolumeStore(self.journal), self.events, self.nursery, self.users)
        await service.restore(running or {})
        return service

    async def aclose(self) -> None:
        await self.nursery.aclose()
        await self.journal.aclose()

    def actions(self) -> list[tuple[str, str]]:
        return [(e.action, e.actor_id) for e in self.events.past(NO_FILTERS, 0)]


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.aclose()


async def test_a_volume_is_created_once(bench: Bench) -> None:
    volumes = await bench.start()
    volume = await volumes.create("data", labels={"a": "b"})
    assert await volumes.create("data", "local", {}, {"other": "x"}) == volume
    assert Path(volume.mountpoint).is_dir()
    assert volumes.path("data") == Path(volume.mountpoint)
    assert volumes.get("data") == volume
    assert volumes.exists("data")
    assert bench.actions() == [("create", "data")]


async def test_a_volume_without_a_name_is_anonymous(bench: Bench) -> None:
    volumes = await bench.start()
    volume = await volumes.create(labels={"a": "b"})
    assert len(volume.name) == 64
    assert volume.labels == {"a": "b", ANONYMOUS_LABEL: ""}


@pytest.mark.parametrize(
    ("name", "driver", "options", "error", "words"),
    [
        ("a", "", None, InvalidParameter, "create a: volume name is too short"),
        ("/a", "", None, InvalidParameter, 'create /a: "/a" includes invalid characters for a local volume name'),
        ("ab", "foo", None, NotFound, 'create ab: error looking up volume plugin foo: plugin "foo" not found'),
        ("ab", "", {"x": "y"}, InvalidParameter, 'create ab: invalid option: "x"'),
    ],
)
async def test_refused_volumes_leave_nothing(
    bench: Bench, name: str, driver: str, options: dict[str, str] | None, error: type[Exception], words: str
) -> None:
    volumes = await bench.start()
    with pytest.raises(error, match=words):
        await volumes.create(name, driver, options, holder="c1")
    assert volumes.list(NO_FILTERS) == ()
    assert volumes.users(name) == ()


async def test_a_failing_disk_leaves_no_record(bench: Bench) -> None:
    volumes = await bench.start()
    (bench.root / "volumes" / "blocked").write_text("a file")
    with pytest.raises(SystemFailure, match="create blocked"):
        await volumes.create("blocked")
    assert not volumes.exists("blocked")
    folder = bench.root / "volumes" / ("x" * 300)
    words = f"error while creating volume root path '{folder}': mkdir {folder}: file name too long"
    with pytest.raises(SystemFailure) as refusal:
        await volumes.create(folder.name)
    assert refusal.value.message == f"create {folder.name}: {words}"


async def test_removal(bench: Bench) -> None:
    volumes = await bench.start()
    await volumes.create("data")
    await volumes.remove("data")
    with pytest.raises(NotFound, match="get data: no such volume"):
        volumes.get("data")
    with pytest.raises(NotFound):
        await volumes.remove("data")
    await volumes.remove("data", force=True)
    assert bench.actions()[-1] == ("destroy", "data")


async def test_a_volume_in_use_stays(bench: Bench) -> None:
    volumes = await bench.start()
    await volumes.create("data", holder="c3")
    bench.users.by_volume["data"] = ["c1"]
    await volumes.mount("data", "c2")
    with pytest.raises(Conflict, match=r"remove data: volume is in use - \[c1, c3, c2\]"):
        await volumes.remove("data", force=True)
    volumes.release("c3")
    await volumes.unmount("data", "c2")
    bench.users.by_volume.clear()
    await volumes.remove("data")


async def test_lists_and_filters(bench: Bench) -> None:
    volumes = await bench.start()
    for name, labels in (("beta", {"k": "v"}), ("alpha", None), ("alphabet", {"k": "w"})):
        await volumes.create(name, labels=labels)
    bench.users.by_volume["alpha"] = ["c1"]

    def names(filters: str) -> list[str]:
        return [v.name for v in volumes.list(Filters.parse(filters, LIST_FILTERS))]

    assert names("{}") == ["alpha", "alphabet", "beta"]
    assert names('{"name": ["alpha"]}') == ["alpha", "alphabet"]
    assert names('{"name": ["^alpha$"]}') == ["alpha"]
    assert names('{"label": ["k"]}') == ["alphabet", "beta"]
    assert names('{"label": ["k=v"]}') == ["beta"]
    assert names('{"driver": ["local"]}') == ["alpha", "alphabet", "beta"]
    assert names('{"driver": ["other"]}') == []
    assert names('{"dangling": ["true"]}') == ["alphabet", "beta"]
    assert names('{"dangling": ["0"]}') == ["alpha"]
    with pytest.raises(InvalidParameter):
        names('{"dangling": ["maybe"]}')


async def test_prune_takes_unused_anonymous_volumes(bench: Bench) -> None:
    volumes = await bench.start()
    anonymous, used = await volumes.create(), await volumes.create()
    (volumes.path(anonymous.name) / "file").write_bytes(b"12345")
    bench.users.by_volume[used.name] = ["c1"]
    await volumes.create("named", labels={"keep": "no"})
    await volumes.create("kept", labels={"keep": "yes"})
    pruned = await volumes.prune(Filters.parse("{}", PRUNE_FILTERS))
    assert (pruned.names, pruned.reclaimed) == ((anonymous.name,), 5)
    pruned = await volumes.prune(Filters.parse('{"all": ["true"], "label!": ["keep=yes"]}', PRUNE_FILTERS))
    assert pruned.names == ("named",)
    pruned = await volumes.prune(Filters.parse('{"label": ["keep"]}', PRUNE_FILTERS), anonymous_only=False)
    assert pruned.names == ("kept",)
    assert [v.name for v in volumes.list(NO_FILTERS)] == [used.name]
    assert bench.actions()[-1] == ("prune", "")


async def test_mounting_is_counted_and_told(bench: Bench) -> None:
    volumes = await bench.start()
    await volumes.create("data")
    path = await volumes.mount("data", "c1", destination="/data", rw=False, propagation="rprivate")
    assert path == volumes.path("data")
    event = bench.events.past(NO_FILTERS, 0)[-1]
    assert event.attributes == {
        "driver": "local", "container": "c1", "destination": "/data", "read/write": "false", "propagation": "rprivate",
    }  # fmt: skip
    await volumes.mount("data", "c1")
    await volumes.unmount("data", "c1")
    await volumes.unmount("data", "c1")
    assert bench.actions()[-3:] == [("create", "data"), ("mount", "data"), ("unmount", "data")]
    with pytest.raises(NotFound):
        await volumes.mount("none", "c1")


async def test_a_folder_deleted_by_hand_is_made_again_when_used(bench: Bench) -> None:
    volumes = await bench.start()
    volume = await volumes.create("data")
    Path(volume.mountpoint).rmdir()
    assert (await volumes.mount("data", "c1")).is_dir()


async def test_use_for_the_time_of_a_block(bench: Bench) -> None:
    volumes = await bench.start()
    await volumes.create("data")
    async with volumes.in_use("data", "c1") as path:
        assert await volumes.is_empty("data")
        (path / "file").write_text("x")
        assert volumes.users("data") == ("c1",)
    assert volumes.users("data") == ()
    assert not await volumes.is_empty("data")
    await volumes.mount("data", "c1")
    async with volumes.in_use("data", "c1"):
        pass
    assert volumes.users("data") == ("c1",)


async def test_the_volume_of_a_removed_container_goes_when_nobody_reads_it_any_more(bench: Bench) -> None:
    volumes = await bench.start()
    for name in ("read", "unread", "shared"):
        await volumes.create(name)
    bench.users.by_volume["shared"] = ["c2"]
    async with volumes.in_use("read", "c1"), volumes.in_use("read", "c1"), volumes.in_use("shared", "c1"):
        await volumes.remove_with_container("read")
        await volumes.remove_with_container("unread")
        with pytest.raises(Conflict):
            await volumes.remove_with_container("shared")
        assert [v.name for v in volumes.list(Filters.parse("{}", LIST_FILTERS))] == ["read", "shared"]
    assert [v.name for v in volumes.list(Filters.parse("{}", LIST_FILTERS))] == ["shared"]
    await volumes.remove_with_container("read")
    await volumes.create("read")
    async with volumes.in_use("read", "c1"):
        pass
    assert volumes.get("read"), "a later one of the same name is another"


async def test_usage(bench: Bench) -> None:
    volumes = await bench.start()
    await volumes.create("data")
    (volumes.path("data") / "file").write_bytes(b"123")
    bench.users.by_volume["data"] = ["c1", "c1", "c2"]
    (usage,) = await volumes.usage()
    assert (usage.volume.name, usage.size, usage.references) == ("data", 3, 2)


async def test_a_restart_brings_journal_and_disk_together(bench: Bench) -> None:
    volumes = await bench.start()
    kept = await volumes.create("kept")
    await volumes.create("half-removed")
    await bench.nursery.aclose()
    (bench.root / "volumes" / "half-removed" / "_data").rmdir()
    (bench.root / "volumes" / "brought" / "_data").mkdir(parents=True)
    again = await bench.start({"kept": ["c1"], "brought": []})
    assert [v.name for v in again.list(NO_FILTERS)] == ["brought", "kept"]
    assert again.get("kept") == kept
    assert again.users("kept") == ("c1",)


async def test_a_data_root_that_moved_is_noticed(bench: Bench) -> None:
    await (await bench.start()).create("data")
    (bench.root / "volumes").rename(bench.root / "elsewhere")
    service = VolumeService(
        bench.root / "elsewhere", VolumeStore(bench.journal), bench.events, bench.nursery, bench.users
    )
    await bench.journal.aclose()
    await run_blocking(bench.journal.open_sync)
    await service.restore({})
    assert service.get("data").mountpoint == str(bench.root / "elsewhere" / "data" / "_data")


async def test_many_at_once_make_one(bench: Bench) -> None:
    volumes = await bench.start()
    made = await asyncio.gather(*(volumes.create("same") for _ in range(20)))
    assert len({v.created_at for v in made}) == 1
    assert bench.actions() == [("create", "same")]


async def test_an_anonymous_volume_of_a_creation_cut_short_is_forgotten(bench: Bench) -> None:
    service = await bench.start()
    lost = await service.create(holder="never")
    kept = await service.create(holder="there")
    recorded = await service.create(holder="gone")
    named = await service.create("named", holder="never")
    bench.users.by_volume[kept.name] = ["there"]
    await service.keep([recorded.name, named.name, "unknown"])
    for _ in range(2):  # at the second start the container of the kept one may be gone, too
        service = await bench.start()
        assert {volume.name for volume in service.list(NO_FILTERS)} == {kept.name, recorded.name, named.name}
        bench.users.by_volume.clear()
    assert not service.path(lost.name).exists()
