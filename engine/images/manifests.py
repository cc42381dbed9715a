"""Manifests we write ourselves for images that came without one. Pure.

Docker's schema 2 where its types can say everything, as dockerd writes it; OCI where a layer is zstd-compressed, and
in saved archives.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.images.model import Image, LayerBlob
from registry import manifest as types
from registry.manifest import Descriptor, ImageManifest, encode

_COMPRESSION = {
    types.DOCKER_LAYER: "",
    types.OCI_LAYER: "",
    types.DOCKER_LAYER_GZIP: "gzip",
    types.OCI_LAYER_GZIP: "gzip",
    types.DOCKER_LAYER_FOREIGN: "gzip",
    types.OCI_LAYER_ZSTD: "zstd",
}
_DOCKER = {"": types.DOCKER_LAYER, "gzip": types.DOCKER_LAYER_GZIP}
_OCI = {"": types.OCI_LAYER, "gzip": types.OCI_LAYER_GZIP, "zstd": types.OCI_LAYER_ZSTD}


def compression_of(media_type: str) -> str:
    """``""``, ``gzip`` or ``zstd``, as a layer's media type says it. Raises ``ValueError`` for no layer type."""
    found = _COMPRESSION.get(media_type)
    if found is None:
        for suffix, name in (("+zstd", "zstd"), (".zstd", "zstd"), ("gzip", "gzip"), ("tar", "")):
            if media_type.endswith(suffix) and ("layer" in media_type or "diff" in media_type):
                return name
        raise ValueError(f"unsupported layer media type {media_type!r}")
    return found


def describe(image: Image, forms: Sequence[LayerBlob], *, oci: bool = False) -> tuple[bytes, str]:
    """The manifest of ``image`` over these layer blobs (bottom first), and its media type."""
    kinds = [compression_of(form.media_type) for form in forms]
    oci = oci or "zstd" in kinds
    layer_types = _OCI if oci else _DOCKER
    media_type = types.OCI_MANIFEST if oci else types.DOCKER_MANIFEST
    config_type = types.OCI_CONFIG if oci else types.DOCKER_CONFIG
    layers = [
        Descriptor(media_type=layer_types[kind], digest=str(form.digest), size=form.size)
        for kind, form in zip(kinds, forms, strict=True)
    ]
    config = Descriptor(media_type=config_type, digest=str(image.id), size=image.config_size)
    return encode(ImageManifest(media_type=media_type, config=config, layers=layers)), media_type
