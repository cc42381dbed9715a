"""load, import and save: formats, round trips, and what is refused without a trace."""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import io
import lzma
import tarfile
from collections.abc import Callable

import msgspec
import pytest
import zstandard

from engine.errors import EngineError, InvalidParameter, SystemFailure
from registry.digest import Digest
from registry.manifest import OCI_CONFIG, OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST, Platform
from registry.reference import Reference

from .conftest import Shop, chunks, config_of, tar_of, untar

LAYER = tar_of({"etc/a": b"hello"})
OTHER = tar_of({"etc/b": b"other"})


def docker_archive(config: bytes, layers: list[bytes], tags: list[str] | None, **entry: object) -> bytes:
    names = [f"{index}/layer.tar" for index in range(len(layers))]
    manifest = [{"Config": "c.json", "RepoTags": tags, "Layers": names, **entry}]
    files = dict(zip(names, layers, strict=True))
    return tar_of({**files, "c.json": config, "manifest.json": msgspec.json.encode(manifest)})


def oci_archive(config: bytes, layer: bytes, name: str, platform: dict[str, str] | None = None) -> tuple[bytes, str]:
    files: dict[str, bytes] = {}

    def blob(data: bytes, media_type: str, **more: object) -> dict[str, object]:
        encoded = hashlib.sha256(data).hexdigest()
        files[f"blobs/sha256/{encoded}"] = data
        return {"mediaType": media_type, "digest": f"sha256:{encoded}", "size": len(data), **more}

    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": blob(config, OCI_CONFIG),
        "layers": [blob(layer, OCI_LAYER_GZIP)],
    }
    inner = blob(
        msgspec.json.encode(manifest), OCI_MANIFEST, platform=platform or {"os": "linux", "architecture": "amd64"}
    )
    nested = blob(msgspec.json.encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [inner]}), OCI_INDEX)
    nested["annotations"] = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": "1"}
    index = {"schemaVersion": 2, "manifests": [nested]}
    files |= {"index.json": msgspec.json.encode(index), "oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
    return tar_of(files), str(inner["digest"])


@pytest.mark.parametrize(
    "pack",
    [bytes, gzip.compress, bz2.compress, lzma.compress, zstandard.ZstdCompressor().compress],
    ids=lambda p: p.__name__,
)
async def test_load_of_dockers_format(shop: Shop, pack: object) -> None:
    config = config_of(LAYER, OTHER, config={"Cmd": ["sh"]})
    lines = await shop.load(pack(docker_archive(config, [LAYER, OTHER], ["app:1", "x.io/app:2"])))  # type: ignore[operator]
    assert lines == [{"stream": "Loaded image: app:1\n"}, {"stream": "Loaded image: x.io/app:2\n"}]
    image = shop.service.get("app:1")
    assert image.id == Digest.of(config)
    assert image.config.cmd == ["sh"] and image.size == 10
    assert await shop.digests() == {image.id, *image.diff_ids}
    assert shop.actions() == [("load", image.id)]
    assert not list(shop.blobs.temp_dir().iterdir())


async def test_load_without_names_tells_the_id(shop: Shop) -> None:
    config = config_of(LAYER)
    lines = await shop.load(docker_archive(config, [LAYER], None), quiet=False)
    assert lines[0]["status"] == "Loading layer" and lines[0]["progressDetail"]["current"] == len(LAYER)
    assert lines[-1] == {"stream": f"Loaded image ID: {Digest.of(config)}\n"}


async def test_load_takes_a_name_over(shop: Shop) -> None:
    old = await shop.make("app:1", {"x": b"old"})
    lines = await shop.load(docker_archive(config_of(LAYER), [LAYER], ["app:1"]))
    assert lines[0]["stream"] == (
        f"The image app:1 already exists, renaming the old one with ID {old.id} to empty string\n"
    )
    assert shop.service.names(old.id) == ((), ())


async def test_load_of_an_oci_layout_keeps_its_manifest(shop: Shop) -> None:
    data, manifest = oci_archive(config_of(LAYER), gzip.compress(LAYER, mtime=0), "docker.io/library/app:1")
    await shop.load(data)
    image = shop.service.get("app:1")
    assert [m.digest for m in image.manifests] == [manifest]
    kept = await shop.content.kept_manifest(image)
    assert kept is not None and kept[1][0].media_type == OCI_LAYER_GZIP
    again = untar(await shop.save("app:1"))
    assert "blobs/sha256/" + manifest.removeprefix("sha256:") in again


async def test_links_between_layers_are_followed(shop: Shop) -> None:
    config = config_of(LAYER, LAYER)
    manifest = [{"Config": "c.json", "RepoTags": ["app:1"], "Layers": ["a/layer.tar", "b/layer.tar"]}]
    files = {"a/layer.tar": LAYER, "c.json": config, "manifest.json": msgspec.json.encode(manifest)}
    await shop.load(tar_of(files, {"b/layer.tar": "../a/layer.tar"}))
    assert shop.service.get("app:1").diff_ids == (str(Digest.of(LAYER)),) * 2


def several(*images: dict[str, object]) -> bytes:
    """An archive of images given as config, layers, tag and perhaps parent; equal layers lie in it once."""
    files: dict[str, bytes] = {}
    entries = []
    for image in images:
        layers, config = image["layers"], image["config"]
        assert isinstance(layers, list) and isinstance(config, bytes)
        names = [f"{Digest.of(layer).encoded}/layer.tar" for layer in layers]
        files |= dict(zip(names, layers, strict=True)) | {f"{Digest.of(config).encoded}.json": config}
        entry = {"Config": f"{Digest.of(config).encoded}.json", "RepoTags": [image["tag"]], "Layers": names}
        entries.append({**entry, "Parent": image["parent"]} if "parent" in image else entry)
    return tar_of({**files, "manifest.json": msgspec.json.encode(entries)})


async def test_images_of_one_archive_share_layers_and_know_their_parents(shop: Shop) -> None:
    base, child = config_of(LAYER), config_of(LAYER, OTHER)
    archive = several(
        {"config": child, "layers": [LAYER, OTHER], "tag": "child:1", "parent": str(Digest.of(base))},
        {"config": base, "layers": [LAYER], "tag": "base:1"},
    )
    lines = await shop.load(archive)
    assert [line["stream"] for line in lines] == ["Loaded image: child:1\n", "Loaded image: base:1\n"]
    assert shop.service.get("child:1").parent == Digest.of(base) and shop.service.get("base:1").parent == ""
    assert shop.store.children(str(Digest.of(base))) == {str(Digest.of(child))}
    assert not list(shop.blobs.temp_dir().iterdir())
    saved = await shop.save("child:1", "base:1")
    assert [entry.get("Parent") for entry in msgspec.json.decode(untar(saved)["manifest.json"])] == [
        str(Digest.of(base)),
        None,
    ]
    assert "Parent" not in msgspec.json.decode(untar(await shop.save("child:1"))["manifest.json"])[0]
    await shop.remover.remove("child:1")
    await shop.remover.remove("base:1")
    assert await shop.digests() == set()
    await shop.load(saved)
    assert shop.service.get("child:1").parent == Digest.of(base)


async def test_a_parent_outside_the_archive_is_none(shop: Shop) -> None:
    await shop.load(docker_archive(config_of(LAYER), [LAYER], ["base:1"]))
    parent = shop.service.get("base:1")
    config = config_of(LAYER, OTHER)
    await shop.load(docker_archive(config, [LAYER, OTHER], ["app:1"], Parent=str(parent.id)))
    assert shop.service.get("app:1").parent == ""
    assert shop.layers.unpacked.count(parent.diff_ids[0]) == 1


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
async def test_the_layer_of_another_image_cannot_be_given_other_bytes(
    shop: Shop, pack: Callable[[bytes], bytes]
) -> None:
    """A layer that is unpacked already is not unpacked again, but what is kept as its bytes is what pushes send."""
    await shop.load(docker_archive(config_of(LAYER), [LAYER], ["app:1"]))
    forms = shop.store.forms(str(Digest.of(LAYER)))
    forged = docker_archive(config_of(LAYER, author="x"), [pack(OTHER)], ["forged:1"])
    with pytest.raises(InvalidParameter, match=f"layer is {Digest.of(OTHER)}, not {Digest.of(LAYER)}"):
        await shop.load(forged)
    assert shop.store.forms(str(Digest.of(LAYER))) == forms
    assert await shop.digests() == {str(Digest.of(config_of(LAYER))), str(Digest.of(LAYER))}
    await shop.load(docker_archive(config_of(LAYER, author="y"), [gzip.compress(LAYER)], ["honest:1"]))
    assert len(shop.store.forms(str(Digest.of(LAYER)))) == 2


async def test_parents_in_a_circle_are_refused(shop: Shop) -> None:
    one, other = config_of(LAYER, history=[]), config_of(OTHER, history=[])
    archive = several(
        {"config": one, "layers": [LAYER], "tag": "a:1", "parent": str(Digest.of(other))},
        {"config": other, "layers": [OTHER], "tag": "b:1", "parent": str(Digest.of(one))},
    )
    with pytest.raises(InvalidParameter, match="is not a valid parent for"):
        await shop.load(archive)
    assert not any(image.parent for image in shop.store.all())


@pytest.mark.parametrize(
    ("archive", "words"),
    [
        (b"", "not an image archive"),
        (b"nonsense" * 100, "invalid tar header"),
        (tar_of({"a": b"1"}), "not an image archive"),
        (tar_of({"manifest.json": b"{"}), "invalid manifest.json"),
        (docker_archive(config_of(LAYER), [], ["a:1"]), "layers length mismatch: expected 0, got 1"),
        (docker_archive(config_of(LAYER), [OTHER], ["a:1"]), "layer is"),
        (docker_archive(b"{}x", [], ["a:1"]), "invalid image configuration"),
        (docker_archive(config_of(LAYER, OTHER), [LAYER, OTHER], ["a:1"])[:2000], "unexpected EOF"),
        (docker_archive(config_of(LAYER), [LAYER], ["A:1"]), "must be lowercase"),
    ],
)
async def test_refused_without_a_trace(shop: Shop, archive: bytes, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        await shop.load(archive)
    assert await shop.digests() == set()
    assert not list(shop.blobs.temp_dir().iterdir())
    assert not shop.layers.known and not shop.store.all()


async def test_a_missing_member_is_named(shop: Shop) -> None:
    manifest = [{"Config": "c.json", "Layers": ["gone/layer.tar"]}]
    with pytest.raises(InvalidParameter, match="open gone/layer.tar: no such file or directory"):
        await shop.load(tar_of({"c.json": config_of(LAYER), "manifest.json": msgspec.json.encode(manifest)}))


@pytest.mark.parametrize(
    ("pack", "stored"),
    [
        (bytes, LAYER),
        (gzip.compress, None),
        (zstandard.ZstdCompressor().compress, None),
        (lzma.compress, LAYER),
        (bz2.compress, LAYER),
    ],
    ids=["plain", "gzip", "zstd", "xz", "bzip2"],
)
async def test_import_keeps_what_a_push_can_use(shop: Shop, pack: object, stored: bytes | None) -> None:
    data = pack(LAYER)  # type: ignore[operator]
    image = await shop.loader.import_tar(
        chunks(data), lambda _: None, reference=Reference.parse("a:1"), changes=["CMD x"], message="hello"
    )
    assert image.diff_ids == (str(Digest.of(LAYER)),)
    assert await shop.digests() == {image.id, str(Digest.of(stored if stored is not None else data))}
    assert image.document.comment == "hello" and image.config.cmd == ["/bin/sh", "-c", "x"]
    assert image.platform.architecture == "amd64"
    assert [action for action, _ in shop.actions()] == ["import", "tag"]


@pytest.mark.parametrize("data", [b"", b"x", gzip.compress(LAYER)[:-9], b"not a tar" * 200])
async def test_import_of_nonsense(shop: Shop, data: bytes) -> None:
    with pytest.raises((EngineError, Exception)):
        await shop.loader.import_tar(chunks(data), lambda _: None)
    assert await shop.digests() == set()
    assert not list(shop.blobs.temp_dir().iterdir())


async def test_a_full_disk_is_told_in_words(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unpack(*_: object) -> object:
        raise OSError(errno.ENOSPC, "No space left on device", "/etc/a")

    monkeypatch.setattr(shop.layers, "unpack", unpack)
    words = "^Error processing tar file: /etc/a: no space left on device$"
    with pytest.raises(SystemFailure, match=words):
        await shop.make("app", {"a": b"1"})
    with pytest.raises(SystemFailure, match=words):
        await shop.load(docker_archive(config_of(LAYER), [LAYER], ["app:1"]))
    assert await shop.digests() == set()
    assert not list(shop.blobs.temp_dir().iterdir())


async def test_saved_archives_hold_both_formats(shop: Shop) -> None:
    await shop.load(docker_archive(config_of(LAYER, OTHER), [LAYER, OTHER], ["app:1", "app:2"]))
    image = shop.service.get("app:1")
    data = await shop.save("app:1", "app:2")
    files = untar(data)
    (entry,) = msgspec.json.decode(files["manifest.json"])
    assert entry["RepoTags"] == ["app:1", "app:2"]
    assert [files[name] for name in entry["Layers"]] == [LAYER, OTHER]
    assert Digest.of(files[entry["Config"]]) == image.id
    index = msgspec.json.decode(files["index.json"])
    assert {m["annotations"]["io.containerd.image.name"] for m in index["manifests"]} == {
        "docker.io/library/app:1",
        "docker.io/library/app:2",
    }
    assert all(Digest.of(files[n]).encoded == n.rpartition("/")[2] for n in files if n.startswith("blobs/"))
    assert msgspec.json.decode(files["repositories"]) == {
        "app": {"1": Digest.of(OTHER).encoded, "2": Digest.of(OTHER).encoded}
    }
    assert data == await shop.save("app:1", "app:2")
    assert len(data) % 10240 == 0


async def test_members_are_as_old_as_their_image(shop: Shop) -> None:
    entry = msgspec.json.decode(config_of(LAYER))
    old = msgspec.json.encode({**entry, "created": "2001-09-09T01:46:40.9Z"})
    ancient = msgspec.json.encode({**entry, "created": "0001-01-01T00:00:00Z"})
    await shop.load(docker_archive(old, [LAYER], ["old:1"]))
    await shop.load(docker_archive(ancient, [LAYER], ["ancient:1"]))

    async def times(name: str) -> dict[str, int]:
        with tarfile.open(fileobj=io.BytesIO(await shop.save(name))) as archive:
            return {member.name: int(member.mtime) for member in archive}

    found = await times("old:1")
    blobs = [f"blobs/sha256/{Digest.of(data).encoded}" for data in (old, LAYER)]
    assert {name for name, time in found.items() if time == 1_000_000_000} == {"blobs", "blobs/sha256", *blobs}
    assert set((await times("ancient:1")).values()) == {0}


async def test_a_save_or_load_of_one_platform(shop: Shop) -> None:
    arm, amd = Platform(os="linux", architecture="arm64"), Platform(os="linux", architecture="amd64")
    entry = msgspec.json.decode(config_of(LAYER))
    data = docker_archive(msgspec.json.encode({**entry, "architecture": "arm64"}), [LAYER], ["app:1"])
    assert await shop.load(data, platform=amd) == []
    assert not shop.store.all() and not await shop.digests()
    assert await shop.load(data, platform=arm) == [{"stream": "Loaded image: app:1\n"}]
    assert len(shop.saver.select(["app:1"], arm)) == 1
    with pytest.raises(SystemFailure, match="^no suitable export target found for platform linux/amd64$"):
        shop.saver.select(["app:1"], amd)


async def test_a_load_of_what_is_here_changes_nothing(shop: Shop) -> None:
    data, _ = oci_archive(config_of(LAYER), gzip.compress(LAYER, mtime=0), "docker.io/library/app:1")
    await shop.load(docker_archive(config_of(LAYER), [LAYER], ["app:1"]))
    before = shop.service.get("app:1")
    await shop.load(data)
    assert shop.service.get("app:1") == before


async def test_a_repository_means_all_its_tags(shop: Shop) -> None:
    image = await shop.make("app:1", {"a": b"1"})
    await shop.service.tag(image, "app", "2")
    other = await shop.make("other", {"b": b"2"})
    entries = msgspec.json.decode(untar(await shop.save("app", other.id[:20]))["manifest.json"])
    assert [entry["RepoTags"] for entry in entries] == [["app:1", "app:2"], None]


async def test_saved_and_loaded_again(shop: Shop) -> None:
    image = await shop.make("app:1", {"a": b"1"}, changes=["ENV A=1"])
    async with shop.content.packed(image.diff_ids[0]):
        pass
    data = await shop.save("app:1")
    await shop.remover.remove("app:1")
    assert await shop.digests() == set()
    await shop.load(data)
    assert shop.service.get("app:1").document == image.document


async def test_packing_replaces_the_plain_layer(shop: Shop) -> None:
    image = await shop.make("app:1", {"a": b"1" * 10_000})
    async with shop.content.packed(image.diff_ids[0]) as blob:
        pass
    async with shop.content.packed(image.diff_ids[0]) as again:
        pass
    assert blob == again and blob.size < 1000
    assert gzip.decompress(await shop.blobs.read(blob.digest)) == tar_of({"a": b"1" * 10_000})
    assert await shop.digests() == {image.id, blob.digest}


async def test_a_packed_layer_does_not_come_back_plain(shop: Shop) -> None:
    archive = docker_archive(config_of(LAYER), [LAYER], ["app:1"])
    await shop.load(archive)
    image = shop.service.get("app:1")
    async with shop.content.packed(image.diff_ids[0]) as blob:
        pass
    await shop.load(archive)
    assert await shop.digests() == {image.id, blob.digest}
    assert shop.store.forms(image.diff_ids[0]) == (blob,)
