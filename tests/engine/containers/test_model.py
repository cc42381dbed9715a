"""A container's life, transition by transition."""

from __future__ import annotations

import msgspec

from engine.containers import model
from engine.containers.model import Container, Health, State, Status
from tests.support.containers import container, ended, running


def test_a_record_survives_the_journal() -> None:
    record = running(config={"labels": {"a": "b"}}, state={"health": Health(status="healthy")})
    assert msgspec.json.decode(msgspec.json.encode(record), type=Container) == record


def test_running_means_that_a_process_exists() -> None:
    lives = {status: container(state={"status": status}).is_running for status in Status}
    assert [status.value for status, alive in lives.items() if alive] == ["running", "paused"]


def test_labels_are_never_none() -> None:
    assert container().labels == {}
    assert container(config={"labels": {"a": "b"}}).labels == {"a": "b"}


def test_a_start_drops_the_traces_of_the_last_run() -> None:
    old = ended(exit_code=137, state={"oom_killed": True, "error": "x", "manually_stopped": True, "restart_count": 2})
    new = model.started(old, 77, 900)
    assert new.state == State(
        status=Status.RUNNING, pid=77, started_at=900, finished_at=old.state.finished_at, restart_count=2
    )
    assert old.state.exit_code == 137


def test_a_failed_start_keeps_what_was() -> None:
    first = model.start_failed(container(), 127, "no such program").state
    assert (first.status, first.exit_code, first.error, first.pid) == (Status.CREATED, 127, "no such program", 0)
    again = model.start_failed(ended(), 128, "x").state
    assert again.status is Status.EXITED


def test_an_exit() -> None:
    state = model.exited(running(), 3, 50, oom_killed=True).state
    assert (state.status, state.pid, state.exit_code, state.finished_at, state.oom_killed) == (
        Status.EXITED,
        0,
        3,
        50,
        True,
    )


def test_an_exit_that_is_followed_by_another_run_counts() -> None:
    state = model.restarting(running(state={"restart_count": 4}), 3, 50).state
    assert (state.status, state.pid, state.exit_code, state.restart_count) == (Status.RESTARTING, 0, 3, 5)


def test_pausing_and_removing_change_the_status_alone() -> None:
    record = running()
    assert model.paused(record).state == msgspec.structs.replace(record.state, status=Status.PAUSED)
    assert model.resumed(model.paused(record)) == record
    assert model.removing(record).state == msgspec.structs.replace(record.state, status=Status.REMOVING)
