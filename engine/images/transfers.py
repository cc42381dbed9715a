"""Operations that report progress while they run, shared by everybody who asks for the same one.

A transfer runs in the nursery under its key. Whoever joins late is told the current state first. It ends early when
nobody follows it any more, unless it says then that it goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from engine.images.progress import Line, Report
from engine.tasks import Nursery

log = logging.getLogger(__name__)

Operation = Callable[[Report], Awaitable[Any]]


class _Transfer:
    """One running operation, its lines so far (the last of each layer), and its followers."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self._lines: dict[object, Line] = {}
        self._followers: set[asyncio.Queue[Line | None]] = set()
        self.over = False
        self.error: Exception | None = None

    def report(self, line: Line) -> None:
        key = line.get("id") if "progressDetail" in line else None
        self._lines[key or len(self._lines)] = line
        for follower in self._followers:
            follower.put_nowait(line)

    def end(self) -> None:
        self.over = True
        for follower in self._followers:
            follower.put_nowait(None)

    def join(self) -> asyncio.Queue[Line | None]:
        follower: asyncio.Queue[Line | None] = asyncio.Queue()
        for line in self._lines.values():
            follower.put_nowait(line)
        if self.over:
            follower.put_nowait(None)
        self._followers.add(follower)
        return follower

    @property
    def is_followed(self) -> bool:
        """Whether anybody listens."""
        return bool(self._followers)

    def leave(self, follower: asyncio.Queue[Line | None]) -> bool:
        """Stop following; whether nobody follows any more."""
        self._followers.discard(follower)
        return not self._followers


class Transfers:
    """The running transfers by key."""

    def __init__(self, nursery: Nursery) -> None:
        self._nursery = nursery
        self._running: dict[str, _Transfer] = {}

    async def follow(
        self, key: str, operation: Operation, *, goes_on: Callable[[], bool] = lambda: False
    ) -> AsyncGenerator[Line, None]:
        """The lines of the transfer ``key``, started now if it does not run; its error at the end, if it fails.

        ``goes_on`` is asked when the last follower leaves: whether the transfer is to end as if it had stayed.
        """
        transfer = self._running.get(key)
        if transfer is None:
            transfer = self._running[key] = _Transfer()
            transfer.task = self._nursery.start(self._run(key, transfer, operation), name=key)
        follower = transfer.join()
        task = transfer.task
        assert task is not None
        try:
            while (line := await follower.get()) is not None:
                yield line
            if transfer.error is not None:
                raise transfer.error
        finally:
            if transfer.leave(follower) and not transfer.over and not goes_on():
                if self._running.get(key) is transfer:
                    del self._running[key]
                task.cancel()
                await asyncio.wait([task])

    async def _run(self, key: str, transfer: _Transfer, operation: Operation) -> None:
        try:
            await operation(transfer.report)
        except Exception as error:  # noqa: BLE001 - it is raised again by everybody who follows
            transfer.error = error
            if not transfer.is_followed:
                log.warning("%s failed, and nobody was there to be told: %s", key, error)
        finally:
            if self._running.get(key) is transfer:
                del self._running[key]
            transfer.end()
