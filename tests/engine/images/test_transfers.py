"""Shared transfers: joined, replayed, failed for all, cancelled with the last follower."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from engine.errors import NotFound
from engine.images.progress import Line, Report, status, step
from engine.images.transfers import Transfers
from engine.tasks import Nursery


async def test_two_followers_share_one_run_and_late_ones_see_the_state() -> None:
    nursery = Nursery("t")
    transfers = Transfers(nursery)
    runs, go, begun = 0, asyncio.Event(), asyncio.Event()

    async def operation(report: Report) -> None:
        nonlocal runs
        runs += 1
        report(status("begin"))
        report(step("a", "Waiting"))
        report(step("a", "Done"))
        begun.set()
        await go.wait()
        report(status("end"))

    async def follow() -> list[Line]:
        async with aclosing(transfers.follow("k", operation)) as lines:
            return [line async for line in lines]

    async with asyncio.TaskGroup() as group:
        first = group.create_task(follow())
        await begun.wait()
        late = group.create_task(follow())
        await asyncio.sleep(0)
        go.set()
    assert runs == 1
    assert [line["status"] for line in first.result()] == ["begin", "Waiting", "Done", "end"]
    assert [line["status"] for line in late.result()] == ["begin", "Done", "end"]
    await nursery.aclose()


async def test_everybody_is_told_of_the_failure() -> None:
    nursery = Nursery("t")
    transfers = Transfers(nursery)

    async def operation(report: Report) -> None:
        report(status("x"))
        raise NotFound("gone")

    async def follow() -> None:
        async with aclosing(transfers.follow("k", operation)) as lines:
            async for _ in lines:
                pass

    results = await asyncio.gather(follow(), follow(), return_exceptions=True)
    assert [str(result) for result in results] == ["gone", "gone"]
    await nursery.aclose()


async def test_ends_with_its_last_follower() -> None:
    nursery = Nursery("t")
    transfers = Transfers(nursery)
    cancelled = 0

    async def operation(report: Report) -> None:
        nonlocal cancelled
        report(status("x"))
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled += 1
            raise

    one, two = transfers.follow("k", operation), transfers.follow("k", operation)
    await anext(one)
    await anext(two)
    await one.aclose()
    assert not cancelled
    await two.aclose()
    assert cancelled == 1
    again = transfers.follow("k", operation)
    assert (await anext(again))["status"] == "x"
    await again.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(again)
    await nursery.aclose()


async def test_goes_on_without_followers_if_it_says_so(caplog: pytest.LogCaptureFixture) -> None:
    nursery = Nursery("t")
    transfers = Transfers(nursery)
    go, ended = asyncio.Event(), asyncio.Event()

    async def operation(report: Report) -> None:
        report(status("x"))
        await go.wait()
        ended.set()
        raise NotFound("gone")

    lines = transfers.follow("k", operation, goes_on=lambda: True)
    await anext(lines)
    await lines.aclose()
    go.set()
    await ended.wait()
    await asyncio.sleep(0)
    assert "k failed, and nobody was there to be told: gone" in caplog.text
    await nursery.aclose()
