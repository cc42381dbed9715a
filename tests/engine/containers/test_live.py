"""Who waits for what of a container, and who is told."""

from __future__ import annotations

import asyncio

from engine.containers.live import Exit, Live, LiveTable, PendingAttach, StreamChoice, Waiters


async def test_an_exit_is_told_to_those_who_wait_for_it() -> None:
    waiters = Waiters()
    exit_one, exit_two, gone = waiters.next_exit(), waiters.next_exit(), waiters.removal()
    exit_two.cancel()
    waiters.exited(Exit(3))
    assert await exit_one == Exit(3)
    assert not gone.done()
    later = waiters.next_exit()
    waiters.removed(Exit(3, "why"))
    assert await gone == Exit(3, "why")
    assert await later == Exit(3, "why")


async def test_nobody_is_kept_after_being_told() -> None:
    waiters = Waiters()
    told, left = waiters.next_exit(), waiters.removal()
    left.cancel()
    waiters.exited(Exit(0))
    await asyncio.sleep(0)
    assert told.done()
    assert not waiters._exit
    assert not waiters._removed


async def test_pending_attaches_are_dropped_by_cancelling() -> None:
    live = Live("c1")
    pending = PendingAttach(StreamChoice(True, True, False), asyncio.get_running_loop().create_future())
    live.pending_attaches.append(pending)
    live.drop_pending()
    assert pending.stream.cancelled()
    assert live.pending_attaches == []


async def test_the_table_makes_on_first_use_and_forgets() -> None:
    table = LiveTable()
    live = table["c1"]
    assert table["c1"] is live
    assert [one.container_id for one in table] == ["c1"]
    table.forget("c1")
    table.forget("c1")
    assert list(table) == []
    assert table["c1"] is not live
