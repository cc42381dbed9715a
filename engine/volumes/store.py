"""How volumes are kept: all in memory, each a document of kind ``volume`` in the journal."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from engine.journal import Journal
from engine.volumes.model import Volume

KIND = "volume"


class VolumeStore:
    """Volumes by name. Writes are in the journal when they return."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._volumes: dict[str, Volume] = {}

    def load(self) -> None:
        """Read what the journal holds; once, at start."""
        documents = self._journal.load(KIND)
        self._volumes = {name: msgspec.json.decode(body, type=Volume) for name, body in documents.items()}

    def get(self, name: str) -> Volume | None:
        """The volume of that name."""
        return self._volumes.get(name)

    def __iter__(self) -> Iterator[Volume]:
        """All volumes, by name."""
        return iter([self._volumes[name] for name in sorted(self._volumes)])

    def __len__(self) -> int:
        return len(self._volumes)

    async def put(self, volume: Volume, *, durable: bool = True) -> None:
        """Add or replace."""
        await self._journal.put(KIND, volume.name, msgspec.json.encode(volume), durable=durable)
        self._volumes[volume.name] = volume

    async def delete(self, name: str) -> None:
        """Forget; absent is fine."""
        await self._journal.delete(KIND, name)
        self._volumes.pop(name, None)
