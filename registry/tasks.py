"""Where the registry's background work is born, and where blocking work goes. The engine has its own like this.

Promise: every task begun here has an owner that awaits it: the operation that began it, or a `Background`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import mmap
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("berth.registry")

# Registry work waits for disks and hashes, without the interpreter lock. More threads than this would fight over that
# lock.
_POOL = ThreadPoolExecutor(max_workers=max(6, 2 * (os.cpu_count() or 1)), thread_name_prefix="registry-disk")
# Bodies of a crowd are carried from socket to disk by these. They want that lock much more often, once for each record
# of TLS: every thread more costs more than it carries.
_CARRIERS = ThreadPoolExecutor(max_workers=(os.cpu_count() or 1) + 1, thread_name_prefix="registry-carrier")


class ThreadBuffer(threading.local):
    """Memory that each thread has for itself, aligned to pages; a call borrows it only while it runs."""

    def __init__(self, size: int) -> None:
        self.view = memoryview(mmap.mmap(-1, size))


async def run_blocking(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a `_sync` function of the registry on its own pool; the engine has another one."""
    loop = asyncio.get_running_loop()
    if kwargs:
        return await loop.run_in_executor(_POOL, functools.partial(function, *args, **kwargs))
    return await loop.run_in_executor(_POOL, function, *args)


def begin_blocking(function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
    """The same, begun at once and awaited later; cheaper than a task around it."""
    return asyncio.get_running_loop().run_in_executor(_POOL, function, *args)


def begin_carrying(function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
    """As `begin_blocking`, for a visit to a body that came with many others."""
    return asyncio.get_running_loop().run_in_executor(_CARRIERS, function, *args)


async def acquire(function: Callable[..., T], *args: Any, release: Callable[[T], None]) -> T:
    """Run what opens something. A caller that is cancelled meanwhile leaves nothing open: `release` gets it."""
    opening = begin_blocking(function, *args)
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        await asyncio.wait([opening])
        if opening.exception() is None:
            release(opening.result())
        raise


async def open_to_read(path: str) -> int:
    """A descriptor of the file, for the caller to close."""
    return await acquire(os.open, path, os.O_RDONLY | os.O_CLOEXEC, release=os.close)


def begin(work: Awaitable[T]) -> asyncio.Future[T]:
    """Begin something that the same operation awaits later, so that two things go on at once."""
    return asyncio.ensure_future(work)


async def carry_through(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, which goes on to its end even if the waiter is cancelled: a client that leaves tears nothing.

    The cancelled waiter waits for the end too, so whoever cancelled it (a shutdown) knows when it is over.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


class Background:
    """Tasks that live as long as their owner; a failure is logged, `aclose` cancels and awaits them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Begin a task."""
        task = asyncio.create_task(work, name=f"registry-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("background task %s failed", task.get_name(), exc_info=task.exception())

    async def aclose(self) -> None:
        """Cancel what still runs and wait until it is over."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(tasks)
