"""`berth registry`: serve alone (no root, no engine), and look after users, certificates and content of a folder."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

from cli.registry_content import CONTENT_COMMANDS
from cli.registry_grants import grant
from cli.registry_settings import as_owner, config_argument, config_option, root_option, run, settings_for
from cli.registry_transfer import TRANSFER_COMMANDS
from registry.config import Settings

log = logging.getLogger("berth.registry")


@click.group(context_settings={"help_option_names": ["--help"]})
def registry() -> None:
    """Run and administer the registry."""


@registry.command()
@config_argument
@root_option
@click.option("--addr", default=None, help="host:port to listen on.")
@click.option("--htpasswd", default=None, help="File of users.")
@click.option("--plain-http", is_flag=True, help="No TLS.")
@click.option("--allow-anonymous", is_flag=True, help="Serve everybody, also beyond loopback.")
def serve(
    config: str | None,
    root: str | None,
    addr: str | None,
    htpasswd: str | None,
    plain_http: bool,
    allow_anonymous: bool,
) -> None:
    """Serve a registry until SIGTERM.

    CONFIG is a config.yml of registry:2, and means what it means there: plain HTTP, no users and no deletion unless it
    says so. Without one: TLS with a certificate of its own, loopback only until there are users, deletion allowed.
    REGISTRY_* variables change either, only in what they name (REGISTRY_BERTH_TLS=false: plain HTTP; true: TLS with a
    certificate of its own).
    """

    def read() -> Settings:
        settings = settings_for(config, root)
        if addr is not None:
            settings = replace(settings, address=addr)
        if htpasswd is not None:
            settings = replace(settings, htpasswd=Path(htpasswd), htpasswd_optional=False)
        if plain_http:
            settings = replace(settings, tls=None, own_tls_folder=None)
        if allow_anonymous:
            settings = replace(settings, anonymous=True)
        return settings

    settings = read()
    _set_up_logging(settings)
    try:
        run(_serve(settings, read))
    except (PermissionError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


async def _serve(settings: Settings, read: Callable[[], Settings]) -> None:
    from registry.server.app import RegistryServer

    server = RegistryServer(settings)
    await server.start()
    # What was imported and built lives as long as the process: the garbage collector need not look at it ever again.
    gc.freeze()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)

    def reload() -> None:
        try:
            wanted = read()
        except click.ClickException as error:
            log.error("the configuration was not reloaded: %s", error.message)
            return
        _set_up_logging(replace(wanted, log_format=settings.log_format))
        server.reload(wanted)

    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        await ended.wait()
    finally:
        await server.stop()


def _set_up_logging(settings: Settings) -> None:
    from registry.server.logs import set_up_logging

    set_up_logging(settings.log_level, settings.log_format, settings.log_fields)


@registry.command()
@config_option
@root_option
def ca(config: str | None, root: str | None) -> None:
    """Print the CA certificate that clients must trust; made now if there is none yet."""
    from registry.server.tls import OwnCertificates, server_names

    settings = settings_for(config, root)
    if settings.own_tls_folder is None:
        raise click.ClickException("this registry serves certificates of yours, or no TLS: it has no CA of its own")
    own = OwnCertificates(settings.own_tls_folder)
    with as_owner(own.folder):
        own.ensure_sync(server_names(settings.listen_on()[0]))
        click.echo(own.ca.read_text(), nl=False)


@registry.group()
def user() -> None:
    """Add, remove and list users."""


def _users_file(config: str | None, root: str | None) -> Path:
    settings = settings_for(config, root)
    if settings.htpasswd is None:
        raise click.ClickException("this configuration names no htpasswd file (auth.htpasswd.path)")
    return settings.htpasswd


@user.command("add")
@click.argument("name")
@config_option
@root_option
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.option("--cost", default=10, type=click.IntRange(4, 17), help="bcrypt's cost.")
def add_user(name: str, config: str | None, root: str | None, password_stdin: bool, cost: int) -> None:
    """Add a user, or give one a new password."""
    from registry.users import set_user_sync

    path = _users_file(config, root)
    if password_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    try:
        with as_owner(path.parent):
            added = set_user_sync(path, name, password, cost)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{'added' if added else 'changed'} {name}")


@user.command("rm")
@click.argument("name")
@config_option
@root_option
def remove_user(name: str, config: str | None, root: str | None) -> None:
    """Remove a user."""
    from registry.users import remove_user_sync

    path = _users_file(config, root)
    with as_owner(path.parent):
        removed = remove_user_sync(path, name)
    if not removed:
        raise click.ClickException(f"no such user: {name}")
    click.echo(f"removed {name}")


@user.command("list")
@config_option
@root_option
def list_users(config: str | None, root: str | None) -> None:
    """List the users."""
    from registry.users import read_users_sync

    with contextlib.suppress(FileNotFoundError):
        for name in sorted(read_users_sync(_users_file(config, root))):
            click.echo(name)


for command in (*CONTENT_COMMANDS, *TRANSFER_COMMANDS, grant):
    registry.add_command(command)
