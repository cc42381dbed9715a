"""Credentials as docker's clients send and keep them: the `X-Registry-Auth` header and `config.json`. Pure but for
reading that file.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

import msgspec

INDEX_SERVER = "https://index.docker.io/v1/"


class AuthConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a user presents to one registry; empty means anonymous."""

    username: str = ""
    password: str = ""
    auth: str = ""
    email: str = ""
    serveraddress: str = ""
    identitytoken: str = ""
    registrytoken: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether nothing was presented."""
        return not (self.username or self.password or self.identitytoken or self.registrytoken or self.auth)

    def basic(self) -> tuple[str, str] | None:
        """User and password, from the fields or from `auth`."""
        if self.username:
            return self.username, self.password
        if self.auth:
            try:
                user, colon, password = base64.b64decode(self.auth).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError, ValueError):
                return None
            return (user, password.strip("\0")) if colon else None
        return None


ANONYMOUS = AuthConfig()


def decode_auth_header(value: str) -> AuthConfig:
    """The `X-Registry-Auth` header (base64url of JSON). What cannot be read is no credentials, as in dockerd."""
    if not value:
        return ANONYMOUS
    try:
        raw = base64.urlsafe_b64decode(value.strip().rstrip("=") + "=" * (-len(value.strip().rstrip("=")) % 4))
        return msgspec.json.decode(raw or b"{}", type=AuthConfig)
    except (binascii.Error, msgspec.DecodeError, ValueError):
        return ANONYMOUS


def encode_auth_header(auth: AuthConfig) -> str:
    """The header a client sends."""
    return base64.urlsafe_b64encode(msgspec.json.encode(auth)).decode()


class _ConfigFile(msgspec.Struct):
    auths: dict[str, AuthConfig] = {}


def server_of(address: str) -> str:
    """The key under which docker keeps credentials: the bare host, but the whole address for Docker Hub."""
    if address in ("", "docker.io", "index.docker.io"):
        return INDEX_SERVER
    if address.rstrip("/") == INDEX_SERVER.rstrip("/"):
        return INDEX_SERVER
    return address.removeprefix("https://").removeprefix("http://").partition("/")[0]


def read_config_sync(path: Path) -> dict[str, AuthConfig]:
    """The logins of a docker `config.json` by server; none without the file. `ValueError` for a bad one."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    try:
        return msgspec.json.decode(data, type=_ConfigFile).auths
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}: {error}") from error
