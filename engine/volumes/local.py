"""The local driver: volumes as folders ``<root>/<name>/_data``, optionally with a file system mounted on them.

Everything here blocks and is called through ``run_blocking``. Removal renames into ``<root>/.trash`` first, so that a
volume is there or gone, and never half there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from engine.kernel import placement, quota
from engine.kernel.durable import sync_folders_sync
from engine.kernel.mount import mount_sync, split_options, unmount_sync
from engine.names import new_id
from engine.volumes.model import MountRequest, nfs_server, with_server_address

_TRASH = ".trash"


class LocalFolders:
    """The folders below ``root`` (``<data root>/volumes``)."""

    def __init__(self, root: Path, *, is_closed: bool = False) -> None:
        self.root = root
        self._mode = 0o700 if is_closed else 0o711
        self._quota: quota.ProjectQuota | None = None

    @property
    def can_limit(self) -> bool:
        """Whether a volume can have a size, which takes a file system with project quotas."""
        return self._quota is not None

    def data(self, name: str) -> Path:
        """Where a volume's data lie."""
        return self.root / name / "_data"

    def prepare_sync(self) -> None:
        """Make the root, and finish removals that were cut short."""
        self.root.mkdir(parents=True, exist_ok=True)
        placement.unrelated_sync(self.root)
        self.root.chmod(self._mode)
        self._quota = quota.probe_sync(self.root, quota.VOLUMES)
        for leftover in self._trash():
            self.empty_trash_sync(leftover)

    def _trash(self) -> list[Path]:
        folder = self.root / _TRASH
        return list(folder.iterdir()) if folder.is_dir() else []

    def names_sync(self) -> dict[str, int]:
        """All volumes that have a data folder, with the folder's time in nanoseconds."""
        found = {}
        for entry in self.root.iterdir():
            data = entry / "_data"
            if not entry.name.startswith(".") and data.is_dir():
                found[entry.name] = data.stat().st_mtime_ns
        return found

    def create_sync(self, name: str, size_limit: int | None = None) -> None:
        """Make the folders, on disk too; there already is fine. At most ``size_limit`` bytes go in where
        ``can_limit``."""
        (self.root / name).mkdir(mode=0o701, exist_ok=True)
        made = not self.data(name).exists()
        self.data(name).mkdir(mode=0o755, exist_ok=True)
        if made and size_limit is not None and self._quota is not None:
            self._quota.limit_sync(self.root / name, size_limit)
        sync_folders_sync(self.root)

    def discard_sync(self, name: str) -> Path | None:
        """Take a volume away in one step; returns what ``empty_trash_sync`` is to delete, None when there is none."""
        trash = self.root / _TRASH
        trash.mkdir(mode=0o700, exist_ok=True)
        gone = trash / new_id()[:24]
        try:
            (self.root / name).rename(gone)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            # A mount that nobody counts (made by hand, or by a daemon that was killed) still sits on the data.
            self.unmount_sync(name)
            (self.root / name).rename(gone)
        sync_folders_sync(self.root)  # before its record goes: nobody's folder would be taken for somebody's data
        return gone

    def empty_trash_sync(self, gone: Path) -> None:
        """Delete a discarded volume; never through a mount that may still lie on it."""
        data = gone / "_data"
        while _is_mount_point(data):
            unmount_sync(str(data))
        shutil.rmtree(gone, ignore_errors=True)

    def is_empty_sync(self, name: str) -> bool:
        """Whether nothing lies in the volume, so that the image's files may be copied into it."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.data(name)) as entries:
            return next(entries, None) is None
        return True

    def size_sync(self, name: str) -> int:
        """Bytes in files, those with several links counted once, as dockerd counts; what changes meanwhile is counted
        or not."""
        seen: set[tuple[int, int]] = set()
        total = 0
        for status in _walk(str(self.data(name))):
            if stat.S_ISDIR(status.st_mode):
                continue
            if status.st_nlink > 1:
                key = (status.st_dev, status.st_ino)
                if key in seen:
                    continue
                seen.add(key)
            total += status.st_size
        return total

    def is_mounted_sync(self, name: str) -> bool:
        """Whether a file system is mounted on the volume's data."""
        return _is_mount_point(self.data(name))

    def mount_sync(self, name: str, request: MountRequest) -> None:
        """Mount the volume's file system on its data folder. Raises ``OSError`` that names both ends."""
        target = str(self.data(name))
        server = nfs_server(request)
        if server:
            request = with_server_address(request, _address_of(server))
        kind = "" if request.kind == "none" else request.kind
        try:
            mount_sync(request.device, target, kind, request.options)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            flags, _, data = split_options(request.options)
            told = (f", flags: {flags:#x}" if flags else "") + (f", data: {data}" if data else "")
            words = f"failed to mount local volume: mount {request.device}:{target}{told}: {reason}"
            raise OSError(error.errno, words) from error

    def unmount_sync(self, name: str) -> None:
        """Undo ``mount_sync``; not mounted is fine."""
        with contextlib.suppress(FileNotFoundError):
            while _is_mount_point(self.data(name)):
                unmount_sync(str(self.data(name)))


def _address_of(server: str) -> str:
    try:
        return str(socket.getaddrinfo(server, None)[0][4][0])
    except socket.gaierror as error:
        raise OSError(f"error resolving passed in network volume address: lookup {server}: no such host") from error


def _is_mount_point(path: Path) -> bool:
    """From mountinfo: a bind of the same file system has no device number of its own to tell."""
    escaped = "".join(f"\\{ord(c):03o}" if c in " \t\n\\" else c for c in os.path.realpath(path))
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        return any(line.split(" ", 5)[4] == escaped for line in mounts)


def _walk(folder: str) -> Iterator[os.stat_result]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return  # removed while we look
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):
            yield entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)
