"""An image store in a temporary folder, with layers that are verified but not unpacked: no root needed."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from engine.events import EventBus
from engine.filters import Filters
from engine.images.archive import ImageLoader
from engine.images.content import ImageContent
from engine.images.members import Inflater
from engine.images.model import Image
from engine.images.progress import Line
from engine.images.release import Release
from engine.images.removal import ImageRemover
from engine.images.save import ImageSaver
from engine.images.service import ImageService
from engine.images.store import ImageStore
from engine.images.transfers import Transfers
from engine.journal import Journal
from engine.snapshots.base import Layer, LayerKey
from engine.snapshots.layers import BlobSource
from engine.tasks import Nursery, run_blocking
from registry.manifest import Platform
from registry.reference import Reference
from registry.store.blobs import BlobStore
from registry.store.filesystem import FilesystemDriver
from registry.store.leases import Leases
from registry.store.repositories import Repositories

HOST = Platform(os="linux", architecture="amd64")


class FakeLayers:
    """Keeps the keys and sizes of layers whose diff ID was right."""

    def __init__(self) -> None:
        self.known: dict[LayerKey, int] = {}
        self.unpacked: list[str] = []
        self.settled = 0
        self.failure: OSError | None = None

    def has(self, key: LayerKey) -> bool:
        return key in self.known

    def find(self, parents: Sequence[str], diff_id: str) -> LayerKey | None:
        key = LayerKey(diff_id.removeprefix("sha256:"))
        return key if key in self.known else None

    def size(self, key: LayerKey) -> int:
        return self.known[key]

    def folder(self, key: LayerKey) -> Path:
        return Path("/layers") / key / "fs"

    async def unpack(
        self,
        source: BlobSource,
        diff_id: str,
        parents: Sequence[str] = (),
        progress: Callable[[int], None] | None = None,
    ) -> LayerKey:
        found = self.find(parents, diff_id)
        if found is not None:
            return found
        actual, size, read = await run_blocking(_measure_sync, source.path)
        if actual != diff_id:
            raise ValueError(f"layer is {actual}, not {diff_id}")
        if progress is not None and read >= 1 << 19:  # workers tell no smaller steps
            progress(read)
        key = LayerKey(diff_id.removeprefix("sha256:"))
        self.known[key] = size
        self.unpacked.append(diff_id)
        return key

    def all(self) -> list[Layer]:
        return [Layer(key, f"sha256:{key}", key[:16], size, False, False) for key, size in self.known.items()]

    async def remove(self, key: LayerKey) -> None:
        self.known.pop(key, None)

    async def settle(self) -> None:
        if self.failure is not None:
            raise self.failure
        self.settled += 1


def _measure_sync(path: Path) -> tuple[str, int, int]:
    raw = path.read_bytes()
    inflater = Inflater()
    plain = b"".join(inflater.feed_sync(raw)) + inflater.finish_sync()
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        size = sum(entry.size for entry in archive)
    return "sha256:" + hashlib.sha256(plain).hexdigest(), size, len(raw)


class Shop:
    """Every part of the images room, over one temporary folder."""

    def __init__(self, root: Path, journal: Journal) -> None:
        self.root = root
        self.journal = journal
        self.layers = FakeLayers()
        self.blobs = BlobStore(FilesystemDriver(root / "registry"))
        self.leases = Leases()
        self.repositories = Repositories(self.blobs, self.leases)
        self.nursery = Nursery("test")
        self.store = ImageStore(journal)
        self.content = ImageContent(self.store, self.blobs, self.layers, self.leases, nursery=self.nursery)
        self.content.release = self.release = Release(self.repositories, self.store.blobs, self.nursery)
        self.events = EventBus()
        self.service = ImageService(self.store, self.content, self.events)
        self.loader = ImageLoader(self.service, HOST)
        self.saver = ImageSaver(self.service)
        self.remover = ImageRemover(self.service)
        self.transfers = Transfers(self.nursery)

    async def make(self, name: str, files: dict[str, bytes], **options: object) -> Image:
        """An image of one layer with these files, called ``name``; ``options`` go to ``import``."""
        reference = Reference.parse(name) if name else None
        return await self.loader.import_tar(chunks(tar_of(files)), lambda _: None, reference=reference, **options)  # type: ignore[arg-type]

    async def load(self, data: bytes, quiet: bool = True, platform: Platform | None = None) -> list[Line]:
        """Load an archive; the lines that were reported."""
        lines: list[Line] = []
        await self.loader.load(chunks(data), lines.append, quiet=quiet, platform=platform)
        return lines

    async def save(self, *names: str) -> bytes:
        """A saved archive."""
        return b"".join([chunk async for chunk in self.saver.save(self.saver.select(names))])

    def actions(self) -> list[tuple[str, str]]:
        """What the event bus was told: action and name."""
        return [(e.action, e.attributes.get("name", "")) for e in self.events.past(Filters(), 0)]

    async def digests(self) -> set[str]:
        """Every blob in the store, once garbage is gone."""
        await self.release.settled()
        return {str(digest) async for digest in self.blobs.digests()}


@pytest_asyncio.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    journal = Journal(tmp_path / "journal.db")
    await run_blocking(journal.open_sync)
    made = Shop(tmp_path, journal)
    yield made
    await made.nursery.aclose()
    await journal.aclose()


def tar_of(files: dict[str, bytes], links: dict[str, str] | None = None, format: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar archive in memory; ``links`` are symbolic."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return out.getvalue()


def untar(data: bytes) -> dict[str, bytes]:
    """The files of a tar archive."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {entry.name: archive.extractfile(entry).read() for entry in archive if entry.isfile()}  # type: ignore[union-attr]


def config_of(*layers: bytes, **fields: object) -> bytes:
    """An image configuration over plain layer tars."""
    diff_ids = ["sha256:" + hashlib.sha256(layer).hexdigest() for layer in layers]
    document = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created": "2026-01-01T00:00:00Z"} for _ in layers],
        **fields,
    }
    return msgspec.json.encode(document)


async def chunks(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    """A body that arrives in pieces."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.fixture
def tar() -> Callable[..., bytes]:
    return tar_of
