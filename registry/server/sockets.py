"""Waiting for sockets whose transport is paused or gone around. The loop refuses to watch a descriptor that it has a
transport on, so callers hand in a duplicate."""

from __future__ import annotations

import asyncio
import contextlib


async def readable(descriptor: int) -> None:
    """Until something can be read."""
    loop = asyncio.get_running_loop()
    await _ready(loop, descriptor, is_reading=True)


async def writable(descriptor: int) -> None:
    """Until something can be written."""
    loop = asyncio.get_running_loop()
    await _ready(loop, descriptor, is_reading=False)


async def _ready(loop: asyncio.AbstractEventLoop, descriptor: int, is_reading: bool) -> None:
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    add, remove = (loop.add_reader, loop.remove_reader) if is_reading else (loop.add_writer, loop.remove_writer)
    add(descriptor, wake)
    try:
        await ready
    finally:
        with contextlib.suppress(ValueError):
            remove(descriptor)
