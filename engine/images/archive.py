"""Images from archives: ``load`` (docker's format, OCI layouts, both in one) and ``import`` (one tar as one layer).

The archive is cut into files while it arrives; nothing of it is believed before a digest proved it. Layers are
unpacked while their blobs are made durable.
"""

from __future__ import annotations

import shutil
import uuid
from asyncio import TaskGroup
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from engine.clock import now_ns, rfc3339
from engine.errors import EngineError, InvalidParameter, SystemFailure, os_words
from engine.images.changes import apply_changes
from engine.images.content import Unpacking, one_error
from engine.images.layout import Planned, plan_sync
from engine.images.members import Inflater, Member, Splitter, compression_by_magic
from engine.images.model import (
    HistoryEntry,
    Image,
    ImageDocument,
    LayerBlob,
    RuntimeConfig,
    fits,
    is_step_from,
    parse_document,
    platform_of,
)
from engine.images.progress import Paced, Report, status, stream
from engine.images.service import ImageService
from engine.names import short
from engine.tasks import run_blocking, run_to_end
from registry.digest import Digest, new_hasher
from registry.manifest import (
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    Descriptor,
    Platform,
)
from registry.reference import InvalidReference, Reference

Feed = Callable[[Sequence[bytes]], None]

_BATCH = 1 << 20
_LAYER_TYPES = {"": OCI_LAYER, "gzip": OCI_LAYER_GZIP, "zstd": OCI_LAYER_ZSTD}
_LOST_NAME = "The image {} already exists, renaming the old one with ID {} to empty string\n"


class ImageLoader:
    """``load`` and ``import`` over an ``ImageService``; ``default_platform`` is the host's."""

    def __init__(self, service: ImageService, default_platform: Platform) -> None:
        self._service = service
        self._content = service.content
        self._default_platform = default_platform

    async def load(
        self, body: AsyncIterator[bytes], report: Report, *, quiet: bool = False, platform: Platform | None = None
    ) -> list[Image]:
        """Read an archive and register its images (of ``platform``, if given), reporting as dockerd does.

        What is here already is not changed. Raises ``EngineError``.
        """
        directory = self._content.blobs.temp_dir() / f"load-{uuid.uuid4().hex}"
        try:
            await run_to_end("disk", directory.mkdir, 0o700)
            members = await _receive(body, directory)
            planned = await run_to_end("disk", plan_sync, members, platform or self._default_platform)
            loaded = [await self._load_one(item, report, quiet, platform) for item in planned]
            images = [image for image in loaded if image is not None]
            await self._link(planned)
            if not any(item.names for item in planned):
                for image in images:
                    report(stream(f"Loaded image ID: {image.id}\n"))
            return images
        except ValueError as error:
            raise InvalidParameter(str(error)) from error
        except OSError as error:
            raise _failure(error) from error
        finally:
            await run_to_end("disk", shutil.rmtree, directory, True)

    async def _link(self, planned: Sequence[Planned]) -> None:
        """Note which of the images were committed from which. Raises ``ValueError`` where that cannot be."""
        for item in planned:
            image, parent = self._service.store.get(item.id), self._service.store.get(item.parent)
            if image is None or parent is None:
                continue
            if not is_step_from(image, parent):
                raise ValueError(f"image {parent.id} is not a valid parent for {image.id}")
            await self._service.store.set_parent(image.id, parent.id)

    async def _load_one(self, item: Planned, report: Report, quiet: bool, wanted: Platform | None) -> Image | None:
        """The image, None where another platform is wanted."""
        config = await run_blocking(item.document_sync)
        document = parse_document(config)
        if wanted is not None and not fits(platform_of(document), wanted):
            return None
        diff_ids = document.rootfs.diff_ids
        if len(diff_ids) != len(item.layers):
            raise ValueError(
                f"invalid manifest, layers length mismatch: expected {len(item.layers)}, got {len(diff_ids)}"
            )
        digests = [member.digest for member in item.layers]
        async with self._content.hold(diff_ids, digests):
            blobs = await self._store_layers(diff_ids, item.layers, None if quiet else report)
            manifests = [] if self._service.store.get(item.id) else await self._store_manifest(item)
            names = [name for name in map(_load_name, item.names) if name is not None]
            losers = [(name, self._service.store.resolve_name(str(name))) for name in names]
            image = await self._content.register(config, blobs, manifests, names=names)
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
            media_type = await run_blocking(_layer_type_sync, member)
            sources[diff_id] = member.path
            # A plain layer that a push has compressed before need not come back.
            packed = await self._content.packed_already(diff_id) if media_type == OCI_LAYER else None
            blobs[diff_id] = packed or LayerBlob(member.digest, member.size, media_type)
        by_digest = {member.digest: member for member in members}
        adopted = {b.digest: by_digest[b.digest] for b in blobs.values() if b.digest in by_digest}
        async with one_error(), TaskGroup() as group:
            for digest, member in adopted.items():
                group.create_task(self._adopt(digest, member))
            claims = {diff_id: blob.digest for diff_id, blob in blobs.items() if blob.digest in adopted}
            await self._content.unpack(diff_ids, sources, _loading(blobs, report), claims)
        return blobs

    async def _adopt(self, digest: Digest, member: Member) -> None:
        # Another image of the archive may need the file too.
        second = member.path.with_name(f"{member.path.name}.blob")
        await run_to_end("disk", second.hardlink_to, member.path)
        await self._content.adopt(second, digest, member.size)

    async def _store_manifest(self, item: Planned) -> list[Descriptor]:
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
            blob, diff_id = await run_to_end("hash", received.close_sync)
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
            raise _failure(error) from error
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


def _failure(error: OSError) -> SystemFailure:
    """What could not be written or unpacked, in Go's order of words."""
    return SystemFailure(f"Error processing tar file: {os_words(error)}")


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
        return await run_to_end("hash", splitter.close_sync)
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
                working = group.create_task(run_to_end("hash", feed, batch))
                batch, size = [], 0
        if working is not None:
            await working
        if batch:
            await run_to_end("hash", feed, batch)


def _loading(blobs: Mapping[str, LayerBlob], report: Report | None) -> Unpacking | None:
    if report is None:
        return None
    bars = {d: Paced(report, short(d), "Loading layer", blob.size) for d, blob in blobs.items()}

    def told(diff_id: str, current: int) -> None:
        bars[diff_id](min(current, blobs[diff_id].size))

    return told


def _layer_type_sync(member: Member) -> str:
    """The media type of a layer's file."""
    with member.path.open("rb") as file:
        compression = compression_by_magic(file.read(6))
    if compression not in _LAYER_TYPES:
        raise ValueError(f"layers compressed with {compression} inside an archive are not supported")
    return _LAYER_TYPES[compression]
