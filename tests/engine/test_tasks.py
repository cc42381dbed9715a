"""Nurseries own their tasks, locks are per key, blocking calls leave the loop."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from engine.tasks import KeyedLocks, Nursery, close_pools, run_blocking, run_in, run_to_end, wait_any


async def forever() -> None:
    await asyncio.Event().wait()


async def fails() -> None:
    raise ValueError("broken step")


async def test_blocking_calls_run_on_the_named_pool() -> None:
    def where(*, suffix: str) -> str:
        return threading.current_thread().name + suffix

    assert (await run_blocking(where, suffix="!")).startswith("berth-disk_0")
    assert (await run_in("hash", where, suffix="?")).startswith("berth-hash")
    with pytest.raises(KeyError):
        await run_in("none such", where, suffix="")


async def test_errors_of_blocking_calls_arrive() -> None:
    with pytest.raises(ZeroDivisionError):
        await run_blocking(lambda: 1 // 0)


@pytest.mark.parametrize("fail", [False, True])
async def test_a_cancelled_caller_waits_for_what_must_end(fail: bool) -> None:
    begun, go, ended = threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        go.wait()
        ended.append(1)
        if fail:
            raise OSError("in vain")

    task = asyncio.ensure_future(run_to_end("disk", work))
    await run_in("hash", begun.wait)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [1]
    assert await run_to_end("disk", lambda: 7) == 7


async def test_pools_can_be_closed_and_come_back() -> None:
    await run_blocking(lambda: None)
    close_pools()
    assert await run_blocking(lambda: 7) == 7


async def test_a_nursery_names_its_tasks_and_ends_them() -> None:
    nursery = Nursery("house")
    task = nursery.start(forever(), name="lamp")
    assert task.get_name() == "house:lamp"
    await nursery.aclose()
    assert task.cancelled()
    with pytest.raises(RuntimeError, match="nursery house is closing"):
        nursery.start(forever(), name="late")


async def test_closing_waits_for_those_that_need_time_to_end() -> None:
    nursery, ended = Nursery("house"), []

    async def slow_end() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0.001)
            ended.append(True)

    nursery.start(slow_end(), name="slow")
    await asyncio.sleep(0)
    await nursery.aclose()
    assert ended == [True]


async def test_a_failure_nobody_awaits_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    nursery = Nursery("house")
    task = nursery.start(fails(), name="stove")
    await asyncio.wait([task])
    await nursery.aclose()
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [(logging.ERROR, "task house:stove failed")]


async def test_shielded_work_gives_its_result_and_its_error(caplog: pytest.LogCaptureFixture) -> None:
    nursery = Nursery("house")

    async def seven() -> int:
        return 7

    assert await nursery.shielded(seven(), name="ok") == 7
    with pytest.raises(ValueError, match="broken step"):
        await nursery.shielded(fails(), name="no")
    await nursery.aclose()
    assert caplog.records == []


async def test_shielded_work_goes_on_without_its_caller() -> None:
    nursery, go, done = Nursery("house"), asyncio.Event(), asyncio.Event()

    async def change() -> None:
        await go.wait()
        done.set()

    caller = asyncio.ensure_future(nursery.shielded(change(), name="change"))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    go.set()
    await asyncio.wait_for(done.wait(), 1)
    await nursery.aclose()


async def test_a_failure_after_the_caller_left_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    nursery, go = Nursery("house"), asyncio.Event()

    async def change() -> None:
        await go.wait()
        raise ValueError("half made")

    caller = asyncio.ensure_future(nursery.shielded(change(), name="change"))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([caller])
    go.set()
    await asyncio.sleep(0.001)
    await nursery.aclose()
    assert [r.getMessage() for r in caplog.records] == ["task house:change failed"]


async def test_wait_any_returns_with_the_first_and_ends_the_others() -> None:
    ended: list[str] = []

    async def never() -> None:
        try:
            await forever()
        finally:
            ended.append("never")

    await asyncio.wait_for(wait_any(never(), asyncio.sleep(0)), 1)
    assert ended == ["never"]
    await asyncio.wait_for(wait_any(never(), timeout=0.001), 1)
    assert ended == ["never", "never"]


async def test_a_cancelled_wait_any_leaves_nothing_running() -> None:
    ended = asyncio.Event()

    async def never() -> None:
        try:
            await forever()
        finally:
            ended.set()

    waiting = asyncio.ensure_future(wait_any(never()))
    await asyncio.sleep(0.001)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert ended.is_set()


async def test_one_key_is_held_by_one_at_a_time_and_keys_do_not_meet() -> None:
    locks, order = KeyedLocks(), []
    go = asyncio.Event()

    async def hold(key: str, label: str) -> None:
        async with locks(key):
            order.append(label)
            await go.wait()

    tasks = [asyncio.ensure_future(hold(key, f"{key}{n}")) for n, key in enumerate("aab")]
    await asyncio.sleep(0.001)
    assert order == ["a0", "b2"]
    assert locks.locked("a")
    assert not locks.locked("c")
    go.set()
    await asyncio.gather(*tasks)
    assert order == ["a0", "b2", "a1"]
    assert not locks.locked("a")
    assert locks._locks == {}


async def test_a_cancelled_waiter_frees_its_place() -> None:
    locks = KeyedLocks()

    async def take() -> None:
        async with locks("a"):
            pass

    async with locks("a"):
        waiting = asyncio.ensure_future(take())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert locks.locked("a")
    await asyncio.wait_for(take(), 1)
    assert locks._locks == {}
