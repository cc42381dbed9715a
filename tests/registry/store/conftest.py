from dataclasses import dataclass
from pathlib import Path

import pytest

from registry.digest import Digest
from registry.manifest import OCI_MANIFEST, Descriptor, ImageManifest, encode
from registry.store.blobs import BlobStore
from registry.store.filesystem import FilesystemDriver
from registry.store.leases import Leases
from registry.store.repositories import Repositories
from registry.store.uploads import Uploads


@dataclass
class Store:
    """A store in a temporary folder, with what tests do all the time."""

    root: Path
    blobs: BlobStore
    leases: Leases
    repositories: Repositories
    uploads: Uploads

    async def blob(self, repository: str, data: bytes) -> Digest:
        digest = await self.blobs.put(data)
        await self.repositories.link_blob(repository, digest)
        return digest

    async def image(self, repository: str, tag: str, layer: bytes = b"layer", **more: Descriptor) -> Digest:
        config, layer_digest = await self.blob(repository, b"{}"), await self.blob(repository, layer)
        document = ImageManifest(
            media_type=OCI_MANIFEST,
            config=Descriptor(digest=str(config), size=2),
            layers=[Descriptor(digest=str(layer_digest), size=len(layer))],
            **more,
        )
        return await self.repositories.put_manifest(repository, tag, encode(document))


def open_store(root: Path) -> Store:
    blobs, leases = BlobStore(FilesystemDriver(root)), Leases()
    repositories = Repositories(blobs, leases)
    return Store(root, blobs, leases, repositories, Uploads(blobs, repositories))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)
