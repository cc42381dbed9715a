"""What layers and snapshots hold on disk, for ``docker system df`` and ``docker ps --size``."""

from __future__ import annotations

from engine.snapshots.base import DiskUsage, Snapshotter
from engine.snapshots.layers import Layers


async def disk_usage(layers: Layers, snapshotter: Snapshotter) -> DiskUsage:
    """Content bytes of every layer (known since it was unpacked) and of every snapshot (measured now, in one job)."""
    keys = await snapshotter.keys()
    measured = await snapshotter.usages(*keys)
    sizes = {key: usage.size_bytes for key, usage in zip(keys, measured, strict=True)}
    return DiskUsage({layer.key: layer.size_bytes for layer in layers.all()}, sizes)
