"""What a run keeps in its folder below the exec root: the rootfs' mount point, and the /dev/shm that others may join.

The folder lies on a tmpfs that a reboot empties; that it is there says that this boot has seen the container run.
Everything here touches the disk, so the caller is in a pool's thread.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from engine.kernel.mount import mount_sync, unmount_sync

SHARED_MEMORY = "shm"
READ_ONLY = "read-only"
"""Below it are the binds that the shim makes read-only in the runtime's stead."""


def make_fresh_sync(run_dir: Path) -> None:
    """An empty run folder in the place of whatever an earlier run left."""
    drop_sync(run_dir)
    (run_dir / "rootfs").mkdir(parents=True, mode=0o755)


def drop_sync(run_dir: Path) -> None:
    """Remove the run folder; not there is fine."""
    unmount_shared_memory_sync(run_dir / SHARED_MEMORY)
    shutil.rmtree(run_dir, ignore_errors=True)


def mount_shared_memory_sync(folder: Path, size: int, owner: tuple[int, int]) -> None:
    """Make ``folder`` a shared memory of ``size`` bytes. Raises ``OSError``."""
    folder.mkdir(mode=0o700)
    ids = (f"uid={owner[0]}", f"gid={owner[1]}") if any(owner) else ()
    mount_sync("shm", str(folder), "tmpfs", ("nosuid", "nodev", "noexec", "mode=1777", f"size={size}", *ids))


def unmount_shared_memory_sync(folder: Path) -> None:
    """Take it away where it is."""
    if folder.is_mount():
        unmount_sync(str(folder))


def list_sync(folder: Path) -> list[Path]:
    """What is in a folder, by name; nothing where it is missing."""
    return sorted(folder.iterdir()) if folder.is_dir() else []
