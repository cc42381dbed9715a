"""Owned background tasks, per-object locks, and the pools that blocking calls go to.

Every task of the daemon belongs to a ``Nursery`` (for the life of its owner) or to a ``TaskGroup`` (inside one
operation); nothing is fired and forgotten. ``create_task`` appears here only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_POOL_SIZES = {"disk": 8, "hash": 2, "net": 2}
_pools: dict[str, ThreadPoolExecutor] = {}


async def run_blocking(fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking ``*_sync`` function on the disk pool; see ``run_in`` for another pool."""
    return await run_in("disk", fn, *args, **kwargs)


async def run_in(pool: str, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking function on the named pool (``disk``, ``hash``, ``net``)."""
    executor = _pools.get(pool)
    if executor is None:
        executor = _pools[pool] = ThreadPoolExecutor(_POOL_SIZES[pool], thread_name_prefix=f"berth-{pool}")
    return await asyncio.get_running_loop().run_in_executor(executor, lambda: fn(*args, **kwargs))


async def run_to_end(pool: str, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """``run_in``, but a caller that is cancelled goes on when ``fn`` has returned: before its files are removed."""
    running = asyncio.ensure_future(run_in(pool, fn, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # nobody is left to be told
        raise


def close_pools() -> None:
    """Join every pool thread; the daemon's last step, and each test's."""
    while _pools:
        _pools.popitem()[1].shutdown(wait=True)


async def wait_any(*coros: Coroutine[Any, Any, Any], timeout: float | None = None) -> None:
    """Return when the first of ``coros`` is done, or after ``timeout`` seconds; the others are cancelled and
    awaited."""
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(coro) for coro in coros]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=timeout)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Nursery:
    """The owner of background tasks: names them, logs their failures, cancels and awaits them at the end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False

    def start(self, coro: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Start ``coro`` as a task that this nursery awaits at the latest in ``aclose``."""
        if self._closing:
            coro.close()
            raise RuntimeError(f"nursery {self.name} is closing")
        task = asyncio.get_running_loop().create_task(coro, name=f"{self.name}:{name}")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not getattr(task, "_berth_awaited", False):
            log.error("task %s failed", task.get_name(), exc_info=error)

    async def shielded(self, coro: Coroutine[Any, Any, T], *, name: str) -> T:
        """Run a changing operation to its end even if the caller is cancelled; the caller merely waits.

        This is how a client that hangs up does not leave a half-made change behind.
        """
        task = self.start(coro, name=name)
        task._berth_awaited = True  # type: ignore[attr-defined]
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task._berth_awaited = False  # type: ignore[attr-defined]  # nobody else will hear of its failure
            raise

    async def aclose(self) -> None:
        """Cancel what still runs and wait for its end."""
        self._closing = True
        while self._tasks:
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.wait(tuple(self._tasks))


class KeyedLocks:
    """One ``asyncio.Lock`` per key, made on first use and dropped with its last user."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @contextlib.asynccontextmanager
    async def __call__(self, key: str) -> AsyncIterator[None]:
        lock, users = self._locks.get(key, (None, 0))
        if lock is None:
            lock = asyncio.Lock()
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[key]
            if users == 1:
                del self._locks[key]
            else:
                self._locks[key] = (lock, users - 1)

    def locked(self, key: str) -> bool:
        """Whether somebody holds the lock of ``key`` now."""
        return key in self._locks and self._locks[key][0].locked()
