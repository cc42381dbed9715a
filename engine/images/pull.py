"""Pulling: manifest, configuration, then all layers at once, each unpacked as soon as its blob is whole.

Everybody who asks for the same image shares one transfer. What is already here (by content, whoever brought it) is not
fetched again.
"""

from __future__ import annotations

import asyncio
import hashlib
from asyncio import TaskGroup
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec

from engine.errors import InvalidParameter, NotFound, SystemFailure
from engine.filters import Filters
from engine.images import search
from engine.images.content import one_error
from engine.images.model import Image, LayerBlob, parse_document
from engine.images.progress import Line, Paced, Report, status, step
from engine.images.remote import Place, Remotes, Source, download_error, inspect_error, login_error, pull_error
from engine.images.service import ImageService, parse_reference
from engine.images.transfers import Transfers
from engine.names import short
from registry.client.credentials import AuthConfig, server_of
from registry.client.failures import ConnectionFailed, NoCredentials, RemoteError
from registry.client.fetch import RemoteManifest
from registry.digest import Digest
from registry.errors import DigestMismatch
from registry.manifest import SCHEMA1_TYPES, Descriptor, Kind, Manifest, Platform, parse_manifest
from registry.reference import DEFAULT_DOMAIN, InvalidReference, Reference

_FAILURES = (RemoteError, ConnectionFailed, NoCredentials, DigestMismatch, ValueError, OSError)


@dataclass(slots=True)
class _Download:
    """What one pull of one image knows of its layers."""

    source: Source
    repository: str
    report: Report
    diff_ids: Sequence[str]
    blobs: dict[str, LayerBlob] = field(default_factory=dict)


class Puller:
    """``pull`` and the other questions to registries.

    ``remotes`` opens repositories, ``transfers`` shares running pulls, ``platform`` is the host's, and at most
    ``max_downloads`` layers are fetched at a time for one pull.
    """

    def __init__(
        self,
        service: ImageService,
        remotes: Remotes,
        transfers: Transfers,
        platform: Platform,
        max_downloads: int = 3,
    ) -> None:
        self._service = service
        self._content = service.content
        self._remotes = remotes
        self._transfers = transfers
        self._platform = platform
        self.max_downloads = max_downloads

    async def download(self, url: str) -> AsyncIterator[bytes]:
        """The body behind a URL, for ``docker import URL``; returns when it has begun to come.

        Raises ``NotFound``, ``InvalidParameter``, ``SystemFailure``.
        """
        if "://" not in url:
            url = f"http://{url}"
        if "%" in url.partition("://")[2].partition("/")[0]:
            raise InvalidParameter(f'parse "{url}": invalid URL escape')
        body = self._remotes.transport.download(url)
        try:
            return _after(await anext(body, b""), body)
        except (RemoteError, ConnectionFailed) as error:
            raise download_error(error, url) from error

    async def pull(
        self, name: str, tag: str, auth: AuthConfig, platform: Platform | None = None, *, all_tags: bool = False
    ) -> AsyncGenerator[Line, None]:
        """The progress of a pull; ends when the image is here. Raises ``EngineError`` in docker's words."""
        reference = pull_reference(name, tag, all_tags)
        who = hashlib.sha256(msgspec.json.encode(auth)).hexdigest()
        wanted = platform or self._platform
        key = f"pull {reference} {wanted.os}/{wanted.architecture}/{wanted.variant} {who}"

        async def operation(report: Report) -> None:
            await self._pull(reference, auth, platform, report)

        async with aclosing(self._transfers.follow(key, operation)) as lines:
            async for line in lines:
                yield line

    async def fetch(self, reference: Reference, auth: AuthConfig, platform: Platform | None = None) -> Image:
        """Pull without telling anybody, and return the image; for the builder and other internal users."""
        async for _ in self.pull(str(reference), "", auth, platform):
            pass
        return self._service.get(str(reference))

    async def _pull(self, reference: Reference, auth: AuthConfig, platform: Platform | None, report: Report) -> None:
        try:
            places = await self._remotes.sources(reference, auth)
            for index, place in enumerate(places):
                try:
                    await self._pull_from(place, reference, platform, report)
                    break
                except (RemoteError, ConnectionFailed):
                    if index + 1 == len(places) or not place.is_mirror:
                        raise
        except _FAILURES as error:
            raise pull_error(error, reference) from error
        self._service.publish("pull", reference.familiar, reference.familiar_name)

    async def _pull_from(
        self, place: Place[Source], reference: Reference, platform: Platform | None, report: Report
    ) -> None:
        if reference.tag is None and reference.digest is None:
            changed = False
            for tag in await place.repository.tags():
                changed |= await self._pull_one(place, reference.with_tag(tag), platform, report)
        else:
            changed = await self._pull_one(place, reference, platform, report)
        words = "Downloaded newer image for" if changed else "Image is up to date for"
        report(status(f"Status: {words} {reference.familiar}"))

    async def _pull_one(
        self, place: Place[Source], reference: Reference, platform: Platform | None, report: Report
    ) -> bool:
        top = await place.repository.manifest(reference.object_name)
        report(status(f"Pulling from {reference.path}", reference.tag or str(reference.digest)))
        async with self._content.leases.hold(top.digest):
            kept, manifest = await self._choose(place, top, platform)
            digest = reference.with_digest(top.digest)
            wanted = digest if reference.digest is not None else reference
            before = self._service.store.resolve_name(str(wanted))
            image = await self._fetch_image(place, (wanted, digest), manifest, kept, report)
            report(status(f"Digest: {top.digest}"))
        return before != image.id

    async def _choose(
        self, place: Place[Source], top: RemoteManifest, platform: Platform | None
    ) -> tuple[list[Descriptor], Manifest]:
        """The image manifest for the platform, and the descriptors of all manifests to keep, the image's first."""
        if top.media_type in SCHEMA1_TYPES:
            raise InvalidParameter(
                "Docker Image Format v1 and Docker Image manifest version 2, schema 1 support has been removed"
            )
        manifest = parse_manifest(top.data, top.media_type)
        kept = [Descriptor(media_type=manifest.media_type, digest=str(top.digest), size=len(top.data))]
        await self._content.blobs.put(top.data, top.digest)
        while manifest.kind is Kind.INDEX:
            if len(kept) > 3:
                raise InvalidParameter("image indexes are nested too deeply")
            child = choose_platform(manifest.manifests, platform or self._platform)
            fetched = await place.repository.manifest(child.digest)
            manifest = parse_manifest(fetched.data, child.media_type or fetched.media_type)
            await self._content.blobs.put(fetched.data, fetched.digest)
            kept.insert(0, Descriptor(manifest.media_type, str(fetched.digest), len(fetched.data)))
        return kept, manifest

    async def _fetch_image(
        self,
        place: Place[Source],
        names: tuple[Reference, Reference],
        manifest: Manifest,
        kept: list[Descriptor],
        report: Report,
    ) -> Image:
        if manifest.config is None:
            raise InvalidParameter("the manifest names no image configuration")
        image_id = manifest.config.checked_digest()
        config = await place.repository.read(manifest.config)
        document = parse_document(config)
        diff_ids = document.rootfs.diff_ids
        if len(diff_ids) != len(manifest.layers):
            raise InvalidParameter(
                f"the image configuration lists {len(diff_ids)} layers, the manifest {len(manifest.layers)}"
            )
        download = _Download(place.repository, names[0].name, report, diff_ids)
        digests = [layer.checked_digest() for layer in manifest.layers] + [Digest.parse(d.digest) for d in kept]
        async with self._content.hold(diff_ids, (image_id, *digests), keep_blobs=True):
            if self._service.store.get(image_id) is None:
                await self._layers(download, manifest.layers)
            else:
                await self._note_sources(download, manifest.layers)
            return await self._content.register(config, download.blobs, kept, names=names)

    async def _layers(self, download: _Download, layers: Sequence[Descriptor]) -> None:
        """Have every layer: found here, or fetched and unpacked."""
        missing: list[int] = []
        for index, layer in enumerate(layers):
            diff_id = download.diff_ids[index]
            blob = LayerBlob(layer.checked_digest(), layer.size, layer.media_type, (download.repository,))
            found = await self._content.present(diff_id, download.diff_ids[:index], blob)
            if found is not None:
                download.blobs[diff_id] = found
            else:
                missing.append(index)
            download.report(step(_short(layer), "Already exists" if found else "Pulling fs layer"))
        slots = asyncio.Semaphore(self.max_downloads)
        async with one_error(), TaskGroup() as group:
            for index in missing:
                group.create_task(self._layer(download, index, layers[index], slots))

    async def _layer(self, download: _Download, index: int, layer: Descriptor, slots: asyncio.Semaphore) -> None:
        diff_id, report = download.diff_ids[index], download.report
        blob = LayerBlob(layer.checked_digest(), layer.size, layer.media_type, (download.repository,))
        if slots.locked():
            report(step(_short(layer), "Waiting"))
        async with slots:
            await self._fetch_blob(download, layer, blob.digest)
        report(step(_short(layer), "Download complete"))
        told = Paced(report, _short(layer), "Extracting", layer.size)
        place = self._content.blobs.local_path(blob.digest)
        parents = download.diff_ids[:index]
        await self._content.unpack_one(
            diff_id, parents, place, lambda _, count: told(min(count, layer.size)), blob.digest
        )
        download.blobs[diff_id] = blob
        report(step(_short(layer), "Pull complete"))

    async def _fetch_blob(self, download: _Download, layer: Descriptor, digest: Digest) -> None:
        if layer.is_foreign:
            raise SystemFailure(f"layer {digest} is not distributed by registries")
        async with self._content.fetching(digest):
            if await self._content.blobs.stat(digest) == layer.size:
                return
            told = Paced(download.report, _short(layer), "Downloading", layer.size)
            async with await self._content.blobs.writer(digest.algorithm) as writer:
                await download.source.fetch(layer, writer, told)
                download.report(step(_short(layer), "Verifying Checksum"))
                await writer.commit(digest)

    async def _note_sources(self, download: _Download, layers: Sequence[Descriptor]) -> None:
        """The image is here already: only remember that this repository has the blobs too."""
        for diff_id, layer in zip(download.diff_ids, layers, strict=True):
            digest = layer.checked_digest()
            if any(form.digest == digest for form in self._service.store.forms(diff_id)):
                download.blobs[diff_id] = LayerBlob(digest, layer.size, layer.media_type, (download.repository,))

    # Other questions to registries

    async def login(self, auth: AuthConfig) -> str:
        """Whether a registry takes these credentials; its identity token, often empty. Raises ``Unauthorized``."""
        server = server_of(auth.serveraddress)
        domain = DEFAULT_DOMAIN if "://" in server else server
        embedded = self._remotes.embedded
        if embedded is not None and embedded.is_at(domain):
            try:
                await embedded.authenticate(auth)
            except (RemoteError, NoCredentials) as error:
                raise login_error(error, f"https://{domain}/v2/") from error
            return ""
        url = f"https://{domain}/v2/"
        try:
            session = await self._remotes.session(domain, auth)
            url = session.url("")
            return await session.login()
        except _FAILURES as error:
            raise login_error(error, url) from error

    async def inspect_remote(self, name: str, auth: AuthConfig) -> dict[str, Any]:
        """What a registry has under ``name``: the descriptor and the platforms."""
        reference = parse_reference(name)
        try:
            places = await self._remotes.sources(reference, auth)
            return await _describe(places[-1].repository, reference)
        except _FAILURES as error:
            raise inspect_error(error) from error

    async def search(self, term: str, limit: int, filters: Filters, auth: AuthConfig) -> list[dict[str, Any]]:
        """Docker Hub's search, or that of the registry the term names."""
        return await search.search(self._remotes.transport, term, limit, filters, auth)


def pull_reference(name: str, tag: str, all_tags: bool = False) -> Reference:
    """What a pull request means: the tag parameter may be a digest and wins over the name's. ``InvalidParameter``."""
    try:
        if not tag:
            return Reference.parse(name.removesuffix(":"), default_tag=not all_tags)
        reference = Reference.parse(name.removesuffix(":"), default_tag=False)
        if ":" in tag:
            return reference.with_digest(Digest.parse(tag))
        return reference.with_tag(tag)
    except (InvalidReference, ValueError) as error:
        raise InvalidParameter(str(error)) from error


def choose_platform(children: Sequence[Descriptor], wanted: Platform) -> Descriptor:
    """The best entry of an index for a platform. Raises ``NotFound`` in docker's words."""
    suited: list[tuple[int, Descriptor]] = []
    for child in children:
        platform = child.platform
        if platform is None or (wanted.os and platform.os != wanted.os):
            continue
        if wanted.architecture and platform.architecture != wanted.architecture:
            continue
        if wanted.variant and platform.variant and platform.variant != wanted.variant:
            continue
        suited.append((0 if platform.variant == wanted.variant else 1, child))
    if not suited:
        shown = "/".join(part for part in (wanted.os, wanted.architecture, wanted.variant) if part)
        raise NotFound(f"no matching manifest for {shown} in the manifest list entries")
    return min(suited, key=lambda pair: pair[0])[1]


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    try:
        async for chunk in rest:
            yield chunk
    except (RemoteError, ConnectionFailed) as error:
        raise SystemFailure(str(error)) from error


async def _describe(source: Source, reference: Reference) -> dict[str, Any]:
    top = await source.manifest(reference.object_name)
    manifest = parse_manifest(top.data, top.media_type)
    platforms: list[dict[str, Any]] = []
    if manifest.kind is Kind.INDEX:
        platforms = [msgspec.to_builtins(m.platform) for m in manifest.manifests if m.platform is not None]
    elif manifest.config is not None:
        document = parse_document(await source.read(manifest.config))
        platforms = [msgspec.to_builtins(Platform(document.architecture, document.os, variant=document.variant))]
    shown = {"mediaType": manifest.media_type, "digest": str(top.digest), "size": len(top.data)}
    return {"Descriptor": shown, "Platforms": platforms}


def _short(layer: Descriptor) -> str:
    return short(layer.digest)
