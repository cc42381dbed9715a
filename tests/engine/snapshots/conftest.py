"""A data root with everything that snapshots need, torn down without leftovers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.snapshots.layers import Layers
from engine.snapshots.trash import Trash
from engine.snapshots.workers import Workers
from engine.tasks import Nursery, close_pools


@dataclass
class Room:
    """The parts, as the daemon wires them."""

    root: Path
    workers: Workers
    nursery: Nursery
    trash: Trash
    layers: Layers


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    workers, nursery = Workers(), Nursery("test")
    trash = Trash(tmp_path / "trash", workers, nursery)
    layers = Layers(tmp_path, workers, trash, nursery)
    await trash.start()
    await layers.start()
    yield Room(tmp_path, workers, nursery, trash, layers)
    await nursery.aclose()
    await workers.aclose()
    close_pools()
