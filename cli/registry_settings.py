"""How the registry's commands find their settings: a file, the environment, the command line, in rising order of
weight."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from registry.config import Settings
from registry.configfile import load_settings
from registry.configvalues import ConfigError

_DEFAULT_ROOT = "/var/lib/berth/registry"


def _default_root() -> Path:
    """Root's folder for root, a folder in the home for everybody else: serving needs no privilege."""
    if os.geteuid() == 0:
        return Path(_DEFAULT_ROOT)
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(data) / "berth" / "registry"


def default_settings(root: Path) -> Settings:
    """What `berth registry serve` does without a configuration file: loopback, TLS of its own, users beside the
    data."""
    own = root / "berth"
    return Settings(
        root=root,
        own_tls_folder=own / "tls",
        htpasswd=own / "htpasswd",
        htpasswd_optional=True,
        grants_file=own / "grants.yml",
        grants_file_optional=True,
    )


def settings_for(config: str | None, root: str | None) -> Settings:
    """Settings from a file, the environment and the command line, in rising order of weight."""
    path = config or os.environ.get("REGISTRY_CONFIGURATION_PATH")
    # Without a file users, grants and certificates lie beside the data, wherever that is.
    folder = root or os.environ.get("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY")
    base = default_settings(Path(folder) if folder else _default_root())
    try:
        settings = load_settings(Path(path) if path else None, os.environ, base)
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    return replace(settings, root=Path(root)) if root else settings


@contextlib.contextmanager
def as_owner(place: Path) -> Iterator[None]:
    """Root acts as the owner of the folder that it changes something in: a server that is another user's has to read it
    and to replace it."""
    folder = next(path for path in (place, *place.absolute().parents) if path.is_dir())
    status = folder.stat()
    if os.geteuid() != 0 or status.st_uid == 0:
        yield
        return
    group, groups = os.getegid(), os.getgroups()
    os.setgroups([])
    os.setegid(status.st_gid)
    os.seteuid(status.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run one coroutine on uvloop."""
    import uvloop

    return uvloop.run(work)


config_argument = click.argument("config", required=False, type=click.Path(dir_okay=False))
config_option = click.option("-c", "--config", default=None, help="config.yml (default: $REGISTRY_CONFIGURATION_PATH).")
root_option = click.option("--root", default=None, help=f"Folder of the registry (default: {_DEFAULT_ROOT}).")
