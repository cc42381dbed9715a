"""Manifests, pure: media types, descriptors, and what a document is, judged by its bytes and its declared type.

Bytes are never rewritten: a manifest is parsed only to learn its kind and what it refers to, so unknown fields survive.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

from registry.digest import Digest, InvalidDigest
from registry.errors import ManifestInvalid

MAX_MANIFEST_BYTES = 4 * 1024 * 1024

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
OCI_LAYER_FOREIGN_PREFIX = "application/vnd.oci.image.layer.nondistributable.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"
OCTET_STREAM = "application/octet-stream"

IMAGE_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFEST_TYPES = IMAGE_TYPES | INDEX_TYPES
SCHEMA1_TYPES = frozenset({DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED})
ACCEPTED = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)


class Kind(Enum):
    """What a manifest describes."""

    IMAGE = "image"
    INDEX = "index"


class Platform(msgspec.Struct, omit_defaults=True, rename="camel"):
    """Which machine an index's entry is for (OCI image-spec, image-index.md)."""

    architecture: str = ""
    os: str = ""
    os_version: str = msgspec.field(default="", name="os.version")
    os_features: list[str] = msgspec.field(default_factory=list, name="os.features")
    variant: str = ""


class Descriptor(msgspec.Struct, omit_defaults=True, rename="camel"):
    """A typed, sized pointer to content (OCI image-spec, descriptor.md)."""

    media_type: str = ""
    digest: str = ""
    size: int = 0
    urls: list[str] | None = None
    annotations: dict[str, str] | None = None
    data: str | None = None
    platform: Platform | None = None
    artifact_type: str = ""

    def checked_digest(self) -> Digest:
        """The digest, or `ManifestInvalid` when it is none."""
        try:
            return Digest.parse(self.digest)
        except InvalidDigest as error:
            raise ManifestInvalid(str(error)) from error

    @property
    def is_foreign(self) -> bool:
        """A layer that by its type registries should not be given, as long as it says where else it is."""
        named = self.media_type == DOCKER_LAYER_FOREIGN or self.media_type.startswith(OCI_LAYER_FOREIGN_PREFIX)
        return named and bool(self.urls)

    @property
    def is_manifest(self) -> bool:
        """Whether an index lists a manifest here, as indexes do; those of BuildKit's caches list layers."""
        return not self.media_type or self.media_type in MANIFEST_TYPES


class ImageManifest(msgspec.Struct, omit_defaults=True, rename="camel"):
    """An OCI image manifest or docker schema 2, as written by us."""

    schema_version: int = 2
    media_type: str = ""
    artifact_type: str = ""
    config: Descriptor | None = None
    layers: list[Descriptor] = []
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class Index(msgspec.Struct, omit_defaults=True, rename="camel"):
    """An OCI index or docker manifest list, as written by us."""

    schema_version: int = 2
    media_type: str = ""
    artifact_type: str = ""
    manifests: list[Descriptor] = []
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class _Document(msgspec.Struct, rename="camel"):
    """The union of what any manifest may say; absence is told from emptiness so that kinds can be told apart."""

    schema_version: int = 0
    media_type: str = ""
    artifact_type: str = ""
    config: Descriptor | None = None
    layers: list[Descriptor] | None = None
    manifests: list[Descriptor] | None = None
    fs_layers: list[Any] | None = None
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


_decoder = msgspec.json.Decoder(_Document)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A classified document: its exact bytes, its type, and everything it points at."""

    data: bytes
    media_type: str
    kind: Kind
    config: Descriptor | None
    layers: tuple[Descriptor, ...]
    manifests: tuple[Descriptor, ...]
    subject: Descriptor | None
    artifact_type: str
    annotations: dict[str, str] | None

    def blobs(self) -> tuple[Descriptor, ...]:
        """Config and layers, in order."""
        return ((self.config,) if self.config is not None else ()) + self.layers

    def references(self) -> tuple[Descriptor, ...]:
        """All content this document needs: blobs and children, not the subject."""
        return self.blobs() + self.manifests

    @property
    def referrer_type(self) -> str:
        """The artifact type referrers are listed under: the declared one, else the config's media type."""
        return self.artifact_type or (self.config.media_type if self.config is not None else "")


def parse_manifest(data: bytes, content_type: str = "", *, unversioned: bool = False) -> Manifest:
    """Classify `data`. The declared `content_type` (parameters ignored) must agree with what the document says.

    With `unversioned` one that does not say which schema it follows will do, as image archives hold them.
    Raises `ManifestInvalid` for anything else than schema 2 or OCI documents.
    """
    try:
        document = _decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ManifestInvalid(f"the manifest is not the JSON a manifest must be: {error}") from error
    declared = content_type.partition(";")[0].strip().lower()
    if declared in SCHEMA1_TYPES or document.schema_version == 1 or document.fs_layers is not None:
        raise ManifestInvalid("schema 1 manifests are not supported")
    if document.schema_version != 2 and not (unversioned and document.schema_version == 0):
        raise ManifestInvalid(f"unrecognized manifest schema version {document.schema_version}")
    media_type = _type_of(document, declared)
    kind = Kind.INDEX if media_type in INDEX_TYPES else Kind.IMAGE
    _check_shape(document, kind)
    manifest = Manifest(
        data,
        media_type,
        kind,
        document.config,
        tuple(document.layers or ()),
        tuple(document.manifests or ()),
        document.subject,
        document.artifact_type,
        document.annotations,
    )
    for descriptor in (*manifest.references(), *((manifest.subject,) if manifest.subject else ())):
        descriptor.checked_digest()
        if descriptor.size < 0:
            raise ManifestInvalid(f"negative size for {descriptor.digest}")
    return manifest


def _type_of(document: _Document, declared: str) -> str:
    said = document.media_type
    if said and declared in MANIFEST_TYPES and said != declared:
        raise ManifestInvalid(f"the manifest says it is {said}, its Content-Type says {declared}")
    media_type = said or (declared if declared in MANIFEST_TYPES else "")
    if not media_type:
        media_type = OCI_INDEX if document.manifests is not None and document.config is None else OCI_MANIFEST
    if media_type not in MANIFEST_TYPES:
        raise ManifestInvalid(f"unsupported manifest media type {media_type}")
    return media_type


def _check_shape(document: _Document, kind: Kind) -> None:
    if kind is Kind.INDEX:
        if document.config is not None or document.layers is not None:
            raise ManifestInvalid("an index must not have config or layers")
        return
    if document.manifests is not None:
        raise ManifestInvalid("an image manifest must not list manifests")
    if document.config is None:
        raise ManifestInvalid("an image manifest must have a config")


def media_type_of(data: bytes) -> str:
    """The type of a stored document, which no file records (registry2 layout keeps bytes only)."""
    return parse_manifest(data).media_type


def encode(document: ImageManifest | Index) -> bytes:
    """The canonical bytes we write for a manifest of our own."""
    return msgspec.json.encode(_Ordered.of(document))


class _Ordered:
    """`schemaVersion` must be written although it has its default value."""

    @staticmethod
    def of(document: ImageManifest | Index) -> dict[str, Any]:
        fields: dict[str, Any] = {"schemaVersion": document.schema_version}
        built: dict[str, Any] = msgspec.to_builtins(document)
        built.pop("schemaVersion", None)
        fields.update(built)
        if isinstance(document, ImageManifest):
            fields.setdefault("layers", [])
        else:
            fields.setdefault("manifests", [])
        return fields
