"""Replacing one small file that is kept beside the store: users, grants, logins, keys, certificates.

Promise: whoever reads it, after a crash too, finds the old file or the new one, whole; once the call returned it is the
new one. This may wait for the disk as long as that takes, so it belongs into a command or a thread.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from registry.store.placing import sync_folder_sync


def replace_file_sync(path: Path, data: bytes, mode: int, *, keep_access: bool = False) -> None:
    """Put `data` there, in a folder made if need be, with `mode` less the umask.

    `keep_access` keeps mode and owner of what is there: whoever may read that must be able to read the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Nobody else's, wherever else a process writes the same file.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(6)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if keep_access:
                _take_access_sync(descriptor, path)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder_sync(os.fspath(path.parent))


def _take_access_sync(descriptor: int, path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        before = path.stat()
        os.fchmod(descriptor, before.st_mode & 0o777)
        with contextlib.suppress(PermissionError):
            os.fchown(descriptor, before.st_uid, before.st_gid)
