"""Commands on images: images, pull, push, tag, rmi, import, load, save."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import click

from cli import progress, tables
from cli.client import ApiError, Client
from cli.commands import client_of, fail
from cli.logins import auth_header
from registry.reference import InvalidReference, Reference

_CHUNK_BYTES = 1 << 18


def _reference(text: str) -> Reference:
    try:
        return Reference.parse(text)
    except InvalidReference as error:
        raise click.ClickException(str(error)) from error


def pull_image(client: Client, image: str, *, platform: str | None, out: TextIO, quiet: bool = False) -> None:
    """Pull one image and show its progress on `out`."""
    reference = _reference(image)
    wanted = str(reference.digest or reference.tag or "latest")
    query = {"fromImage": reference.familiar_name, "tag": wanted, "platform": platform}
    messages = client.lines("POST", "/images/create", query, headers=auth_header(image))
    progress.show(messages, out, quiet)


@click.command()
@click.option("-q", "--quiet", is_flag=True)
@click.option("--platform", default=None)
@click.argument("image")
@click.pass_context
def pull(ctx: click.Context, image: str, platform: str | None, quiet: bool) -> None:
    """Pull an image from a registry."""
    if "@" not in image and ":" not in image.rsplit("/", 1)[-1] and not quiet:
        print("Using default tag: latest")
    pull_image(client_of(ctx), image, platform=platform, out=sys.stdout, quiet=quiet)
    print(_reference(image))


@click.command()
@click.option("-q", "--quiet", is_flag=True)
@click.argument("image")
@click.pass_context
def push(ctx: click.Context, image: str, quiet: bool) -> None:
    """Push an image to a registry."""
    reference = _reference(image)
    if ":" not in image.rsplit("/", 1)[-1] and not quiet:
        print("Using default tag: latest")
    messages = client_of(ctx).lines(
        "POST",
        f"/images/{reference.familiar_name}/push",
        {"tag": reference.tag or "latest"},
        headers=auth_header(image),
    )
    progress.show(messages, sys.stdout, quiet)
    if quiet:
        print(reference)


@click.command()
@click.argument("source")
@click.argument("target")
@click.pass_context
def tag(ctx: click.Context, source: str, target: str) -> None:
    """Give the image SOURCE the name TARGET as well."""
    reference = _reference(target)
    query = {"repo": reference.familiar_name, "tag": reference.tag or "latest"}
    client_of(ctx).json("POST", f"/images/{source}/tag", query)


@click.command()
@click.option("-a", "--all", "everything", is_flag=True)
@click.option("-q", "--quiet", is_flag=True)
@click.option("--no-trunc", is_flag=True)
@click.pass_context
def images(ctx: click.Context, everything: bool, quiet: bool, no_trunc: bool) -> None:
    """List images."""
    listed = client_of(ctx).json("GET", "/images/json", {"all": everything})
    rows = [row for image in listed for row in _rows(image, no_trunc)]
    if quiet:
        print("\n".join(dict.fromkeys(row[2] for row in rows)))
        return
    print(tables.table(("REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"), rows))


def _rows(image: dict[str, Any], full: bool) -> Iterator[tuple[str, ...]]:
    identifier = image["Id"] if full else image["Id"].removeprefix("sha256:")[:12]
    rest = (identifier, tables.ago(image["Created"]), tables.size(image["Size"]))
    for name in image.get("RepoTags") or ["<none>:<none>"]:
        repository, _, image_tag = name.rpartition(":")
        yield (repository, image_tag, *rest)


@click.command()
@click.option("-f", "--force", is_flag=True)
@click.option("--no-prune", is_flag=True)
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def rmi(ctx: click.Context, names: tuple[str, ...], force: bool, no_prune: bool) -> None:
    """Remove images."""
    client = client_of(ctx)
    failed = False
    for name in names:
        try:
            for record in client.json("DELETE", f"/images/{name}", {"force": force, "noprune": no_prune}):
                print(*(f"{verb}: {what}" for verb, what in record.items()), sep="\n")
        except ApiError as error:
            print(f"Error response from daemon: {error.message}", file=sys.stderr)
            failed = True
    if failed:
        sys.exit(1)


def _read_chunks(source: BinaryIO) -> Iterator[bytes]:
    while piece := source.read(_CHUNK_BYTES):
        yield piece


@contextlib.contextmanager
def _input(name: str) -> Iterator[Iterator[bytes]]:
    if name == "-":
        yield _read_chunks(sys.stdin.buffer)
        return
    try:
        with Path(name).open("rb") as source:
            yield _read_chunks(source)
    except FileNotFoundError as error:
        raise click.ClickException(f"open {name}: {error.strerror}") from error


@click.command("import")
@click.option("-c", "--change", multiple=True, help="A Dockerfile instruction to apply, e.g. 'CMD [\"sh\"]'.")
@click.option("-m", "--message", default="")
@click.option("--platform", default=None)
@click.argument("source")
@click.argument("reference", default="")
@click.pass_context
def import_(ctx: click.Context, /, source: str, reference: str, change: tuple[str, ...], **options: Any) -> None:
    """Make the image REFERENCE from SOURCE: a tar file, an http(s) URL, or - for stdin."""
    repository, image_tag = "", ""
    if reference:
        parsed = _reference(reference)
        repository, image_tag = parsed.familiar_name, parsed.tag or "latest"
    remote = source.startswith(("http://", "https://"))
    query = [("fromSrc", source if remote else "-"), ("repo", repository), ("tag", image_tag)]
    query += [(key, value) for key, value in options.items() if value]
    query += [("changes", line) for line in change]
    client = client_of(ctx)
    if remote:
        progress.show(client.lines("POST", "/images/create", query), sys.stdout)
        return
    with _input(source) as pieces:
        progress.show(client.lines("POST", "/images/create", query, raw=pieces), sys.stdout)


@click.command()
@click.option("-i", "--input", "source", default="-", help="Read from a file instead of stdin.")
@click.option("-q", "--quiet", is_flag=True)
@click.pass_context
def load(ctx: click.Context, source: str, quiet: bool) -> None:
    """Load images from an archive made by save."""
    if source == "-" and sys.stdin.isatty():
        fail("requested load from stdin, but stdin is empty")
    with _input(source) as pieces:
        messages = client_of(ctx).lines("POST", "/images/load", {"quiet": quiet}, raw=pieces)
        progress.show(messages, sys.stdout)


@click.command()
@click.option("-o", "--output", default=None, help="Write to a file instead of stdout.")
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def save(ctx: click.Context, names: tuple[str, ...], output: str | None) -> None:
    """Save images, with everything they need, to an archive."""
    if output is None and sys.stdout.isatty():
        fail("cowardly refusing to save to a terminal. Use the -o flag or redirect")
    pieces = client_of(ctx).chunks("GET", "/images/get", [("names", name) for name in names])
    if output is None:
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return
    # The first piece arrives only where the daemon agreed: a refused save leaves an existing file alone.
    first = next(pieces, b"")
    with Path(output).open("wb") as out:
        out.write(first)
        for piece in pieces:
            out.write(piece)
