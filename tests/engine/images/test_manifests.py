"""Manifests of our own making."""

from __future__ import annotations

import pytest

from engine.images.manifests import compression_of, describe
from engine.images.model import Image, LayerBlob, parse_document
from registry import manifest as types
from registry.digest import Digest
from registry.manifest import parse_manifest

from .conftest import config_of, tar_of

LAYER = tar_of({"a": b"1"})


def image() -> Image:
    config = config_of(LAYER)
    return Image(str(Digest.of(config)), parse_document(config), (), (), config_size=len(config))


@pytest.mark.parametrize(
    ("stored", "oci", "manifest", "layer"),
    [
        (types.OCI_LAYER_GZIP, False, types.DOCKER_MANIFEST, types.DOCKER_LAYER_GZIP),
        (types.DOCKER_LAYER_GZIP, True, types.OCI_MANIFEST, types.OCI_LAYER_GZIP),
        (types.OCI_LAYER_ZSTD, False, types.OCI_MANIFEST, types.OCI_LAYER_ZSTD),
        (types.OCI_LAYER, True, types.OCI_MANIFEST, types.OCI_LAYER),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", False, types.OCI_MANIFEST, types.OCI_LAYER_ZSTD),
    ],
)
def test_types_follow_the_layers(stored: str, oci: bool, manifest: str, layer: str) -> None:
    data, media_type = describe(image(), [LayerBlob(Digest.of(b"l"), 7, stored)], oci=oci)
    parsed = parse_manifest(data, media_type)
    assert parsed.media_type == media_type == manifest
    assert [(one.media_type, one.size) for one in parsed.layers] == [(layer, 7)]
    assert parsed.config is not None and parsed.config.digest == image().id


def test_no_layer_type() -> None:
    with pytest.raises(ValueError, match="unsupported layer media type"):
        compression_of("application/json")
