"""Who is calling, and may they? Passwords, tokens, identities, and the one decision every request goes through.

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
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bcrypt

from registry import errors
from registry.config import Settings
from registry.errors import RegistryError
from registry.server.grants import Grants
from registry.server.jwt import InvalidToken, Verifier
from registry.tasks import run_blocking
from registry.users import read_users_sync

log = logging.getLogger("berth.registry.auth")
audit = logging.getLogger("berth.registry.audit")

_REMEMBER_SECONDS = 300.0
_REMEMBERED = 1024
_CATALOG = ("registry", "catalog", "*")


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody. The empty name is the anonymous caller. `access` is what a token allows, None without token."""

    name: str
    access: frozenset[tuple[str, str, str]] | None = None

    @property
    def is_anonymous(self) -> bool:
        """Whether no credentials were shown."""
        return not self.name and self.access is None


ANONYMOUS = Identity("")


class Unauthorized(RegistryError):
    """401. `scope` says what was wanted, `reason` what was wrong with a token; the dispatcher adds the challenge."""

    def __init__(self, detail: Any = None, scope: str = "", reason: str = "") -> None:
        super().__init__(errors.UNAUTHORIZED, detail)
        self.scope = scope
        self.reason = reason


class Htpasswd:
    """A file of `user:bcrypt-hash` lines, read again whenever it changes. Other hashes never match (as in
    registry:2)."""

    def __init__(self, path: Path, is_optional: bool = False) -> None:
        self.path = path
        self._is_optional = is_optional
        self._is_missed = self._has_looked = False
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
        """Read the file if it changed. A file that has gone or is broken leaves the users in force as they were; at the
        first look it is an error."""
        is_first, self._has_looked = not self._has_looked, True
        try:
            status = self.path.stat()
        except FileNotFoundError:
            self._miss()
            return
        mark = (status.st_mtime_ns, status.st_ino)
        if mark == self._mark:
            return
        try:
            hashes = read_users_sync(self.path)
        except (OSError, ValueError) as error:
            if is_first:
                raise
            log.error("cannot use the user file: %s", error)
            return
        self._mark, self._hashes, self._is_missed = mark, hashes, False

    def _miss(self) -> None:
        if self._is_missed or (self._mark is None and self._is_optional):
            return
        self._is_missed = True
        if self._mark is None:
            log.warning("the user file %s is not there: nobody can log in until it is", self.path)
        else:
            log.error("the user file %s has gone; its users stay until it is back", self.path)

    def users(self) -> list[str]:
        """The names in the file."""
        return sorted(self._hashes)

    @property
    def is_empty(self) -> bool:
        """Whether no user was ever defined where none has to be: neither an emptied file nor a missing one that the
        configuration names opens the registry."""
        return not self._hashes and self._mark is None and self._is_optional

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
    """The gate. Without users and tokens it is open; `RegistryServer` makes sure that this happens on loopback only."""

    # Compared against when the user is unknown, so that the answer takes as long as for a known one. Nobody is let in
    # by it, whatever the comparison says.
    _decoy = b"$2b$10$VCpgS79sGvpfhDnrgh1IL..KVEOIEA8IDAMUODtYLcWRd7zCebVtS"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        users = settings.htpasswd
        self.htpasswd = Htpasswd(users, settings.htpasswd_optional) if users is not None else None
        self.grants = Grants(settings)
        # Whoever issues the tokens we believe: our own service, or the configured one. Set before serving.
        self.verifier: Verifier | None = None
        self.issuer = self.audience = ""
        # Readies our own token service, where there is one; set before serving.
        self.prepare_tokens: Callable[[], Awaitable[None]] | None = None
        self._passwords: OrderedDict[bytes, tuple[float, bytes, Identity]] = OrderedDict()
        self._tokens: OrderedDict[bytes, tuple[float, Identity]] = OrderedDict()
        self._checks = asyncio.Semaphore(4)
        self._salt = secrets.token_bytes(16)

    def reload(self, settings: Settings) -> None:
        """Go by other settings from the next question on."""
        self._settings = settings
        self.grants.reload(settings)

    def forget_tokens(self) -> None:
        """Look at every token anew: other keys are trusted now."""
        self._tokens.clear()

    @property
    def is_open(self) -> bool:
        """Whether everybody may do everything: no users are defined, and the settings or the address allow that."""
        if self._settings.token_auth is not None:
            return False
        return (self.htpasswd is None or self.htpasswd.is_empty) and self.grants.is_empty

    async def refresh(self) -> None:
        """Notice changes of the user file and the grants."""
        if self.htpasswd is not None:
            await self.htpasswd.refresh()
        await self.grants.refresh()
        if self.verifier is None and self.prepare_tokens is not None and self._wants_tokens:
            await self.prepare_tokens()

    @property
    def _wants_tokens(self) -> bool:
        return self._settings.tokens or self.grants.names_anonymous

    @property
    def offers_tokens(self) -> bool:
        """Whether clients are sent to our token service: when they should be, and when anything is for everybody. Sent
        for a password, docker and skopeo give up without one, whatever they could have without."""
        return self.verifier is not None and self.prepare_tokens is not None and self._wants_tokens

    async def authenticate(self, username: str, password: str) -> Identity | None:
        """The identity behind a name and password, or None. Right answers are remembered for five minutes."""
        await self.refresh()
        if self.is_open:
            return Identity(username)
        stored = self.htpasswd.hash_of(username) if self.htpasswd is not None else None
        key = hashlib.sha256(self._salt + username.encode() + b"\0" + password.encode()).digest()
        known = self._passwords.get(key)
        if known is not None and known[0] > time.monotonic() and known[1] == stored:
            return known[2]
        async with self._checks:
            matches = await run_blocking(Htpasswd.check_sync, password.encode(), stored or self._decoy)
        if not matches or stored is None:
            audit.warning("login refused user=%r", username)
            return None
        audit.info("login allowed user=%r", username)
        identity = Identity(username)
        self._passwords[key] = (time.monotonic() + _REMEMBER_SECONDS, stored, identity)
        if len(self._passwords) > _REMEMBERED:
            self._passwords.popitem(last=False)
        return identity

    def authorize(self, identity: Identity, repository: str, action: str) -> bool:
        """Whether `identity` may `pull`, `push` or `delete` in `repository`."""
        if self.is_open:
            return True
        if identity.access is not None:
            granted = identity.access
            return ("repository", repository, action) in granted or ("repository", repository, "*") in granted
        return self.grants.allows(identity.name, repository, action)

    async def identify(self, authorization: str | None) -> Identity:
        """Who sends this `Authorization` header; `Unauthorized` when it is wrong, anonymous when there is none."""
        await self.refresh()
        if self.is_open or authorization is None:
            return ANONYMOUS
        scheme, _, value = authorization.partition(" ")
        if scheme.lower() == "bearer" and self.verifier is not None:
            return self._identify_token(value.strip())
        if scheme.lower() != "basic" or self._settings.token_auth is not None:
            raise Unauthorized()
        credentials = parse_basic(value)
        identity = await self.authenticate(*credentials) if credentials is not None else None
        if identity is None:
            raise Unauthorized()
        return identity

    def _identify_token(self, token: str) -> Identity:
        assert self.verifier is not None
        key = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        known = self._tokens.get(key)
        if known is not None and known[0] > time.time():
            return known[1]
        try:
            claims = self.verifier.verify(token, self.issuer, self.audience)
            access = read_access(claims.get("access"))
        except InvalidToken as error:
            audit.warning("token refused: %s", error)
            raise Unauthorized(reason="invalid_token") from error
        identity = Identity(str(claims.get("sub", "")), access)
        self._tokens[key] = (float(claims["exp"]), identity)
        if len(self._tokens) > _REMEMBERED:
            self._tokens.popitem(last=False)
        return identity

    def require(self, identity: Identity, repository: str, actions: tuple[str, ...]) -> None:
        """401 for a caller who could show more, 403 for a known one, unless every action is allowed."""
        if self.is_open:
            return
        refused = [action for action in actions if not self.authorize(identity, repository, action)]
        who = identity.name or "anonymous"
        if not refused:
            audit.info("allowed user=%r repository=%s actions=%s", who, repository, ",".join(actions))
            return
        audit.warning("refused user=%r repository=%s actions=%s", who, repository, ",".join(refused))
        detail = [{"Type": "repository", "Class": "", "Name": repository, "Action": action} for action in refused]
        if identity.is_anonymous or identity.access is not None:
            reason = "" if identity.is_anonymous else "insufficient_scope"
            raise Unauthorized(detail, f"repository:{repository}:{','.join(actions)}", reason)
        raise RegistryError(errors.DENIED, detail)

    def require_catalog(self, identity: Identity) -> None:
        """401 unless the caller is known, by a token: one that is for the list of repositories."""
        if self.is_open:
            return
        who = identity.name or "anonymous"
        if not identity.is_anonymous and (identity.access is None or _CATALOG in identity.access):
            audit.info("allowed user=%r catalog", who)
            return
        audit.warning("refused user=%r catalog", who)
        reason = "" if identity.is_anonymous else "insufficient_scope"
        raise Unauthorized(scope=":".join(_CATALOG), reason=reason)

    def lists(self, identity: Identity, repository: str) -> bool:
        """Whether the catalog shows a repository to a caller: those that may be pulled from.

        A token for the catalog names no repositories. Behind ours stand the grants; a foreign one is for all.
        """
        if self.is_open or identity.access is None:
            return self.authorize(identity, repository, "pull")
        return self._settings.token_auth is not None or self.grants.allows(identity.name, repository, "pull")

    def challenge(self, base: str, error: Unauthorized) -> str:
        """The `WWW-Authenticate` header that tells a client how to come back; `base` is where it thinks we are."""
        token = self._settings.token_auth
        if token is None and not self.offers_tokens:
            realm = self._settings.realm.replace('"', "'")
            return f'Basic realm="{realm}"'
        if token is not None:
            service = token.service
            realm = base + token.auto_redirect_path if token.auto_redirect else token.realm
        else:
            realm, service = base + self._settings.prefix + "auth/token", self.audience
        header = f'Bearer realm="{realm}",service="{service}"'
        if error.scope:
            header += f',scope="{error.scope}"'
        if error.reason:
            header += f',error="{error.reason}"'
        return header


def read_access(value: Any) -> frozenset[tuple[str, str, str]]:
    """The `access` claim as triples of type, name and action."""
    found = set()
    for entry in value if isinstance(value, list) else ():
        if not isinstance(entry, dict) or not isinstance(entry.get("actions"), list):
            raise InvalidToken("unusable access claim")
        for action in entry["actions"]:
            found.add((str(entry.get("type")), str(entry.get("name")), str(action)))
    return frozenset(found)


def parse_basic(value: str) -> tuple[str, str] | None:
    """Name and password of a Basic header's value, or None."""
    try:
        text = base64.b64decode(value.strip(), validate=True).decode("utf-8", "surrogateescape")
    except (binascii.Error, ValueError):
        return None
    username, colon, password = text.partition(":")
    return (username, password) if colon else None


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
