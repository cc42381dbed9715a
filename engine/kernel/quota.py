"""Project quotas: a size limit for a folder tree, on file systems mounted with ``pquota``/``prjquota``.

Used for ``--storage-opt size`` and for volumes with a size. A folder gets a project number of its own that everything
made below inherits; the kernel then refuses (EDQUOT/ENOSPC) what would pass the limit. See quotactl(2) and
ioctl_fssetxattr(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import stat
import struct
import threading
from pathlib import Path

UNSUPPORTED = "--storage-opt is supported only for overlay over xfs with 'pquota' mount option"

_FSGETXATTR = 0x801C581F
_FSSETXATTR = 0x401C5820
_FSXATTR = struct.Struct("=IIIII8x")
_PROJECT_INHERIT = 0x200
_QUOTA = struct.Struct("=bbHI6Qii2H4b3QiHh8x")
_Q_XSETQLIM = 0x5804
_PROJECT = 2
_VERSION, _FLAG_PROJECT = 1, 2
_SOFT_AND_HARD = 1 << 2 | 1 << 3
SNAPSHOTS, VOLUMES = 0x62000000, 0x72000000
"""Where the project numbers of each begin: on one file system they must differ."""
_libc = ctypes.CDLL(None, use_errno=True)


class ProjectQuota:
    """Project quotas below one folder; the device node that quotactl wants is made there."""

    def __init__(self, root: Path, first: int) -> None:
        self._node = root.parent / f"backing-device-{root.name}"
        self._root = root
        self._first = first
        self._next = 0
        self._lock = threading.Lock()

    def limit_sync(self, folder: Path, size_bytes: int) -> None:
        """Allow at most ``size_bytes`` below the empty ``folder``."""
        with self._lock:
            self._limit_sync(folder, size_bytes)

    def _limit_sync(self, folder: Path, size_bytes: int) -> None:
        number = self._fresh_id_sync()
        record = _QUOTA.pack(
            _VERSION, _FLAG_PROJECT, _SOFT_AND_HARD, number, size_bytes // 512, size_bytes // 512,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        )  # fmt: skip
        device = os.stat(self._root).st_dev
        with contextlib.suppress(FileNotFoundError):
            self._node.unlink()
        os.mknod(self._node, stat.S_IFBLK | 0o600, device)
        command = _Q_XSETQLIM << 8 | _PROJECT
        if _libc.quotactl(command, os.fsencode(self._node), number, record) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(folder))
        for path in (folder, *(child for child in folder.iterdir() if child.is_dir())):
            _set_project_sync(path, number)

    def _fresh_id_sync(self) -> int:
        """A project number above all that folders here hold."""
        if not self._next:
            used = [project_of_sync(path) for path in self._root.iterdir() if path.is_dir()]
            self._next = max([self._first, *used])
        self._next += 1
        return self._next


def project_of_sync(folder: Path) -> int:
    """The project number of a folder; 0 for none."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return int(_FSXATTR.unpack(fcntl.ioctl(fd, _FSGETXATTR, bytes(_FSXATTR.size)))[3])
    finally:
        os.close(fd)


def _set_project_sync(folder: Path, number: int) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags, extent, extents, _, cow = _FSXATTR.unpack(fcntl.ioctl(fd, _FSGETXATTR, bytes(_FSXATTR.size)))
        fcntl.ioctl(fd, _FSSETXATTR, _FSXATTR.pack(flags | _PROJECT_INHERIT, extent, extents, number, cow))
    finally:
        os.close(fd)


def probe_sync(root: Path, first: int) -> ProjectQuota | None:
    """Project quotas for ``root``, numbered from ``first``, or None where its file system is not mounted with them."""
    device = os.stat(root).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[2] == wanted and {"prjquota", "pquota"} & set(right.split()[-1].split(",")):
            return ProjectQuota(root, first)
    return None
