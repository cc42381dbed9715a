"""Small files of an archive written by two threads, while the reader goes on parsing; worker side.

Creating a file is nearly all system calls, which run outside the interpreter lock, so two processors are kept busy. The
reader drains before anything that could depend on a pending file.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable

SMALL = 1 << 17
_BATCH_FILES = 24
_BATCH_BYTES = 1 << 20
_THREADS = 2

Task = tuple[bytes, bytes, Callable[[int], None]]
"""(path, content, what to do with the open file before it is closed)."""


def create(path: bytes) -> int:
    """A new file; an existing one, or a link, at its place is an error."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _write(task: Task) -> None:
    path, content, finish = task
    fd = create(path)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        finish(fd)
    finally:
        os.close(fd)


class Writers:
    """Takes tasks in order, performs them in any order; the first error is raised by the next call."""

    def __init__(self) -> None:
        self._queue: queue.Queue[list[Task]] = queue.Queue(_THREADS * 2)
        self._batch: list[Task] = []
        self._bytes = 0
        self._error: BaseException | None = None
        self._started = False
        self.pending: set[bytes] = set()

    def add(self, path: bytes, content: bytes, finish: Callable[[int], None]) -> None:
        """Have the file ``path`` written soon."""
        self._batch.append((path, content, finish))
        self._bytes += len(content)
        self.pending.add(path)
        if len(self._batch) >= _BATCH_FILES or self._bytes >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._started:
            self._started = True
            for _ in range(_THREADS):
                threading.Thread(target=self._run, daemon=True).start()
        self._queue.put(self._batch)
        self._batch, self._bytes = [], 0
        self._check()

    def _run(self) -> None:
        while True:
            for task in self._queue.get():
                if self._error is None:
                    try:
                        _write(task)
                    except BaseException as error:  # noqa: BLE001 - raised again by the reader
                        self._error = error
            self._queue.task_done()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def drain(self) -> None:
        """Wait until all files are written."""
        if not self.pending:
            return
        if self._started:
            if self._batch:
                self._flush()
            self._queue.join()
        else:  # a few files are not worth a thread
            for task in self._batch:
                _write(task)
            self._batch, self._bytes = [], 0
        self.pending.clear()
        self._check()
