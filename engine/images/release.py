"""Gives blobs of removed images back to the disk, unless a repository or anybody else needs them.

Works in the background after a removal, on the few digests it was told of; the registry's collector does the same for
the whole store. Whoever is about to use a blob holds a lease on its digest before looking whether it is there, and so
waits for a removal that is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Sequence

from engine.tasks import Nursery
from registry.digest import Digest
from registry.store import paths
from registry.store.repositories import Repositories

log = logging.getLogger(__name__)

_PATHS_AT_ONCE = 2000


class Release:
    """An ``ImageContent.release``; ``needed`` says what the engine's images need now."""

    def __init__(self, repositories: Repositories, needed: Callable[[], Collection[Digest]], nursery: Nursery) -> None:
        self._repositories = repositories
        self._driver = repositories.blobs.driver
        self._leases = repositories.leases
        self._needed = needed
        self._nursery = nursery
        self._pending: set[Digest] = set()
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, digests: Sequence[Digest]) -> None:
        """Note digests to look at; returns at once."""
        self._pending.update(digests)
        if self._pending and (self._task is None or self._task.done()):
            # A daemon that stops leaves the rest to the registry's collector.
            with contextlib.suppress(RuntimeError):
                self._task = self._nursery.start(self._work(), name="release blobs")

    async def settled(self) -> None:
        """Wait until everything noted so far was looked at."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        while self._pending:
            batch = frozenset(self._pending)
            self._pending -= batch
            for digest in batch - await self._linked(batch):
                await self._remove(digest)

    async def _linked(self, digests: Collection[Digest]) -> set[Digest]:
        """Those that some repository serves, as blob or as manifest."""
        found: set[Digest] = set()
        looked: list[tuple[Digest, str]] = []
        for name in await self._repositories.names("_layers"):
            for digest in digests:
                looked.append((digest, paths.layer_link(name, digest)))
                looked.append((digest, paths.revision_link(name, digest)))
            if len(looked) >= _PATHS_AT_ONCE:
                found |= await self._existing(looked)
                looked = []
        return found | await self._existing(looked)

    async def _existing(self, looked: Sequence[tuple[Digest, str]]) -> set[Digest]:
        stats = await self._driver.stat_all([path for _, path in looked])
        return {digest for (digest, _), stat in zip(looked, stats, strict=True) if stat is not None}

    async def _remove(self, digest: Digest) -> None:
        async with self._leases.condemn(digest) as may_go:
            if may_go and digest not in self._needed():
                await self._repositories.blobs.delete(digest)
                log.debug("blob %s removed", digest)
