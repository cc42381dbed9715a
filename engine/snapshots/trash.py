"""Removal that is instant and cannot be refused: rename into the trash, delete in the background.

What a killed daemon left in the trash is deleted at its next start.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
from pathlib import Path

from engine.snapshots.workers import Workers
from engine.tasks import Nursery, run_blocking

log = logging.getLogger(__name__)

_SMALL = 200
"""A tree of up to so many entries is deleted by a pool thread; starting a worker for it would cost more."""


class Trash:
    """One trash folder; it must be on the file system of what it takes."""

    def __init__(self, folder: Path, workers: Workers, nursery: Nursery) -> None:
        self._folder = folder
        self._workers = workers
        self._nursery = nursery

    async def start(self) -> None:
        """Make the folder and begin deleting what an earlier daemon left in it."""
        for path in await run_blocking(self._listed_sync):
            self._delete_later(path)

    def _listed_sync(self) -> list[Path]:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return list(self._folder.iterdir())

    async def take(self, path: Path) -> bool:
        """Move ``path`` into the trash; False if it does not exist."""
        moved = await run_blocking(self._take_sync, path)
        if moved is not None:
            self._delete_later(moved)
        return moved is not None

    def _take_sync(self, path: Path) -> Path | None:
        moved = self._folder / secrets.token_hex(12)
        try:
            path.rename(moved)
        except FileNotFoundError:
            return None
        return moved

    def _delete_later(self, path: Path) -> None:
        self._nursery.start(self._delete(path), name=f"delete {path.name}")

    async def _delete(self, path: Path) -> None:
        try:
            if await run_blocking(_is_small_sync, path):
                await run_blocking(shutil.rmtree, path, ignore_errors=False)
            else:
                await self._workers.run("remove_tree", {"folder": str(path)}, lane="trash")
        except asyncio.CancelledError:
            raise
        except (OSError, RuntimeError, ValueError) as error:
            log.warning("the trash entry %s stays until the next start: %s", path, error)


def _is_small_sync(path: Path) -> bool:
    """Whether few entries lie below ``path``; a file (not a folder) is for the worker."""
    if path.is_symlink() or not path.is_dir():
        return False
    count = 0
    stack = [str(path)]
    while stack:
        with os.scandir(stack.pop()) as items:
            for item in items:
                count += 1
                if count > _SMALL:
                    return False
                if item.is_dir(follow_symlinks=False):
                    stack.append(item.path)
    return True
