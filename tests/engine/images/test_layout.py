"""What archives say they hold: old ones without a manifest, documents that are huge or loop."""

from __future__ import annotations

import gzip
import hashlib

import msgspec
import pytest

from engine.errors import EngineError, InvalidParameter
from engine.images.model import MAX_LAYERS
from registry.digest import Digest
from registry.manifest import OCI_INDEX

from .conftest import Shop, config_of, tar_of

LAYER = tar_of({"etc/a": b"hello"})
OTHER = tar_of({"etc/b": b"other"})


def old_archive(images: dict[str, tuple[str, bytes]], tags: dict[str, str], **fields: object) -> bytes:
    """As docker 1.9 wrote it: ``images`` are parent and layer by ID, ``tags`` name IDs in the repository ``old``."""
    files: dict[str, bytes] = {}
    for old_id, (parent, layer) in images.items():
        document = {
            "id": old_id,
            "parent": parent,
            "created": "2015-11-09T22:51:00.125Z",
            "container_config": {"Cmd": ["/bin/sh", "-c", f"#(nop) {old_id}"]},
            "config": {"Cmd": ["sh"]},
            "author": "me",
            "architecture": "amd64",
            "os": "linux",
            "Size": 5,
            **fields,
        }
        files |= {
            f"{old_id}/VERSION": b"1.0",
            f"{old_id}/json": msgspec.json.encode(document),
            f"{old_id}/layer.tar": layer,
        }
    return tar_of({**files, "repositories": msgspec.json.encode({"old": tags})})


async def test_an_archive_of_docker_1_9(shop: Shop) -> None:
    # The child comes first in the archive's order of names.
    await shop.load(
        old_archive(
            {"aaa": ("bbb", gzip.compress(OTHER)), "bbb": ("", LAYER)}, {"1": "aaa", "0": "bbb"}, docker_version="1.9.0"
        )
    )
    image, parent = shop.service.get("old:1"), shop.service.get("old:0")
    assert image.diff_ids == (str(Digest.of(LAYER)), str(Digest.of(OTHER)))
    assert image.parent == parent.id and parent.parent == ""
    # What dockerd 20.10 makes of the same archive.
    assert parent.id == "sha256:dda35ae56b27555ae815136c68b003a04661fe54d213e28f399b46ca0d89d2d8"
    assert image.config.cmd == ["sh"] and image.document.author == "me"
    assert [entry.created_by for entry in image.document.history or ()] == [
        "/bin/sh -c #(nop) bbb",
        "/bin/sh -c #(nop) aaa",
    ]
    document = msgspec.json.decode(await shop.blobs.read(image.digest))
    assert not {"id", "parent", "Size"} & set(document)
    assert not list(shop.blobs.temp_dir().iterdir())


@pytest.mark.parametrize(
    ("archive", "words"),
    [
        (old_archive({"aaa": ("", LAYER)}, {"1": "zzz"}), "invalid target ID: zzz"),
        (old_archive({"aaa": ("bbb", LAYER)}, {"1": "aaa"}), "open bbb/json: no such file or directory"),
        (old_archive({"aaa": ("bbb", LAYER), "bbb": ("aaa", LAYER)}, {"1": "aaa"}), "max depth exceeded"),
        (old_archive({"aaa": ("", LAYER)}, {"1": "aaa"}, os="windows"), "cannot load windows image on linux"),
        (tar_of({"repositories": b"[]"}), "invalid repositories"),
        (
            old_archive({f"{i:03}": (f"{i + 1:03}", LAYER) for i in range(MAX_LAYERS + 1)}, {"1": "000"}),
            "max depth exceeded",
        ),
        (
            old_archive({f"{i:03}": (f"{i - 1:03}" if i else "", LAYER) for i in range(MAX_LAYERS + 1)}, {"1": "000"}),
            "max depth exceeded",
        ),
    ],
)
async def test_old_archives_that_are_refused(shop: Shop, archive: bytes, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        await shop.load(archive)
    assert await shop.digests() == set()
    assert not list(shop.blobs.temp_dir().iterdir())


async def test_large_configurations_are_read_one_at_a_time(shop: Shop) -> None:
    files = {"c.json": b"{" + b" " * (9 << 20), "manifest.json": b'[{"Config":"c.json"}]'}
    with pytest.raises(EngineError, match="image configuration is too large"):
        await shop.load(tar_of(files))


async def test_indexes_that_lead_to_nothing_are_entered_once(shop: Shop) -> None:
    """Three levels of many equal entries would be read hundreds of millions of times otherwise."""
    files: dict[str, bytes] = {}
    digest, size = "sha256:" + "0" * 64, 0
    for _ in range(3):
        child = {"mediaType": OCI_INDEX, "digest": digest, "size": size}
        data = msgspec.json.encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child] * 600})
        digest, size = "sha256:" + hashlib.sha256(data).hexdigest(), len(data)
        files[f"blobs/sha256/{digest[7:]}"] = data
    top = {"schemaVersion": 2, "manifests": [{"mediaType": OCI_INDEX, "digest": digest, "size": size}]}
    assert await shop.load(tar_of({**files, "index.json": msgspec.json.encode(top)})) == []


async def test_a_parent_document_is_the_one_that_was_made(shop: Shop) -> None:
    archive = old_archive({"aaa": ("", LAYER)}, {"1": "aaa"})
    await shop.load(archive)
    await shop.load(archive)
    assert len(shop.store.all()) == 1
    assert shop.service.get("old:1").id != Digest.of(config_of(LAYER))
