"""Volumes on the wire."""

from __future__ import annotations

import pytest

from engine.api.shapes.volumes import VolumeCreate, decode_volume_create, usage_json, volume_json
from engine.errors import InvalidParameter
from engine.volumes.model import Usage, Volume

VOLUME = Volume(name="v", created_at=1_700_000_000_999_999_999, mountpoint="/m/_data")


def test_create_bodies() -> None:
    assert decode_volume_create(b'{"Name": "v", "driverOpts": {"type": "nfs"}, "Labels": null}') == VolumeCreate(
        name="v", driver_opts={"type": "nfs"}
    )
    with pytest.raises(
        InvalidParameter, match="cannot unmarshal number into Go struct field VolumeCreate.Name of type string"
    ):
        decode_volume_create(b'{"Name": 5}')


def test_a_volume_as_dockerd_prints_it() -> None:
    assert volume_json(VOLUME) == {
        "CreatedAt": "2023-11-14T22:13:20Z",
        "Driver": "local",
        "Labels": None,
        "Mountpoint": "/m/_data",
        "Name": "v",
        "Options": None,
        "Scope": "local",
    }
    assert usage_json(Usage(VOLUME, 5, 2))["UsageData"] == {"RefCount": 2, "Size": 5}
