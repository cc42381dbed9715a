"""The event loop of zygote and shim: one thread, epoll, timers and children.

Asyncio would cost each shim several MiB; this is what is needed of it. Handlers must not block. Children are reaped
here, all of them, because a shim is the subreaper of a whole container.
"""

import ctypes
import heapq
import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from functools import partial

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
HANGUP = select.EPOLLHUP | select.EPOLLERR
URGENT = select.EPOLLPRI

IDLE_SECONDS = 1.0
REST_SECONDS = 0.001
MOST_FAULTS = 10

_malloc_trim = ctypes.CDLL(None).malloc_trim


class Timer:
    """A pending call; `cancel` makes it never happen."""

    __slots__ = ("call", "when")

    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when = when
        self.call: Callable[[], None] | None = call

    def __lt__(self, other: "Timer") -> bool:
        return self.when < other.when

    def cancel(self) -> None:
        self.call = None


def wake_on(number: int) -> None:
    """Install the handler without which this signal would wake nobody; a fork inherits it."""
    signal.signal(number, lambda _number, _frame: None)


class Loop:
    """Watches descriptors, timers and children until `stop`."""

    def __init__(self, on_child: Callable[[int, int], None], on_term: Callable[[], None] | None = None) -> None:
        """`on_child(pid, status)` is called for every reaped child, with the wait status; `on_term()` for SIGTERM."""
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []
        self._on_child = on_child
        self._on_term = on_term
        self._running = False
        self._faults: dict[int, int] = {}
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.busy = False  # set by who moved much data: memory goes back to the kernel at the next pause
        self.rest = False  # set by who would be woken again at once for little: what comes meanwhile is taken together

    def catch_signals(self) -> None:
        """Be woken by SIGCHLD and SIGTERM, as far as `wake_on` has installed their handlers.

        One loop per process, after the fork.
        """
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        self.watch(self._wake_reader, READ, self._signalled)

    def watch(self, descriptor: int, events: int, handler: Callable[[int], None]) -> None:
        """Call handler(events) while any of `events` (or a hang-up) holds. Replaces an earlier watch."""
        if descriptor in self._handlers:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)
        self._handlers[descriptor] = handler

    def forget(self, descriptor: int) -> None:
        """Stop watching; call before closing. Unknown descriptors are fine."""
        self._faults.pop(descriptor, None)
        if self._handlers.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        timer = Timer(time.monotonic() + seconds, call)
        heapq.heappush(self._timers, timer)
        return timer

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        self._running = True
        self._reap()  # a child may have ended before SIGCHLD was ours
        while self._running:
            if self.rest:
                self.rest = False
                time.sleep(REST_SECONDS)
            events = self._epoll.poll(self._patience())
            if not events and self.busy and not self._due():
                self.busy = False
                _malloc_trim(0)
            for descriptor, mask in events:
                # an earlier handler of this batch may have forgotten the descriptor
                handler = self._handlers.get(descriptor)
                if handler is not None and not self._survive(partial(handler, mask)):
                    self._blame(descriptor)
            self._fire()

    def close(self) -> None:
        """Drop everything without touching the descriptors watched; for the child of a fork."""
        signal.set_wakeup_fd(-1)
        self._epoll.close()
        os.close(self._wake_reader)
        os.close(self._wake_writer)
        self._handlers.clear()
        self._timers.clear()

    def _patience(self) -> float:
        wait = IDLE_SECONDS if self.busy else -1.0
        if self._timers:
            until = max(0.0, self._timers[0].when - time.monotonic())
            wait = until if wait < 0 else min(wait, until)
        return wait

    def _due(self) -> bool:
        return bool(self._timers) and self._timers[0].when <= time.monotonic()

    def _fire(self) -> None:
        while self._due():
            timer = heapq.heappop(self._timers)
            if timer.call is not None:
                self._survive(timer.call)

    def _signalled(self, _events: int) -> None:
        with_term = False
        try:
            while numbers := os.read(self._wake_reader, 4096):
                with_term = with_term or signal.SIGTERM in numbers
        except BlockingIOError:
            pass
        self._reap()
        if with_term and self._on_term is not None:
            self._survive(self._on_term)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._survive(partial(self._on_child, pid, status))

    def _survive(self, call: Callable[[], None]) -> bool:
        """Call, and whether that went well: a fault in one conversation must not cost a container its parent."""
        try:
            call()
        except Exception:
            traceback.print_exc()
            return False
        return True

    def _blame(self, descriptor: int) -> None:
        """A descriptor whose handler keeps failing would keep the loop spinning: stop watching it."""
        self._faults[descriptor] = self._faults.get(descriptor, 0) + 1
        if self._faults[descriptor] >= MOST_FAULTS:
            self.forget(descriptor)
