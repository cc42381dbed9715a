"""Commands on containers: run, ps, start, stop, kill, rm, logs, exec, wait.

`run` keeps docker's order: attach and wait are asked for before the start, so that no output and no exit is missed.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import click

from cli import tables, terminal
from cli.client import ApiError, Client
from cli.commands import client_of, fail
from cli.images import pull_image
from cli.run_options import create_body, environment

# How `docker run` ends where the container could not be started, by what the daemon's sentence says.
_NOT_FOUND_WORDS = ("executable file not found", "no such file or directory", "system cannot find the file specified")
_NOT_INVOKABLE_WORDS = ("permission denied", "is a directory", "exec format error")


def _start_failure_code(message: str) -> int:
    lowered = message.lower()
    if any(words in lowered for words in _NOT_FOUND_WORDS):
        return 127
    if any(words in lowered for words in _NOT_INVOKABLE_WORDS):
        return 126
    return 125


class _Waiter:
    """`POST …/wait` in flight; the thread reads the answer, which comes when the container has ended."""

    def __init__(self, client: Client, container: str, condition: str) -> None:
        self._response = client.open("POST", f"/containers/{container}/wait", {"condition": condition})
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._status = 125
        self._message = ""
        self._thread.start()

    def _read(self) -> None:
        raw = self._response.read()
        try:
            document = json.loads(raw)
        except ValueError:
            self._message = "the daemon went away"
            return
        self._status = int(document["StatusCode"])
        self._message = (document.get("Error") or {}).get("Message", "")

    def status(self) -> int:
        """The exit code; waits for it."""
        self._thread.join()
        if self._message:
            print(f"berth: {self._message}", file=sys.stderr)
        return self._status


def _run_options(command: Callable[..., None]) -> Callable[..., None]:
    options = [
        click.option("-i", "--interactive", is_flag=True, help="Keep stdin open."),
        click.option("-t", "--tty", is_flag=True, help="Give the container a terminal."),
        click.option("-d", "--detach", is_flag=True, help="Print the id and leave it running."),
        click.option("--rm", is_flag=True, help="Remove the container when it ends."),
        click.option("--name", default=None),
        click.option("-h", "--hostname", default=None),
        click.option("-w", "--workdir", default=None),
        click.option("-u", "--user", default=None),
        click.option("-e", "--env", multiple=True, metavar="KEY[=VALUE]"),
        click.option("--env-file", multiple=True, type=click.Path(exists=True, dir_okay=False)),
        click.option("-l", "--label", multiple=True, metavar="KEY=VALUE"),
        click.option("-v", "--volume", multiple=True, metavar="SOURCE:TARGET[:OPTIONS]"),
        click.option("--tmpfs", multiple=True, metavar="TARGET[:OPTIONS]"),
        click.option("-p", "--publish", multiple=True, metavar="[[IP:]HOST:]CONTAINER[/PROTO]"),
        click.option("-P", "--publish-all", is_flag=True),
        click.option("--network", "--net", default="default"),
        click.option("--dns", multiple=True),
        click.option("--add-host", multiple=True, metavar="NAME:ADDRESS"),
        click.option("--entrypoint", default=None),
        click.option("--init", is_flag=True, help="Run a small init as process 1."),
        click.option("--restart", default="no"),
        click.option("--read-only", is_flag=True),
        click.option("--privileged", is_flag=True),
        click.option("--cap-add", multiple=True),
        click.option("--cap-drop", multiple=True),
        click.option("--security-opt", multiple=True),
        click.option("-m", "--memory", default=None),
        click.option("--cpus", type=float, default=None),
        click.option("--pids-limit", type=int, default=None),
        click.option("--pid", default=None),
        click.option("--runtime", default=None),
        click.option("--pull", type=click.Choice(["missing", "always", "never"]), default="missing"),
        click.option("--platform", default=None),
    ]
    for option in reversed(options):
        command = option(command)
    return command


_PASS_ARGUMENTS = {"allow_interspersed_args": False, "help_option_names": ["--help"]}


@click.command(context_settings=_PASS_ARGUMENTS)
@_run_options
@click.argument("image")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(ctx: click.Context, /, image: str, command: tuple[str, ...], **options: Any) -> None:
    """Create a container from IMAGE and run COMMAND in it."""
    client = client_of(ctx)
    try:
        container = _create(client, image, command, options)
    except ApiError as error:
        return fail(f"Error response from daemon: {error.message}", 125)
    if options["detach"]:
        _start_or_end(client, container, remove=options["rm"])
        print(container)
        return None
    sys.exit(_run_attached(client, container, options))


def _create(client: Client, image: str, command: tuple[str, ...], options: dict[str, Any]) -> str:
    body = create_body(image, command, options)
    if options["tty"] and sys.stdout.isatty():
        body["HostConfig"]["ConsoleSize"] = list(terminal.window())
    query = {"name": options["name"], "platform": options["platform"]}
    if options["pull"] == "always":
        pull_image(client, image, platform=options["platform"], out=sys.stderr)
    try:
        document = client.json("POST", "/containers/create", query, body=body)
    except ApiError as error:
        if error.status != 404 or options["pull"] == "never" or "image" not in error.message.lower():
            raise
        print(f"Unable to find image '{image}' locally", file=sys.stderr)
        pull_image(client, image, platform=options["platform"], out=sys.stderr)
        document = client.json("POST", "/containers/create", query, body=body)
    for warning in document.get("Warnings") or ():
        print(f"WARNING: {warning}", file=sys.stderr)
    return str(document["Id"])


def _start_or_end(client: Client, container: str, *, remove: bool) -> None:
    try:
        client.json("POST", f"/containers/{container}/start")
    except ApiError as error:
        if remove:
            _forget(client, container)
        fail(f"Error response from daemon: {error.message}", _start_failure_code(error.message))


def _forget(client: Client, container: str) -> None:
    try:
        client.json("DELETE", f"/containers/{container}", {"force": True, "v": True})
    except ApiError:
        # Already gone: the daemon removes an auto-removed container by itself where it can.
        return


def _run_attached(client: Client, container: str, options: dict[str, Any]) -> int:
    with_terminal, with_stdin = options["tty"], options["interactive"]
    query = {"stream": True, "stdin": with_stdin, "stdout": True, "stderr": True}
    connection = client.take_over(f"/containers/{container}/attach", query)
    waiter = _Waiter(client, container, "removed" if options["rm"] else "next-exit")
    _start_or_end(client, container, remove=options["rm"])

    def resize(rows: int, columns: int) -> None:
        _resize(client, f"/containers/{container}/resize", rows, columns)

    if with_terminal and sys.stdout.isatty():
        resize(*terminal.window())

    def send(signal_name: str) -> None:
        _signal(client, container, signal_name)

    with (
        terminal.raw_terminal(with_terminal and with_stdin),
        terminal.on_resize(resize, with_terminal),
        terminal.forwarded_signals(send, not with_terminal),
    ):
        detached = terminal.pump(connection, terminal=with_terminal, send_stdin=with_stdin)
    connection.close()
    return 0 if detached else waiter.status()


def _resize(client: Client, path: str, rows: int, columns: int) -> None:
    try:
        client.json("POST", path, {"h": rows, "w": columns})
    except ApiError:
        # It has ended already, or not begun: the size no longer matters.
        return


def _signal(client: Client, container: str, name: str) -> None:
    try:
        client.json("POST", f"/containers/{container}/kill", {"signal": name})
    except ApiError as error:
        print(f"berth: {error.message}", file=sys.stderr)


@click.command("exec", context_settings=_PASS_ARGUMENTS)
@click.option("-i", "--interactive", is_flag=True)
@click.option("-t", "--tty", is_flag=True)
@click.option("-d", "--detach", is_flag=True)
@click.option("-u", "--user", default="")
@click.option("-w", "--workdir", default="")
@click.option("-e", "--env", multiple=True)
@click.option("--privileged", is_flag=True)
@click.argument("container")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def exec_(ctx: click.Context, /, container: str, command: tuple[str, ...], **options: Any) -> None:
    """Run COMMAND in a running container."""
    client = client_of(ctx)
    with_terminal, detach = options["tty"], options["detach"]
    body = {
        "Cmd": list(command),
        "Tty": with_terminal,
        "AttachStdin": options["interactive"] and not detach,
        "AttachStdout": not detach,
        "AttachStderr": not detach,
        "User": options["user"],
        "WorkingDir": options["workdir"],
        "Env": environment(options["env"], ()),
        "Privileged": options["privileged"],
    }
    session = client.json("POST", f"/containers/{container}/exec", body=body)["Id"]
    if detach:
        client.json("POST", f"/exec/{session}/start", body={"Detach": True, "Tty": with_terminal})
        return
    connection = client.take_over(f"/exec/{session}/start", body={"Detach": False, "Tty": with_terminal})

    def resize(rows: int, columns: int) -> None:
        _resize(client, f"/exec/{session}/resize", rows, columns)

    if with_terminal and sys.stdout.isatty():
        resize(*terminal.window())

    with terminal.raw_terminal(with_terminal and options["interactive"]), terminal.on_resize(resize, with_terminal):
        detached = terminal.pump(connection, terminal=with_terminal, send_stdin=options["interactive"])
    connection.close()
    if not detached:
        sys.exit(int(client.json("GET", f"/exec/{session}/json")["ExitCode"] or 0))


def _ports(ports: list[dict[str, Any]]) -> str:
    shown = []
    for port in ports:
        inside = f"{port['PrivatePort']}/{port['Type']}"
        address = port.get("IP", "")
        host = f"[{address}]" if ":" in address else address
        shown.append(f"{host}:{port['PublicPort']}->{inside}" if port.get("PublicPort") else inside)
    return ", ".join(sorted(shown))


def _command(text: str, full: bool) -> str:
    return f'"{text}"' if full or len(text) <= 20 else f'"{text[:19]}…"'


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that do not run.")
@click.option("-q", "--quiet", is_flag=True, help="Only ids.")
@click.option("--no-trunc", is_flag=True)
@click.pass_context
def ps(ctx: click.Context, everything: bool, quiet: bool, no_trunc: bool) -> None:
    """List containers."""
    containers = client_of(ctx).json("GET", "/containers/json", {"all": everything})
    width = 64 if no_trunc else 12
    if quiet:
        for container in containers:
            print(container["Id"][:width])
        return
    rows = [
        (
            container["Id"][:width],
            container["Image"],
            _command(container["Command"], no_trunc),
            tables.ago(container["Created"]),
            container["Status"],
            _ports(container["Ports"]),
            ", ".join(name.removeprefix("/") for name in container["Names"]),
        )
        for container in containers
    ]
    print(tables.table(("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"), rows))


def _for_each(containers: tuple[str, ...], act: Callable[[str], None]) -> None:
    """Do the same to each, print the name of each that worked, and end with 1 where any did not."""
    failed = False
    for container in containers:
        try:
            act(container)
            print(container)
        except ApiError as error:
            print(f"Error response from daemon: {error.message}", file=sys.stderr)
            failed = True
    if failed:
        sys.exit(1)


_CONTAINERS = click.argument("containers", nargs=-1, required=True)


@click.command()
@_CONTAINERS
@click.pass_context
def start(ctx: click.Context, containers: tuple[str, ...]) -> None:
    """Start stopped containers."""
    client = client_of(ctx)
    _for_each(containers, lambda name: client.json("POST", f"/containers/{name}/start"))


@click.command()
@click.option("-t", "--time", "seconds", type=int, default=None, help="Seconds before it is killed.")
@_CONTAINERS
@click.pass_context
def stop(ctx: click.Context, seconds: int | None, containers: tuple[str, ...]) -> None:
    """Stop containers."""
    client = client_of(ctx)
    _for_each(containers, lambda name: client.json("POST", f"/containers/{name}/stop", {"t": seconds}))


@click.command()
@click.option("-s", "--signal", "signal_name", default="KILL")
@_CONTAINERS
@click.pass_context
def kill(ctx: click.Context, signal_name: str, containers: tuple[str, ...]) -> None:
    """Send a signal to containers."""
    client = client_of(ctx)
    _for_each(containers, lambda name: client.json("POST", f"/containers/{name}/kill", {"signal": signal_name}))


@click.command()
@click.option("-f", "--force", is_flag=True, help="Kill it first where it runs.")
@click.option("-v", "--volumes", is_flag=True, help="Also its anonymous volumes.")
@_CONTAINERS
@click.pass_context
def rm(ctx: click.Context, force: bool, volumes: bool, containers: tuple[str, ...]) -> None:
    """Remove containers."""
    client = client_of(ctx)
    _for_each(containers, lambda name: client.json("DELETE", f"/containers/{name}", {"force": force, "v": volumes}))


@click.command()
@_CONTAINERS
@click.pass_context
def wait(ctx: click.Context, containers: tuple[str, ...]) -> None:
    """Wait until containers end and print their exit codes."""
    client = client_of(ctx)
    for container in containers:
        print(client.json("POST", f"/containers/{container}/wait")["StatusCode"])


@click.command()
@click.option("-f", "--follow", is_flag=True)
@click.option("-t", "--timestamps", is_flag=True)
@click.option("-n", "--tail", default="all")
@click.option("--since", default=None, help="Unix seconds.")
@click.option("--until", default=None, help="Unix seconds.")
@click.argument("container")
@click.pass_context
def logs(ctx: click.Context, /, container: str, **options: Any) -> None:
    """Print what a container has written."""
    client = client_of(ctx)
    with_terminal = client.json("GET", f"/containers/{container}/json")["Config"]["Tty"]
    query = {"stdout": True, "stderr": True, **options}
    write_all(client.chunks("GET", f"/containers/{container}/logs", query), framed=not with_terminal)


def write_all(pieces: Iterator[bytes], *, framed: bool) -> None:
    """Write a stream of container output to our own stdout and stderr."""
    demultiplexer = terminal.Demultiplexer(terminal.write_stream)
    for piece in pieces:
        if framed:
            demultiplexer.feed(piece)
        else:
            terminal.write_stream(1, piece)
