"""The single door: references, renaming, waiting, attaching, logs, pruning."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from engine.clock import SECOND
from engine.containers.listing import PRUNE_ALLOWED, ListQuery
from engine.containers.live import Exit, StreamChoice
from engine.containers.logs import LogQuery
from engine.containers.model import Container, Status
from engine.containers.settings import EndpointSettings, LogConfig
from engine.errors import Conflict, EngineError, InvalidParameter, NotFound, NotModified, SystemFailure
from engine.filters import Filters
from tests.support.containers import container, ended, running
from tests.support.runs import refused, until
from tests.support.services import ServiceBench

NEW = container(1, name="new", networks={"front": EndpointSettings()})
BOX = running(2, name="box")
OLD = ended(3, name="old", exit_code=4, config={"labels": {"keep": "yes"}})
FROZEN = running(4, name="frozen", state={"status": Status.PAUSED})
AGAIN = ended(5, name="again", state={"status": Status.RESTARTING})


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[ServiceBench]:
    made = ServiceBench(tmp_path, NEW, BOX, OLD, FROZEN, AGAIN)
    yield made
    await made.aclose()


def prune_filters(**wanted: list[str]) -> Filters:
    return Filters.parse(json.dumps({k.replace("label_not", "label!"): v for k, v in wanted.items()}), PRUNE_ALLOWED)


async def test_every_reference_reaches_the_container(bench: ServiceBench) -> None:
    assert bench.service.find("/box") is bench.service.find(BOX.id[:6]) is bench.service.find("box")
    shim = bench.adopt(BOX)
    await bench.service.kill("box", "HUP")
    await bench.service.pause("/box")
    await bench.service.unpause(BOX.id[:8])
    await bench.service.stop(BOX.id, seconds=0)
    assert shim.signals == [1, 15]
    await bench.service.restart("box")
    await bench.service.remove("box", force=True, volumes=False)
    for call in (bench.service.stop("box"), bench.service.start("box"), bench.service.pause("box")):
        with pytest.raises(NotFound, match="No such container: box"):
            await call


async def test_lists_use_images_and_networks(bench: ServiceBench) -> None:
    def shown(raw: str) -> list[str]:
        filters = Filters.parse(raw, {"ancestor", "network"})
        return [c.name for c in bench.service.select(ListQuery(all=True, filters=filters))]

    assert shown('{"ancestor": ["busybox"]}') == ["again", "frozen", "old", "box", "new"]
    assert shown('{"ancestor": ["other"]}') == []
    assert shown('{"network": ["n2"]}') == ["new"]
    assert shown('{"network": ["gone"]}') == []


async def test_an_image_that_lost_its_name_is_shown_by_id(bench: ServiceBench) -> None:
    moved = container(6, image="busybox", image_id="sha256:old")
    nameless = container(7, image="", image_id="")
    shown = bench.service.image_names([BOX, NEW, moved, nameless])
    assert shown == {
        ("busybox", BOX.image_id): "busybox",
        ("busybox", "sha256:old"): "sha256:old",
        ("", ""): "",
    }
    assert bench.images.asked == ["busybox", "busybox"]


async def test_a_start_that_fails_removes_what_goes_after_its_end(bench: ServiceBench) -> None:
    passing = container(6, name="passing", host={"auto_remove": True})
    await bench.records.save(passing)
    bench.assembly.failure = refused("no such program")
    with pytest.raises(InvalidParameter, match="no such program"):
        await bench.service.start("passing")
    assert bench.store.get(passing.id) is None
    with pytest.raises(InvalidParameter):
        await bench.service.start("new")
    assert bench.now(NEW.id).state.error == "no such program"
    with pytest.raises(NotModified):
        await bench.service.start("box")


async def test_renaming_is_kept_told_and_frees_the_old_name(bench: ServiceBench) -> None:
    await bench.service.rename("box", "/cabin")
    assert bench.service.find("cabin").id == BOX.id
    with pytest.raises(NotFound):
        bench.service.find("box")
    assert bench.networks.log == [("rename", BOX.id, "cabin")]
    assert bench.attributes("rename")["oldName"] == "/box"
    assert bench.attributes("rename")["name"] == "cabin"
    assert bench.journal.durable == [True]


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("", InvalidParameter, "Neither old nor new names may be empty"),
        ("/", InvalidParameter, "Neither old nor new names may be empty"),
        ("-x", InvalidParameter, "Error when allocating new name: Invalid container name (/-x), only"),
        ("box", InvalidParameter, "Renaming a container with the same name as its current name"),
        ("old", Conflict, 'Error when allocating new name: Conflict. The container name "/old" is already in use'),
    ],
)
async def test_bad_new_names(bench: ServiceBench, name: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught:
        await bench.service.rename("box", name)
    assert str(caught.value).startswith(words)
    assert bench.service.find("box") is BOX


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [("old", Conflict, f"container {OLD.id} is not running"), ("nosuch", NotFound, "No such container: nosuch")],
)
async def test_a_kill_that_fails_begins_with_the_name_given(
    bench: ServiceBench, name: str, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=f"^Cannot kill container: {name}: {words}$"):
        await bench.service.kill(name, "")


async def test_a_stop_or_restart_that_fails_says_so(bench: ServiceBench) -> None:
    bench.adopt(BOX)
    for call, words in (
        (bench.service.kill("box", "NOPE"), "Cannot kill container: box: invalid signal: NOPE"),
        (bench.service.stop("box", signal_name="NOPE"), "cannot stop container: box: invalid signal: NOPE"),
        (bench.service.restart("box", signal_name="NOPE"), "Cannot restart container box: invalid signal: NOPE"),
    ):
        with pytest.raises(EngineError, match=f"^{words}"):
            await call
    bench.assembly.failure = refused("no program", 127)
    with pytest.raises(SystemFailure, match="^Cannot restart container box: .*no program"):
        await bench.service.restart("box", seconds=0)


async def test_waiting_for_what_has_ended_is_answered_at_once(bench: ServiceBench) -> None:
    assert await bench.service.wait("old", "") == Exit(4)
    assert await bench.service.wait("new", "not-running") == Exit(0)
    with pytest.raises(InvalidParameter, match='invalid condition: "never"'):
        bench.service.wait("old", "never")


async def test_waiting_for_the_end_and_the_removal(bench: ServiceBench) -> None:
    shim = bench.adopt(BOX)
    ends = [bench.service.wait("box", condition) for condition in ("", "not-running", "next-exit")]
    gone = bench.service.wait("box", "removed")
    later = bench.service.wait("old", "next-exit")
    between = bench.service.wait("again", "not-running")
    shim.end(3)
    assert [await asyncio.wait_for(one, 1) for one in ends] == [Exit(3)] * 3
    assert not gone.done()
    await bench.service.remove("box", force=False, volumes=False)
    assert await asyncio.wait_for(gone, 1) == Exit(3)
    assert not later.done()
    assert not between.done()


async def test_resizing(bench: ServiceBench) -> None:
    shim = bench.adopt(BOX)
    await bench.service.resize("box", 24, 80)
    assert shim.sizes == [(24, 80, None)]
    assert bench.attributes("resize") == {"image": "busybox", "name": "box", "height": "24", "width": "80"}
    with pytest.raises(Conflict, match="is not running"):
        await bench.service.resize("new", 30, 90)
    assert bench.live[NEW.id].console_size == (30, 90)
    with pytest.raises(Conflict, match="is not running"):
        await bench.service.resize("old", 1, 2)
    assert bench.live[OLD.id].console_size is None


async def test_attaching_to_what_runs(bench: ServiceBench) -> None:
    shim = bench.adopt(BOX)
    stream = await bench.service.attach(BOX, StreamChoice(True, True, False))
    assert isinstance(stream, socket.socket)
    stream.close()
    assert shim.attached == [{"stdin": True, "stdout": True, "stderr": False, "close_stdin_on_eof": False}]
    bench.service.detached(BOX)
    assert bench.actions() == ["attach", "detach"]


async def test_attaching_to_what_is_yet_to_start(bench: ServiceBench) -> None:
    left = await bench.service.attach(NEW, StreamChoice(False, True, True))
    assert isinstance(left, asyncio.Future)
    left.cancel()
    pending = await bench.service.attach(NEW, StreamChoice(False, True, True))
    assert isinstance(pending, asyncio.Future)
    assert len(bench.live[NEW.id].pending_attaches) == 1
    await bench.service.start("new")
    (await asyncio.wait_for(pending, 1)).close()


@pytest.mark.parametrize(("record", "words"), [(FROZEN, "is paused, unpause the container"), (AGAIN, "is restarting")])
async def test_what_cannot_be_attached_to(bench: ServiceBench, record: Container, words: str) -> None:
    with pytest.raises(Conflict, match=words):
        await bench.service.attach(record, StreamChoice(False, True, True))


async def test_logs_end_with_the_container_even_when_it_is_removed(bench: ServiceBench) -> None:
    path = bench.assembly.log_path(BOX)
    assert path is not None
    path.parent.mkdir(parents=True)
    path.write_text('{"log":"hi\\n","stream":"stdout","time":"2026-01-01T00:00:00Z"}\n')
    bench.adopt(BOX)
    seen: list[bytes] = []

    async def follow() -> None:
        async for chunk in bench.service.logs(BOX, LogQuery(follow=True)):
            seen.append(chunk)  # noqa: PERF401 - seen while it grows

    following = asyncio.ensure_future(follow())
    await until(lambda: seen == [b"\x01\x00\x00\x00\x00\x00\x00\x03hi\n"])
    await bench.service.remove("box", force=True, volumes=False)
    await asyncio.wait_for(following, 1)


async def test_a_driver_that_keeps_no_log_is_said(bench: ServiceBench) -> None:
    silent = container(6, host={"log_config": LogConfig(type="none")})
    with pytest.raises(InvalidParameter, match="configured logging driver does not support reading"):
        bench.service.logs(silent, LogQuery())


async def test_prune_takes_what_has_stopped(bench: ServiceBench) -> None:
    bench.assembly.sizes = {OLD.id: 5, NEW.id: 7, BOX.id: 100}
    pruned = await bench.service.prune(prune_filters(), None)
    assert (set(pruned.ids), pruned.reclaimed_bytes) == ({OLD.id, NEW.id}, 12)
    assert {c.name for c in bench.store} == {"box", "frozen", "again"}


async def test_prune_keeps_what_its_filters_say(bench: ServiceBench) -> None:
    assert (await bench.service.prune(prune_filters(), 0)).ids == ()
    assert (await bench.service.prune(prune_filters(label=["other"]), None)).ids == ()
    assert (await bench.service.prune(prune_filters(label_not=["keep"]), NEW.created_at)).ids == (NEW.id,)
    assert (await bench.service.prune(prune_filters(label=["keep"]), 99 * SECOND)).ids == (OLD.id,)


async def test_prune_goes_on_past_what_refuses(bench: ServiceBench) -> None:
    bench.assembly.trash_failure = OSError("busy")
    assert (await bench.service.prune(prune_filters(), None)).ids == ()


async def test_requiring_a_running_container(bench: ServiceBench) -> None:
    assert bench.service.require_running("box") is BOX
    for name in ("new", "old", "frozen", "again"):
        with pytest.raises(Conflict):
            bench.service.require_running(name)


async def test_links_follow_a_rename(bench: ServiceBench) -> None:
    linked = container(6, name="linked", host={"links": ("box:data", "box", "web:w")})
    await bench.records.save(linked)
    await bench.service.rename("box", "other")
    assert bench.now(linked.id).host_config.links == ("other:data", "other:box", "web:w")
    assert bench.service.find("linked/data").name == "other"


async def test_who_takes_the_name_of_a_linked_container_is_not_linked(bench: ServiceBench) -> None:
    links = {"links": ("box:data", "gone:x")}
    linked = container(6, name="linked", host=links, link_ids={"data": BOX.id, "x": "e" * 64})
    await bench.records.save(linked)
    assert bench.service.shown_links(linked) == ["/box:/linked/data", "/gone:/linked/x"]
    await bench.records.save(container(7, name="gone"))
    with pytest.raises(NotFound):
        bench.service.find("linked/x")
    assert bench.service.link_names() == {BOX.id: ["/linked/data"]}
    await bench.service.rename("gone", "other")
    assert bench.now(linked.id).host_config.links == links["links"]


async def test_links_can_be_taken_away(bench: ServiceBench) -> None:
    linked = container(6, name="linked", host={"links": ("db:data", "web")})
    await bench.records.save(linked)
    await bench.service.remove_link("linked", "data")
    assert bench.now(linked.id).host_config.links == ("web",)
    await bench.service.remove_link("linked", "web")
    assert bench.now(linked.id).host_config.links is None
    with pytest.raises(NotFound, match="no link web"):
        await bench.service.remove_link("linked", "web")
