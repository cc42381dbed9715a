"""Containers end with the host, and what is to run again is known after the boot."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from engine.containers import grace, lifecycle
from engine.containers.halt import Halt
from engine.containers.model import Container, Status
from engine.containers.settings import RestartPolicy
from tests.support.containers import ended, running
from tests.support.runs import Bench, FakeShim


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.aclose()


def halt(bench: Bench, stopping: bool = True) -> Halt:
    async def is_stopping() -> bool:
        return stopping

    return Halt(bench.store, bench.lifecycle, bench.supervisor, is_stopping)


async def watched(bench: Bench, number: int, policy: str = "no", **changes: Any) -> tuple[Container, FakeShim]:
    record = running(number, host={"restart_policy": RestartPolicy(name=policy)}, **changes)
    await bench.records.save(record)
    return record, bench.adopt(record)


async def test_a_daemon_that_stops_alone_leaves_them(bench: Bench) -> None:
    record, shim = await watched(bench, 2)
    await halt(bench, stopping=False).with_host()
    assert shim.signals == []
    assert bench.now(record.id).is_running


async def test_each_gets_its_own_signal_and_its_exit_is_recorded(bench: Bench) -> None:
    plain, first = await watched(bench, 2)
    asked, second = await watched(bench, 3, config={"stop_signal": "SIGINT"})
    second.ends_by = {2}
    await halt(bench).with_host()
    assert (first.signals, second.signals) == ([15], [2])
    for record, code in ((plain, 143), (asked, 130)):
        state = bench.now(record.id).state
        assert (state.status, state.exit_code, state.manually_stopped) == (Status.EXITED, code, False)


async def test_who_does_not_listen_is_killed(bench: Bench) -> None:
    _, shim = await watched(bench, 2, config={"stop_timeout": 0})
    shim.ends_by = {9}
    await halt(bench).with_host()
    assert shim.signals == [15, 9]


async def test_who_has_all_the_time_in_the_world_does_not_have_it_now(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grace, "HOST_GRACE_SECONDS", 0)
    _, shim = await watched(bench, 2, config={"stop_timeout": -1})
    shim.ends_by = {9}
    await halt(bench).with_host()
    assert shim.signals == [15, 9]


@pytest.mark.parametrize("policy", ["always", "unless-stopped", "on-failure"])
async def test_what_is_to_run_again_waits_for_the_next_daemon(bench: Bench, tmp_path: Path, policy: str) -> None:
    record, _ = await watched(bench, 2, policy)
    await halt(bench).with_host()
    await asyncio.sleep(0.01)
    assert (len(bench.assembly.shims), bench.now(record.id).state.status) == (1, Status.RESTARTING)
    assert await bench.supervisor.restore(tmp_path) == [record.id]


async def test_a_restart_that_waits_is_not_made_now(bench: Bench) -> None:
    record = ended(2, exit_code=1, state={"status": Status.RESTARTING})
    await bench.records.save(record)
    bench.live[record.id].restart_task = waiting = bench.nursery.start(asyncio.sleep(60), name="restart")
    await halt(bench).with_host()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert bench.now(record.id).state.status is Status.RESTARTING


async def test_one_that_cannot_be_ended_keeps_no_other_from_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lifecycle, "KILL_PATIENCE_SECONDS", 0.01)
    _, stuck = await watched(bench, 2, config={"stop_timeout": 0})
    stuck.ends_by = set()
    other, _ = await watched(bench, 3)
    with caplog.at_level(logging.WARNING):
        await halt(bench).with_host()
    assert "could not be ended" in caplog.text
    assert not bench.now(other.id).is_running
