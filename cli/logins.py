"""Logins to registries, kept where docker's command line keeps them: `auths` in ~/.docker/config.json.

Both command lines share the file; keys that are not ours are left as they are. The file is replaced whole, mode 0600.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from registry.reference import Reference
from registry.store.replacing import replace_file_sync

DOCKER_HUB = "https://index.docker.io/v1/"


def config_file() -> Path:
    """`$DOCKER_CONFIG/config.json`, by default in ~/.docker."""
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"


def _read() -> dict[str, Any]:
    try:
        document = json.loads(config_file().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return document if isinstance(document, dict) else {}


def _write(document: Mapping[str, Any]) -> None:
    replace_file_sync(config_file(), json.dumps(document, indent="\t").encode(), 0o600)


def remember(server: str, username: str, password: str) -> Path:
    """Keep a login that the daemon has confirmed; returns the file it went to."""
    document = _read()
    secret = base64.b64encode(f"{username}:{password}".encode()).decode()
    document.setdefault("auths", {})[server] = {"auth": secret}
    _write(document)
    return config_file()


def forget(server: str) -> bool:
    """Remove a login. False when there was none."""
    document = _read()
    if document.get("auths", {}).pop(server, None) is None:
        return False
    _write(document)
    return True


def auth_header(image: str) -> dict[str, str]:
    """The `X-Registry-Auth` header for the registry that an image name points at; always there, as docker sends it."""
    document = login_of(Reference.parse(image).domain)
    return {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(document).encode()).decode()}


def login_of(domain: str) -> dict[str, str]:
    """What is kept for a registry, with docker's names; empty when nobody logged in."""
    server = DOCKER_HUB if domain == "docker.io" else domain
    entry = _read().get("auths", {}).get(server, {})
    username, _, password = base64.b64decode(entry.get("auth", "")).decode().partition(":")
    token = entry.get("identitytoken", "")
    if token:
        # A token service gave docker a refresh token, which stands in for the password.
        return {"username": username, "identitytoken": token, "serveraddress": server}
    return {"username": username, "password": password, "serveraddress": server} if username else {}
