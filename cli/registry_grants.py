"""`berth registry grant`: the file of grants (`berth.grantsfile`), changed so that servers always read a whole one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import yaml

from cli.registry_settings import as_owner, config_option, root_option, settings_for
from registry.configfile import read_grant
from registry.configvalues import ConfigError
from registry.store.replacing import replace_file_sync


def _file(config: str | None, root: str | None) -> Path:
    path = settings_for(config, root).grants_file
    if path is None:
        raise click.ClickException("this configuration names no file of grants (berth.grantsfile)")
    return path


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"grants": []}
    document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(document, dict) or not isinstance(document.setdefault("grants", []), list):
        raise click.ClickException(f"{path}: not a file of grants")
    return document


def _write(path: Path, document: dict[str, Any]) -> None:
    with as_owner(path.parent):
        replace_file_sync(path, yaml.safe_dump(document, sort_keys=False).encode(), 0o666, keep_access=True)


@click.group()
def grant() -> None:
    """Say who may do what in which repositories."""


@grant.command("add")
@click.argument("who")
@click.argument("repository")
@click.argument("actions", nargs=-1, required=True)
@config_option
@root_option
def add_grant(who: str, repository: str, actions: tuple[str, ...], config: str | None, root: str | None) -> None:
    """Let WHO (a user, @group, * or anonymous) do ACTIONS (pull, push, delete or *) in REPOSITORY (a pattern)."""
    path = _file(config, root)
    entry = {"who": who, "repositories": [repository], "actions": list(actions)}
    try:
        read_grant(entry, "grant")
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    document = _read(path)
    if entry not in document["grants"]:
        document["grants"].append(entry)
        _write(path, document)
    click.echo(f"{who} may {', '.join(actions)} in {repository}")


@grant.command("rm")
@click.argument("who")
@click.argument("repository")
@config_option
@root_option
def remove_grant(who: str, repository: str, config: str | None, root: str | None) -> None:
    """Take away what WHO was granted in REPOSITORY."""
    path = _file(config, root)
    document = _read(path)
    kept = [entry for entry in document["grants"] if (entry["who"], entry["repositories"]) != (who, [repository])]
    if len(kept) == len(document["grants"]):
        raise click.ClickException(f"{who} has no grant for {repository}")
    _write(path, {**document, "grants": kept})
    click.echo(f"removed {len(document['grants']) - len(kept)} grants of {who} in {repository}")


@grant.command("list")
@config_option
@root_option
def list_grants(config: str | None, root: str | None) -> None:
    """List the grants of the file and of the configuration."""
    settings = settings_for(config, root)
    for fixed in settings.grants:
        click.echo(f"{fixed.who}\t{' '.join(fixed.repositories)}\t{' '.join(sorted(fixed.actions))}")
    if settings.grants_file is not None:
        for entry in _read(settings.grants_file)["grants"]:
            click.echo(f"{entry['who']}\t{' '.join(entry['repositories'])}\t{' '.join(entry['actions'])}")
