"""The volume resource's wire shapes, pure."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from engine.containers.loose import decode_loose
from engine.errors import InvalidParameter
from engine.volumes.model import Usage, Volume


class VolumeCreate(msgspec.Struct, frozen=True, rename="pascal"):
    """The body of ``POST /volumes/create``."""

    name: str = ""
    driver: str = ""
    driver_opts: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    cluster_volume_spec: dict[str, Any] | None = None


def decode_volume_create(raw: bytes) -> VolumeCreate:
    """Decode with Go's rules. Raises ``InvalidParameter``."""
    try:
        return decode_loose(VolumeCreate, raw)
    except ValueError as error:
        raise InvalidParameter(str(error)) from error


def volume_json(volume: Volume) -> dict[str, Any]:
    """One volume, as list and inspect show it."""
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(volume.created_at // 1_000_000_000))
    return {
        "CreatedAt": created,
        "Driver": volume.driver,
        "Labels": volume.labels,
        "Mountpoint": volume.mountpoint,
        "Name": volume.name,
        "Options": volume.options,
        "Scope": "local",
    }


def usage_json(usage: Usage) -> dict[str, Any]:
    """One volume with what ``system df`` adds."""
    shape = volume_json(usage.volume)
    return {**shape, "UsageData": {"RefCount": usage.references, "Size": usage.size}}
