"""Start, stop, kill, restart, pause: each from every state, and what a failed step leaves behind."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from engine.containers import grace
from engine.containers import lifecycle as module
from engine.containers.lifecycle import Lifecycle
from engine.containers.live import Exit, PendingAttach, StreamChoice
from engine.containers.model import Container, Status
from engine.errors import Conflict, EngineError, InvalidParameter, NotFound, NotModified, SystemFailure
from tests.support.containers import container, ended, running
from tests.support.runs import Bench, FakeShim, refused, until

CREATED = container(1)
RUNNING = running(2)
PAUSED = running(3, state={"status": Status.PAUSED})
RESTARTING = ended(4, exit_code=7, state={"status": Status.RESTARTING})
RESTARTING_QUIT = ended(4, exit_code=7, state={"status": Status.RESTARTING}, config={"stop_signal": "QUIT"})
EXITED = ended(5)
DEAD = ended(6, state={"status": Status.DEAD})
REMOVING = ended(7, state={"status": Status.REMOVING})


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path, CREATED, RUNNING, PAUSED, RESTARTING, EXITED, DEAD, REMOVING)
    for record in (CREATED, RESTARTING, EXITED):
        made.live[record.id].ended.set()
    yield made
    await made.aclose()


@pytest_asyncio.fixture
async def shim(bench: Bench) -> FakeShim:
    """The process of the running container."""
    return bench.adopt(RUNNING)


@pytest.mark.parametrize("record", [CREATED, EXITED, RESTARTING])
async def test_a_start_runs_watches_and_tells(bench: Bench, record: Container) -> None:
    await bench.lifecycle.start(record.id)
    state = bench.now(record.id).state
    assert (state.status, state.pid, state.exit_code, state.restart_count) == (Status.RUNNING, 4242, 0, 0)
    assert bench.actions() == ["start"]
    assert bench.prober.begun == [record.id]
    assert not bench.live[record.id].ended.is_set()
    assert bench.assembly.log == ["assemble"]


@pytest.mark.parametrize(
    ("record", "kind", "words"),
    [
        (RUNNING, NotModified, ""),
        (PAUSED, Conflict, "cannot start a paused container, try unpause instead"),
        (DEAD, Conflict, "container is marked for removal and cannot be started"),
        (REMOVING, Conflict, "container is marked for removal and cannot be started"),
    ],
)
async def test_what_cannot_start(bench: Bench, record: Container, kind: type[EngineError], words: str) -> None:
    with pytest.raises(kind) as caught:
        await bench.lifecycle.start(record.id)
    assert caught.value.message == words
    assert bench.now(record.id) == record
    assert bench.assembly.log == []


async def test_limits_that_an_update_made_impossible_are_told_at_the_start(bench: Bench) -> None:
    bench.assembly.limits_failure = InvalidParameter("Minimum memory limit can not be less")
    with pytest.raises(InvalidParameter, match="Minimum memory limit"):
        await bench.lifecycle.start(EXITED.id)
    assert bench.now(EXITED.id) == EXITED
    assert bench.assembly.log == []


async def test_nobody_starts_what_is_not_there(bench: Bench) -> None:
    with pytest.raises(NotFound):
        await bench.lifecycle.start("nobody")


@pytest.mark.parametrize(
    ("failure", "kind", "words", "exit_code"),
    [
        (refused("no such program", 127), InvalidParameter, "no such program", 127),
        (refused("not executable", 126), InvalidParameter, "not executable", 126),
        (refused("runtime broke", 128), SystemFailure, "runtime broke", 128),
        (Conflict("port is taken"), Conflict, "port is taken", 128),
        (OSError(28, "No space left on device"), SystemFailure, "no space left on device", 128),
        (TimeoutError(), SystemFailure, "the container did not start in time", 128),
    ],
)
@pytest.mark.parametrize("at_run", [False, True])
async def test_a_failed_start_leaves_nothing_but_its_reason(
    bench: Bench, failure: Exception, kind: type[EngineError], words: str, exit_code: int, at_run: bool
) -> None:
    if at_run:
        bench.assembly.run_failure = failure
    else:
        bench.assembly.failure = failure
    live = bench.live[CREATED.id]
    waiting = PendingAttach(StreamChoice(False, True, True), asyncio.get_running_loop().create_future())
    if not at_run:
        live.pending_attaches.append(waiting)
    with pytest.raises(kind) as caught:
        await bench.lifecycle.start(CREATED.id)
    assert caught.value.message == words
    state = bench.now(CREATED.id).state
    assert (state.status, state.error, state.exit_code, state.pid) == (Status.CREATED, words, exit_code, 0)
    assert bench.assembly.log == ["assemble", "undo"]
    assert (live.shim, live.pending_attaches) == (None, [])
    assert live.ended.is_set()
    assert waiting.stream.cancelled() is not at_run
    assert bench.actions() == []


async def test_a_record_that_cannot_be_kept_ends_the_process(bench: Bench) -> None:
    bench.journal.failure = OSError("disk full")
    with pytest.raises(OSError, match="disk full"):
        await bench.lifecycle.start(CREATED.id)
    assert bench.assembly.shims[0].signals == [signal.SIGKILL]
    assert bench.assembly.log == ["assemble", "undo"]


async def test_what_was_started_and_stopped_by_hand_survives_a_loss_of_power(bench: Bench) -> None:
    await bench.lifecycle.start(CREATED.id)
    assert bench.now(CREATED.id).is_running and bench.journal.durable == [True]
    await bench.lifecycle.stop(CREATED.id)
    assert bench.journal.durable[1]  # that it was by hand; how it ended follows


async def test_two_starts_at_once_are_one(bench: Bench) -> None:
    bench.assembly.hold = asyncio.Event()
    first = asyncio.ensure_future(bench.lifecycle.start(CREATED.id))
    second = asyncio.ensure_future(bench.lifecycle.start(CREATED.id))
    await until(lambda: bench.assembly.log == ["assemble"])
    bench.assembly.hold.set()
    await first
    with pytest.raises(NotModified):
        await second
    assert len(bench.assembly.shims) == 1


async def test_clients_that_attached_before_get_every_byte(bench: Bench) -> None:
    live, loop = bench.live[CREATED.id], asyncio.get_running_loop()
    wants = PendingAttach(StreamChoice(True, True, False), loop.create_future())
    left = PendingAttach(StreamChoice(False, True, True), loop.create_future())
    left.stream.cancel()
    live.pending_attaches += [wants, left]
    await bench.lifecycle.start(CREATED.id)
    assert bench.assembly.shims[0].attached[0] == {
        "stdin": True,
        "stdout": True,
        "stderr": False,
        "close_stdin_on_eof": False,
    }
    with await wants.stream as stream:
        bench.assembly.shims[0].peers[0].sendall(b"first")
        assert await loop.sock_recv(stream, 10) == b"first"
    assert live.pending_attaches == []


async def test_a_start_by_hand_ends_the_back_off(bench: Bench) -> None:
    live = bench.live[RESTARTING.id]
    live.back_off.delay = 30.0
    live.restart_task = waiting = bench.nursery.start(asyncio.sleep(60), name="restart")
    await bench.lifecycle.start(RESTARTING.id)
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert (live.restart_task, live.back_off.delay) == (None, 0.0)


async def test_a_restart_by_policy_keeps_the_count(bench: Bench) -> None:
    await bench.lifecycle.start(RESTARTING.id, by_hand=False)
    assert bench.now(RESTARTING.id).state.restart_count == RESTARTING.state.restart_count


async def test_a_stop_asks_first(bench: Bench, shim: FakeShim) -> None:
    await bench.lifecycle.stop(RUNNING.id)
    assert shim.signals == [signal.SIGTERM]
    await until(lambda: bench.now(RUNNING.id).state.status is Status.EXITED)
    assert bench.now(RUNNING.id).state.manually_stopped
    assert sorted(bench.actions()) == ["die", "kill", "stop"]
    assert bench.attributes("kill")["signal"] == "15"


async def test_a_stop_kills_who_does_not_listen(bench: Bench, shim: FakeShim) -> None:
    shim.ends_by = {9}
    await bench.lifecycle.stop(RUNNING.id, seconds=0)
    assert shim.signals == [signal.SIGTERM, signal.SIGKILL]
    assert bench.attributes("kill")["signal"] == "9"


async def test_a_negative_grace_waits_for_ever(bench: Bench, shim: FakeShim) -> None:
    shim.ends_by = set()
    stopping = asyncio.ensure_future(bench.lifecycle.stop(RUNNING.id, seconds=-1))
    await asyncio.sleep(0.005)
    assert not stopping.done()
    shim.end(0)
    await stopping
    assert shim.signals == [signal.SIGTERM]


async def test_the_signal_is_the_one_asked_for_or_the_containers(bench: Bench, tmp_path: Path) -> None:
    own = running(8, config={"stop_signal": "SIGINT", "stop_timeout": 0})
    await bench.records.save(own)
    shim = bench.adopt(own)
    shim.ends_by = {9}
    await bench.lifecycle.stop(own.id)
    assert shim.signals == [signal.SIGINT, signal.SIGKILL]
    with pytest.raises(InvalidParameter, match="invalid signal: NOPE"):
        await bench.lifecycle.stop(RUNNING.id, signal_name="NOPE")


async def test_what_has_a_stop_signal_that_does_not_exist_is_killed_soon(
    bench: Bench, shim: FakeShim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grace, "UNSENT_SECONDS", 0)
    shim.ends_by = {9}
    await bench.lifecycle.stop(RUNNING.id, seconds=99, signal_name="77")
    assert shim.signals == [signal.SIGKILL]
    assert bench.attributes("kill")["signal"] == "9"


async def test_a_kill_needs_a_signal_that_exists(bench: Bench, shim: FakeShim) -> None:
    with pytest.raises(InvalidParameter, match="^the linux daemon does not support signal 65$"):
        await bench.lifecycle.kill(RUNNING.id, "65")
    assert shim.signals == []


async def test_a_process_that_survives_everything_is_reported(
    bench: Bench, shim: FakeShim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KILL_PATIENCE_SECONDS", 0.001)
    shim.ends_by = set()
    with pytest.raises(SystemFailure, match=f"cannot stop container: {RUNNING.id}: tried to kill container"):
        await bench.lifecycle.stop(RUNNING.id, seconds=0)
    with pytest.raises(SystemFailure, match="^tried to kill container"):
        await bench.lifecycle.kill(RUNNING.id)


@pytest.mark.parametrize("record", [CREATED, EXITED, DEAD])
async def test_stopping_what_does_not_run_changes_nothing(bench: Bench, record: Container) -> None:
    with pytest.raises(NotModified):
        await bench.lifecycle.stop(record.id)
    assert bench.now(record.id) == record


async def test_a_stop_between_two_runs_ends_it_and_tells_those_who_wait(bench: Bench) -> None:
    live = bench.live[RESTARTING.id]
    live.restart_task = waiting = bench.nursery.start(asyncio.sleep(60), name="restart")
    told = live.waiters.next_exit()
    await bench.lifecycle.stop(RESTARTING.id)
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    state = bench.now(RESTARTING.id).state
    assert (state.status, state.exit_code, state.manually_stopped) == (Status.EXITED, 7, True)
    assert await asyncio.wait_for(told, 1) == Exit(7)
    assert bench.actions() == ["stop"]


async def test_a_paused_container_is_thawed_to_be_stopped(bench: Bench) -> None:
    shim = bench.adopt(PAUSED)
    await bench.lifecycle.stop(PAUSED.id)
    assert shim.signals == [signal.SIGTERM]
    assert "thaw" in bench.assembly.log


async def test_kill_is_immediate_and_remembered(bench: Bench, shim: FakeShim) -> None:
    await bench.lifecycle.kill(RUNNING.id)
    assert shim.signals == [signal.SIGKILL]
    await until(lambda: bench.now(RUNNING.id).state.status is Status.EXITED)
    assert bench.now(RUNNING.id).state.manually_stopped
    assert bench.now(RUNNING.id).state.exit_code == 137


async def test_signals_beside_the_stop_signal_are_only_sent(bench: Bench) -> None:
    record = msgspec.structs.replace(RUNNING, config=msgspec.structs.replace(RUNNING.config, stop_signal="QUIT"))
    bench.store._insert(record)
    shim = bench.adopt(record)
    shim.ends_by = set()
    await bench.lifecycle.kill(RUNNING.id, "HUP")
    assert shim.signals == [signal.SIGHUP]
    assert not bench.now(RUNNING.id).state.manually_stopped
    assert bench.attributes("kill")["signal"] == "1"
    await bench.lifecycle.kill(RUNNING.id, "QUIT")
    assert bench.now(RUNNING.id).state.manually_stopped


async def test_without_a_stop_signal_any_signal_ends_the_restarts(bench: Bench, shim: FakeShim) -> None:
    await bench.lifecycle.kill(RUNNING.id, "HUP")
    assert shim.signals == [signal.SIGHUP]
    assert bench.now(RUNNING.id).state.manually_stopped


async def test_a_killed_paused_container_is_thawed(bench: Bench) -> None:
    bench.adopt(PAUSED)
    await bench.lifecycle.kill(PAUSED.id, "KILL")
    assert "thaw" in bench.assembly.log


async def test_a_paused_container_runs_on_to_take_a_signal(bench: Bench) -> None:
    shim = bench.adopt(PAUSED)
    shim.ends_by = set()
    await bench.lifecycle.kill(PAUSED.id, "HUP")
    assert bench.now(PAUSED.id).state.status is Status.RUNNING
    assert bench.actions() == ["unpause", "kill"]


async def test_a_signal_that_ends_nothing_leaves_a_container_with_a_stop_signal_paused(bench: Bench) -> None:
    config = msgspec.structs.replace(PAUSED.config, stop_signal="QUIT")
    bench.adopt(record := msgspec.structs.replace(PAUSED, config=config))
    bench.store._insert(record)
    await bench.lifecycle.kill(PAUSED.id, "HUP")
    assert bench.now(PAUSED.id).state.status is Status.PAUSED


async def test_a_kill_between_two_runs_ends_the_restarts(bench: Bench) -> None:
    live = bench.live[RESTARTING.id]
    live.restart_task = waiting = bench.nursery.start(asyncio.sleep(60), name="restart")
    await bench.lifecycle.kill(RESTARTING.id)
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    state = bench.now(RESTARTING.id).state
    assert (state.status, state.manually_stopped) == (Status.EXITED, True)
    assert bench.actions() == ["kill"]


@pytest.mark.parametrize(("record", "name"), [(CREATED, "KILL"), (EXITED, "KILL"), (RESTARTING_QUIT, "HUP")])
async def test_what_cannot_be_killed(bench: Bench, record: Container, name: str) -> None:
    bench.store._insert(record)
    with pytest.raises(Conflict, match="is not running|is restarting"):
        await bench.lifecycle.kill(record.id, name)
    with pytest.raises(InvalidParameter, match="invalid signal"):
        await bench.lifecycle.kill(record.id, "NOPE")


async def test_a_signal_to_a_process_that_has_just_ended_is_fine(bench: Bench, shim: FakeShim) -> None:
    shim.end(0)
    await bench.lifecycle.kill(RUNNING.id, "HUP")
    assert shim.signals == []


async def test_kill_knows_nobody_that_is_gone(bench: Bench) -> None:
    with pytest.raises(NotFound):
        await bench.lifecycle.kill("nobody")
    with pytest.raises(NotFound):
        await bench.lifecycle.restart("nobody")


async def test_restart_stops_and_starts(bench: Bench, shim: FakeShim) -> None:
    await bench.lifecycle.restart(RUNNING.id)
    assert shim.signals == [signal.SIGTERM]
    state = bench.now(RUNNING.id).state
    assert (state.status, state.manually_stopped) == (Status.RUNNING, False)
    assert bench.actions()[-2:] == ["start", "restart"]
    assert bench.assembly.log == ["put away", "assemble"]


async def test_restart_of_a_stopped_one_is_a_start(bench: Bench) -> None:
    await bench.lifecycle.restart(EXITED.id)
    assert bench.actions() == ["start", "restart"]


async def test_restart_does_not_remove_what_goes_after_its_end(bench: Bench) -> None:
    record = running(9, host={"auto_remove": True})
    await bench.records.save(record)
    bench.adopt(record)
    await bench.lifecycle.restart(record.id)
    assert bench.now(record.id).state.status is Status.RUNNING
    bench.assembly.shims[-1].end(0)
    await until(lambda: bench.store.get(record.id) is None)


async def test_pause_and_unpause(bench: Bench, shim: FakeShim) -> None:
    await bench.lifecycle.pause(RUNNING.id)
    assert bench.now(RUNNING.id).state.status is Status.PAUSED
    await bench.lifecycle.unpause(RUNNING.id)
    assert bench.now(RUNNING.id).state.status is Status.RUNNING
    assert bench.assembly.log == ["freeze", "thaw"]
    assert bench.actions() == ["pause", "unpause"]


@pytest.mark.parametrize("record", [CREATED, EXITED, PAUSED, RESTARTING])
async def test_what_cannot_be_paused(bench: Bench, record: Container) -> None:
    with pytest.raises(Conflict, match="not running|already paused|restarting"):
        await bench.lifecycle.pause(record.id)


@pytest.mark.parametrize("record", [CREATED, RUNNING, EXITED])
async def test_what_cannot_be_unpaused(bench: Bench, record: Container) -> None:
    with pytest.raises(Conflict, match=f"Container {record.id} is not paused"):
        await bench.lifecycle.unpause(record.id)


async def test_frozen_for_the_time_of_a_block(bench: Bench, shim: FakeShim) -> None:
    async with bench.lifecycle.frozen(RUNNING):
        assert bench.now(RUNNING.id).state.status is Status.PAUSED
    assert bench.now(RUNNING.id).state.status is Status.RUNNING
    async with bench.lifecycle.frozen(EXITED):
        pass
    assert bench.assembly.log == ["freeze", "thaw"]


async def test_who_thaws_first_is_fine(bench: Bench, shim: FakeShim) -> None:
    async with bench.lifecycle.frozen(RUNNING):
        await bench.lifecycle.unpause(RUNNING.id)
    assert bench.assembly.log == ["freeze", "thaw"]


async def test_a_lifecycle_without_a_supervisor_is_a_mistake(bench: Bench) -> None:
    alone = Lifecycle(bench.records, bench.live, bench.lifecycle._assembly, bench.locks)
    with pytest.raises(RuntimeError, match="no supervisor"):
        await alone.start(CREATED.id)
