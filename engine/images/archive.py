"""Images from archives: ``load`` (docker's format, OCI layouts, both in one) and ``import`` (one tar as one layer).

The archive is cut into files while it arrives; nothing of it is believed before a digest proved it. Layers are
unpacked while their blobs are made durable.
"""

from __future__ import annotations

import shutil
import uuid
from asyncio import TaskGroup
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from engine.clock import now_ns, rfc3339
from engine.errors import EngineError, InvalidParameter, SystemFailure
from engine.images.changes import apply_changes
from engine.images.content import Unpacking, one_error
from engine.images.members import Inflater, Member, Splitter, compression_by_magic, resolve
from engine.images.model import HistoryEntry, Image, ImageDocument, LayerBlob, RuntimeConfig, parse_document
from engine.images.progress import Paced, Report, status, stream
from engine.images.service import ImageService
from engine.names import short
from engine.tasks import run_blocking, run_in
from registry.digest import Digest, new_hasher
from registry.errors import ManifestInvalid
from registry.manifest import (
    MAX_MANIFEST_BYTES,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    Descriptor,
    Index,
    Kind,
    Manifest,
    Platform,
    parse_manifest,
)
from registry.reference import InvalidReference, Reference

T = TypeVar("T")
Feed = Callable[[Sequence[bytes]], None]

_BATCH = 1 << 20
_MAX_DOCUMENT = 8 * 1024 * 1024
_LAYER_TYPES = {"": OCI_LAYER, "gzip": OCI_LAYER_GZIP, "zstd": OCI_LAYER_ZSTD}
_LOST_NAME = "The image {} already exists, renaming the old one with ID {} to empty string\n"
_NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


class _ManifestEntry(msgspec.Struct):
    """One image of docker's ``manifest.json``."""

    config: str = msgspec.field(default="", name="Config")
    repo_tags: list[str] | None = msgspec.field(default=None, name="RepoTags")
    layers: list[str] | None = msgspec.field(default=None, name="Layers")
    parent: str = msgspec.field(default="", name="Parent")


@dataclass(slots=True)
class _Planned:
    """One image found in the archive."""

    config: bytes
    layers: list[Member]
    names: list[str] = field(default_factory=list)
    parent: str = ""
    manifest: Manifest | None = None


class ImageLoader:
    """``load`` and ``import`` over an ``ImageService``; ``default_platform`` is the host's."""

    def __init__(self, service: ImageService, default_platform: Platform) -> None:
        self._service = service
        self._content = service.content
        self._default_platform = default_platform

    async def load(self, body: AsyncIterator[bytes], report: Report, *, quiet: bool = False) -> list[Image]:
        """Read an archive and register its images, reporting as dockerd does. Raises ``EngineError``."""
        directory = self._content.blobs.temp_dir() / f"load-{uuid.uuid4().hex}"
        await run_blocking(directory.mkdir, 0o700)
        try:
            members = await _receive(body, directory)
            planned = await run_blocking(_plan_sync, members, self._default_platform)
            images = [await self._load_one(item, report, quiet) for item in planned]
            if not any(item.names for item in planned):
                for image in images:
                    report(stream(f"Loaded image ID: {image.id}\n"))
            return images
        except ValueError as error:
            raise InvalidParameter(str(error)) from error
        except OSError as error:
            raise SystemFailure(f"Error processing tar file: {error}") from error
        finally:
            await run_blocking(shutil.rmtree, directory, True)

    async def _load_one(self, item: _Planned, report: Report, quiet: bool) -> Image:
        document = parse_document(item.config)
        diff_ids = document.rootfs.diff_ids
        if len(diff_ids) != len(item.layers):
            raise ValueError(
                f"invalid manifest, layers length mismatch: expected {len(item.layers)}, got {len(diff_ids)}"
            )
        digests = [member.digest for member in item.layers]
        async with self._content.hold(diff_ids, digests):
            blobs = await self._store_layers(diff_ids, item.layers, None if quiet else report)
            manifests = await self._store_manifest(item)
            parent = self._service.store.get(item.parent) if item.parent else None
            names = [name for name in map(_load_name, item.names) if name is not None]
            losers = [(name, self._service.store.resolve_name(str(name))) for name in names]
            image = await self._content.register(
                item.config, blobs, manifests, names=names, parent=parent.id if parent else ""
            )
        for name, loser in losers:
            if loser is not None and loser != image.id:
                report(stream(_LOST_NAME.format(name.familiar, loser)))
            report(stream(f"Loaded image: {name.familiar}\n"))
        self._service.publish("load", image.id, image.id, image.labels)
        return image

    async def _store_layers(
        self, diff_ids: Sequence[str], members: Sequence[Member], report: Report | None
    ) -> dict[str, LayerBlob]:
        """Unpack the layers from their files and adopt the files as blobs, at the same time."""
        blobs: dict[str, LayerBlob] = {}
        sources: dict[str, Path] = {}
        for diff_id, member in zip(diff_ids, members, strict=True):
            if diff_id in blobs:
                continue
            media_type, source = await run_blocking(_layer_file_sync, member)
            sources[diff_id] = source
            # A plain layer that a push has compressed before need not come back.
            packed = await self._content.packed_already(diff_id) if media_type == OCI_LAYER else None
            blobs[diff_id] = packed or LayerBlob(member.digest, member.size, media_type)
        by_digest = {member.digest: member for member in members}
        adopted = {b.digest: by_digest[b.digest] for b in blobs.values() if b.digest in by_digest}
        async with one_error(), TaskGroup() as group:
            for digest, member in adopted.items():
                group.create_task(self._adopt(digest, member))
            await self._content.unpack(diff_ids, sources, _loading(blobs, report))
        return blobs

    async def _adopt(self, digest: Digest, member: Member) -> None:
        if member.path.exists():
            await self._content.adopt(member.path, digest, member.size)

    async def _store_manifest(self, item: _Planned) -> list[Descriptor]:
        """Keep the archive's own manifest when it describes exactly what was stored."""
        manifest = item.manifest
        if manifest is None or [layer.digest for layer in manifest.layers] != [str(m.digest) for m in item.layers]:
            return []
        digest = await self._content.blobs.put(manifest.data)
        return [Descriptor(media_type=manifest.media_type, digest=str(digest), size=len(manifest.data))]

    def _import_platform(self, asked: Platform | None) -> Platform:
        """The host's, but for what was asked. Raises ``InvalidParameter`` where nothing of it could run here."""
        default = self._default_platform
        if asked is None:
            return default
        if asked.os not in ("", "linux"):
            raise InvalidParameter("operating system is not supported")
        return asked if asked.architecture else default

    async def import_tar(
        self,
        body: AsyncIterator[bytes],
        report: Report,
        *,
        reference: Reference | None = None,
        changes: Sequence[str] = (),
        message: str = "",
        platform: Platform | None = None,
    ) -> Image:
        """One tar, compressed or not, as the only layer of a new image. Raises ``EngineError``."""
        config = apply_changes(RuntimeConfig(), changes)
        names = () if reference is None else (reference.with_tag(reference.tag or "latest"),)
        platform = self._import_platform(platform)
        path = self._content.blobs.temp_dir() / f"import-{uuid.uuid4().hex}"
        received = _Received(path)
        try:
            await _pump(body, received.feed_sync)
            blob, diff_id = await run_in("hash", received.close_sync)
            async with self._content.hold((diff_id,), (blob.digest,)):
                await self._content.adopt(path, blob.digest, blob.size)
                created = rfc3339(now_ns())
                document = ImageDocument(
                    architecture=platform.architecture,
                    os=platform.os or "linux",
                    variant=platform.variant,
                    comment=message,
                    config=config,
                    created=created,
                )
                entry = HistoryEntry(created=created, comment=message)
                image = await self._service.create_from_layer(None, document, (diff_id, blob), entry, names)
        except EngineError:
            raise
        except ValueError as error:
            raise InvalidParameter(str(error)) from error
        except OSError as error:
            raise SystemFailure(str(error)) from error
        finally:
            received.abort_sync()
            path.unlink(missing_ok=True)
        self._service.publish("import", image.id, image.id, image.labels)
        for name in names:
            self._service.publish("tag", image.id, name.familiar, image.labels)
        report(status(str(image.id)))
        return image


class _Received:
    """The body of an import on its way to a blob: gzip and zstd are kept as they came, all else is kept plain."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb", buffering=0)
        self._inflater = Inflater()
        self._plain = new_hasher()
        self._raw = new_hasher()
        self._size = 0

    def feed_sync(self, chunks: Sequence[bytes]) -> None:
        """The next bytes."""
        for chunk in chunks:
            for data in self._inflater.feed_sync(chunk):
                self._plain.update(data)
                if self._inflater.compression in ("xz", "bzip2", ""):
                    self._keep(data)
            if self._inflater.compression in ("gzip", "zstd"):
                self._raw.update(chunk)
                self._keep(chunk)

    def _keep(self, data: bytes) -> None:
        self._file.write(data)
        self._size += len(data)

    def close_sync(self) -> tuple[LayerBlob, str]:
        """The blob and its diff ID. Raises ``ValueError`` when the input is cut short."""
        rest = self._inflater.finish_sync()
        if rest:
            raise ValueError("archive/tar: invalid tar header")
        diff_id = Digest.of_hasher(self._plain)
        kept = self._inflater.compression or ""
        packed = kept in ("gzip", "zstd")
        digest = Digest.of_hasher(self._raw) if packed else diff_id
        return LayerBlob(digest, self._size, _LAYER_TYPES[kept if packed else ""]), str(diff_id)

    def abort_sync(self) -> None:
        """Close the file; removing it is the caller's."""
        self._file.close()


def _load_name(text: str) -> Reference | None:
    """A name given in an archive; digests are no names."""
    try:
        reference = Reference.parse(text)
    except InvalidReference as error:
        raise InvalidParameter(f"invalid tag {text!r}: {error}") from error
    return reference if reference.digest is None else None


async def _receive(body: AsyncIterator[bytes], directory: Path) -> dict[str, Member]:
    splitter = Splitter(directory)
    try:
        await _pump(body, splitter.feed_sync)
        return await run_in("hash", splitter.close_sync)
    finally:
        splitter.abort_sync()


async def _pump(body: AsyncIterator[bytes], feed: Feed) -> None:
    """Hand the body to ``feed`` on a thread in batches, receiving the next batch meanwhile."""
    async with one_error(), TaskGroup() as group:
        working = None
        batch: list[bytes] = []
        size = 0
        async for chunk in body:
            batch.append(chunk)
            size += len(chunk)
            if size >= _BATCH:
                if working is not None:
                    await working
                working = group.create_task(run_in("hash", feed, batch))
                batch, size = [], 0
        if working is not None:
            await working
        if batch:
            await run_in("hash", feed, batch)


def _loading(blobs: Mapping[str, LayerBlob], report: Report | None) -> Unpacking | None:
    if report is None:
        return None
    bars = {d: Paced(report, short(d), "Loading layer", blob.size) for d, blob in blobs.items()}

    def told(diff_id: str, current: int) -> None:
        bars[diff_id](min(current, blobs[diff_id].size))

    return told


def _layer_file_sync(member: Member) -> tuple[str, Path]:
    """The media type of a layer's file, and a second name for it that outlives its adoption as a blob."""
    with member.path.open("rb") as file:
        compression = compression_by_magic(file.read(6))
    if compression not in _LAYER_TYPES:
        raise ValueError(f"layers compressed with {compression} inside an archive are not supported")
    second = member.path.with_name(f"{member.path.name}.layer")
    if not second.exists():
        second.hardlink_to(member.path)
    return _LAYER_TYPES[compression], second


# What is in the archive


def _plan_sync(members: Mapping[str, Member], platform: Platform) -> list[_Planned]:
    by_digest = {member.digest: member for member in members.values() if not member.link}
    oci = _plan_oci(members, by_digest, platform)
    if "manifest.json" not in members:
        if "index.json" not in members:
            raise ValueError("open manifest.json: no such file or directory: not an image archive")
        return oci
    manifests = {Digest.of(item.config): item.manifest for item in oci}
    planned: list[_Planned] = []
    for entry in _decode(members, "manifest.json", list[_ManifestEntry]):
        config = _read(members, entry.config)
        layers = [_member(members, name) for name in entry.layers or ()]
        manifest = manifests.get(Digest.of(config))
        planned.append(_Planned(config, layers, entry.repo_tags or [], entry.parent, manifest))
    return planned


def _plan_oci(members: Mapping[str, Member], by_digest: Mapping[Digest, Member], platform: Platform) -> list[_Planned]:
    if "index.json" not in members:
        return []
    planned: dict[Digest, _Planned] = {}
    for descriptor in _decode(members, "index.json", Index).manifests:
        manifest = _image_manifest(descriptor, by_digest, platform)
        if manifest is None or manifest.config is None:
            continue
        config = _blob(by_digest, manifest.config)
        if config is None:
            continue
        layers = [by_digest.get(layer.checked_digest()) for layer in manifest.layers]
        if None in layers or b'"rootfs"' not in config:
            continue
        kept = manifest if _is_versioned(manifest) else None
        item = planned.setdefault(
            Digest.of(config), _Planned(config, [m for m in layers if m is not None], manifest=kept)
        )
        name = _name_of(descriptor)
        if name and name not in item.names:
            item.names.append(name)
    return list(planned.values())


def _image_manifest(
    descriptor: Descriptor, by_digest: Mapping[Digest, Member], platform: Platform, depth: int = 0
) -> Manifest | None:
    """The image manifest behind a descriptor: indexes are entered, the host's platform first."""
    data = _blob(by_digest, descriptor)
    if data is None or depth > 3:
        return None
    manifest = parse_manifest(data, descriptor.media_type, unversioned=True)
    if manifest.kind is Kind.IMAGE:
        return manifest
    ranked = sorted(manifest.manifests, key=lambda child: not _suits(child, platform))
    found = (_image_manifest(child, by_digest, platform, depth + 1) for child in ranked)
    return next((child for child in found if child is not None), None)


def _is_versioned(manifest: Manifest) -> bool:
    """Whether registries would take it; others are read and made anew when one is needed."""
    try:
        parse_manifest(manifest.data, manifest.media_type)
    except ManifestInvalid:
        return False
    return True


def _suits(descriptor: Descriptor, platform: Platform) -> bool:
    wanted = descriptor.platform
    return wanted is not None and (wanted.os, wanted.architecture) == (platform.os, platform.architecture)


def _name_of(descriptor: Descriptor) -> str:
    """The full name of an index entry; a bare tag (``ref.name`` of an OCI layout) names no repository."""
    annotations = descriptor.annotations or {}
    for key in _NAME_ANNOTATIONS:
        name = annotations.get(key, "")
        if ":" in name or "/" in name:
            return name
    return ""


def _blob(by_digest: Mapping[Digest, Member], descriptor: Descriptor) -> bytes | None:
    member = by_digest.get(descriptor.checked_digest())
    if member is None:
        return None
    if member.size > MAX_MANIFEST_BYTES:
        raise ManifestInvalid(f"{descriptor.digest} is too large for a document")
    return member.path.read_bytes()


def _member(members: Mapping[str, Member], name: str) -> Member:
    found = resolve(dict(members), name)
    if found is None:
        raise ValueError(f"open {name}: no such file or directory")
    return found


def _read(members: Mapping[str, Member], name: str) -> bytes:
    member = _member(members, name)
    if member.size > _MAX_DOCUMENT:
        raise ValueError(f"{name} is too large")
    return member.path.read_bytes()


def _decode(members: Mapping[str, Member], name: str, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(_read(members, name), type=kind)
    except msgspec.DecodeError as error:
        raise ValueError(f"invalid {name}: {error}") from error
