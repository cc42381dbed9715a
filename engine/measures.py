"""What metrics tell and nobody else remembers: how long actions took, how health checks went."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager

from registry.exposition import Histogram

_UNTIMED = contextlib.nullcontext()


class Measures:
    """Filled by the services, read by ``api/metrics.py``."""

    def __init__(self, *, is_on: bool = False) -> None:
        self._is_on = is_on
        self.container_actions: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.network_actions: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.probes = 0
        self.failed_probes = 0

    def container_action(self, name: str) -> AbstractContextManager[None]:
        """Time what happens inside, unless it fails."""
        return _timed(self.container_actions[name]) if self._is_on else _UNTIMED

    def network_action(self, name: str) -> AbstractContextManager[None]:
        """The same for the network's part of it."""
        return _timed(self.network_actions[name]) if self._is_on else _UNTIMED

    def probed(self, *, failed: bool) -> None:
        """Count one health check."""
        self.probes += 1
        self.failed_probes += failed


@contextlib.contextmanager
def _timed(histogram: Histogram) -> Iterator[None]:
    started = time.perf_counter()
    yield
    histogram.observe(time.perf_counter() - started)
