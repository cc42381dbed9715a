"""What the daemon holds of a container beyond its record: the shim, the sandbox, who waits, who wants to attach.

None of it is journalled: it is found again at start, or its loss means that a client's connection was lost too.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

from engine.containers.policy import BackOff
from engine.networks.sandbox import Sandbox
from engine.runtime.shims import Shim


@dataclass(frozen=True, slots=True)
class Exit:
    """What ``wait`` answers: the exit code, and an error's sentence when the container could not run."""

    code: int
    error: str = ""


class Waiters:
    """Futures of clients that wait for the next exit, or for the removal, of one container."""

    def __init__(self) -> None:
        self._exit: set[asyncio.Future[Exit]] = set()
        self._removed: set[asyncio.Future[Exit]] = set()

    def next_exit(self) -> asyncio.Future[Exit]:
        """Done when the process ends the next time."""
        return self._register(self._exit)

    def removal(self) -> asyncio.Future[Exit]:
        """Done when the container is gone."""
        return self._register(self._removed)

    def _register(self, where: set[asyncio.Future[Exit]]) -> asyncio.Future[Exit]:
        future: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        where.add(future)
        future.add_done_callback(where.discard)
        return future

    def exited(self, exit: Exit) -> None:
        """The process ended."""
        _settle(self._exit, exit)

    def removed(self, exit: Exit) -> None:
        """The container is gone; whoever waited for an exit that will not come is told too."""
        _settle(self._exit, exit)
        _settle(self._removed, exit)


def _settle(futures: set[asyncio.Future[Exit]], exit: Exit) -> None:
    for future in tuple(futures):
        if not future.done():
            future.set_result(exit)


@dataclass(frozen=True, slots=True)
class StreamChoice:
    """Which streams a client wants."""

    stdin: bool
    stdout: bool
    stderr: bool


@dataclass(slots=True)
class PendingAttach:
    """A client that attached before the start; it gets every byte from the first."""

    choice: StreamChoice
    stream: asyncio.Future[socket.socket]


@dataclass(slots=True)
class Live:
    """The run-time side of one container."""

    container_id: str
    shim: Shim | None = None
    sandbox: Sandbox | None = None
    waiters: Waiters = field(default_factory=Waiters)
    pending_attaches: list[PendingAttach] = field(default_factory=list)
    back_off: BackOff = field(default_factory=BackOff)
    unhealthy_back_off: BackOff = field(default_factory=BackOff)
    restart_task: asyncio.Task[None] | None = None
    console_size: tuple[int, int] | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    restarted_by_hand: bool = False
    """A restart is under way: ``--rm`` means the container's last end, not this one."""

    async def ended_within(self, seconds: float | None) -> bool:
        """Wait for the end of the process, at most so long (None: for ever); whether it has ended."""
        try:
            async with asyncio.timeout(seconds):
                await self.ended.wait()
        except TimeoutError:
            return False
        return True

    def drop_pending(self) -> None:
        """Nobody will attach to a start that failed or a container that is gone."""
        for pending in self.pending_attaches:
            pending.stream.cancel()
        self.pending_attaches.clear()

    def require_shim(self) -> Shim:
        """The shim of a container that is known to run."""
        assert self.shim is not None
        return self.shim


class LiveTable:
    """The run-time sides of all containers, by id; made on first use."""

    def __init__(self) -> None:
        self._live: dict[str, Live] = {}

    def __getitem__(self, container_id: str) -> Live:
        live = self._live.get(container_id)
        if live is None:
            live = self._live[container_id] = Live(container_id)
        return live

    def __iter__(self) -> Iterator[Live]:
        return iter(tuple(self._live.values()))

    def forget(self, container_id: str) -> None:
        """Drop it: the container is gone."""
        self._live.pop(container_id, None)
