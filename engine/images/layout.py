"""What an image archive says it holds: docker's ``manifest.json``, an OCI layout's ``index.json``, or what docker 1.9
and older wrote (a folder for each layer's image, names in ``repositories``).

Nothing is believed that a digest does not prove later. Documents are read one at a time, so that many that are large
take no memory; everything here blocks and runs on a pool thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from engine.images.members import Member, clean, plain_digest_sync, resolve
from engine.images.model import MAX_LAYERS, RuntimeConfig
from registry.digest import Digest
from registry.errors import ManifestInvalid
from registry.manifest import MAX_MANIFEST_BYTES, Descriptor, Index, Kind, Manifest, Platform, parse_manifest

T = TypeVar("T")

_MAX_DOCUMENT = 8 * 1024 * 1024
_NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
# What an old image's document says beside its configuration.
_OLD_FIELDS = ("id", "parent", "Size", "parent_id", "layer_id", "throwaway")


class _ManifestEntry(msgspec.Struct):
    """One image of docker's ``manifest.json``."""

    config: str = msgspec.field(default="", name="Config")
    repo_tags: list[str] | None = msgspec.field(default=None, name="RepoTags")
    layers: list[str] | None = msgspec.field(default=None, name="Layers")
    parent: str = msgspec.field(default="", name="Parent")


class _OldImage(msgspec.Struct):
    """The ``ID/json`` of docker 1.9 and older, as far as it is understood."""

    parent: str = ""
    os: str = ""
    author: str = ""
    comment: str = ""
    created: str | None = None
    container_config: RuntimeConfig | None = None


@dataclass(slots=True)
class Planned:
    """One image found in an archive. ``parent`` is the image ID of the one it was committed from, if it is told."""

    config: Member
    layers: list[Member]
    names: list[str] = field(default_factory=list)
    parent: str = ""
    manifest: Manifest | None = None

    @property
    def id(self) -> str:
        """The image ID."""
        return str(self.config.digest)

    def document_sync(self) -> bytes:
        """The configuration. Raises ``ValueError`` for one that is too large."""
        return _bytes(self.config, "image configuration")


def plan_sync(members: Mapping[str, Member], platform: Platform) -> list[Planned]:
    """The images of an archive in its order. Raises ``ValueError`` for what is no image archive, ``OSError``."""
    by_digest = {member.digest: member for member in members.values() if not member.link}
    oci = _plan_oci(members, by_digest, platform)
    if "manifest.json" not in members:
        if "index.json" in members:
            return oci
        if "repositories" in members:
            return _plan_old(members)
        raise ValueError("open manifest.json: no such file or directory: not an image archive")
    manifests = {item.id: item.manifest for item in oci}
    planned: list[Planned] = []
    for entry in _decode(_read(members, "manifest.json"), "manifest.json", list[_ManifestEntry]):
        config = _member(members, entry.config)
        layers = [_member(members, name) for name in entry.layers or ()]
        manifest = manifests.get(str(config.digest))
        planned.append(Planned(config, layers, entry.repo_tags or [], entry.parent, manifest))
    ids = {item.id for item in planned}
    for item in planned:
        if item.parent not in ids or item.parent == item.id:
            item.parent = ""  # only images that came along count
    return planned


def _plan_oci(members: Mapping[str, Member], by_digest: Mapping[Digest, Member], platform: Platform) -> list[Planned]:
    if "index.json" not in members:
        return []
    planned: dict[str, Planned] = {}
    for descriptor in _decode(_read(members, "index.json"), "index.json", Index).manifests:
        manifest = _image_manifest(descriptor, by_digest, platform, set())
        if manifest is None or manifest.config is None:
            continue
        config = by_digest.get(manifest.config.checked_digest())
        layers = [by_digest.get(layer.checked_digest()) for layer in manifest.layers]
        if config is None or None in layers:
            continue
        item = planned.get(str(config.digest))
        if item is None:
            kept = manifest if _is_versioned(manifest) else None
            item = Planned(config, [m for m in layers if m is not None], manifest=kept)
            if b'"rootfs"' not in item.document_sync():
                continue
            planned[item.id] = item
        name = _name_of(descriptor)
        if name and name not in item.names:
            item.names.append(name)
    return list(planned.values())


def _plan_old(members: Mapping[str, Member]) -> list[Planned]:
    """Each folder is an image of one layer over its parent's; their documents are made here, as docker made them."""
    names: dict[str, list[str]] = {}
    for name, tags in _decode(_read(members, "repositories"), "repositories", dict[str, dict[str, str]]).items():
        for tag, old_id in tags.items():
            names.setdefault(clean(old_id), []).append(f"{name}:{tag}")
    folders = [name.removesuffix("/json") for name in sorted(members) if name.endswith("/json")]
    planned: dict[str, Planned] = {}
    for old_id in folders:
        for each in _line_of(members, old_id, planned):
            planned[each] = _plan_one_old(members, each, planned, names.pop(each, []))
    if names:
        raise ValueError(f"invalid target ID: {next(iter(names))}")
    return list(planned.values())


def _line_of(members: Mapping[str, Member], old_id: str, planned: Mapping[str, Planned]) -> list[str]:
    """An old image and its ancestors that are not planned yet, oldest first."""
    line: list[str] = []
    while old_id and old_id not in planned:
        if old_id in line or len(line) >= MAX_LAYERS:
            raise ValueError("max depth exceeded")
        line.append(old_id)
        old_id = clean(_decode_old(members, old_id)[0].parent)
    return line[::-1]


def _decode_old(members: Mapping[str, Member], old_id: str) -> tuple[_OldImage, bytes]:
    data = _read(members, f"{old_id}/json")
    return _decode(data, f"{old_id}/json", _OldImage), data


def _plan_one_old(
    members: Mapping[str, Member], old_id: str, planned: Mapping[str, Planned], names: list[str]
) -> Planned:
    old, data = _decode_old(members, old_id)
    if old.os not in ("", "linux"):
        raise ValueError(f"cannot load {old.os} image on linux")
    parent = planned.get(clean(old.parent))
    layer = _member(members, f"{old_id}/layer.tar")
    above = _decode(parent.document_sync(), "image configuration", dict[str, Any]) if parent is not None else {}
    diff_ids = [*above.get("rootfs", {}).get("diff_ids", ()), str(plain_digest_sync(layer.path))]
    if len(diff_ids) > MAX_LAYERS:
        raise ValueError("max depth exceeded")
    created_by = " ".join(old.container_config.cmd or ()) if old.container_config is not None else ""
    # In Go's order of fields, so that the image has the ID that docker gives it.
    told = {"created": old.created, "author": old.author, "created_by": created_by, "comment": old.comment}
    step = {key: value for key, value in told.items() if value}
    document = _decode(data, f"{old_id}/json", dict[str, msgspec.Raw])
    made: dict[str, object] = {key: value for key, value in document.items() if key not in _OLD_FIELDS}
    made["rootfs"] = {"type": "layers", "diff_ids": diff_ids}
    made["history"] = [*above.get("history", ()), step]
    encoded = msgspec.json.encode(dict(sorted(made.items())))
    # Beside the layer, under a name that no member has.
    path = layer.path.with_name(f"{layer.path.name}.{len(planned)}.json")
    path.write_bytes(encoded)
    config = Member(path, len(encoded), Digest.of(encoded))
    return Planned(config, [*(parent.layers if parent is not None else ()), layer], names, parent.id if parent else "")


def _image_manifest(
    descriptor: Descriptor,
    by_digest: Mapping[Digest, Member],
    platform: Platform,
    entered: set[str],
    depth: int = 0,
) -> Manifest | None:
    """The image manifest behind a descriptor: indexes are entered, each once, the host's platform first."""
    member = by_digest.get(descriptor.checked_digest())
    if member is None or depth > 3 or descriptor.digest in entered:
        return None
    entered.add(descriptor.digest)
    if member.size > MAX_MANIFEST_BYTES:
        raise ManifestInvalid(f"{descriptor.digest} is too large for a document")
    data = member.path.read_bytes()
    manifest = parse_manifest(data, descriptor.media_type, unversioned=True)
    if manifest.kind is Kind.IMAGE:
        return manifest
    ranked = sorted(manifest.manifests, key=lambda child: not _suits(child, platform))
    found = (_image_manifest(child, by_digest, platform, entered, depth + 1) for child in ranked)
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


def _member(members: Mapping[str, Member], name: str) -> Member:
    found = resolve(members, name)
    if found is None:
        raise ValueError(f"open {name}: no such file or directory")
    return found


def _read(members: Mapping[str, Member], name: str) -> bytes:
    return _bytes(_member(members, name), name)


def _bytes(member: Member, name: str) -> bytes:
    if member.size > _MAX_DOCUMENT:
        raise ValueError(f"{name} is too large")
    return member.path.read_bytes()


def _decode(data: bytes, name: str, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"invalid {name}: {error}") from error
