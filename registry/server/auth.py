"""Who is calling, and may they? Passwords, identities, and the one decision every request goes through.

Clients of the HTTP server and the engine's own pushes to the embedded registry ask the same two questions here:
`authenticate` and `authorize`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import ipaddress
import logging
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import bcrypt

from registry import errors
from registry.config import Settings
from registry.errors import RegistryError
from registry.tasks import run_blocking
from registry.users import read_users_sync

log = logging.getLogger("berth.registry.auth")

_REMEMBER_SECONDS = 300.0
_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody. The empty name is the anonymous caller."""

    name: str
    groups: tuple[str, ...] = ()

    @property
    def is_anonymous(self) -> bool:
        """Whether no credentials were shown."""
        return not self.name


ANONYMOUS = Identity("")


class Htpasswd:
    """A file of `user:bcrypt-hash` lines, read again whenever it changes. Other hashes never match (as in
    registry:2)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mark: tuple[int, int] | None = None
        self._hashes: dict[str, bytes] = {}
        self._next_look = 0.0

    async def refresh(self) -> None:
        """Read the file again if it changed; looked at once a second at most."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + 1.0
        await run_blocking(self.load_sync)

    def load_sync(self) -> None:
        """Read the file if it changed; a missing file is one without users."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            self._mark, self._hashes = None, {}
            return
        mark = (status.st_mtime_ns, status.st_ino)
        if mark == self._mark:
            return
        hashes = read_users_sync(self.path)
        self._mark, self._hashes = mark, hashes

    def users(self) -> list[str]:
        """The names in the file."""
        return sorted(self._hashes)

    def hash_of(self, user: str) -> bytes | None:
        """The stored hash."""
        return self._hashes.get(user)

    @staticmethod
    def check_sync(password: bytes, stored: bytes) -> bool:
        """Compare with bcrypt: tens of milliseconds, on purpose."""
        if not stored.startswith((b"$2a$", b"$2b$", b"$2y$")):
            return False
        try:
            return bcrypt.checkpw(password[:72], stored)
        except ValueError:
            return False


class Access:
    """The gate. Without users it is open; `RegistryServer` makes sure that this happens on loopback only."""

    # Compared against when the user is unknown, so that the answer takes as long as for a known one.
    _decoy = bcrypt.hashpw(secrets.token_bytes(16), bcrypt.gensalt(10))

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.htpasswd = Htpasswd(settings.htpasswd) if settings.htpasswd is not None else None
        self._known: OrderedDict[bytes, tuple[float, bytes, Identity]] = OrderedDict()
        self._checks = asyncio.Semaphore(4)
        self._salt = secrets.token_bytes(16)

    @property
    def is_open(self) -> bool:
        """Whether everybody may do everything: no users are defined, and the settings or the address allow that."""
        return self.htpasswd is None or not self.htpasswd.users()

    async def refresh(self) -> None:
        """Notice changes of the user file."""
        if self.htpasswd is not None:
            await self.htpasswd.refresh()

    async def authenticate(self, username: str, password: str) -> Identity | None:
        """The identity behind a name and password, or None. Right answers are remembered for five minutes."""
        await self.refresh()
        if self.is_open:
            return Identity(username)
        assert self.htpasswd is not None
        stored = self.htpasswd.hash_of(username)
        key = hashlib.sha256(self._salt + username.encode() + b"\0" + password.encode()).digest()
        known = self._known.get(key)
        if known is not None and known[0] > time.monotonic() and known[1] == stored:
            return known[2]
        async with self._checks:
            matches = await run_blocking(Htpasswd.check_sync, password.encode(), stored or self._decoy)
        if not matches or stored is None:
            log.info("login refused for user %r", username)
            return None
        identity = Identity(username)
        self._known[key] = (time.monotonic() + _REMEMBER_SECONDS, stored, identity)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return identity

    def authorize(self, identity: Identity, repository: str, action: str) -> bool:
        """Whether `identity` may `pull`, `push` or `delete` in `repository`."""
        return self.is_open or not identity.is_anonymous

    async def identify(self, authorization: str | None) -> Identity:
        """Who sends this `Authorization` header; 401 when it is wrong, anonymous when there is none."""
        await self.refresh()
        if self.is_open or authorization is None:
            return ANONYMOUS
        scheme, _, value = authorization.partition(" ")
        if scheme.lower() != "basic":
            raise self.challenge()
        try:
            text = base64.b64decode(value.strip(), validate=True).decode("utf-8", "surrogateescape")
        except (binascii.Error, ValueError):
            raise self.challenge() from None
        username, _, password = text.partition(":")
        identity = await self.authenticate(username, password)
        if identity is None:
            raise self.challenge()
        return identity

    def challenge(self, detail: object = None) -> RegistryError:
        """The 401 that tells a client how to log in."""
        realm = self._settings.realm.replace('"', "'")
        return RegistryError(errors.UNAUTHORIZED, detail, headers={"WWW-Authenticate": f'Basic realm="{realm}"'})

    def require(self, identity: Identity, repository: str, actions: tuple[str, ...]) -> None:
        """401 for an anonymous caller, 403 for a known one, unless every action is allowed."""
        refused = [action for action in actions if not self.authorize(identity, repository, action)]
        if not refused:
            return
        detail = [{"Type": "repository", "Class": "", "Name": repository, "Action": action} for action in refused]
        if identity.is_anonymous:
            raise self.challenge(detail)
        raise RegistryError(errors.DENIED, detail)


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
