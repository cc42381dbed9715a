"""The command tree of `berth`. Commands are imported when they are called, so that each starts as fast as it can."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from cli.client import ApiError, Client, Unreachable

# name -> (module, attribute, one line for --help); the help line is here so that listing imports nothing.
_COMMANDS = {
    "serve": ("cli.serve", "serve", "Run the daemon: engine and registry"),
    "check": ("cli.check", "check", "Say what this host offers, and what to do about what is missing"),
    "registry": ("cli.registry", "registry", "Run and administer the registry"),
    "run": ("cli.containers", "run", "Create and run a container"),
    "ps": ("cli.containers", "ps", "List containers"),
    "start": ("cli.containers", "start", "Start stopped containers"),
    "stop": ("cli.containers", "stop", "Stop containers"),
    "kill": ("cli.containers", "kill", "Send a signal to containers"),
    "rm": ("cli.containers", "rm", "Remove containers"),
    "logs": ("cli.containers", "logs", "Print what a container has written"),
    "exec": ("cli.containers", "exec_", "Run a command in a running container"),
    "wait": ("cli.containers", "wait", "Wait until containers end and print their exit codes"),
    "images": ("cli.images", "images", "List images"),
    "pull": ("cli.images", "pull", "Pull an image from a registry"),
    "push": ("cli.images", "push", "Push an image to a registry"),
    "tag": ("cli.images", "tag", "Give an image another name"),
    "rmi": ("cli.images", "rmi", "Remove images"),
    "import": ("cli.images", "import_", "Make an image from a tar archive of a file system"),
    "load": ("cli.images", "load", "Load images from an archive made by save"),
    "save": ("cli.images", "save", "Save images to an archive"),
    "inspect": ("cli.system", "inspect", "Print everything known about containers, images, networks or volumes"),
    "login": ("cli.system", "login", "Log in to a registry"),
    "logout": ("cli.system", "logout", "Forget the login to a registry"),
    "version": ("cli.system", "version", "Print the versions of client and daemon"),
    "info": ("cli.system", "info", "Print what the daemon says about itself and its host"),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = _COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, attribute, _ = entry
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ApiError as error:
            fail(f"Error response from daemon: {error.message}")
        except Unreachable as error:
            fail(str(error))
        except KeyboardInterrupt:
            sys.exit(130)


def fail(message: str, code: int = 1) -> None:
    """Say what went wrong on stderr and end with `code`."""
    print(f"berth: {message}", file=sys.stderr)
    sys.exit(code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["--help"]})
@click.option(
    "-H", "--host", default=None, help="Address of the daemon (default: $BERTH_HOST, $DOCKER_HOST, docker's socket)."
)
@click.pass_context
def berth(ctx: click.Context, host: str | None) -> None:
    """A docker-compatible container engine and a private registry in one process."""
    ctx.obj = host


def client_of(ctx: click.Context) -> Client:
    """The client for the daemon that this command line names."""
    return Client(ctx.obj)
