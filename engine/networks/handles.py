"""Paths by which others enter a running container's network namespace: what ``inspect`` calls ``SandboxKey``.

Each is a symbolic link to the namespace of the container's first process: no mount, so nothing keeps the namespace
alive or is left in the host's mount table. ``nsenter --net=`` and ``setns`` follow it. It works on while the daemon is
away, and what ended meanwhile is swept at the next start.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from engine.networks.model import SandboxDocument


class NamespaceHandles:
    """The folder of the links: one a sandbox that owns its namespace, and ``default`` for the daemon's own."""

    def __init__(self, exec_root: Path) -> None:
        self._directory = exec_root / "netns"

    def path(self, sandbox: SandboxDocument) -> str:
        """Where a running container's namespace is to be found; empty for one that has joined another container's."""
        if sandbox.mode.startswith("container:"):
            return ""
        return str(self._directory / ("default" if sandbox.mode == "host" else sandbox.sandbox_id[:12]))

    def start_sync(self) -> None:
        """Sweep what an earlier daemon left, and make ``default``. Raises ``OSError``."""
        self._directory.mkdir(parents=True, exist_ok=True)
        for link in self._directory.iterdir():
            link.unlink()
        os.symlink(f"/proc/{os.getpid()}/ns/net", self._directory / "default")

    def put_sync(self, sandbox_id: str, pid: int) -> None:
        """Make the link of a sandbox whose first process is ``pid``. Raises ``OSError``."""
        link = self._directory / sandbox_id[:12]
        link.unlink(missing_ok=True)
        os.symlink(f"/proc/{pid}/ns/net", link)

    def drop_sync(self, sandbox_id: str) -> None:
        """Remove a sandbox's link; none is fine."""
        with contextlib.suppress(OSError):
            (self._directory / sandbox_id[:12]).unlink(missing_ok=True)

    def remove_sync(self) -> None:
        """Remove the folder: no container runs and the daemon ends."""
        with contextlib.suppress(OSError):
            for link in self._directory.iterdir():
                link.unlink()
            self._directory.rmdir()
