"""The built-in token service (`/auth/token`): trades a name and password for a short-lived token with the rights it
asks for.

It grants what the grants allow and no more, to anonymous callers too. Its key lies in the storage, so that every
replica believes every other one's tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs

from aiohttp.web_request import BaseRequest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from registry.reference import is_repository_path
from registry.server.auth import ANONYMOUS, Access, Identity, Unauthorized, audit, parse_basic
from registry.server.bodies import read_body
from registry.server.jwt import InvalidToken, Verifier, sign, thumbprint
from registry.server.replies import Reply, json_reply
from registry.store import paths
from registry.store.driver import StorageDriver
from registry.store.replacing import replace_file_sync
from registry.tasks import run_blocking

ISSUER = "berth"
_KEY = paths.state("token.key")
_TOKEN_SECONDS = 300
_REFRESH_SECONDS = 30 * 86400
_REFRESH_AUDIENCE = "berth-refresh"
_ACTIONS = ("pull", "push", "delete")


class TokenService:
    """Issues tokens, once `prepare` has run."""

    def __init__(self, driver: StorageDriver, access: Access, service: str) -> None:
        self._driver = driver
        self._access = access
        self._service = service
        self._key: ec.EllipticCurvePrivateKey | None = None
        self._verifier: Verifier | None = None
        self._preparing = asyncio.Lock()

    async def prepare(self) -> None:
        """Load the key, or make one, and have `Access` believe it."""
        async with self._preparing:
            if self._key is None:
                await self._prepare()

    async def _prepare(self) -> None:
        local = self._driver.local_path(_KEY)
        try:
            data = await self._driver.read(_KEY)
        except FileNotFoundError:
            if local is not None:
                await run_blocking(replace_file_sync, local, _new_key(), 0o600)
            else:
                await self._driver.write(_KEY, _new_key())
            # Another replica may have written at the same moment: the one that is there now counts for all.
            data = await self._driver.read(_KEY)
        if local is not None:
            await run_blocking(_hide_sync, local)
        key = serialization.load_pem_private_key(data, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{_KEY} holds no key for ES256")
        self._key = key
        self._verifier = Verifier({thumbprint(key.public_key()): key.public_key()})
        self._access.verifier, self._access.issuer, self._access.audience = self._verifier, ISSUER, self._service

    async def answer(self, request: BaseRequest) -> Reply:
        """GET with Basic credentials or none, POST with a form (OAuth2), as docker clients ask."""
        await self._access.refresh()
        if not self._access.offers_tokens:
            return Reply(404)
        if request.method == "POST":
            form = parse_qs((await read_body(request, 64 * 1024)).decode("utf-8", "replace"))
            return await self._oauth(form)
        if request.method not in ("GET", "HEAD"):
            return Reply(405, {"Allow": "GET, POST"})
        query = parse_qs(request._message.path.partition("?")[2])
        identity = await self._basic(request.headers.get("Authorization"))
        refresh = query.get("offline_token", [""])[0] == "true"
        return self._reply(identity, query.get("scope", []), refresh, oauth=False)

    async def _basic(self, authorization: str | None) -> Identity:
        if authorization is None:
            return ANONYMOUS
        scheme, _, value = authorization.partition(" ")
        credentials = parse_basic(value) if scheme.lower() == "basic" else None
        identity = await self._access.authenticate(*credentials) if credentials is not None else None
        if identity is None:
            raise Unauthorized()
        return identity

    async def _oauth(self, form: Mapping[str, list[str]]) -> Reply:
        kind = form.get("grant_type", [""])[0]
        identity: Identity | None = None
        if kind == "password":
            identity = await self._access.authenticate(form.get("username", [""])[0], form.get("password", [""])[0])
        elif kind == "refresh_token":
            identity = self._refreshed(form.get("refresh_token", [""])[0])
        if identity is None:
            raise Unauthorized()
        refresh = form.get("access_type", [""])[0] == "offline"
        return self._reply(identity, form.get("scope", []), refresh, oauth=True)

    def _refreshed(self, token: str) -> Identity | None:
        """The user behind a refresh token, as long as the user exists with the same password."""
        assert self._verifier is not None
        try:
            claims = self._verifier.verify(token, ISSUER, _REFRESH_AUDIENCE)
        except InvalidToken:
            return None
        name = str(claims.get("sub"))
        mark = self._password_mark(name)
        # A registry that was open gave these to anybody; once it has users they are worth nothing.
        if claims.get("pwd") != mark or (mark is None and not self._access.is_open):
            return None
        return Identity(name)

    def _password_mark(self, name: str) -> str | None:
        """Something that changes with the password and tells nothing about it: bcrypt's salt."""
        stored = self._access.htpasswd.hash_of(name) if self._access.htpasswd is not None else None
        return stored[:29].decode("ascii", "replace") if stored is not None else None

    def _reply(self, identity: Identity, scopes: list[str], refresh: bool, oauth: bool) -> Reply:
        assert self._key is not None
        now = int(time.time())
        claims = {"iss": ISSUER, "sub": identity.name, "iat": now, "nbf": now, "jti": secrets.token_hex(16)}
        access = self._granted(identity, scopes)
        token = sign({**claims, "aud": self._service, "exp": now + _TOKEN_SECONDS, "access": access}, self._key)
        issued = datetime.fromtimestamp(now, UTC).isoformat().replace("+00:00", "Z")
        document: dict[str, object] = {
            "token": token,
            "access_token": token,
            "expires_in": _TOKEN_SECONDS,
            "issued_at": issued,
        }
        if oauth:
            document["scope"] = " ".join(scopes)
        if refresh and identity.name:
            document["refresh_token"] = sign(
                {
                    **claims,
                    "aud": _REFRESH_AUDIENCE,
                    "exp": now + _REFRESH_SECONDS,
                    "pwd": self._password_mark(identity.name),
                },
                self._key,
            )
        return json_reply(200, document, {"Cache-Control": "no-store"})

    def _granted(self, identity: Identity, scopes: list[str]) -> list[dict[str, object]]:
        granted: list[dict[str, object]] = []
        for scope in " ".join(scopes).split()[:100]:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            wanted = [action for action in actions.split(",") if action]
            if "*" in wanted:
                wanted = list(_ACTIONS)
            kind = kind.partition("(")[0]
            if kind == "repository" and is_repository_path(name):
                allowed = [action for action in wanted if self._access.authorize(identity, name, action)]
            elif kind == "registry" and name == "catalog" and not identity.is_anonymous:
                allowed = ["*"]
            else:
                allowed = []
            audit.info("token user=%r for %s:%s actions=%s", identity.name, kind, name, ",".join(allowed) or "none")
            granted.append({"type": kind, "name": name, "actions": allowed})
        return granted


def _hide_sync(key: Path) -> None:
    """Earlier versions were able to leave it for everybody to read."""
    # Another user's, or on a disk that is only read: its owner sees to it.
    with contextlib.suppress(OSError):
        if key.stat().st_mode & 0o077:
            key.chmod(0o600)


def _new_key() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
