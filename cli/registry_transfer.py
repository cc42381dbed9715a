"""`berth registry` between places: copy from registry to registry, export to and import from an OCI layout."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import msgspec

from cli.logins import login_of
from cli.registry_content import split_name, with_store
from cli.registry_settings import config_option, root_option, run, settings_for
from registry.client.credentials import AuthConfig
from registry.client.failures import ConnectionFailed, NoCredentials, RemoteError
from registry.client.fetch import RemoteManifest, RemoteSource
from registry.client.hosts import HostPolicy
from registry.client.publish import RemoteTarget
from registry.client.session import RegistrySession, Transport
from registry.digest import Digest, InvalidDigest
from registry.errors import BlobUnknown, DigestMismatch, ManifestInvalid, ManifestUnknown
from registry.manifest import Descriptor, Manifest, parse_manifest
from registry.reference import InvalidReference, Reference
from registry.store.blobs import BlobStore
from registry.store.filesystem import FilesystemDriver
from registry.store.repositories import Repositories

_REF_NAME = "org.opencontainers.image.ref.name"
_NOT_FOUND = 404


class _Layout(msgspec.Struct):
    manifests: list[Descriptor] = []


def _credentials(text: str | None, reference: Reference) -> AuthConfig:
    if not text:
        return AuthConfig(**login_of(reference.domain))
    user, _, password = text.partition(":")
    return AuthConfig(username=user, password=password)


class Copier:
    """Copies one image, with everything it refers to, from a source to a target repository."""

    def __init__(self, source: RemoteSource, target: RemoteTarget, scratch: BlobStore) -> None:
        self._source = source
        self._target = target
        self._scratch = scratch

    async def copy(self, reference: str, as_reference: str) -> Digest:
        """The manifest's digest. Children of an index are copied first, blobs before the manifest that needs them."""
        remote = await self._source.manifest(reference)
        await self._content(remote)
        await self._target.put_manifest(as_reference, remote.data, remote.media_type)
        click.echo(f"{as_reference}: {remote.digest}")
        return remote.digest

    async def _content(self, remote: RemoteManifest) -> None:
        manifest = parse_manifest(remote.data, remote.media_type)
        for child in manifest.manifests:
            await (self._child(child) if child.is_manifest else self._blob(child))
        for blob in manifest.blobs():
            if not blob.is_foreign:
                await self._blob(blob)

    async def _child(self, child: Descriptor) -> None:
        """One that the source does not have either (a sparse index) is left out; the target may refuse that."""
        if await self._target.has_manifest(child.checked_digest()):
            return
        try:
            inner = await self._source.manifest(child.digest)
        except RemoteError as error:
            if error.status != _NOT_FOUND:
                raise
            click.echo(f"{child.checked_digest().encoded[:12]}: not in the source")
            return
        await self._content(inner)
        await self._target.put_manifest(child.digest, inner.data, inner.media_type)

    async def _blob(self, blob: Descriptor) -> None:
        """One that says where else it is may be missing."""
        try:
            await self._whole_blob(blob)
        except RemoteError as error:
            if error.status != _NOT_FOUND or not blob.urls:
                raise
            click.echo(f"{blob.checked_digest().encoded[:12]}: not in the source, but at {blob.urls[0]}")

    async def _whole_blob(self, blob: Descriptor) -> None:
        digest = blob.checked_digest()
        name = digest.encoded[:12]
        if await self._target.has(digest):
            click.echo(f"{name}: already exists")
            return
        progress = _Progress(name, blob.size)
        async with await self._scratch.writer(digest.algorithm) as writer:
            await self._source.fetch(blob, writer, progress.pulled)
            await writer.commit(digest)
        await self._target.upload(digest, self._scratch.local_path(digest), blob.size, progress.pushed)
        await self._scratch.delete(digest)
        click.echo(f"{name}: copied {blob.size} bytes")


class _Progress:
    """Says every tenth part of a large blob."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._told = -1

    def pulled(self, done: int) -> None:
        self._tell("fetched", done)

    def pushed(self, done: int) -> None:
        self._tell("sent", done)

    def _tell(self, verb: str, done: int) -> None:
        tenth = done * 10 // self._size if self._size > 10_000_000 else -1
        if tenth >= 0 and tenth != self._told:
            self._told = tenth
            click.echo(f"{self._name}: {verb} {tenth * 10}%", err=True)


async def _session(transport: Transport, reference: Reference, auth: AuthConfig, push: bool) -> RegistrySession:
    failure: ConnectionFailed | None = None
    for endpoint in await transport.policy.endpoints(reference.domain, for_push=push):
        session = RegistrySession(transport, endpoint, auth)
        try:
            await session.ping()
        except ConnectionFailed as error:
            failure = error
            continue
        return session
    raise failure or ConnectionFailed("GET", reference.domain, "no endpoint")


@click.command("copy")
@click.argument("source")
@click.argument("target")
@click.option("--src-creds", default=None, help="user:password of the source (default: docker's login).")
@click.option("--dest-creds", default=None, help="user:password of the target (default: docker's login).")
@click.option("--insecure", multiple=True, help="Host that may speak plain HTTP or show any certificate.")
@click.option("--all-tags", is_flag=True, help="Copy every tag of the repository.")
def copy_image(
    source: str, target: str, src_creds: str | None, dest_creds: str | None, insecure: tuple[str, ...], all_tags: bool
) -> None:
    """Copy an image from one registry to another."""

    async def work() -> None:
        transport = Transport(HostPolicy(insecure=insecure))
        with tempfile.TemporaryDirectory(prefix="berth-copy-") as folder:
            try:
                start, end = Reference.parse(source), Reference.parse(target)
                reading = await _session(transport, start, _credentials(src_creds, start), push=False)
                writing = await _session(transport, end, _credentials(dest_creds, end), push=True)
                remote = RemoteSource(reading, start.path)
                copier = Copier(remote, RemoteTarget(writing, end.path), BlobStore(FilesystemDriver(Path(folder))))
                for tag in await remote.tags() if all_tags else ():
                    await copier.copy(tag, tag)
                if not all_tags:
                    await copier.copy(start.object_name, end.object_name)
            finally:
                await transport.aclose()

    try:
        run(work())
    except (RemoteError, NoCredentials) as error:
        # Two registries take part: say which one refused.
        raise click.ClickException(f"{error.url}: {error}") from error
    except (ConnectionFailed, DigestMismatch, ManifestInvalid, InvalidReference, OSError) as error:
        raise click.ClickException(str(error)) from error


@click.command("export")
@click.argument("name")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@config_option
@root_option
def export_layout(name: str, folder: Path, config: str | None, root: str | None) -> None:
    """Write an image of this registry to an OCI layout."""
    repository, reference = split_name(name)

    async def work(blobs: BlobStore, repositories: Repositories) -> str:
        try:
            stored = await repositories.manifest(repository, reference or "latest")
            pending = [(stored.digest, parse_manifest(stored.data))]
            while pending:
                digest, manifest = pending.pop()
                await _write(blobs, folder, digest)
                for item in (*manifest.blobs(), *(child for child in manifest.manifests if not child.is_manifest)):
                    # One that says where else it is may be missing.
                    if not item.urls or await repositories.blob(repository, item.checked_digest()) is not None:
                        await _write(blobs, folder, item.checked_digest())
                for child in manifest.manifests:
                    inner = child.checked_digest()
                    if child.is_manifest and await repositories.has_manifest(repository, inner):
                        pending.append((inner, parse_manifest(await blobs.read(inner))))
        except (ManifestUnknown, BlobUnknown, ManifestInvalid, InvalidDigest) as error:
            raise click.ClickException(str(error)) from error
        entry: dict[str, Any] = {
            "mediaType": stored.media_type,
            "digest": str(stored.digest),
            "size": len(stored.data),
            "annotations": {_REF_NAME: reference or "latest"},
        }
        _add_to_index(folder, entry)
        return str(stored.digest)

    click.echo(with_store(settings_for(config, root), work))


async def _write(blobs: BlobStore, folder: Path, digest: Digest) -> None:
    target = folder / "blobs" / digest.algorithm / digest.encoded
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    with partial.open("wb") as file:
        async for chunk in blobs.open(digest):
            file.write(chunk)
    partial.replace(target)


def _add_to_index(folder: Path, entry: dict[str, Any]) -> None:
    """A layout may hold several images; one of the same name is replaced."""
    index = folder / "index.json"
    document: dict[str, Any] = {"schemaVersion": 2, "manifests": []}
    if index.exists():
        document = json.loads(index.read_text())
    name = entry["annotations"][_REF_NAME]
    others = [item for item in document["manifests"] if item.get("annotations", {}).get(_REF_NAME) != name]
    index.write_text(json.dumps({**document, "manifests": [*others, entry]}, indent=1))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


@click.command("import")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("repository")
@config_option
@root_option
def import_layout(folder: Path, repository: str, config: str | None, root: str | None) -> None:
    """Take every image of an OCI layout into a repository of this registry, under its name or digest."""
    name, wanted = split_name(repository)

    async def work(blobs: BlobStore, repositories: Repositories) -> list[str]:
        layout = msgspec.json.decode((folder / "index.json").read_bytes(), type=_Layout)
        done = []
        for entry in layout.manifests:
            tag = wanted or (entry.annotations or {}).get(_REF_NAME) or entry.digest
            await _take(blobs, repositories, folder, name, entry.checked_digest(), tag)
            done.append(f"{name}:{tag}")
        return done

    try:
        for line in with_store(settings_for(config, root), work, creates=True):
            click.echo(line)
    except (OSError, ValueError, LookupError, msgspec.MsgspecError) as error:
        raise click.ClickException(f"cannot import {folder}: {error}") from error


async def _take(
    blobs: BlobStore, repositories: Repositories, folder: Path, name: str, digest: Digest, reference: str
) -> None:
    data = _layout_path(folder, digest).read_bytes()
    manifest: Manifest = parse_manifest(data)
    for child in manifest.manifests:
        if child.is_manifest and _layout_path(folder, child.checked_digest()).exists():
            await _take(blobs, repositories, folder, name, child.checked_digest(), child.digest)
    for item in (*manifest.blobs(), *(child for child in manifest.manifests if not child.is_manifest)):
        place = _layout_path(folder, item.checked_digest())
        if not item.urls or place.exists():
            await _take_blob(blobs, place, item.checked_digest())
            await repositories.link_blob(name, item.checked_digest())
    await repositories.put_manifest(name, reference, data, manifest.media_type)


async def _take_blob(blobs: BlobStore, place: Path, digest: Digest) -> None:
    if await blobs.stat(digest) is None:
        async with await blobs.writer(digest.algorithm) as writer:
            with place.open("rb") as file:
                while chunk := file.read(1 << 20):
                    await writer.write(chunk)
            await writer.commit(digest)


def _layout_path(folder: Path, digest: Digest) -> Path:
    return folder / "blobs" / digest.algorithm / digest.encoded


TRANSFER_COMMANDS: tuple[click.Command, ...] = (copy_image, export_layout, import_layout)
