"""`berth registry` on content: collect, verify, list, inspect and remove, straight on the folder, next to a running
server."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import click
import msgspec

from cli.registry_settings import as_owner, config_option, root_option, run, settings_for
from registry.clock import SteadyClock
from registry.config import Settings
from registry.digest import Digest, InvalidDigest
from registry.errors import ManifestUnknown
from registry.manifest import parse_manifest
from registry.reference import is_repository_path
from registry.store.blobs import BlobStore
from registry.store.collector import Collector, verify
from registry.store.leases import Leases
from registry.store.opening import open_driver
from registry.store.pulls import PullTimes
from registry.store.repositories import Repositories

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def with_store(
    settings: Settings,
    work: Callable[[BlobStore, Repositories], Awaitable[Any]],
    *,
    changes: bool = False,
    creates: bool = False,
) -> Any:
    """Open the storage, do the work, close it."""
    if settings.s3 is None and not creates and not settings.root.is_dir():
        raise click.ClickException(f"there is no registry at {settings.root}")

    async def main() -> Any:
        driver = open_driver(settings)
        blobs = BlobStore(driver)
        try:
            return await work(blobs, Repositories(blobs, Leases()))
        finally:
            await driver.close()

    is_shared = settings.s3 is None and (changes or creates)
    try:
        with as_owner(settings.root) if is_shared else contextlib.nullcontext():
            return run(main())
    except OSError as error:
        raise click.ClickException(str(error)) from error


def split_name(name: str) -> tuple[str, str]:
    """Repository and reference of `repo:tag` or `repo@digest`; the reference may be empty."""
    repository, at, reference = name.partition("@")
    if not at:
        repository, _, reference = name.partition(":")
    if not is_repository_path(repository):
        raise click.ClickException(f"invalid repository name: {repository}")
    return repository, reference


@click.command()
@config_option
@root_option
@click.option("--dry-run", "-d", is_flag=True, help="Only say what would go.")
@click.option(
    "--delete-untagged", "-m", is_flag=True, help="Also remove manifests that nothing names (or: berth.gc.untagged)."
)
@click.option(
    "--grace",
    default=None,
    type=click.IntRange(min=0),
    help="Spare what is younger, in seconds (default: berth.gc.grace, an hour, which servers go by; "
    "less only when nobody is pushing).",
)
@click.option("--quiet", "-q", is_flag=True)
@json_option
def gc(
    config: str | None,
    root: str | None,
    dry_run: bool,
    delete_untagged: bool,
    grace: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Remove what nothing refers to. Safe next to a running server; an engine's registry is refused."""
    settings = settings_for(config, root)
    _refuse_engine_folder(settings)

    async def work(blobs: BlobStore, repositories: Repositories) -> None:
        pulls = PullTimes(blobs.driver)
        await pulls.load()
        clock = SteadyClock()
        await clock.recall(blobs.driver)
        collector = Collector(
            blobs, repositories, repositories.leases, retention=settings.retention, pulls=pulls, clock=clock
        )
        report = await collector.collect(
            grace_seconds=settings.collect_grace_seconds if grace is None else grace,
            untagged=delete_untagged or settings.collect_untagged,
            dry_run=dry_run,
        )
        if as_json:
            click.echo(msgspec.json.encode(report))
            return
        verb = "would remove" if dry_run else "removed"
        for kind, names in (
            ("tag", report.removed_tags),
            ("manifest", report.removed_manifests),
            ("blob", report.removed_blobs),
        ):
            for name in names if not quiet else ():
                click.echo(f"{verb} {kind} {name}")
        click.echo(
            f"{report.repositories} repositories, {report.kept_blobs} blobs kept, {report.spared_blobs} spared, "
            f"{verb} {len(report.removed_blobs)} blobs, {report.freed_bytes} bytes"
        )

    with_store(settings, work, changes=True)


def _refuse_engine_folder(settings: Settings) -> None:
    """An engine keeps its images in the same store, under no repository: only its daemon knows what they need."""
    if settings.s3 is None and (settings.root.resolve().parent / "journal.db").exists():
        raise click.ClickException(
            f"{settings.root} belongs to an engine, whose images lie in the same store: its daemon collects by itself"
        )


@click.command("verify")
@config_option
@root_option
def verify_content(config: str | None, root: str | None) -> None:
    """Hash everything again and follow every link; exit code 1 when something is wrong."""

    async def work(blobs: BlobStore, repositories: Repositories) -> int:
        found = 0
        async for damage in verify(blobs, repositories):
            found += 1
            click.echo(f"{damage.where}: {damage.what}")
        return found

    began = time.monotonic()
    damages = with_store(settings_for(config, root), work)
    click.echo(f"{damages or 'no'} problems found in {time.monotonic() - began:.1f} s")
    if damages:
        raise SystemExit(1)


@click.command("ls")
@config_option
@root_option
@json_option
def list_repositories(config: str | None, root: str | None, as_json: bool) -> None:
    """List the repositories."""

    async def work(_: BlobStore, repositories: Repositories) -> list[str]:
        return await repositories.names()

    _print_list(with_store(settings_for(config, root), work), as_json)


@click.command("tags")
@click.argument("repository")
@config_option
@root_option
@json_option
def list_tags(repository: str, config: str | None, root: str | None, as_json: bool) -> None:
    """List the tags of a repository."""
    name, _ = split_name(repository)

    async def work(_: BlobStore, repositories: Repositories) -> list[str] | None:
        return await repositories.tags(name)

    tags = with_store(settings_for(config, root), work)
    if tags is None:
        raise click.ClickException(f"no such repository: {name}")
    _print_list(tags, as_json)


@click.command("inspect")
@click.argument("name")
@config_option
@root_option
def inspect_manifest(name: str, config: str | None, root: str | None) -> None:
    """Print what a tag or digest names."""
    repository, reference = split_name(name)

    async def work(_: BlobStore, repositories: Repositories) -> dict[str, Any]:
        try:
            stored = await repositories.manifest(repository, reference or "latest")
        except (ManifestUnknown, InvalidDigest) as error:
            raise click.ClickException(str(error)) from error
        manifest = parse_manifest(stored.data)
        return {
            "repository": repository,
            "digest": str(stored.digest),
            "mediaType": stored.media_type,
            "contentSize": sum(item.size for item in manifest.blobs()),
            "manifest": msgspec.Raw(stored.data),
        }

    document = with_store(settings_for(config, root), work)
    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


@click.command("rm")
@click.argument("name")
@config_option
@root_option
@click.option("--repository", "whole", is_flag=True, help="Remove the whole repository.")
def remove(name: str, config: str | None, root: str | None, whole: bool) -> None:
    """Remove a tag, a manifest (repo@digest) or a whole repository. `gc` frees the space."""
    repository, reference = split_name(name)
    if whole == bool(reference):
        raise click.ClickException("name a tag or digest, or a repository with --repository")

    async def work(_: BlobStore, repositories: Repositories) -> str:
        if whole:
            if not await repositories.delete_repository(repository):
                raise click.ClickException(f"no such repository: {repository}")
            return f"removed {repository}"
        try:
            if ":" in reference:
                dropped = await repositories.delete_manifest(repository, Digest.parse(reference))
                return f"removed {name}" + "".join(f"\nremoved tag {tag}" for tag in dropped)
            await repositories.delete_tag(repository, reference)
        except (ManifestUnknown, InvalidDigest) as error:
            raise click.ClickException(str(error)) from error
        return f"removed {name}"

    click.echo(with_store(settings_for(config, root), work, changes=True))


def _print_list(names: list[str], as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(names))
        return
    for name in names:
        click.echo(name)


CONTENT_COMMANDS: tuple[click.Command, ...] = (
    gc,
    verify_content,
    list_repositories,
    list_tags,
    inspect_manifest,
    remove,
)
