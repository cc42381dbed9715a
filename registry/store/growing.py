"""A file that grows by appending: the bytes of an upload.

Large appends go around the page cache where the file system allows it (O_DIRECT). What is uploaded is rarely read
again at once, copying it into fresh cache pages is the dearest part of an upload, and a sync at the end has nothing
left to write. Small appends, unaligned ends, and file systems without direct I/O take the ordinary way.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
from collections.abc import Sequence
from typing import Any

from registry.digest import Hasher
from registry.tasks import ThreadBuffer, begin_blocking, run_blocking

Chunk = bytes | memoryview

_BLOCK = 4096
_STAGING_BYTES = 1024 * 1024
_DIRECT_WORTH_BYTES = 128 * 1024
_TWO_THREADS_WORTH_BYTES = 1024 * 1024
_staging = ThreadBuffer(_STAGING_BYTES)


class GrowingFile:
    """An open file for one task at a time. A cancelled `write` may still run in its thread; `close` waits for it."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self._written = size
        self._tail = b""
        self._direct: bool | None = None
        self._running: asyncio.Future[Any] | None = None

    @classmethod
    def open_sync(cls, path: str, beside: str = "") -> GrowingFile:
        """Open to append, made if need be; FileNotFoundError when `beside` is missing; BlockingIOError while another
        process has it."""
        if beside:
            os.stat(beside)
        else:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return cls(descriptor, os.fstat(descriptor).st_size)
        except BaseException:
            os.close(descriptor)
            raise

    def drop_sync(self) -> None:
        """Close at once what nothing was written to."""
        os.close(self._descriptor)

    @property
    def threaded(self) -> GrowingFile:
        """It works in threads."""
        return self

    @property
    def size(self) -> int:
        """Bytes taken, as far as writes have finished."""
        return self._written + len(self._tail)

    async def write(self, chunks: Sequence[Chunk], hasher: Hasher | None = None) -> None:
        """Append all chunks and hash them, off the loop; large ones are hashed by one thread and written by another."""
        size = sum(map(len, chunks))
        if hasher is not None and size >= _TWO_THREADS_WORTH_BYTES:
            hashing = begin_blocking(_hash_sync, chunks, hasher)
            self._running = asyncio.gather(hashing, begin_blocking(self.write_sync, chunks, None))
        else:
            self._running = begin_blocking(self.write_sync, chunks, hasher)
        await asyncio.shield(self._running)
        self._running = None

    def write_sync(self, chunks: Sequence[Chunk], hasher: Hasher | None) -> None:
        """The same in the calling thread, for whose end the caller's task waits."""
        if hasher is not None:
            _hash_sync(chunks, hasher)
        if self._direct is None and self._written % _BLOCK == 0 and sum(map(len, chunks)) >= _DIRECT_WORTH_BYTES:
            self._direct = _set_direct(self._descriptor, True)
        if self._direct:
            self._write_direct_sync(chunks)
        else:
            for chunk in chunks:
                self._write_plain_sync(chunk)

    def _write_plain_sync(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            count = os.write(self._descriptor, view)
            self._written += count
            view = view[count:]

    def _write_direct_sync(self, chunks: Sequence[Chunk]) -> None:
        """Copy to the aligned buffer, write whole blocks of it; what is less than a block waits for the next call."""
        if len(chunks) == 1 and not self._tail and isinstance(chunks[0], memoryview):
            # Memory of the server's own, aligned to pages: no copy is needed for the whole blocks.
            whole = len(chunks[0]) - len(chunks[0]) % _BLOCK
            self._write_blocks_sync(chunks[0][:whole])
            self._tail = bytes(chunks[0][whole:])
            return
        staging = _staging.view
        filled = len(self._tail)
        staging[:filled] = self._tail
        self._tail = b""
        for chunk in chunks:
            rest = memoryview(chunk)
            while rest:
                count = min(len(rest), _STAGING_BYTES - filled)
                staging[filled : filled + count] = rest[:count]
                filled += count
                rest = rest[count:]
                if filled == _STAGING_BYTES:
                    self._write_blocks_sync(staging)
                    filled = 0
        whole = filled - filled % _BLOCK
        self._write_blocks_sync(staging[:whole])
        self._tail = bytes(staging[whole:filled])

    def _write_blocks_sync(self, blocks: memoryview) -> None:
        while blocks:
            try:
                count = os.write(self._descriptor, blocks)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                # The file system took the flag and refuses the write, as some network and stacked ones do.
                self._direct = False
                _set_direct(self._descriptor, False)
                continue
            self._written += count
            blocks = blocks[count:]
            if blocks and count % _BLOCK:
                # A short write, as before a full disk: alignment is lost, the ordinary way finds out what is wrong.
                self._direct = False
                _set_direct(self._descriptor, False)

    async def close(self) -> None:
        """Close after the write in progress."""
        if self._running is not None:
            await asyncio.wait([self._running])
            self._running = None
        if self._descriptor >= 0:
            await run_blocking(self.close_sync)

    def close_sync(self) -> None:
        """The same in the calling thread, for whose end the caller's task waits."""
        descriptor, self._descriptor = self._descriptor, -1
        try:
            if self._tail:
                _set_direct(descriptor, False)
                tail, self._tail = self._tail, b""
                while tail:
                    count = os.write(descriptor, tail)
                    self._written += count
                    tail = tail[count:]
        finally:
            os.close(descriptor)


def _hash_sync(chunks: Sequence[Chunk], hasher: Hasher) -> None:
    for chunk in chunks:
        hasher.update(chunk)


def _set_direct(descriptor: int, on: bool) -> bool:
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
    except OSError:
        return False
    return on
