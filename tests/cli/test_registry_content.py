import asyncio
import json
import os
from pathlib import Path

import pytest

from registry.digest import Digest
from registry.manifest import OCI_MANIFEST, Descriptor, ImageManifest, encode
from registry.store import filesystem
from registry.store.blobs import BlobStore
from registry.store.filesystem import FilesystemDriver
from registry.store.leases import Leases
from registry.store.repositories import Repositories

from .test_registry import berth


async def fill(root: Path, *names: str) -> Digest:
    blobs = BlobStore(FilesystemDriver(root))
    repositories = Repositories(blobs, Leases())
    digest = Digest.of(b"")
    for name in names:
        repository, _, tag = name.partition(":")
        config, layer = await blobs.put(b"{}"), await blobs.put(name.encode())
        for blob in (config, layer):
            await repositories.link_blob(repository, blob)
        document = ImageManifest(
            media_type=OCI_MANIFEST,
            config=Descriptor(digest=str(config), size=2),
            layers=[Descriptor(digest=str(layer), size=len(name))],
        )
        digest = await repositories.put_manifest(repository, tag, encode(document))
    return digest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    asyncio.run(fill(tmp_path, "a/b:v1", "a/b:v2", "c:latest"))
    return tmp_path


def test_listing_and_inspecting(root: Path) -> None:
    at = ("--root", str(root))
    assert berth("ls", *at).output == "a/b\nc\n"
    assert json.loads(berth("tags", "a/b", "--json", *at).output) == ["v1", "v2"]
    document = json.loads(berth("inspect", "c", *at).output)
    assert document["mediaType"] == OCI_MANIFEST and document["contentSize"] == 2 + len("c:latest")
    assert document["manifest"]["schemaVersion"] == 2
    for arguments in (("tags", "none"), ("inspect", "c:none"), ("inspect", "../c"), ("inspect", "c@sha256:x")):
        assert berth(*arguments, *at).exit_code == 1


def test_removing_then_collecting_frees_space(root: Path) -> None:
    at = ("--root", str(root))
    assert berth("rm", "a/b:v1", *at).output == "removed a/b:v1\n"
    assert berth("rm", "c", "--repository", *at).output == "removed c\n"
    assert berth("rm", "c", *at).exit_code == 1
    assert berth("rm", "a/b:v1", *at).exit_code == 1
    for path in root.rglob("*"):
        os.utime(path, (1000, 1000))
    dry = berth("gc", "-m", "--dry-run", *at).output
    assert "would remove manifest a/b@" in dry
    report = json.loads(berth("gc", "-m", "--json", *at).output)
    assert len(report["removed_blobs"]) == 4 and report["freed_bytes"] > 0
    assert "no problems found" in berth("verify", *at).output
    assert berth("tags", "a/b", *at).output == "v2\n"


def test_verify_fails_on_damage(root: Path) -> None:
    BlobStore(FilesystemDriver(root)).local_path(Digest.of(b"c:latest")).write_bytes(b"rotten")
    answer = berth("verify", "--root", str(root))
    assert answer.exit_code == 1 and "content has digest" in answer.output


@pytest.mark.parametrize("linked", [False, True])
def test_an_engines_registry_is_not_collected(tmp_path: Path, linked: bool) -> None:
    root = tmp_path / "data" / "registry"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "journal.db").touch()
    image = asyncio.run(BlobStore(FilesystemDriver(root)).put(b"a layer that only the engine needs"))
    blob = BlobStore(FilesystemDriver(root)).local_path(image)
    os.utime(blob, (1000, 1000))
    given = root
    if linked:
        given = tmp_path / "elsewhere"
        given.symlink_to(root)
    answer = berth("gc", "--grace", "0", "--root", str(given))
    assert answer.exit_code == 1 and "belongs to an engine" in answer.output
    assert blob.exists()


def test_collecting_goes_by_the_configuration_unless_told_otherwise(root: Path) -> None:
    config = root / "config.yml"
    storage = f"storage: {{filesystem: {{rootdirectory: {root}}}}}\n"
    config.write_text(f"version: 0.1\n{storage}berth: {{gc: {{grace: 0, untagged: true}}}}\n")
    assert berth("rm", "a/b:v1", "--root", str(root)).exit_code == 0
    at = ("-c", str(config), "--json", "--dry-run")
    assert len(json.loads(berth("gc", *at).output)["removed_manifests"]) == 1
    assert json.loads(berth("gc", *at, "--grace", "3600").output)["removed_manifests"] == []
    assert berth("gc", *at, "--grace", "-1").exit_code == 2


def test_a_folder_that_is_not_there_is_no_empty_registry(tmp_path: Path) -> None:
    for command in (("ls",), ("verify",), ("gc",), ("rm", "a:b")):
        answer = berth(*command, "--root", str(tmp_path / "none"))
        assert answer.exit_code == 1 and "there is no registry at" in answer.output


def test_a_storage_that_fails_is_told_in_a_sentence(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/srv/images")

    monkeypatch.setattr(filesystem, "find_folders_sync", fail)
    answer = berth("ls", "--root", str(root))
    assert answer.exit_code == 1 and answer.output == "Error: [Errno 13] Permission denied: '/srv/images'\n"
