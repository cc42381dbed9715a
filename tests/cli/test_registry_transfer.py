import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from cli.registry_transfer import Copier
from registry.client.failures import RemoteError
from registry.client.fetch import RemoteManifest, RemoteSource
from registry.client.publish import RemoteTarget
from registry.digest import Digest
from registry.manifest import OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST, Descriptor, ImageManifest, Index, encode
from registry.store.blobs import BlobStore
from registry.store.filesystem import FilesystemDriver
from registry.store.leases import Leases
from registry.store.repositories import Repositories

from .test_registry import berth
from .test_registry_content import root  # noqa: F401


def test_an_exported_layout_can_be_imported(root: Path, tmp_path_factory: object) -> None:  # noqa: F811
    layout, other = root / "layout", root / "other"
    for tag in ("v1", "v2", "v1"):
        assert berth("export", f"a/b:{tag}", str(layout), "--root", str(root)).exit_code == 0
    index = json.loads((layout / "index.json").read_text())
    assert [item["annotations"]["org.opencontainers.image.ref.name"] for item in index["manifests"]] == ["v2", "v1"]
    taken = berth("import", str(layout), "x/y", "--root", str(other))
    assert sorted(taken.output.split()) == ["x/y:v1", "x/y:v2"]
    assert "no problems found" in berth("verify", "--root", str(other)).output
    one, two = (
        json.loads(berth("inspect", n, "--root", str(r)).output) for n, r in (("a/b:v1", root), ("x/y:v1", other))
    )
    assert one["digest"] == two["digest"]


def test_a_damaged_layout_is_refused(root: Path) -> None:  # noqa: F811
    layout = root / "layout"
    berth("export", "c", str(layout), "--root", str(root))
    for path in (layout / "blobs" / "sha256").iterdir():
        path.write_bytes(path.read_bytes() + b" ")
    answer = berth("import", str(layout), "x", "--root", str(root / "other"))
    assert answer.exit_code == 1 and "cannot import" in answer.output
    (layout / "index.json").write_text("{")
    assert berth("import", str(layout), "x", "--root", str(root / "other")).exit_code == 1


def test_copying_from_nowhere_says_so() -> None:
    answer = berth("copy", "127.0.0.1:1/a:v1", "127.0.0.1:1/b:v1")
    assert answer.exit_code == 1 and "connection refused" in answer.output
    assert "must be lowercase" in berth("copy", "127.0.0.1:1/A", "127.0.0.1:1/b").output


class Remote:
    """A repository in memory, to copy from and to."""

    def __init__(self) -> None:
        self.manifests: dict[str, tuple[bytes, str]] = {}
        self.blobs: dict[str, bytes] = {}

    async def manifest(self, reference: str) -> RemoteManifest:
        if reference not in self.manifests:
            raise RemoteError("GET", reference, 404)
        data, media_type = self.manifests[reference]
        return RemoteManifest(data, media_type, Digest.of(data))

    async def fetch(self, descriptor: Descriptor, writer: Any, _: Callable[[int], None]) -> None:
        if descriptor.digest not in self.blobs:
            raise RemoteError("GET", descriptor.digest, 404)
        await writer.write(self.blobs[descriptor.digest])

    async def has(self, digest: Digest) -> bool:
        return digest in self.blobs

    async def has_manifest(self, digest: Digest) -> bool:
        return digest in self.manifests

    async def upload(self, digest: Digest, path: Path, *_: object) -> None:
        self.blobs[digest] = path.read_bytes()

    async def put_manifest(self, reference: str, data: bytes, media_type: str) -> Digest:
        self.manifests[reference] = (data, media_type)
        return Digest.of(data)

    def add_blob(self, data: bytes, media_type: str = OCI_LAYER_GZIP, **more: Any) -> Descriptor:
        digest = Digest.of(data)
        self.blobs[digest] = data
        return Descriptor(media_type=media_type, digest=str(digest), size=len(data), **more)

    def add(self, document: ImageManifest | Index, tag: str = "") -> Descriptor:
        data = encode(document)
        for reference in (str(Digest.of(data)), *([tag] if tag else ())):
            self.manifests[reference] = (data, document.media_type)
        return Descriptor(media_type=document.media_type, digest=str(Digest.of(data)), size=len(data))


def nested(remote: Remote) -> None:
    """An index in an index, with a child that is not there, a layer of its own, and a layer that is elsewhere."""
    config = remote.add_blob(b"{}", "x/y")
    far = Descriptor(media_type=OCI_LAYER_GZIP, digest=str(Digest.of(b"far")), size=3, urls=["https://x/far"])
    image = remote.add(ImageManifest(media_type=OCI_MANIFEST, config=config, layers=[remote.add_blob(b"near"), far]))
    inner = remote.add(Index(media_type=OCI_INDEX, manifests=[image]))
    gone = Descriptor(media_type=OCI_MANIFEST, digest=str(Digest.of(b"gone")), size=4)
    remote.add(Index(media_type=OCI_INDEX, manifests=[inner, gone, remote.add_blob(b"cache")]), "v1")


def copy(source: Remote, target: Remote, folder: Path) -> None:
    scratch = BlobStore(FilesystemDriver(folder))
    copier = Copier(cast(RemoteSource, source), cast(RemoteTarget, target), scratch)
    asyncio.run(copier.copy("v1", "v2"))


def test_a_copy_has_all_that_the_source_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = Remote(), Remote()
    nested(source)
    copy(source, target, tmp_path)
    assert target.blobs == source.blobs and len(target.blobs) == 3
    top = Digest.of(source.manifests["v1"][0])
    assert target.manifests.keys() == source.manifests.keys() - {"v1", top} | {"v2"}
    assert target.manifests["v2"] == source.manifests["v1"]
    told = capsys.readouterr().out
    assert "not in the source, but at https://x/far" in told and f"{Digest.of(b'gone').encoded[:12]}: not in" in told


def test_a_copy_ends_where_a_blob_is_missing(tmp_path: Path) -> None:
    source = Remote()
    nested(source)
    del source.blobs[Digest.of(b"near")]
    with pytest.raises(RemoteError):
        copy(source, Remote(), tmp_path)


def test_a_layout_has_all_that_the_registry_has(tmp_path: Path) -> None:
    remote, one, other = Remote(), tmp_path / "one", tmp_path / "other"
    nested(remote)

    async def fill() -> None:
        blobs = BlobStore(FilesystemDriver(one))
        repositories = Repositories(blobs, Leases())
        for data in remote.blobs.values():
            await repositories.link_blob("a", await blobs.put(data))
        for reference, (data, media_type) in remote.manifests.items():
            await repositories.put_manifest("a", reference, data, media_type)

    asyncio.run(fill())
    layout = tmp_path / "layout"
    assert berth("export", "a:v1", str(layout), "--root", str(one)).exit_code == 0
    assert berth("import", str(layout), "b", "--root", str(other)).exit_code == 0
    assert "no problems found" in berth("verify", "--root", str(other)).output
    kept = {path.name for path in (layout / "blobs" / "sha256").iterdir()}
    assert kept == {Digest.parse(name).encoded for name in (*remote.blobs, *remote.manifests) if ":" in name}
