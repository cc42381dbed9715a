"""Who ``--user`` names, and which mode a folder has: a container's root, read without following a link out of it.

A running container is read through its first process's root, any other through its writable layer and the image's
layers, uppermost first. What image layers hold never changes, so it is remembered per image.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.containers.model import Container
from engine.containers.users import ResolvedUser, resolve_user
from engine.errors import SystemFailure
from engine.kernel.rooted import mode_in_root_sync, read_in_root_sync
from engine.snapshots.base import LayerKey
from engine.tasks import run_blocking

PASSWD, GROUP = "etc/passwd", "etc/group"
REMEMBERED = 256


class Accounts:
    """Resolves users of containers."""

    def __init__(self, upper: Callable[[str], Path], layer_folder: Callable[[LayerKey], Path]) -> None:
        self._upper = upper
        self._layer_folder = layer_folder
        self._known: dict[tuple[str, ...], tuple[str, str]] = {}

    async def resolve(self, container: Container, user: str | None = None) -> ResolvedUser:
        """The user of the container's process, or ``user`` in it. Raises ``SystemFailure`` with docker's sentence."""
        wanted = container.config.user if user is None else user
        passwd, group = await run_blocking(self._files_sync, container)
        try:
            return resolve_user(wanted, passwd, group, container.host_config.group_add or ())
        except ValueError as error:
            raise SystemFailure(str(error)) from error

    def _files_sync(self, container: Container) -> tuple[str, str]:
        if container.state.pid:
            try:
                root = f"/proc/{container.state.pid}/root"
                return _text(read_in_root_sync(root, PASSWD)), _text(read_in_root_sync(root, GROUP))
            except OSError:
                pass  # it has just ended: its files are still there
        upper = self._upper(container.id)
        if not os.path.lexists(upper / "etc"):
            return self._of_image_sync(container.layers)
        roots = self._roots(container)
        return _first_sync(roots, PASSWD), _first_sync(roots, GROUP)

    async def folder_mode(self, container: Container, path: str) -> int | None:
        """The permissions of a folder in the root of a container that is to start; None where there is none."""
        return await run_blocking(self._folder_mode_sync, container, path)

    def _folder_mode_sync(self, container: Container, path: str) -> int | None:
        for root in self._roots(container):
            mode = mode_in_root_sync(str(root), path)
            if mode is not None:
                return stat.S_IMODE(mode) if stat.S_ISDIR(mode) else None
            if _is_hidden_sync(root, path.lstrip("/")):
                return None
        return None

    def _roots(self, container: Container) -> list[Path]:
        """The folders that are laid over each other, uppermost first."""
        layers = (self._layer_folder(LayerKey(key)) for key in reversed(container.layers))
        return [self._upper(container.id), *layers]

    def _of_image_sync(self, layers: tuple[str, ...]) -> tuple[str, str]:
        known = self._known.get(layers)
        if known is None:
            roots = [self._layer_folder(LayerKey(key)) for key in reversed(layers)]
            known = _first_sync(roots, PASSWD), _first_sync(roots, GROUP)
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[layers] = known
        return known


def _first_sync(roots: Sequence[Path], path: str) -> str:
    """The file in the uppermost root that has it, unless a root above hides it."""
    for root in roots:
        found = read_in_root_sync(str(root), path)
        if found is not None:
            return _text(found)
        if _is_hidden_sync(root, path):
            return ""
    return ""


def _is_hidden_sync(root: Path, path: str) -> bool:
    """Whether overlay's whiteout of the file, or an opaque folder around it, hides the layers below."""
    try:
        status = os.lstat(root / path)
    except OSError:
        folder = root / os.path.dirname(path)
        try:
            return os.getxattr(folder, "trusted.overlay.opaque", follow_symlinks=False) == b"y"
        except OSError:
            return False
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode("utf-8", "replace")
