"""Removing containers: from every state, twice, and when something refuses."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from engine.containers import model
from engine.containers.live import Exit, PendingAttach, StreamChoice
from engine.containers.model import Container, Status
from engine.containers.settings import ExecSettings
from engine.errors import Conflict, NotFound
from tests.support.containers import container, ended, running
from tests.support.runs import Bench, until

RUNNING = running(2)
EXITED = ended(5, exit_code=3, anonymous_volumes=("v1", "v2"))
REMOVING = ended(7, state={"status": Status.REMOVING})
RESTARTING = ended(4, exit_code=7, state={"status": Status.RESTARTING})


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path, container(1), RUNNING, EXITED, REMOVING, RESTARTING)
    yield made
    await made.aclose()


@pytest.mark.parametrize("record", [container(1), EXITED, REMOVING])
async def test_everything_of_it_goes(bench: Bench, record: Container) -> None:
    gone = bench.live[record.id].waiters.removal()
    await bench.records.save(record)
    await bench.remover.remove(record.id)
    assert bench.store.get(record.id) is None
    assert bench.journal.load("container") == {}
    assert bench.snapshotter.removed == [record.id]
    assert bench.assembly.log == ["trash"]
    assert bench.actions() == ["destroy"]
    assert await gone == Exit(record.state.exit_code)
    assert bench.volumes.removed == []
    (left,) = bench.kept_then
    assert record.id not in left and left


async def test_a_removal_is_on_disk_before_its_files_go(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    remove = bench.snapshotter.remove
    known: list[tuple[str, bool]] = []

    async def noted(key: str) -> None:
        known.append((bench.store.require(key).state.status, bench.journal.durable[-1]))
        await remove(key)

    monkeypatch.setattr(bench.snapshotter, "remove", noted)
    await bench.remover.remove(EXITED.id)
    assert known == [("removing", True)]


async def test_anonymous_volumes_go_when_asked(bench: Bench) -> None:
    await bench.remover.remove(EXITED.id, volumes=True)
    assert bench.volumes.removed == ["v1", "v2"]


async def test_a_volume_in_use_stays(bench: Bench) -> None:
    bench.volumes.failure = Conflict("in use")
    await bench.remover.remove(EXITED.id, volumes=True)
    assert bench.store.get(EXITED.id) is None


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (Status.RUNNING, 'cannot remove container "/{name}": container is running: stop the container before'),
        (Status.RESTARTING, 'cannot remove container "/{name}": container is restarting: stop the container before'),
        (Status.PAUSED, 'cannot remove container "/{name}": container is paused and must be unpaused first'),
    ],
)
async def test_what_runs_stays_without_force(bench: Bench, status: Status, words: str) -> None:
    record = running(8, state={"status": status})
    await bench.records.save(record)
    with pytest.raises(Conflict) as caught:
        await bench.remover.remove(record.id)
    assert caught.value.message.startswith(words.format(name=record.name))
    assert bench.now(record.id) == record


async def test_force_kills_first(bench: Bench) -> None:
    shim = bench.adopt(RUNNING)
    await bench.remover.remove(RUNNING.id, force=True)
    assert shim.signals == [signal.SIGKILL]
    assert bench.store.get(RUNNING.id) is None
    assert bench.assembly.log == ["put away", "trash"]
    assert bench.actions()[-1] == "destroy"


async def test_force_ends_the_wait_for_a_restart(bench: Bench) -> None:
    live = bench.live[RESTARTING.id]
    live.restart_task = waiting = bench.nursery.start(asyncio.sleep(60), name="restart")
    await bench.remover.remove(RESTARTING.id, force=True)
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert bench.store.get(RESTARTING.id) is None


async def test_force_waits_for_a_restart_that_is_starting(bench: Bench) -> None:
    """The start of a restart is never cut in its middle: its process would run unwatched."""
    bench.assembly.hold = asyncio.Event()
    starting = bench.nursery.start(bench.lifecycle.start(RESTARTING.id, by_hand=False), name="restart")
    bench.live[RESTARTING.id].restart_task = starting
    await until(lambda: bench.assembly.log == ["assemble"])
    removing = asyncio.ensure_future(bench.remover.remove(RESTARTING.id, force=True))
    await asyncio.sleep(0.002)
    bench.assembly.hold.set()
    await removing
    assert bench.assembly.shims[0].signals == [signal.SIGKILL]
    assert bench.store.get(RESTARTING.id) is None


async def test_two_at_once_are_told_apart(bench: Bench) -> None:
    first = asyncio.ensure_future(bench.remover.remove(EXITED.id))
    await asyncio.sleep(0)
    with pytest.raises(Conflict, match=f"removal of container {EXITED.id} is already in progress"):
        await bench.remover.remove(EXITED.id)
    await first
    with pytest.raises(NotFound):
        await bench.remover.remove(EXITED.id)


async def test_force_joins_a_removal_under_way(bench: Bench) -> None:
    """``docker rm -f`` of what ``--rm`` removes just now succeeds, and takes the volumes it was told to take."""
    first = asyncio.ensure_future(bench.remover.remove(EXITED.id))
    await asyncio.sleep(0)
    await bench.remover.remove(EXITED.id, force=True, volumes=True)
    assert bench.store.get(EXITED.id) is None
    assert bench.volumes.removed == ["v1", "v2"]
    assert bench.actions() == ["destroy"]
    await first


async def test_force_takes_over_where_the_removal_under_way_fails(bench: Bench) -> None:
    bench.assembly.trash_failure = OSError(5, "Input/output error")
    first = asyncio.ensure_future(bench.remover.remove(EXITED.id))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(bench.remover.remove(EXITED.id, force=True))
    with pytest.raises(Conflict, match="could not be put in the trash"):
        await first
    bench.assembly.trash_failure = None
    await second
    assert bench.store.get(EXITED.id) is None


async def test_auto_removal_leaves_it_to_a_removal_under_way(bench: Bench) -> None:
    first = asyncio.ensure_future(bench.remover.remove(EXITED.id))
    await asyncio.sleep(0)
    await bench.remover.auto_remove(EXITED.id)
    await first
    assert bench.volumes.removed == []


async def test_files_that_cannot_go_leave_a_dead_container(bench: Bench) -> None:
    bench.assembly.trash_failure = OSError(5, "Input/output error")
    with pytest.raises(Conflict, match="could not be put in the trash"):
        await bench.remover.remove(EXITED.id)
    state = bench.now(EXITED.id).state
    assert (state.status, state.error) == (Status.DEAD, "input/output error")
    bench.assembly.trash_failure = None
    await bench.remover.remove(EXITED.id)
    assert bench.store.get(EXITED.id) is None


async def test_who_waits_to_attach_is_let_go(bench: Bench) -> None:
    pending = PendingAttach(StreamChoice(False, True, True), asyncio.get_running_loop().create_future())
    bench.live[EXITED.id].pending_attaches.append(pending)
    await bench.remover.remove(EXITED.id)
    assert pending.stream.cancelled()


async def test_its_execs_are_forgotten(bench: Bench) -> None:
    bench.adopt(RUNNING)
    instance = bench.execs.create(RUNNING.id, ExecSettings(cmd=("ls",)))
    await bench.remover.remove(RUNNING.id, force=True)
    with pytest.raises(NotFound):
        bench.execs.find(instance.id)


async def test_auto_remove_takes_the_anonymous_volumes(bench: Bench) -> None:
    await bench.remover.auto_remove(EXITED.id)
    assert bench.volumes.removed == ["v1", "v2"]


@pytest.mark.parametrize(("promised", "removed"), [(True, ["v1", "v2"]), (False, [])])
async def test_a_removal_that_was_cut_short_keeps_its_word_about_volumes(
    bench: Bench, promised: bool, removed: list[str]
) -> None:
    await bench.records.save(model.removing(EXITED, volumes=promised))
    await bench.remover.auto_remove(EXITED.id)
    assert bench.volumes.removed == removed
    assert bench.store.get(EXITED.id) is None


async def test_the_record_outlives_the_volumes_it_promised_to_remove(bench: Bench) -> None:
    seen: list[bool] = []

    async def look(_name: str) -> None:
        record = bench.store.require(EXITED.id)
        seen.append(record.state.removes_volumes)

    bench.volumes.remove_with_container = look  # type: ignore[method-assign]
    await bench.remover.remove(EXITED.id, volumes=True)
    assert seen == [True, True]
