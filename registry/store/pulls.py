"""When each tag was last pulled: kept in memory, written to one small document now and then. Losing a minute of it is
harmless."""

from __future__ import annotations

import time

import msgspec

from registry.store import paths
from registry.store.driver import StorageDriver

_DOCUMENT = paths.state("pulls.json")


class PullTimes:
    """Seconds since the epoch of the last pull by `repository:tag`."""

    def __init__(self, driver: StorageDriver) -> None:
        self._driver = driver
        self._times: dict[str, float] = {}
        self._changed = False

    async def load(self) -> None:
        """Read what an earlier process wrote."""
        try:
            data = await self._driver.read(_DOCUMENT)
            self._times = msgspec.json.decode(data, type=dict[str, float])
        except (FileNotFoundError, msgspec.DecodeError, msgspec.ValidationError):
            self._times = {}

    async def save(self) -> None:
        """Write, if there is anything new."""
        if self._changed:
            self._changed = False
            try:
                await self._driver.write(_DOCUMENT, msgspec.json.encode(self._times))
            except BaseException:
                self._changed = True
                raise

    def note(self, repository: str, tag: str) -> None:
        """The tag is being pulled now."""
        self._times[f"{repository}:{tag}"] = time.time()
        self._changed = True

    def last(self, repository: str, tag: str) -> float:
        """When it was last pulled, 0.0 for never."""
        return self._times.get(f"{repository}:{tag}", 0.0)
