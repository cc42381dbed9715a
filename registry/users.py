"""The htpasswd file: users and bcrypt hashes, read, and changed so that a reader sees the old file or the new one."""

from __future__ import annotations

import fcntl
from pathlib import Path

import bcrypt

from registry.store.replacing import replace_file_sync

_MAX_PASSWORD_BYTES = 72


def read_users_sync(path: Path) -> dict[str, bytes]:
    """Hashes by user. Blank lines and comments are skipped; a line without a colon is a ValueError that names it."""
    users: dict[str, bytes] = {}
    for number, line in enumerate(path.read_text("utf-8", "surrogateescape").splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        user, colon, value = line.partition(":")
        if not colon:
            raise ValueError(f"{path}, line {number}: no colon between user and hash")
        users[user] = value.strip().encode("utf-8", "surrogateescape")
    return users


def set_user_sync(path: Path, name: str, password: str, cost: int = 10) -> bool:
    """Give a user a password; whether the user is new. ValueError for names and passwords that cannot work."""
    if not name or ":" in name or not name.isprintable() or name != name.strip() or name.startswith("#"):
        raise ValueError(f"{name!r} cannot be a user name")
    secret = password.encode()
    if not secret or len(secret) > _MAX_PASSWORD_BYTES or b"\0" in secret:
        raise ValueError(f"a password has 1 to {_MAX_PASSWORD_BYTES} bytes")
    entry = bcrypt.hashpw(secret, bcrypt.gensalt(cost)).decode()
    return not _change(path, name, f"{name}:{entry}")


def remove_user_sync(path: Path, name: str) -> bool:
    """Remove a user; whether there was one."""
    return path.exists() and _change(path, name, None)


def _change(path: Path, name: str, replacement: str | None) -> bool:
    """Replace or drop a user's line, keeping every other line as it is; whether there was one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lines = path.read_text("utf-8", "surrogateescape").splitlines() if path.exists() else []
        kept = [line for line in lines if line.strip().partition(":")[0] != name or line.strip().startswith("#")]
        found = len(kept) != len(lines)
        if replacement is not None:
            kept.append(replacement)
        text = "".join(line + "\n" for line in kept)
        replace_file_sync(path, text.encode("utf-8", "surrogateescape"), 0o600, keep_access=True)
    return found
