"""What an image is: its configuration document, the layers it stacks, and the content that describes it. Pure.

An image's identity is the digest of its configuration document, byte for byte. What users call it (references) is kept
beside it in the store, not in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from engine.clock import parse_rfc3339
from engine.snapshots.base import LayerKey
from registry.digest import Digest
from registry.manifest import IMAGE_TYPES, Descriptor, Platform


class Healthcheck(msgspec.Struct, frozen=True, omit_defaults=True):
    """A health check as images carry it; times in nanoseconds, 0 means inherit or docker's default."""

    test: list[str] | None = msgspec.field(default=None, name="Test")
    interval: int = msgspec.field(default=0, name="Interval")
    timeout: int = msgspec.field(default=0, name="Timeout")
    start_period: int = msgspec.field(default=0, name="StartPeriod")
    start_interval: int = msgspec.field(default=0, name="StartInterval")
    retries: int = msgspec.field(default=0, name="Retries")


class RuntimeConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """What containers start with: the ``config`` of the OCI image specification with docker's additions."""

    user: str = msgspec.field(default="", name="User")
    exposed_ports: dict[str, dict[str, Any]] | None = msgspec.field(default=None, name="ExposedPorts")
    env: list[str] | None = msgspec.field(default=None, name="Env")
    cmd: list[str] | None = msgspec.field(default=None, name="Cmd")
    healthcheck: Healthcheck | None = msgspec.field(default=None, name="Healthcheck")
    args_escaped: bool = msgspec.field(default=False, name="ArgsEscaped")
    volumes: dict[str, dict[str, Any]] | None = msgspec.field(default=None, name="Volumes")
    working_dir: str = msgspec.field(default="", name="WorkingDir")
    entrypoint: list[str] | None = msgspec.field(default=None, name="Entrypoint")
    on_build: list[str] | None = msgspec.field(default=None, name="OnBuild")
    labels: dict[str, str] | None = msgspec.field(default=None, name="Labels")
    stop_signal: str = msgspec.field(default="", name="StopSignal")
    stop_timeout: int | None = msgspec.field(default=None, name="StopTimeout")
    shell: list[str] | None = msgspec.field(default=None, name="Shell")


class RootFS(msgspec.Struct, frozen=True):
    """The diff IDs of the layers, bottom first."""

    type: str = "layers"
    diff_ids: list[str] = []


class HistoryEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step of how the image came to be; ``empty_layer`` steps added no layer."""

    created: str | None = None
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


class ImageDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """The configuration document: OCI image configuration plus the fields docker adds. Unknown fields are ignored."""

    architecture: str = ""
    author: str = ""
    comment: str = ""
    config: RuntimeConfig | None = None
    container: str = ""
    container_config: RuntimeConfig | None = None
    created: str | None = None
    docker_version: str = ""
    history: list[HistoryEntry] | None = None
    os: str = ""
    os_features: list[str] | None = msgspec.field(default=None, name="os.features")
    os_version: str = msgspec.field(default="", name="os.version")
    parent: str = ""
    rootfs: RootFS = RootFS()
    variant: str = ""


MAX_LAYERS = 125
"""Of one image, as with dockerd."""

_decoder = msgspec.json.Decoder(ImageDocument)


def parse_document(data: bytes) -> ImageDocument:
    """Read a configuration document. Raises ``ValueError`` with the reason."""
    try:
        document = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"invalid image configuration: {error}") from error
    if len(document.rootfs.diff_ids) > MAX_LAYERS:
        raise ValueError("max depth exceeded")
    for diff_id in document.rootfs.diff_ids:
        Digest.parse(diff_id)
    steps = sum(not entry.empty_layer for entry in document.history or ())
    if document.history and steps != len(document.rootfs.diff_ids):
        raise ValueError(f"invalid image configuration: {len(document.rootfs.diff_ids)} layers, {steps} in its history")
    return document


def _decode(data: bytes) -> ImageDocument:
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError:
        # Builders in Go write an image without layers as ``null``.
        raw = msgspec.json.decode(data)
        rootfs = raw.get("rootfs") if isinstance(raw, dict) else None
        if not isinstance(rootfs, dict) or rootfs.get("diff_ids", ()) is not None:
            raise
        return msgspec.convert({**raw, "rootfs": {**rootfs, "diff_ids": []}}, ImageDocument)


def encode_document(document: ImageDocument) -> bytes:
    """The bytes of a document of our own making; ``rootfs`` and the platform are always written."""
    fields: dict[str, Any] = msgspec.to_builtins(document)
    fields["rootfs"] = {"type": "layers", "diff_ids": list(document.rootfs.diff_ids)}
    fields.setdefault("config", {})
    fields["os"], fields["architecture"] = document.os, document.architecture
    return msgspec.json.encode({key: fields[key] for key in sorted(fields)})


@dataclass(frozen=True, slots=True)
class LayerBlob:
    """One stored form of a layer: plain or compressed tar.

    ``sources`` are the repositories (``domain/path``) known to hold these bytes; a push may mount from them.
    """

    digest: Digest
    size: int
    media_type: str
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Image:
    """One image as the engine keeps it.

    ``layers`` are the unpacked layers, bottom first; ``manifests`` describe this image in the blob store, newest
    first; ``size`` counts file content of all layers; ``parent`` is the local image this one was committed from.
    """

    id: str
    document: ImageDocument
    layers: tuple[LayerKey, ...]
    layer_sizes: tuple[int, ...]
    manifests: tuple[Descriptor, ...] = ()
    parent: str = ""
    last_tag_ns: int = 0
    config_size: int = 0

    @property
    def digest(self) -> Digest:
        """The ID as the digest of the configuration blob."""
        return Digest(self.id)

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """Of the layers, bottom first."""
        return tuple(self.document.rootfs.diff_ids)

    @property
    def config(self) -> RuntimeConfig:
        """What containers of this image start with."""
        return self.document.config or _NOTHING

    @property
    def size(self) -> int:
        """Bytes of file content in all layers."""
        return sum(self.layer_sizes)

    @property
    def labels(self) -> dict[str, str]:
        """The image's labels, never None."""
        return self.config.labels or {}

    @property
    def created_ns(self) -> int | None:
        """The instant in the document, or None where it has none or none that can be read."""
        if not self.document.created:
            return None
        try:
            return parse_rfc3339(self.document.created)
        except ValueError:
            return None

    @property
    def platform(self) -> Platform:
        """Which machine the image is for."""
        return platform_of(self.document)

    def suits(self, wanted: Platform) -> bool:
        """Whether it is for that platform, by its own document or by the index it came from; an empty part fits all."""
        known = [self.platform, *(m.platform for m in self.manifests if m.platform is not None)]
        return any(fits(has, wanted) for has in known)

    @property
    def image_manifests(self) -> tuple[Descriptor, ...]:
        """Only those of ``manifests`` that are no index."""
        return tuple(m for m in self.manifests if m.media_type in IMAGE_TYPES)


def platform_of(document: ImageDocument) -> Platform:
    """Which machine a configuration says that its image is for."""
    return Platform(architecture=document.architecture, os=document.os, variant=document.variant)


def fits(has: Platform, wanted: Platform) -> bool:
    """Whether what is for one platform is what is wanted; an empty part fits all."""
    parts = ((wanted.os, has.os), (wanted.architecture, has.architecture), (wanted.variant, has.variant))
    return all(not asked or not given or asked.lower() == given.lower() for asked, given in parts)


_NOTHING = RuntimeConfig()


def is_step_from(image: Image, parent: Image) -> bool:
    """Whether ``image`` is ``parent`` and one step more: what an archive may say, and never in a circle."""
    steps, before = image.document.history or [], parent.document.history or []
    same_layers = image.diff_ids[: len(parent.diff_ids)] == parent.diff_ids
    if not steps and not before:
        return same_layers and len(image.diff_ids) > len(parent.diff_ids)
    return same_layers and len(steps) == len(before) + 1 and steps[:-1] == before
