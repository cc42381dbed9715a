"""Notices: what happened in the registry, for whoever listens (webhooks, metrics, the engine)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from registry.digest import Digest
from registry.server.requests import Call
from registry.store.hot import StoredManifest


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing that happened to content. `action` is push, pull, mount or delete, as in registry:2's events."""

    action: str
    repository: str
    digest: str
    media_type: str
    size: int
    tag: str
    from_repository: str
    actor: str
    call: Call


class Notices:
    """Hands notices to listeners, which must be quick and must not raise."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[Notice], None]] = []

    def listen(self, listener: Callable[[Notice], None]) -> None:
        """Add a listener."""
        self._listeners.append(listener)

    def blob(self, action: str, call: Call, digest: Digest, from_repository: str | None = None) -> None:
        """A blob was pushed or mounted."""
        if self._listeners:
            self._tell(call, action, str(digest), "application/octet-stream", 0, "", from_repository or "")

    def manifest(self, action: str, call: Call, stored: StoredManifest) -> None:
        """A manifest was pushed or pulled."""
        if self._listeners:
            tag = "" if ":" in call.reference else call.reference
            self._tell(call, action, str(stored.digest), stored.media_type, len(stored.data), tag, "")

    def deleted(self, call: Call, digest: Digest | None = None, tag: str = "") -> None:
        """A manifest or tag was deleted."""
        if self._listeners:
            self._tell(call, "delete", str(digest or ""), "", 0, tag, "")

    def _tell(
        self, call: Call, action: str, digest: str, media_type: str, size: int, tag: str, from_repository: str
    ) -> None:
        notice = Notice(
            action, call.repository, digest, media_type, size, tag, from_repository, call.identity.name, call
        )
        for listener in self._listeners:
            listener(notice)
