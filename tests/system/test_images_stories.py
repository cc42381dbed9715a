"""Images for real: layers unpacked by workers, Debian's docker-registry and skopeo as the other side."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
import pytest_asyncio

from engine.config import Config
from engine.events import EventBus
from engine.images.archive import ImageLoader
from engine.images.content import ImageContent
from engine.images.progress import Line
from engine.images.release import Release
from engine.images.removal import ImageRemover
from engine.images.save import ImageSaver
from engine.images.service import ImageService
from engine.images.store import ImageStore
from engine.images.transport import ImageTransport, host_platform
from engine.journal import Journal
from engine.snapshots.layers import Layers
from engine.snapshots.trash import Trash
from engine.snapshots.workers import Workers
from engine.tasks import Nursery, run_blocking
from registry.client.credentials import AuthConfig
from registry.reference import Reference
from registry.store.blobs import BlobStore
from registry.store.filesystem import FilesystemDriver
from registry.store.leases import Leases
from registry.store.repositories import Repositories

pytestmark = pytest.mark.system


class Engine:
    """The images part of a daemon."""

    def __init__(self, root: Path, layers: Layers, journal: Journal, nursery: Nursery) -> None:
        self.layers = layers
        self.blobs = BlobStore(FilesystemDriver(root / "registry"))
        leases = Leases()
        self.store = ImageStore(journal)
        self.store.restore()
        content = ImageContent(self.store, self.blobs, layers, leases, nursery=nursery)
        self.release = content.release = Release(Repositories(self.blobs, leases), self.store.blobs, nursery)
        self.service = ImageService(self.store, content, EventBus())
        self.loader = ImageLoader(self.service, host_platform())
        self.saver = ImageSaver(self.service)
        self.remover = ImageRemover(self.service)
        self.transport = ImageTransport(Config(), self.service, None, nursery, ())

    async def blob_count(self) -> int:
        await self.release.settled()
        return len([digest async for digest in self.blobs.digests()])


@pytest_asyncio.fixture
async def engine(short_root: Path) -> AsyncIterator[Engine]:
    nursery, workers, journal = Nursery("images"), Workers(), Journal(short_root / "journal")
    await run_blocking(journal.open_sync)
    trash = Trash(short_root / "trash", workers, nursery)
    await trash.start()
    layers = Layers(short_root, workers, trash, nursery)
    await layers.start()
    made = Engine(short_root, layers, journal, nursery)
    yield made
    await made.transport.aclose()
    await nursery.aclose()
    await workers.aclose()
    await journal.aclose()


@pytest.fixture
def tree(short_root: Path) -> Path:
    """A small root file system as a tar."""
    root = short_root / "tree"
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    (root / "bin/sh").symlink_to("busybox")
    (root / "etc").mkdir(mode=0o700)
    (root / "etc/secret").write_text("s")
    os.chown(root / "etc/secret", 1234, 4321)
    os.link(root / "etc/secret", root / "etc/same")
    path = short_root / "tree.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(root, ".")
    return path


@pytest.fixture
def registry(short_root: Path, unused_tcp_port: int) -> Iterator[str]:
    """Debian's docker-registry on a loopback port."""
    config = short_root / "registry.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {short_root}/foreign}}}}\n"
        f"http: {{addr: 127.0.0.1:{unused_tcp_port}}}\n"
    )
    with (short_root / "registry.log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
    yield f"127.0.0.1:{unused_tcp_port}"
    process.terminate()
    process.wait(10)


async def stream(path: Path) -> AsyncIterator[bytes]:
    data = await asyncio.to_thread(path.read_bytes)
    for start in range(0, len(data), 100_000):
        yield data[start : start + 100_000]


async def imported(engine: Engine, tree: Path, name: str) -> str:
    image = await engine.loader.import_tar(
        stream(tree), lambda _: None, reference=Reference.parse(name), changes=["CMD sh"]
    )
    return image.id


async def answering(host: str) -> None:
    """Wait for the registry's port."""
    name, _, port = host.partition(":")
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection(name, int(port))
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            await writer.wait_closed()
            return


async def skopeo(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "skopeo", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_imported_files_are_as_they_were(engine: Engine, tree: Path) -> None:
    await imported(engine, tree, "box")
    image = engine.service.get("box")
    folder = engine.layers.folder((await engine.service.layers(image))[0])
    secret = (folder / "etc/secret").lstat()
    assert (secret.st_uid, secret.st_gid, secret.st_nlink) == (1234, 4321, 2)
    assert (folder / "etc").stat().st_mode & 0o7777 == 0o700
    assert os.readlink(folder / "bin/sh") == "busybox"
    assert image.size == (folder / "bin/busybox").stat().st_size + len("s") + len("busybox")
    await engine.remover.remove("box")
    assert not folder.exists() and await engine.blob_count() == 0


async def test_a_lost_layer_is_unpacked_again(engine: Engine, tree: Path) -> None:
    await imported(engine, tree, "box")
    image = engine.service.get("box")
    await engine.layers.remove(image.layers[0])
    (key,) = await engine.service.layers(image)
    assert (engine.layers.folder(key) / "bin/busybox").exists()


async def test_saved_archives_are_read_by_skopeo(engine: Engine, tree: Path, short_root: Path) -> None:
    image_id = await imported(engine, tree, "box:1")
    await engine.service.tag(engine.service.get("box:1"), "x.io/box", "2")
    path = short_root / "saved.tar"
    data = b"".join([chunk async for chunk in engine.saver.save(engine.saver.select(["box:1", "x.io/box:2"]))])
    await asyncio.to_thread(path.write_bytes, data)
    await skopeo("copy", f"docker-archive:{path}:x.io/box:2", f"dir:{short_root}/d1")
    await skopeo("copy", f"oci-archive:{path}:1", f"oci-archive:{short_root}/again.tar:box")
    await engine.remover.remove(image_id, force=True)
    lines: list[Line] = []
    await engine.loader.load(stream(short_root / "again.tar"), lines.append, quiet=True)
    assert len(engine.store.all()) == 1
    assert engine.store.all()[0].config.cmd == ["/bin/sh", "-c", "sh"]


async def test_through_debians_registry(engine: Engine, tree: Path, registry: str, short_root: Path) -> None:
    await answering(registry)
    nobody = AuthConfig()
    image_id = await imported(engine, tree, f"{registry}/team/box:1")
    async with aclosing(engine.transport.pusher.push(f"{registry}/team/box", "1", nobody)) as lines:
        pushed = [line async for line in lines]
    digest = pushed[-1]["aux"]["Digest"]
    shown = await skopeo("inspect", "--tls-verify=false", f"docker://{registry}/team/box:1")
    assert digest in shown
    await skopeo(
        "copy", "--src-tls-verify=false", "--dest-tls-verify=false", "--dest-compress-format=zstd", "--format=oci",
        f"docker://{registry}/team/box:1", f"docker://{registry}/team/box:zstd",
    )  # fmt: skip
    await engine.remover.remove(image_id, force=True)
    assert await engine.blob_count() == 0
    for tag in ("1", "zstd"):
        async with aclosing(engine.transport.puller.pull(f"{registry}/team/box", tag, nobody)) as lines:
            statuses = [line["status"] async for line in lines]
        assert statuses[-1] == f"Status: Downloaded newer image for {registry}/team/box:{tag}"
    assert engine.service.get(f"{registry}/team/box:1").id == image_id
    assert (engine.layers.folder(engine.service.get(image_id).layers[0]) / "bin/busybox").exists()


async def test_a_hostile_layer_stays_in_its_place(engine: Engine, short_root: Path) -> None:
    path = short_root / "evil.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, str(short_root)
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("out/planted"))
    try:
        await engine.loader.import_tar(stream(path), lambda _: None)
    except Exception as error:
        assert "out" in str(error)
    assert not (short_root / "planted").exists()
