"""What time it is, for whoever deletes by age: a clock that is set ahead must not make everything old at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from registry.store import paths
from registry.store.driver import StorageDriver

log = logging.getLogger("berth.registry")

_TOLERANCE_SECONDS = 60.0
_BELIEVED_AFTER_SECONDS = 86400.0
_DOCUMENT = paths.state("clock")


class SteadyClock:
    """Seconds since the epoch that never run ahead of the time that really passed. A clock that was set ahead is
    believed when it has stood for a day; one that was set back at once, since things only look younger by it.

    `recall` carries the time over a restart: a machine may come up with a wrong clock. So after more than a day without
    a server nothing ages by that pause before another day has passed.
    """

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._anchor = (wall(), monotonic())
        self._ahead_since: float | None = None

    def __call__(self) -> float:
        """The time."""
        wall, passed = self._wall(), self._monotonic()
        expected = self._anchor[0] + passed - self._anchor[1]
        if wall - expected <= _TOLERANCE_SECONDS:
            self._anchor, self._ahead_since = (wall, passed), None
            return wall
        if self._ahead_since is None:
            self._ahead_since = passed
            log.warning("the clock was set ahead by %.0f s: nothing ages by that for a day", wall - expected)
        elif passed - self._ahead_since > _BELIEVED_AFTER_SECONDS:
            self._anchor, self._ahead_since = (wall, passed), None
            return wall
        return expected

    async def recall(self, driver: StorageDriver) -> None:
        """Go on from the time that an earlier process wrote down last, if that is more than a day ago."""
        try:
            last = float(await driver.read(_DOCUMENT))
        except (FileNotFoundError, ValueError):
            return
        if self._wall() - last > _BELIEVED_AFTER_SECONDS:
            self._anchor = (last, self._monotonic())
            self()

    async def save(self, driver: StorageDriver) -> None:
        """Write the time down."""
        await driver.write(_DOCUMENT, f"{self():.0f}".encode())
