"""Which way of making snapshots works on this data root: asked of the kernel by really mounting, not of a list."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from pathlib import Path

from engine.kernel import quota
from engine.sizes import parse_size
from engine.snapshots.base import Snapshotter
from engine.snapshots.copying import CopyingSnapshotter
from engine.snapshots.layers import Layers
from engine.snapshots.overlay import OverlaySnapshotter
from engine.snapshots.trash import Trash
from engine.snapshots.workers import Workers
from engine.tasks import run_blocking

log = logging.getLogger(__name__)

NAMES = ("overlay2", "vfs")


async def overlay_problem(data_root: Path, workers: Workers) -> str:
    """Why overlayfs cannot be used below ``data_root``; empty where it can."""
    folder = data_root / f"probe-{secrets.token_hex(6)}"
    await run_blocking(folder.mkdir, 0o700, True)
    try:
        problem: str = await workers.run("probe_overlay", {"folder": str(folder)})
    finally:
        await workers.run("remove_tree", {"folder": str(folder)})
    return problem


async def open_snapshots(
    data_root: Path, workers: Workers, trash: Trash, layers: Layers, driver: str = "", options: Sequence[str] = ()
) -> Snapshotter:
    """Start ``trash``, ``layers`` and the snapshotter ``driver`` (one of ``NAMES``; empty: overlay where it works).

    ``options`` are dockerd's ``storage-opts``. ``ValueError`` for a driver or an option that is not known, and for what
    was asked for and this host cannot.
    """
    if driver not in ("", *NAMES):
        raise ValueError(f"error initializing graphdriver: driver not supported: {driver}")
    try:
        size_limit = default_size_limit(driver or NAMES[0], options)
    except ValueError as error:
        raise ValueError(f"error initializing graphdriver: {error}") from error
    await trash.start()
    for leftover in await run_blocking(lambda: list(data_root.glob("probe-*"))):
        await trash.take(leftover)
    problem = await overlay_problem(data_root, workers) if driver != "vfs" else "not asked for"
    if problem and driver == "overlay2":
        raise ValueError(f"error initializing graphdriver: overlay2 does not work on {data_root}: {problem}")
    await layers.start(overlay=not problem)
    if problem:
        log.warning("containers get full copies of their images: overlayfs is not used on %s: %s", data_root, problem)
    kind = CopyingSnapshotter if problem else OverlaySnapshotter
    snapshotter = kind(data_root, layers, workers, trash)
    await snapshotter.start()
    if size_limit is not None:
        if not isinstance(snapshotter, OverlaySnapshotter) or not snapshotter.can_limit:
            raise ValueError(f"error initializing graphdriver: overlay2.size: {quota.UNSUPPORTED}")
        snapshotter.default_size_limit = size_limit
    return snapshotter


def default_size_limit(driver: str, options: Sequence[str]) -> str | None:
    """How large a container's own files may grow that names no limit itself (``overlay2.size``). ``ValueError`` in
    dockerd's words."""
    size_limit = None
    for option in options:
        key, assigned, value = (part.strip() for part in option.partition("="))
        if not assigned:
            raise ValueError(f"Unable to parse key/value option: {option}")
        match driver, key.lower():
            case "overlay2", "overlay2.size":
                parse_size(value)
                size_limit = value
            case "overlay2", "overlay2.override_kernel_check":
                pass  # it was for old kernels; here overlayfs works, or it does not
            case _:
                raise ValueError(f"{driver}: unknown option {key}")
    return size_limit
