"""``save``: one archive that is docker's format and an OCI layout at once.

Each blob is stored once and named by its digest, so shared layers need no links. Manifests that came with an image are
kept byte for byte where they are OCI's. The bytes depend on the images and names alone, not on the time: members have
the time at which their image was made.
"""

from __future__ import annotations

import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import msgspec

from engine.clock import SECOND
from engine.errors import InvalidParameter, SystemFailure, no_such_image
from engine.images.content import ImageContent
from engine.images.manifests import describe
from engine.images.model import Image, LayerBlob
from engine.images.service import ImageService, shown_platform
from registry.digest import Digest
from registry.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, Index, Platform, encode
from registry.reference import InvalidReference, Reference

_BLOCK = 512
_RECORD = 20 * _BLOCK
_LATEST = 8**11 - 1  # what an archive's header has room for


@dataclass(slots=True)
class _Saved:
    """One image and the names it is saved under."""

    image: Image
    names: list[Reference] = field(default_factory=list)


@dataclass(slots=True)
class _Contents:
    """What goes into the archive: the images ``saved``, blobs of the store by size, and documents made here."""

    saved: frozenset[str]
    stored: dict[Digest, int] = field(default_factory=dict)
    made: dict[Digest, bytes] = field(default_factory=dict)
    created: dict[Digest, int] = field(default_factory=dict)
    """When the images were made that the stored blobs belong to, in seconds since 1970."""
    index: list[Descriptor] = field(default_factory=list)
    entries: list[dict[str, object]] = field(default_factory=list)
    repositories: dict[str, dict[str, str]] = field(default_factory=dict)


class ImageSaver:
    """``save`` over an ``ImageService``."""

    def __init__(self, service: ImageService) -> None:
        self._service = service
        self._content: ImageContent = service.content

    def select(self, names: Sequence[str], platform: Platform | None = None) -> list[_Saved]:
        """The images behind ``names``; a bare repository means all its tags.

        Raises ``NotFound``, ``InvalidParameter``, and ``SystemFailure`` for one that is not for ``platform``.
        """
        if not names:
            raise InvalidParameter("invalid reference format")
        chosen: dict[str, _Saved] = {}
        for name in names:
            for image, reference in self._expand(name):
                saved = chosen.setdefault(image.id, _Saved(image))
                if reference is not None and reference not in saved.names:
                    saved.names.append(reference)
        for saved in chosen.values():
            if platform is not None and not saved.image.suits(platform):
                shown = shown_platform(platform)
                raise SystemFailure(f"no suitable export target found for platform {shown}")
        return list(chosen.values())

    def _expand(self, name: str) -> list[tuple[Image, Reference | None]]:
        try:
            reference = Reference.parse(name, default_tag=False)
        except InvalidReference:
            return [(self._service.get(name), None)]
        if reference.tag is None and reference.digest is None:
            tagged = self._service.store.tagged()
            found = [(Reference.parse(full), image_id) for full, image_id in sorted(tagged.items())]
            images = [
                (self._service.get(image_id), tag)
                for tag, image_id in found
                if tag.digest is None and tag.name == reference.name
            ]
            if images:
                return list(images)
        image = self._service.find(name)
        if image is None:
            raise no_such_image(name)
        tagged_here = self._service.store.resolve_name(str(reference)) == image.id and reference.digest is None
        return [(image, reference if tagged_here else None)]

    async def save(self, chosen: Sequence[_Saved]) -> AsyncGenerator[bytes, None]:
        """The bytes of the archive. Raises ``SystemFailure`` where content is not stored."""
        async with AsyncExitStack() as stack:
            contents = _Contents(frozenset(saved.image.id for saved in chosen))
            for saved in chosen:
                await self._collect(saved, contents)
            await stack.enter_async_context(self._content.leases.hold(*contents.stored))
            async for data in self._write(contents):
                yield data
        for saved in chosen:
            self._service.publish("save", saved.image.id, saved.image.id, saved.image.labels)

    async def _collect(self, saved: _Saved, contents: _Contents) -> None:
        image = saved.image
        descriptor, forms = await self._manifest(image, contents)
        contents.stored[image.digest] = image.config_size
        contents.stored.update({form.digest: form.size for form in forms})
        made = min(max((image.created_ns or 0) // SECOND, 0), _LATEST)
        for digest in (*(form.digest for form in forms), image.digest):
            contents.created.setdefault(digest, made)
        contents.index += [_named(descriptor, name, image) for name in saved.names or (None,)]
        entry: dict[str, object] = {
            "Config": _path(image.digest),
            "RepoTags": [name.familiar for name in saved.names] or None,
            "Layers": [_path(form.digest) for form in forms],
        }
        contents.entries.append({**entry, "Parent": image.parent} if image.parent in contents.saved else entry)
        top = forms[-1].digest.encoded if forms else image.digest.encoded
        for name in saved.names:
            contents.repositories.setdefault(name.familiar_name, {})[name.tag or "latest"] = top

    async def _manifest(self, image: Image, contents: _Contents) -> tuple[Descriptor, list[LayerBlob]]:
        """The image's own manifest if all of it is stored, else one made from the stored forms of its layers."""
        kept = await self._content.kept_manifest(image)
        # An OCI layout that names docker's own manifest type is refused by other tools.
        if kept is not None and kept[0].media_type == OCI_MANIFEST:
            manifest, forms = kept
            digest = Digest.of(manifest.data)
            contents.stored[digest] = len(manifest.data)
            return Descriptor(media_type=manifest.media_type, digest=str(digest), size=len(manifest.data)), forms
        forms = kept[1] if kept is not None else [await self._content.stored_form(d) for d in image.diff_ids]
        data, media_type = describe(image, forms, oci=True)
        digest = Digest.of(data)
        contents.made[digest] = data
        return Descriptor(media_type=media_type, digest=str(digest), size=len(data)), forms

    async def _write(self, contents: _Contents) -> AsyncIterator[bytes]:
        written = 0
        documents = {
            "index.json": encode(Index(media_type=OCI_INDEX, manifests=contents.index)),
            "manifest.json": msgspec.json.encode(contents.entries),
            "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
            "repositories": msgspec.json.encode(contents.repositories, order="sorted"),
        }
        if not contents.repositories:
            del documents["repositories"]
        small = bytearray()
        for folder in ("blobs/", "blobs/sha256/"):
            small += _header(folder, 0, max(contents.created.values(), default=0), folder=True)
        for digest in sorted({*contents.stored, *contents.made}):
            data = contents.made.get(digest)
            if data is not None:
                small += _header(_path(digest), len(data)) + data + _padding(len(data))
                continue
            size = contents.stored[digest]
            small += _header(_path(digest), size, contents.created.get(digest, 0))
            yield bytes(small)
            written += len(small) + size
            async for chunk in self._blob(digest, size):
                yield chunk
            small = bytearray(_padding(size))
        for name, data in documents.items():
            small += _header(name, len(data)) + data + _padding(len(data))
        small += bytes(2 * _BLOCK)
        small += bytes(-(written + len(small)) % _RECORD)
        yield bytes(small)

    async def _blob(self, digest: Digest, size: int) -> AsyncIterator[bytes]:
        sent = 0
        async for chunk in self._content.blobs.open(digest):
            sent += len(chunk)
            yield chunk
        if sent != size:
            raise SystemFailure(f"blob {digest} has {sent} bytes, not {size}")


def _named(descriptor: Descriptor, name: Reference | None, image: Image) -> Descriptor:
    annotations = {}
    if name is not None:
        annotations = {"io.containerd.image.name": str(name), "org.opencontainers.image.ref.name": name.tag or "latest"}
    return Descriptor(
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size=descriptor.size,
        annotations=annotations or None,
        platform=image.platform,
    )


def _path(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.encoded}"


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def _header(name: str, size: int, mtime: int = 0, *, folder: bool = False) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = size
    entry.mtime = mtime
    entry.mode = 0o755 if folder else 0o644
    entry.type = tarfile.DIRTYPE if folder else tarfile.REGTYPE
    return entry.tobuf(tarfile.GNU_FORMAT)
