import json
from typing import Any

import pytest

from registry.errors import ManifestInvalid
from registry.manifest import (
    DOCKER_LAYER_FOREIGN,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    DOCKER_SCHEMA1_SIGNED,
    OCI_INDEX,
    OCI_LAYER_FOREIGN_PREFIX,
    OCI_MANIFEST,
    Descriptor,
    ImageManifest,
    Index,
    Kind,
    encode,
    media_type_of,
    parse_manifest,
)

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")
CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": A, "size": 2}
LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": B, "size": 10}


def image(**changes: Any) -> bytes:
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": CONFIG, "layers": [LAYER], **changes}
    return json.dumps({key: value for key, value in document.items() if value is not None}).encode()


def index(**changes: Any) -> bytes:
    child = {"mediaType": OCI_MANIFEST, "digest": C, "size": 5, "platform": {"architecture": "amd64", "os": "linux"}}
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child], **changes}
    return json.dumps({key: value for key, value in document.items() if value is not None}).encode()


def test_an_image_names_its_config_and_layers() -> None:
    manifest = parse_manifest(image(extra="kept"), OCI_MANIFEST + "; charset=utf-8")
    assert manifest.kind is Kind.IMAGE
    assert [item.digest for item in manifest.references()] == [A, B]
    assert b'"extra"' in manifest.data
    assert manifest.referrer_type == CONFIG["mediaType"]


def test_an_index_names_its_children() -> None:
    manifest = parse_manifest(index())
    assert manifest.kind is Kind.INDEX and manifest.blobs() == ()
    assert manifest.manifests[0].platform is not None
    assert manifest.manifests[0].platform.architecture == "amd64"


@pytest.mark.parametrize(
    ("data", "declared", "expected"),
    [
        (image(), "", OCI_MANIFEST),
        (image(mediaType=None), "", OCI_MANIFEST),
        (image(mediaType=None), DOCKER_MANIFEST, DOCKER_MANIFEST),
        (image(mediaType=None), "application/json", OCI_MANIFEST),
        (index(mediaType=None), "", OCI_INDEX),
        (index(mediaType=DOCKER_LIST), DOCKER_LIST, DOCKER_LIST),
    ],
)
def test_the_type_comes_from_the_document_then_from_the_header(data: bytes, declared: str, expected: str) -> None:
    assert parse_manifest(data, declared).media_type == expected


@pytest.mark.parametrize(
    ("data", "declared"),
    [
        (b"", ""),
        (b"not json", ""),
        (b"[]", ""),
        (b"\xff\xfe", ""),
        (b"[" * 100_000, ""),
        (image(schemaVersion=1), ""),
        (image(schemaVersion=None), ""),
        (image(), DOCKER_SCHEMA1_SIGNED),
        (image(), OCI_INDEX),
        (image(mediaType="text/plain"), ""),
        (image(config=None), ""),
        (image(manifests=[]), ""),
        (index(layers=[]), ""),
        (image(layers=[{**LAYER, "digest": "sha256:../../x"}]), ""),
        (image(layers=[{**LAYER, "size": -1}]), ""),
        (image(layers=[{**LAYER, "size": "big"}]), ""),
        (image(subject={**LAYER, "digest": "nonsense"}), ""),
    ],
)
def test_what_is_no_manifest_is_refused(data: bytes, declared: str) -> None:
    with pytest.raises(ManifestInvalid):
        parse_manifest(data, declared)


def test_artifacts_say_what_they_are() -> None:
    manifest = parse_manifest(image(artifactType="application/x.sbom", subject=LAYER))
    assert manifest.referrer_type == "application/x.sbom"
    assert manifest.subject is not None and manifest.subject.digest == B


def test_foreign_layers_are_known_by_type_and_say_where_they_are() -> None:
    for media_type in (DOCKER_LAYER_FOREIGN, OCI_LAYER_FOREIGN_PREFIX + "+gzip"):
        assert Descriptor(media_type=media_type, digest=B, urls=["https://x/l"]).is_foreign
        assert not Descriptor(media_type=media_type, digest=B).is_foreign
        assert not Descriptor(media_type=media_type, digest=B, urls=[]).is_foreign
    assert not Descriptor(media_type=str(LAYER["mediaType"]), digest=B, urls=["https://x/l"]).is_foreign


def test_what_an_index_lists_need_not_be_manifests() -> None:
    assert Descriptor(media_type=OCI_INDEX, digest=B).is_manifest and Descriptor(digest=B).is_manifest
    assert not Descriptor(media_type=str(LAYER["mediaType"]), digest=B).is_manifest


def test_what_we_write_is_what_we_read() -> None:
    ours = encode(ImageManifest(media_type=OCI_MANIFEST, config=Descriptor(digest=A, size=2), layers=[]))
    assert json.loads(ours)["schemaVersion"] == 2 and json.loads(ours)["layers"] == []
    assert media_type_of(ours) == OCI_MANIFEST
    assert json.loads(encode(Index(media_type=OCI_INDEX)))["manifests"] == []


def test_a_manifest_of_an_archive_need_not_say_its_version() -> None:
    data = b'{"mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}'
    assert parse_manifest(data, unversioned=True).kind is Kind.INDEX
    for refused in (data, b'{"schemaVersion": 3, "manifests": []}'):
        with pytest.raises(ManifestInvalid, match="unrecognized manifest schema version"):
            parse_manifest(refused)
    with pytest.raises(ManifestInvalid):
        parse_manifest(b'{"schemaVersion": 3, "manifests": []}', unversioned=True)
