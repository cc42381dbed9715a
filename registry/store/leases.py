"""Leases: digests that are being written or read right now, which a collector must not take away.

A lease is memory of this process only. Between processes on one folder the collector's grace period does the same
work: what was written or touched recently is spared. The other direction is `condemn`: while the collector removes a
digest, nobody is told that it exists, and whoever wants to store it again waits the few milliseconds until it is gone.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from registry.digest import Digest


class Leases:
    """Counted holds on digests, and holds that end by themselves for clients that promised nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._held: Counter[str] = Counter()
        self._until: dict[str, float] = {}
        self._condemned: set[str] = set()
        self._settled = asyncio.Event()
        self._clock = clock

    @asynccontextmanager
    async def hold(self, *digests: Digest) -> AsyncIterator[None]:
        """Protect `digests` while the body runs. Holds nest. What is being removed at this moment is gone when the body
        begins: it finds all of a blob or nothing."""
        self.acquire(digests)
        try:
            for digest in digests:
                await self.settled(digest)
            yield
        finally:
            self.release(digests)

    def acquire(self, digests: Iterable[Digest]) -> None:
        """Begin a hold that `release` ends."""
        self._held.update(digests)

    def release(self, digests: Iterable[Digest]) -> None:
        """End a hold begun by `acquire`."""
        for digest in digests:
            left = self._held[digest] - 1
            if left > 0:
                self._held[digest] = left
            else:
                del self._held[digest]

    def remember(self, digest: Digest, seconds: float) -> None:
        """Protect for a time: a client was told the blob exists and will refer to it without sending it."""
        self._until[digest] = max(self._until.get(digest, 0.0), self._clock() + seconds)
        if len(self._until) > 100_000:
            self._forget_expired()

    def protects(self, digest: str) -> bool:
        """Whether the digest must not be collected now."""
        return digest in self._held or self._until.get(digest, 0.0) > self._clock()

    def _forget_expired(self) -> None:
        now = self._clock()
        self._until = {digest: until for digest, until in self._until.items() if until > now}

    @asynccontextmanager
    async def condemn(self, digest: Digest) -> AsyncIterator[bool]:
        """For the collector: whether it may remove the digest while the body runs."""
        if self.protects(digest):
            yield False
            return
        self._condemned.add(digest)
        try:
            yield True
        finally:
            self._condemned.discard(digest)
            self._settled.set()
            self._settled = asyncio.Event()

    def is_condemned(self, digest: str) -> bool:
        """Whether the digest is being removed at this moment."""
        return digest in self._condemned

    async def settled(self, digest: str) -> None:
        """Wait until the digest is not being removed."""
        while digest in self._condemned:
            await self._settled.wait()
