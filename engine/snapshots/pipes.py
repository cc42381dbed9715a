"""Byte streams between the daemon and its workers: pipes, read and written without blocking the loop."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator

_SIZE = 1 << 20
"""The most an unprivileged pipe may hold, and the largest read."""


def make_pipe() -> tuple[int, int]:
    """(read end, write end), neither inherited, as large as allowed."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # many pipes of one user may pass the soft limit: the default size does too
        fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, _SIZE)
    return read_end, write_end


async def _ready(fd: int, *, writing: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    (loop.add_writer if writing else loop.add_reader)(fd, wake)
    try:
        await ready
    finally:
        (loop.remove_writer if writing else loop.remove_reader)(fd)


async def read_all(fd: int) -> AsyncIterator[bytes]:
    """What comes out of the pipe, until its writers are gone. The descriptor stays open."""
    os.set_blocking(fd, False)
    while True:
        try:
            data = os.read(fd, _SIZE)
        except BlockingIOError:
            await _ready(fd, writing=False)
            continue
        if not data:
            return
        yield data


async def write(fd: int, data: bytes) -> None:
    """Write all of ``data``; ``BrokenPipeError`` when nobody reads any more."""
    os.set_blocking(fd, False)
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            await _ready(fd, writing=True)
