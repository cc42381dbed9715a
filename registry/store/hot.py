"""Answers kept in memory while the files they came from are provably unchanged.

Each entry remembers the fingerprint of the link file that made it true; a look-up compares it with one `stat`. So
another process that shares the folder is noticed at once, and drivers without fingerprints (object stores) simply
never hit.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

from registry.digest import Digest
from registry.store.driver import StorageDriver

V = TypeVar("V")
Fingerprint = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest as it is served: its digest, its type and its exact bytes."""

    digest: Digest
    media_type: str
    data: bytes


class FingerprintCache(Generic[V]):
    """Values by path, true while the path's fingerprint stays, of which the second number is a time in nanoseconds;
    least recently used ones go first."""

    def __init__(self, driver: StorageDriver, max_entries: int, max_bytes: int = 1 << 62) -> None:
        self._driver = driver
        self._entries: OrderedDict[str, tuple[Fingerprint, V, int]] = OrderedDict()
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._bytes = 0

    def get(self, path: str, since: float = 0.0) -> V | None:
        """The value, if the path is still as it was, and was not written or touched before `since`."""
        entry = self._entries.get(path)
        if entry is None:
            return None
        if self._driver.fingerprint(path) != entry[0]:
            self.discard(path)
            return None
        self._entries.move_to_end(path)
        return entry[1] if entry[0][1] * 1e-9 >= since else None

    def put(self, path: str, fingerprint: Fingerprint | None, value: V, weight: int = 0) -> None:
        """Keep a value that was read after `fingerprint` was taken; without fingerprint nothing is kept."""
        if fingerprint is None or weight > self._max_bytes // 4:
            return
        self.discard(path)
        self._entries[path] = (fingerprint, value, weight)
        self._bytes += weight
        while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
            _, (_, _, freed) = self._entries.popitem(last=False)
            self._bytes -= freed

    def discard(self, path: str) -> None:
        """Forget one path."""
        entry = self._entries.pop(path, None)
        if entry is not None:
            self._bytes -= entry[2]

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._bytes = 0
