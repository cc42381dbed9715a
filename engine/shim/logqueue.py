"""Log drivers with a thread of their own: remote ones, and files in the mode non-blocking.

The shim's loop must not wait for a slow disk or a distant server, so it only cuts its reads into batches and queues
them. When the queue is full, a blocking driver asks the loop to stop reading the container's output, and a non-blocking
one loses lines; neither ends the container. Only a container that uses such a driver has this module in its memory.
"""

import _thread
import contextlib
import os
import time
from _queue import SimpleQueue
from collections.abc import Callable

from engine.shim import wire
from engine.shim.log import JsonFile, Log, cut

Partial = tuple[str, int, bool]  # the group's id, the ordinal in it (from 1), whether this is the last
Message = tuple[int, int, bytes, Partial | None]  # time in ns, stream, line without its newline, part of a long line

BLOCKING_LIMIT = 1024 * 1024
# How long a container's end waits for what a non-blocking file still has queued, and a closed remote log may live on.
FLUSH_SECONDS = 2.0
LINGER_SECONDS = 10.0

_STOP = 0


class Sink:
    """Where a remote driver delivers to; used by the driver's thread alone. Raises OSError for what is lost."""

    def send(self, messages: list[Message]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class Troubles:
    """Carries the first trouble of a row from the thread to the loop, which may tell the daemon."""

    def __init__(self, on_trouble: Callable[[OSError], None]) -> None:
        self._on_trouble = on_trouble
        self._pending: OSError | None = None
        self.wake: Callable[[], None] = lambda: None

    def note(self, error: OSError) -> None:
        """In the thread."""
        self._pending = error
        self.wake()

    def tell(self) -> None:
        """In the loop."""
        error, self._pending = self._pending, None
        if error is not None:
            self._on_trouble(error)


class _Worker:
    """A bounded queue and the thread that empties it. Sizes are bytes; each counter has one writer."""

    def __init__(self, limit: int, troubles: Troubles) -> None:
        self.limit = limit
        self._troubles = troubles
        self._queue: SimpleQueue[tuple[int, Callable[[], None]]] = SimpleQueue()
        self._put = self._taken = 0
        self._waiting = False
        self._closed_at = 0.0
        self._started = self._ended = False
        self.descriptor, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        troubles.wake = self._wake

    @property
    def room(self) -> int:
        return self.limit - (self._put - self._taken)

    @property
    def idle(self) -> bool:
        return self._put == self._taken

    def put(self, size: int, call: Callable[[], None]) -> None:
        # Started late: a shim gives itself a mount namespace first, and a thread would stay behind in the old one.
        if not self._started:
            self._started = True
            _thread.start_new_thread(self._run, ())
        self._put += size
        self._queue.put((size, call))

    def wants_room(self) -> bool:
        """Whether the queue is full; then the descriptor becomes readable when half of it is free."""
        if self.room > 0:
            return False
        self._waiting = True
        if self.room > self.limit // 2:  # the thread may have looked just before
            self._waiting = False
        return self._waiting

    def woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.descriptor, 4096)
        self._troubles.tell()

    def close(self, last: Callable[[], None]) -> None:
        self.put(1, last)
        self._queue.put((_STOP, last))
        self._closed_at = time.monotonic()

    @property
    def lingering(self) -> bool:
        return self._closed_at > 0 and not self._ended and time.monotonic() - self._closed_at < LINGER_SECONDS

    def wait_idle(self, seconds: float) -> None:
        """Wait for the thread, at most so long."""
        end = time.monotonic() + seconds
        while not self.idle and time.monotonic() < end:
            time.sleep(0.001)

    def _run(self) -> None:
        troubled = False
        while True:
            size, call = self._queue.get()
            if size == _STOP:
                self._ended = True
                return
            try:
                call()
                troubled = False
            except Exception as error:  # whatever a sink does, the thread goes on: it must take what is queued
                if not troubled:
                    troubled = True
                    self._troubles.note(error if isinstance(error, OSError) else OSError(str(error)))
            self._taken += size
            if self._waiting and self.room > self.limit // 2:
                self._waiting = False
                self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"x")


class BufferedFile(Log):
    """A file driver in the mode non-blocking."""

    def __init__(self, file: JsonFile, limit: int, troubles: Troubles) -> None:
        self._file = file
        self._worker = _Worker(limit, troubles)
        self.descriptor = self._worker.descriptor

    @property
    def lingering(self) -> bool:
        return self._worker.lingering

    def write(self, stream: int, data: bytes) -> None:
        if len(data) > self._worker.room and not self._worker.idle:
            data = data[: data.rfind(b"\n", 0, max(0, self._worker.room)) + 1]
        if data:
            self._worker.put(len(data), lambda: self._file.write(stream, data))

    def flush(self) -> None:
        self._worker.put(1, self._file.flush)
        self._worker.wait_idle(FLUSH_SECONDS)

    def truncate(self) -> None:
        self._worker.put(1, self._file.truncate)

    def reaped(self, pid: int) -> None:
        self._worker.put(1, lambda: self._file.reaped(pid))

    def woken(self) -> None:
        self._worker.woken()

    def close(self) -> None:
        self._worker.close(self._file.close)


class Remote(Log):
    """A driver that delivers elsewhere, and the file from which its log is read here."""

    def __init__(self, sink: Sink, cache: Log, *, limit: int | None, on_trouble: Callable[[OSError], None]) -> None:
        self._sink = sink
        self._cache = cache
        self._blocking = limit is None
        self._worker = _Worker(BLOCKING_LIMIT if limit is None else limit, Troubles(on_trouble))
        self.descriptor = self._worker.descriptor
        self._tails = {wire.STDOUT: b"", wire.STDERR: b""}
        self._partials: dict[int, tuple[str, int, int]] = {}

    @property
    def full(self) -> bool:
        return self._blocking and self._worker.wants_room()

    @property
    def lingering(self) -> bool:
        return self._worker.lingering

    def write(self, stream: int, data: bytes) -> None:
        self._cache.write(stream, data)
        tail = self._tails[stream]
        lines, entries, self._tails[stream] = cut(tail + data if tail else data)
        if not self._blocking and len(lines) > self._worker.room and not self._worker.idle:
            lines = lines[: lines.rfind(b"\n", 0, max(0, self._worker.room)) + 1]
        if entries and not self._blocking and self._worker.room <= 0:
            entries = []
        self._deliver(stream, lines, entries)

    def flush(self) -> None:
        self._cache.flush()
        for stream, tail in self._tails.items():
            if tail:
                self._tails[stream] = b""
                self._deliver(stream, b"", [tail])

    def truncate(self) -> None:
        self._cache.truncate()

    def reaped(self, pid: int) -> None:
        self._cache.reaped(pid)

    def woken(self) -> None:
        self._worker.woken()

    def close(self) -> None:
        self._cache.close()
        self._worker.close(self._sink.close)

    def _deliver(self, stream: int, lines: bytes, entries: list[bytes]) -> None:
        size = len(lines) + sum(map(len, entries))
        if size:
            now = time.time_ns()
            self._worker.put(size, lambda: self._sink.send(self._messages(now, stream, lines, entries)))

    def _messages(self, now: int, stream: int, lines: bytes, entries: list[bytes]) -> list[Message]:
        """In the thread: what one batch holds. Only the first line can end a long one from before."""
        found: list[Message] = []
        if lines:
            whole = lines[:-1].split(b"\n")
            found.append(self._message(now, stream, whole[0], last=True))
            found += [(now, stream, line, None) for line in whole[1:]]
        for entry in entries:
            last = entry.endswith(b"\n")
            found.append(self._message(now, stream, entry[:-1] if last else entry, last=last))
        return found

    def _message(self, now: int, stream: int, data: bytes, *, last: bool) -> Message:
        """A line or a piece of one; pieces have the time of their line's first. What the end cuts off is a piece."""
        known = self._partials.pop(stream, None)
        if known is None and last:
            return now, stream, data, None
        group, ordinal, began = known or (os.urandom(32).hex(), 0, now)
        if not last:
            self._partials[stream] = (group, ordinal + 1, began)
        return began, stream, data, (group, ordinal + 1, last)
