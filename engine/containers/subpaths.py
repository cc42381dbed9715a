"""A place below a volume or an image, named by whoever made the container: links in it may not lead out."""

from __future__ import annotations

import os
from pathlib import Path

from engine.errors import InvalidParameter


def subpath_sync(root: Path, subpath: str) -> Path:
    """The folder or file below ``root``. Raises ``InvalidParameter`` in docker's words."""
    resolved = Path(os.path.realpath(root / subpath))
    if not resolved.is_relative_to(os.path.realpath(root)):
        raise InvalidParameter(
            f'path concatenation escapes the base directory, base: "{root}", subpath: "{subpath}", '
            f'resolved: "{resolved}"'
        )
    if not resolved.exists():
        raise InvalidParameter(f"cannot access path {resolved}: lstat {resolved}: no such file or directory")
    return resolved


def is_empty_folder_sync(path: Path) -> bool:
    """Whether it is a folder with nothing in it."""
    return path.is_dir() and not any(path.iterdir())
