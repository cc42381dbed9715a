"""Commands about the daemon itself: version, info, inspect, login, logout."""

from __future__ import annotations

import json
import platform
import sys
from typing import Any

import click

from cli import logins
from cli.client import ApiError, Client
from cli.commands import client_of
from engine import __version__

_INSPECTED = ("containers", "images", "networks", "volumes")


@click.command()
@click.pass_context
def version(ctx: click.Context) -> None:
    """Print the versions of client and daemon."""
    print(f"Client: berth {__version__} (Python {platform.python_version()})")
    server = client_of(ctx).json("GET", "/version")
    print(f"Server: {server['Version']} (API {server['ApiVersion']}, minimum {server.get('MinAPIVersion', '')})")
    for component in server.get("Components") or ():
        print(f"  {component['Name']}: {component['Version']}")
    print(f"  kernel: {server['KernelVersion']}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
@click.pass_context
def info(ctx: click.Context, as_json: bool) -> None:
    """Print what the daemon says about itself and its host."""
    document = client_of(ctx).json("GET", "/info")
    if as_json:
        print(json.dumps(document, indent=4))
        return
    lines = {
        "Server version": document["ServerVersion"],
        "Containers": "{Containers} ({ContainersRunning} running, {ContainersPaused} paused, "
        "{ContainersStopped} stopped)".format(**document),
        "Images": document["Images"],
        "Storage driver": document["Driver"],
        "Cgroups": f"{document['CgroupDriver']}, version {document.get('CgroupVersion', '1')}",
        "Runtimes": " ".join(sorted(document["Runtimes"])) + f" (default {document['DefaultRuntime']})",
        "Security options": " ".join(document.get("SecurityOptions") or ()),
        "Kernel": document["KernelVersion"],
        "Operating system": document["OperatingSystem"],
        "CPUs and memory": f"{document['NCPU']}, {document['MemTotal'] / 2**30:.1f} GiB",
        "Data root": document["DockerRootDir"],
        "Registry mirrors": " ".join((document.get("RegistryConfig") or {}).get("Mirrors") or ()) or "none",
    }
    for name, value in lines.items():
        print(f"{name}: {value}")
    for warning in document.get("Warnings") or ():
        print(warning, file=sys.stderr)


def _find(client: Client, name: str, kinds: tuple[str, ...]) -> Any:
    for kind in kinds:
        path = f"/{kind}/{name}" if kind in ("networks", "volumes") else f"/{kind}/{name}/json"
        try:
            return client.json("GET", path)
        except ApiError as error:
            if error.status not in (400, 404):
                raise
    return None


@click.command()
@click.option("--type", "kind", type=click.Choice([kind.removesuffix("s") for kind in _INSPECTED]), default=None)
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def inspect(ctx: click.Context, names: tuple[str, ...], kind: str | None) -> None:
    """Print everything known about containers, images, networks or volumes."""
    client = client_of(ctx)
    kinds = (f"{kind}s",) if kind else _INSPECTED
    found = {name: _find(client, name, kinds) for name in names}
    print(json.dumps([document for document in found.values() if document is not None], indent=4))
    missing = [name for name, document in found.items() if document is None]
    for name in missing:
        print(f"Error: No such {kind or 'object'}: {name}", file=sys.stderr)
    if missing:
        sys.exit(1)


@click.command()
@click.option("-u", "--username", prompt=True)
@click.option("-p", "--password", default=None)
@click.option("--password-stdin", is_flag=True, help="Take the password from stdin.")
@click.argument("server", default=logins.DOCKER_HUB)
@click.pass_context
def login(ctx: click.Context, server: str, username: str, password: str | None, password_stdin: bool) -> None:
    """Log in to a registry and keep the login for push and pull."""
    if password_stdin:
        password = sys.stdin.read().rstrip("\r\n")
    elif password is None:
        password = str(click.prompt("Password", hide_input=True))
    body = {"username": username, "password": password, "serveraddress": server}
    answer = client_of(ctx).json("POST", "/auth", body=body) or {}
    logins.remember(server, username, password)
    print(answer.get("Status") or "Login Succeeded")


@click.command()
@click.argument("server", default=logins.DOCKER_HUB)
def logout(server: str) -> None:
    """Forget the login to a registry."""
    print(f"Removing login credentials for {server}" if logins.forget(server) else f"Not logged in to {server}")
