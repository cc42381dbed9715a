"""The storage protocol: what the store asks of a place that keeps bytes under slash-separated paths.

Promises every driver keeps: a file written by `write` or moved by `publish` is visible whole or not at all and
survives a crash once the call returned; a missing path raises FileNotFoundError from readers and is
`False`/`None`/empty elsewhere; paths are relative, already checked, and never escape the root. `write_new` alone is
not durable: it is for files whose loss in a crash is harmless.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

from registry.digest import Hasher

P = ParamSpec("P")
T = TypeVar("T")

STREAM_CHUNK = 256 * 1024
# Registry work waits for disks and hashes; hashing releases the interpreter lock, so a few more threads than cores pay.
_POOL = ThreadPoolExecutor(max_workers=max(8, 2 * (os.cpu_count() or 1)), thread_name_prefix="registry-disk")


async def run_blocking(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a `_sync` function of the registry on its own pool; the engine has another one."""
    loop = asyncio.get_running_loop()
    if kwargs:
        return await loop.run_in_executor(_POOL, functools.partial(function, *args, **kwargs))
    return await loop.run_in_executor(_POOL, function, *args)


@dataclass(frozen=True, slots=True)
class FileStat:
    """Size in bytes, last modification in seconds since the epoch."""

    size: int
    modified: float


class Appender(Protocol):
    """One growing file. Only one task uses it; `close` keeps what was written, durably when `sync` is set."""

    @property
    def size(self) -> int: ...
    async def write(self, chunks: Sequence[bytes], hasher: Hasher | None = None) -> None: ...
    async def close(self, sync: bool = True) -> None: ...


class StorageDriver(Protocol):
    """See the module's promises. `fingerprint` and `local_path` answer None where the driver has no such thing."""

    async def read(self, path: str) -> bytes: ...
    async def write(self, path: str, data: bytes) -> None: ...
    async def write_all(self, files: Sequence[tuple[str, bytes]], unless_same: bool = False) -> None: ...
    async def write_new(self, path: str, data: bytes) -> None: ...
    async def hash_into(self, path: str, hasher: Hasher) -> None: ...
    async def stat(self, path: str) -> FileStat | None: ...
    async def stat_all(self, paths: Sequence[str]) -> list[FileStat | None]: ...
    async def names(self, path: str) -> list[str]: ...
    async def find_folders(self, path: str, marker: str) -> list[str]: ...
    def stream(self, path: str, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]: ...
    async def remove(self, path: str) -> bool: ...
    async def remove_tree(self, path: str) -> bool: ...
    async def touch(self, path: str) -> None: ...
    async def append(self, path: str, create: bool = False) -> Appender: ...
    async def publish(self, source: str, target: str) -> None: ...
    async def presign(self, path: str, seconds: int) -> str | None: ...
    def local_path(self, path: str) -> Path | None: ...
    def fingerprint(self, path: str) -> tuple[int, ...] | None: ...
    async def close(self) -> None: ...
