"""Who may do what where, when being logged in is not enough: grants, immutable tags. The rules come from the
configuration and
from a file that is read again when it changes."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import yaml

from registry.config import Grant, Settings
from registry.configfile import read_grant
from registry.configvalues import ConfigError
from registry.patterns import matches_any
from registry.tasks import run_blocking

log = logging.getLogger("berth.registry.auth")

EVERYBODY = "anonymous"
ANY_USER = "*"


class Grants:
    """Evaluates grants. Without any, every known user may do everything and nobody else anything."""

    def __init__(self, settings: Settings) -> None:
        self._path = settings.grants_file
        self._is_optional = settings.grants_file_optional
        self._from_file: tuple[Grant, ...] = ()
        self._file_groups: dict[str, frozenset[str]] = {}
        self._mark: tuple[int, int] | None = None
        self._next_look = 0.0
        self.reload(settings)

    def reload(self, settings: Settings) -> None:
        """Take over the configuration's grants and groups; the file is looked at by itself."""
        self._fixed = settings.grants
        self._configured_groups = {name: frozenset(users) for name, users in settings.groups.items()}

    async def refresh(self) -> None:
        """Read the file again if it changed; looked at once a second at most."""
        now = time.monotonic()
        if self._path is None or now < self._next_look:
            return
        self._next_look = now + 1.0
        await run_blocking(self._load_sync, self._path)

    def _load_sync(self, path: Path) -> None:
        try:
            status = path.stat()
            mark = (status.st_mtime_ns, status.st_ino)
            if mark == self._mark:
                return
            document = yaml.safe_load(path.read_text(encoding="utf-8"))
            document = {} if document is None else document
            entries = document.get("grants") or []
            grants = tuple(read_grant(entry, f"{path}: grants[{i}]") for i, entry in enumerate(entries))
            groups = {str(k): frozenset(map(str, v)) for k, v in (document.get("groups") or {}).items()}
        except (OSError, yaml.YAMLError, ConfigError, AttributeError, TypeError) as error:
            if isinstance(error, FileNotFoundError) and self._is_optional and self._mark is None:
                return
            # The rules in force stay: half an edited file must neither open nor close the registry.
            log.error("cannot use the grants in %s: %s", path, error)
            return
        self._from_file, self._file_groups, self._mark = grants, groups, mark

    @property
    def is_empty(self) -> bool:
        """Whether there are no rules at all."""
        if self._fixed or self._from_file:
            return False
        return self._path is None or (self._is_optional and self._mark is None)

    @property
    def names_anonymous(self) -> bool:
        """Whether something is for callers that show nothing."""
        return any(grant.who == EVERYBODY for grant in (*self._fixed, *self._from_file))

    def allows(self, user: str, repository: str, action: str) -> bool:
        """Whether some grant lets `user` (empty: anonymous) do `action` in `repository`."""
        if self.is_empty:
            return bool(user)
        return any(
            action in grant.actions and self._means(grant.who, user) and matches_any(grant.repositories, repository)
            for grant in (*self._fixed, *self._from_file)
        )

    def _means(self, who: str, user: str) -> bool:
        if who == EVERYBODY:
            return True
        if not user:
            return False
        if who.startswith("@"):
            name = who[1:]
            return user in self._configured_groups.get(name, ()) or user in self._file_groups.get(name, ())
        return who in (ANY_USER, user)
