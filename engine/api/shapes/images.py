"""Images as the Engine API shows them, per version: list rows, inspect, history, removal records. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from engine.clock import ZERO_TIME, rfc3339
from engine.images.model import Image, RuntimeConfig
from engine.images.removal import Removed
from engine.images.service import HistoryRow, Listed

Version = tuple[int, int]
Json = dict[str, Any]

# Container settings that never belonged into an image but were shown there until 1.50.
_CONTAINER_FIELDS: Json = {
    "Hostname": "", "Domainname": "", "AttachStdin": False, "AttachStdout": False, "AttachStderr": False, "Tty": False,
    "OpenStdin": False, "StdinOnce": False, "Image": "",
}  # fmt: skip
_ALWAYS: Json = {
    "User": "", "Env": None, "Cmd": None, "Volumes": None, "WorkingDir": "", "Entrypoint": None, "OnBuild": None,
    "Labels": None,
}  # fmt: skip


def config_document(config: RuntimeConfig, version: Version) -> Json:
    """The ``Config`` object of inspect."""
    found: Json = msgspec.to_builtins(config)
    base = {**_CONTAINER_FIELDS, **_ALWAYS} if version < (1, 50) else _ALWAYS
    return {**base, **found}


def summary(row: Listed, version: Version) -> Json:
    """One row of ``GET /images/json``."""
    image = row.image
    tags: list[str] | None = list(row.tags)
    digests: list[str] | None = list(row.digests)
    if version < (1, 43):
        if not tags and not digests:
            tags, digests = ["<none>:<none>"], ["<none>@<none>"]
        tags, digests = tags or None, digests or None
    shown: Json = {
        "Containers": row.containers,
        "Created": (image.created_ns or 0) // 1_000_000_000,
        "Id": str(image.id),
        "Labels": image.labels or None,
        "ParentId": image.parent,
        "RepoDigests": digests,
        "RepoTags": tags,
        "SharedSize": row.shared_size,
        "Size": image.size,
    }
    if version < (1, 44):
        shown["VirtualSize"] = image.size
    if version >= (1, 48) and image.image_manifests:
        shown["Descriptor"] = descriptor(image)
    return shown


def descriptor(image: Image) -> Json:
    """The newest kept manifest of the image."""
    newest = image.image_manifests[0]
    return {"mediaType": newest.media_type, "digest": newest.digest, "size": newest.size}


def inspected(
    image: Image, names: tuple[Sequence[str], Sequence[str]], version: Version, folders: Mapping[str, str] | None
) -> Json:
    """``GET /images/{name}/json``. ``folders`` is the ``GraphDriver`` data, None where layers are not on this host."""
    document = image.document
    created = document.created or (ZERO_TIME if version < (1, 44) else None)
    shown: Json = {
        "Id": str(image.id),
        "RepoTags": list(names[0]),
        "RepoDigests": list(names[1]),
        "Parent": image.parent,
        "Comment": document.comment or _last_comment(image),
    }
    if created is not None:
        shown["Created"] = created
    if version < (1, 45):
        shown["Container"] = document.container
        shown["ContainerConfig"] = config_document(document.container_config or RuntimeConfig(), version)
    shown |= {
        "DockerVersion": document.docker_version,
        "Author": document.author,
        "Config": config_document(image.config, version),
        "Architecture": document.architecture,
    }
    if document.variant:
        shown["Variant"] = document.variant
    shown["Os"] = document.os
    if document.os_version:
        shown["OsVersion"] = document.os_version
    shown["Size"] = image.size
    if version < (1, 44):
        shown["VirtualSize"] = image.size
    shown["GraphDriver"] = {"Data": dict(folders) if folders else None, "Name": "overlay2"}
    rootfs: Json = {"Type": "layers"}
    if image.diff_ids:
        rootfs["Layers"] = list(image.diff_ids)
    shown["RootFS"] = rootfs
    shown["Metadata"] = {"LastTagTime": rfc3339(image.last_tag_ns)}
    if version >= (1, 48) and image.image_manifests:
        shown["Descriptor"] = descriptor(image)
    return shown


def _last_comment(image: Image) -> str:
    history = image.document.history
    return history[-1].comment if history else ""


def history_rows(rows: Iterable[HistoryRow]) -> list[Json]:
    """``GET /images/{name}/history``."""
    return [
        {
            "Comment": row.comment,
            "Created": row.created,
            "CreatedBy": row.created_by,
            "Id": row.id,
            "Size": row.size,
            "Tags": list(row.tags) or None,
        }
        for row in rows
    ]


def removed_rows(records: Iterable[Removed]) -> list[Json]:
    """The lines of ``docker rmi``."""
    return [{"Untagged": r.untagged} if r.untagged else {"Deleted": r.deleted} for r in records]
