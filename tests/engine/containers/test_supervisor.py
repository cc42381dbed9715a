"""What follows an exit, and how records and reality are brought together when the daemon starts."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from engine.clock import SECOND
from engine.containers import policy
from engine.containers.live import Exit
from engine.containers.model import Container, Status
from engine.containers.settings import RestartPolicy
from engine.errors import Conflict
from engine.runtime.shims import ExecExited, OutOfMemory
from engine.shim import wire
from tests.support.containers import container, ended, running
from tests.support.runs import Bench, FakeShim, refused, until

ALWAYS = {"restart_policy": RestartPolicy(name="always")}


@pytest_asyncio.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(policy, "FIRST_DELAY", 0.001)
    made = Bench(tmp_path)
    yield made
    await made.aclose()


async def watched(bench: Bench, **changes: Any) -> tuple[Container, FakeShim]:
    record = running(2, **changes)
    await bench.records.save(record)
    return record, bench.adopt(record)


def exit_file(bench: Bench, record: Container, exit_code: int) -> None:
    """What a shim leaves on disk."""
    folder = bench.assembly.run_dir(record.id)
    folder.mkdir(exist_ok=True)
    document = {"exit_code": exit_code, "oom_killed": False, "started_at": SECOND, "finished_at": 9 * SECOND}
    (folder / wire.EXIT_FILE).write_text(json.dumps(document))


async def test_an_exit_is_recorded_then_told(bench: Bench) -> None:
    record, shim = await watched(bench)
    waiting = bench.live[record.id].waiters.next_exit()
    shim.end(3, finished_at=100 * SECOND)
    assert await asyncio.wait_for(waiting, 1) == Exit(3)
    state = bench.now(record.id).state
    assert (state.status, state.exit_code, state.finished_at, state.pid) == (Status.EXITED, 3, 100 * SECOND, 0)
    assert bench.actions() == ["die"]
    assert bench.attributes("die")["exitCode"] == "3"
    assert bench.attributes("die")["execDuration"] == "98"
    await until(lambda: bench.assembly.log == ["put away"])
    assert bench.live[record.id].ended.is_set()


async def test_the_kernels_kill_is_told_first(bench: Bench) -> None:
    record, shim = await watched(bench)
    shim.end(137, oom_killed=True)
    await until(lambda: bench.actions() == ["oom", "die"])
    assert bench.now(record.id).state.oom_killed


async def test_memory_that_runs_out_is_told_while_it_runs(bench: Bench) -> None:
    """Each time, once also where the end has the same to tell, and with the kernel's killer off."""
    record, shim = await watched(bench)
    shim.tell(ExecExited("e", 0))
    shim.tell(OutOfMemory())
    await until(lambda: bench.actions() == ["oom"])
    state = bench.now(record.id).state
    assert (state.status, state.oom_killed) == (Status.RUNNING, True)
    shim.tell(OutOfMemory())
    shim.end(137)
    await until(lambda: bench.actions() == ["oom", "oom", "die"])
    assert bench.now(record.id).state.oom_killed
    shim.tell(OutOfMemory())
    await asyncio.sleep(0.002)
    assert bench.actions() == ["oom", "oom", "die"]


async def test_the_policy_starts_it_again(bench: Bench) -> None:
    record, shim = await watched(bench, host=ALWAYS)
    shim.end(1)
    await until(lambda: len(bench.assembly.shims) == 2 and bench.now(record.id).is_running)
    assert bench.now(record.id).state.restart_count == 1
    await until(lambda: bench.actions() == ["die", "start"])
    bench.assembly.shims[1].end(1)
    await until(lambda: bench.now(record.id).state.restart_count == 2)


async def test_who_was_stopped_stays_stopped(bench: Bench) -> None:
    record, _ = await watched(bench, host=ALWAYS)
    await bench.lifecycle.stop(record.id)
    await until(lambda: bench.now(record.id).state.status is Status.EXITED)
    await asyncio.sleep(0.005)
    assert len(bench.assembly.shims) == 1


async def test_a_restart_that_fails_is_tried_again(bench: Bench) -> None:
    record, shim = await watched(bench, host=ALWAYS)
    bench.assembly.failure = refused("not yet", 128)
    shim.end(1)
    await until(lambda: bench.assembly.log.count("assemble") == 3)
    assert bench.now(record.id).state.restart_count >= 2
    bench.assembly.failure = None
    await until(lambda: bench.now(record.id).is_running)


async def test_a_restart_that_may_not_be_tried_again_tells_those_who_wait(bench: Bench) -> None:
    once = {"restart_policy": RestartPolicy(name="on-failure", maximum_retry_count=1)}
    record, shim = await watched(bench, host=once)
    bench.assembly.failure = refused("never", 127)
    shim.end(1)
    await until(lambda: bench.live[record.id].restart_task is not None)
    waiting = bench.live[record.id].waiters.next_exit()
    assert await asyncio.wait_for(waiting, 1) == Exit(127, "never")
    assert bench.now(record.id).state.status is Status.EXITED


async def test_rm_removes_it(bench: Bench) -> None:
    record, shim = await watched(bench, host={"auto_remove": True}, anonymous_volumes=("v1",))
    gone = bench.live[record.id].waiters.removal()
    shim.end(5)
    assert await asyncio.wait_for(gone, 1) == Exit(5)
    assert bench.store.get(record.id) is None
    assert bench.volumes.removed == ["v1"]
    assert bench.actions() == ["die", "destroy"]


async def test_a_removal_that_fails_is_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    record, shim = await watched(bench, host={"auto_remove": True})
    bench.assembly.trash_failure = OSError("busy")
    shim.end(0)
    await until(lambda: bench.now(record.id).state.status is Status.DEAD)
    await until(lambda: any("could not be removed after its end" in r.getMessage() for r in caplog.records))


async def test_an_exit_during_a_removal_stays_a_removal(bench: Bench) -> None:
    record, shim = await watched(bench, host=ALWAYS)
    await bench.records.save(running(2, host=ALWAYS, state={"status": Status.REMOVING}))
    shim.end(0)
    await until(lambda: "put away" in bench.assembly.log)
    assert bench.now(record.id).state.status is Status.REMOVING


async def test_a_lost_shim_that_left_a_record_is_believed(bench: Bench) -> None:
    record, shim = await watched(bench)
    exit_file(bench, record, 42)
    shim.lose()
    await until(lambda: bench.now(record.id).state.exit_code == 42)
    assert "kill leftover" not in bench.assembly.log


async def test_a_lost_shim_without_one_ends_the_container(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    record, shim = await watched(bench)
    shim.lose()
    await until(lambda: bench.now(record.id).state.exit_code == 255)
    assert bench.assembly.log[0] == "kill leftover"
    assert [r.levelno for r in caplog.records] == [logging.ERROR]


async def test_a_stopping_daemon_leaves_exits_to_the_next(bench: Bench) -> None:
    record, shim = await watched(bench)
    bench.supervisor.close()
    shim.end(1)
    await asyncio.sleep(0.002)
    assert bench.now(record.id).is_running
    assert bench.actions() == []


async def test_a_shim_lost_while_the_daemon_stops_is_the_next_daemons(bench: Bench) -> None:
    record, shim = await watched(bench)
    bench.supervisor.close()
    shim.lose()
    await asyncio.sleep(0.005)
    assert bench.now(record.id).is_running
    assert bench.assembly.log == []


async def test_an_exit_of_what_is_gone_is_nobodys(bench: Bench) -> None:
    record, shim = await watched(bench)
    await bench.store.delete(record)
    shim.end(0)
    await asyncio.sleep(0.002)
    assert bench.actions() == []


# The start of the daemon.


async def restore(bench: Bench, tmp_path: Path, *records: Container) -> list[str]:
    for record in records:
        await bench.records.save(record)
    return await bench.supervisor.restore(tmp_path)


def living(bench: Bench, record: Container) -> FakeShim:
    bench.shims.known[record.id] = shim = FakeShim(record.id, init_pid=77)
    bench.assembly.run_dir(record.id).mkdir(exist_ok=True)
    return shim


async def test_what_lives_is_adopted(bench: Bench, tmp_path: Path) -> None:
    record, frozen = running(1), running(2, state={"status": Status.PAUSED})
    shim = living(bench, record)
    living(bench, frozen)
    assert await restore(bench, tmp_path, record, frozen) == []
    assert bench.now(record.id) == record
    assert sorted(bench.assembly.log[:4]) == ["adopt", "adopt", "freeze", "thaw"]
    assert sorted(bench.prober.begun) == sorted([record.id, frozen.id])
    shim.end(4)
    await until(lambda: bench.now(record.id).state.exit_code == 4)


async def test_what_ended_meanwhile_is_recorded(bench: Bench, tmp_path: Path) -> None:
    with_shim, without_shim, lost = running(1), running(2), running(3)
    living(bench, with_shim)
    exit_file(bench, with_shim, 1)
    exit_file(bench, without_shim, 2)
    await restore(bench, tmp_path, with_shim, without_shim, lost)
    assert [bench.now(r.id).state.exit_code for r in (with_shim, without_shim, lost)] == [1, 2, 255]
    assert all(bench.now(r.id).state.status is Status.EXITED for r in (with_shim, without_shim, lost))


async def test_a_start_nobody_was_told_of_is_undone(bench: Bench, tmp_path: Path) -> None:
    record = container(1)
    shim = living(bench, record)
    await restore(bench, tmp_path, record)
    assert shim.is_discarded
    assert bench.assembly.log == [f"drop {record.id}", "sweep"]
    assert bench.now(record.id) == record
    assert bench.live[record.id].ended.is_set()


async def test_one_that_cannot_be_restored_keeps_no_other_from_it(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken, sound = container(1), running(2)
    shim = living(bench, broken)

    async def discard() -> None:
        raise ValueError("what nobody has thought of")

    monkeypatch.setattr(shim, "discard", discard)
    await restore(bench, tmp_path, broken, sound)
    assert bench.now(sound.id).state.status is Status.EXITED
    assert "what nobody has thought of" in caplog.text


async def test_removals_are_finished(bench: Bench, tmp_path: Path) -> None:
    removing = ended(1, state={"status": Status.REMOVING})
    leftover = ended(2, host={"auto_remove": True})
    await restore(bench, tmp_path, removing, leftover)
    assert len(bench.store) == 0
    assert sorted(bench.snapshotter.removed) == sorted([removing.id, leftover.id])


async def test_run_folders_of_no_run_are_swept(bench: Bench, tmp_path: Path) -> None:
    stranger, idle, runs = container(8), ended(1), running(2)
    shim = living(bench, stranger)
    bench.assembly.run_dir(idle.id).mkdir()
    living(bench, runs)
    await restore(bench, tmp_path, idle, runs)
    assert shim.is_discarded
    assert {f"drop {stranger.id}", f"drop {idle.id}"} < set(bench.assembly.log)
    assert [path.name for path in tmp_path.iterdir()] == [runs.id]


async def test_policies_say_who_starts_in_order_of_age(bench: Bench, tmp_path: Path) -> None:
    def policies(name: str) -> dict[str, Any]:
        return {"restart_policy": RestartPolicy(name=name)}

    records = [
        ended(9, host=policies("always"), state={"manually_stopped": True}),
        ended(1, host=policies("unless-stopped")),
        ended(2, host=policies("unless-stopped"), state={"manually_stopped": True}),
        ended(3, host=policies("on-failure"), exit_code=1, state={"status": Status.RESTARTING}),
        ended(4, host=policies("on-failure"), exit_code=1),
        ended(5),
        ended(6, host=policies("always"), state={"status": Status.DEAD}),
    ]
    wanted = await restore(bench, tmp_path, *records)
    assert wanted == [records[1].id, records[3].id, records[0].id]


async def test_one_whose_restart_nobody_wants_any_more_is_not_left_waiting(bench: Bench, tmp_path: Path) -> None:
    between = {"status": Status.RESTARTING, "restart_count": 3}
    unwanted = ended(1, host={"restart_policy": RestartPolicy(name="no")}, exit_code=7, state=between)
    wanted = ended(2, host=ALWAYS, exit_code=7, state=between)
    assert await restore(bench, tmp_path, unwanted, wanted) == [wanted.id]
    state = bench.now(unwanted.id).state
    assert (state.status, state.exit_code, state.restart_count) == (Status.EXITED, 7, 3)
    assert bench.actions() == []


async def test_one_that_cannot_be_restored_does_not_stop_the_others(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = running(1), running(2)
    living(bench, bad)
    living(bench, good)
    adopt = bench.assembly.adopt

    async def refuses(record: Container, live: Any, shim: FakeShim) -> None:
        if record.id == bad.id:
            raise Conflict("its network is gone")
        await adopt(record, live, shim)

    monkeypatch.setattr(bench.assembly, "adopt", refuses)
    await restore(bench, tmp_path, bad, good)
    assert bench.prober.begun == [good.id]
    assert any("could not be restored: its network is gone" in r.getMessage() for r in caplog.records)
