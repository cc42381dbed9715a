"""Health: is the storage there, and did the administrator put a sign up? While something fails every request gets
503."""

from __future__ import annotations

import asyncio
import secrets

import aiofiles.os

from registry.config import Settings
from registry.store import paths
from registry.store.driver import StorageDriver

_FILE_SECONDS = 5.0
_PROBE_SECONDS = 10.0


class Health:
    """What is wrong right now, by name of the check."""

    def __init__(self, settings: Settings, driver: StorageDriver) -> None:
        self._files = settings.health_files
        self._storage_seconds = settings.storage_check_seconds
        self._threshold = settings.storage_check_threshold
        self._failures = 0
        self._driver = driver
        self.failing: dict[str, str] = {}

    @property
    def has_checks(self) -> bool:
        """Whether anything has to be looked at regularly."""
        return bool(self._files) or self._storage_seconds > 0

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self.look()
            await asyncio.sleep(min(self._storage_seconds or _FILE_SECONDS, _FILE_SECONDS))

    async def look(self) -> None:
        """Every configured check, once."""
        for file in self._files:
            self._set(str(file), "file exists" if await aiofiles.os.path.exists(file) else "")
        if self._storage_seconds > 0:
            problem = await self.probe()
            self._failures = self._failures + 1 if problem else 0
            self._set("storagedriver", problem if self._failures >= self._threshold else "")

    def _set(self, name: str, problem: str) -> None:
        if problem:
            self.failing[name] = problem
        else:
            self.failing.pop(name, None)

    async def probe(self) -> str:
        """Write, read and remove a little; what went wrong, or nothing."""
        path = paths.temporary(f"probe-{secrets.token_hex(8)}")
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                await self._driver.write(path, b"alive")
                data = await self._driver.read(path)
                await self._driver.remove(path)
        except (OSError, TimeoutError) as error:
            return f"storage: {error or 'timed out'}"
        return "" if data == b"alive" else "storage: read something else than was written"
