"""Pull and push, to a registry on a loopback port and to the embedded one: docker's lines, sharing, refusals."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import bcrypt
import msgspec
import pytest
import pytest_asyncio

from engine.config import Config
from engine.errors import EngineError, InvalidParameter, NotFound, SystemFailure, Unauthorized
from engine.images import content
from engine.images.embedded import Embedded
from engine.images.progress import Line
from engine.images.pull import choose_platform, pull_reference
from engine.images.transport import ImageTransport
from engine.tasks import run_to_end
from registry.client.credentials import AuthConfig
from registry.config import Settings
from registry.digest import Digest
from registry.manifest import (
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    Platform,
)
from registry.server.app import RegistryServer

from .conftest import Shop, chunks, config_of, tar_of

NOBODY = AuthConfig()
JOE = AuthConfig(username="joe", password="secret")
QUOTA = 100_000
LAYER = tar_of({"etc/a": b"hello" * 1000})


class Port:
    """A registry elsewhere, and one embedded, and the transport between them and the shop."""

    def __init__(self, shop: Shop, elsewhere: RegistryServer, embedded: RegistryServer, users: Path) -> None:
        self.shop = shop
        self.elsewhere = elsewhere
        self.embedded = embedded
        self.users = users
        self.host = f"127.0.0.1:{elsewhere.addresses()[0][1]}"
        self.home = f"127.0.0.1:{embedded.addresses()[0][1]}"
        self.images = ImageTransport(Config(), shop.service, embedded, shop.nursery, ())

    async def push(self, name: str, tag: str = "1", auth: AuthConfig = NOBODY) -> list[Line]:
        async with aclosing(self.images.pusher.push(name, tag, auth)) as lines:
            return [line async for line in lines]

    async def pull(
        self, name: str, tag: str = "1", auth: AuthConfig = NOBODY, platform: Platform | None = None
    ) -> list[Line]:
        async with aclosing(self.images.puller.pull(name, tag, auth, platform, all_tags=not tag)) as lines:
            return [line async for line in lines]


def words(lines: list[Line]) -> list[str]:
    """The distinct statuses in order, layer names left out."""
    return list(dict.fromkeys(line["status"] for line in lines if "status" in line))


@pytest_asyncio.fixture
async def port(shop: Shop, tmp_path: Path) -> AsyncIterator[Port]:
    users = tmp_path / "htpasswd"
    elsewhere = RegistryServer(Settings(root=tmp_path / "elsewhere", address="127.0.0.1:0"))
    embedded = RegistryServer(
        Settings(
            root=tmp_path / "registry",
            address="127.0.0.1:0",
            htpasswd=users,
            htpasswd_optional=True,
            immutable_tags=("firm/*",),
            quotas={"small": QUOTA},
        ),
        blobs=shop.blobs,
        leases=shop.leases,
    )
    await elsewhere.start()
    await embedded.start()
    made = Port(shop, elsewhere, embedded, users)
    yield made
    await made.images.aclose()
    await elsewhere.stop()
    await embedded.stop()


def add_user(port: Port) -> None:
    port.users.write_text("joe:" + bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode() + "\n")
    assert port.embedded.access.htpasswd is not None
    port.embedded.access.htpasswd.load_sync()


async def test_there_and_back(shop: Shop, port: Port) -> None:
    image = await shop.make(f"{port.host}/app:1", {"etc/a": b"hello" * 1000})
    layer = image.diff_ids[0].removeprefix("sha256:")[:12]
    pushed = await port.push(f"{port.host}/app")
    assert pushed[0] == {"status": f"The push refers to repository [{port.host}/app]"}
    assert pushed[1] == {"status": "Preparing", "progressDetail": {}, "id": layer}
    assert words(pushed)[2:4] == ["Pushing", "Pushed"]
    digest, size = pushed[-1]["aux"]["Digest"], pushed[-1]["aux"]["Size"]
    assert pushed[-2] == {"status": f"1: digest: {digest} size: {size}"}
    assert shop.service.names(image.id)[1] == (f"{port.host}/app@{digest}",)
    assert "Layer already exists" in words(await port.push(f"{port.host}/app"))

    await shop.remover.remove(image.id, force=True)
    assert await shop.digests() == set()
    pulled = await port.pull(f"{port.host}/app")
    assert words(pulled) == [
        "Pulling from app", "Pulling fs layer", "Downloading", "Verifying Checksum", "Download complete", "Extracting",
        "Pull complete",
        f"Digest: {digest}", f"Status: Downloaded newer image for {port.host}/app:1",
    ]  # fmt: skip
    again = shop.service.get(f"{port.host}/app:1")
    assert again.id == image.id and again.layers == image.layers
    assert words(await port.pull(f"{port.host}/app"))[-1] == f"Status: Image is up to date for {port.host}/app:1"
    assert shop.actions()[-1] == ("pull", f"{port.host}/app")


async def test_an_image_that_goes_while_it_is_pushed_arrives_and_leaves_nothing(
    shop: Shop, port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shop.make(f"{port.host}/app:1", {"etc/a": b"hello" * 1000})

    async def pack(*arguments: Any) -> Any:
        await shop.remover.remove(f"{port.host}/app:1", force=True)
        return await run_to_end(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(content, "run_to_end", pack)
        digest = (await port.push(f"{port.host}/app"))[-1]["aux"]["Digest"]
    assert await shop.digests() == set()
    await port.pull(f"{port.host}/app")
    assert shop.service.get(f"{port.host}/app@{digest}")


async def test_the_manifest_of_a_pull_is_pushed_as_it_is(shop: Shop, port: Port) -> None:
    await shop.make(f"{port.host}/app:1", {"a": b"1"})
    digest = (await port.push(f"{port.host}/app"))[-1]["aux"]["Digest"]
    await shop.remover.remove(f"{port.host}/app:1")
    await port.pull(f"{port.host}/app")
    await shop.service.tag(shop.service.get(f"{port.host}/app:1"), f"{port.home}/mine", "1")
    assert (await port.push(f"{port.home}/mine"))[-1]["aux"]["Digest"] == digest


async def test_layers_are_mounted_from_where_they_are_known_to_be(shop: Shop, port: Port) -> None:
    image = await shop.make(f"{port.host}/base:1", {"a": b"1"})
    await port.push(f"{port.host}/base")
    await shop.service.tag(image, f"{port.host}/team/app", "1")
    assert "Mounted from base" in words(await port.push(f"{port.host}/team/app"))


async def test_layers_that_are_here_are_not_fetched(shop: Shop, port: Port) -> None:
    base = await shop.make("base:1", {"a": b"1"})
    other = await shop.make(f"{port.host}/app:1", {"a": b"1"}, changes=["ENV A=1"])
    await port.push(f"{port.host}/app")
    await shop.remover.remove(f"{port.host}/app:1")
    assert words(await port.pull(f"{port.host}/app"))[1] == "Already exists"
    assert shop.service.get(other.id).layers == base.layers
    assert shop.layers.unpacked == [base.diff_ids[0]]


async def test_all_tags(shop: Shop, port: Port) -> None:
    one = await shop.make(f"{port.host}/app:1", {"a": b"1"})
    await shop.service.tag(one, f"{port.host}/app", "2")
    pushed = await port.push(f"{port.host}/app", "")
    assert [line["aux"]["Tag"] for line in pushed if "aux" in line] == ["1", "2"]
    await shop.remover.remove(one.id, force=True)
    pulled = await port.pull(f"{port.host}/app", "")
    assert pulled[-1] == {"status": f"Status: Downloaded newer image for {port.host}/app"}
    assert shop.service.names(one.id)[0] == (f"{port.host}/app:1", f"{port.host}/app:2")
    again = await port.pull(f"{port.host}/app", "")
    assert again[-1] == {"status": f"Status: Image is up to date for {port.host}/app"}


async def test_pull_by_digest(shop: Shop, port: Port) -> None:
    image = await shop.make(f"{port.host}/app:1", {"a": b"1"})
    digest = (await port.push(f"{port.host}/app"))[-1]["aux"]["Digest"]
    await shop.remover.remove(image.id)
    lines = await port.pull(f"{port.host}/app", digest)
    assert lines[0] == {"status": "Pulling from app", "id": digest}
    assert lines[-1] == {"status": f"Status: Downloaded newer image for {port.host}/app@{digest}"}
    assert shop.service.names(image.id) == ((), (f"{port.host}/app@{digest}",))


async def put_index(port: Port) -> tuple[str, dict[str, str]]:
    """A two-platform image in the other registry."""
    store = port.elsewhere.repositories

    async def blob(data: bytes, media_type: str) -> dict[str, object]:
        digest = await store.blobs.put(data)
        await store.link_blob("multi", digest)
        return {"mediaType": media_type, "digest": str(digest), "size": len(data)}

    children, ids = [], {}
    for architecture in ("arm64", "amd64"):
        config = config_of(LAYER, architecture=architecture)
        ids[architecture] = str(Digest.of(config))
        manifest = msgspec.json.encode(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": await blob(config, OCI_CONFIG),
                "layers": [await blob(gzip.compress(LAYER, mtime=0), OCI_LAYER_GZIP)],
            }
        )
        digest = await store.put_manifest("multi", f"{Digest.of(manifest)}", manifest, OCI_MANIFEST)
        platform = {"os": "linux", "architecture": architecture}
        children.append({"mediaType": OCI_MANIFEST, "digest": str(digest), "size": len(manifest), "platform": platform})
    index = msgspec.json.encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children})
    return str(await store.put_manifest("multi", "1", index, OCI_INDEX)), ids


async def test_the_hosts_platform_is_chosen_or_the_one_asked_for(shop: Shop, port: Port) -> None:
    digest, ids = await put_index(port)
    lines = await port.pull(f"{port.host}/multi")
    assert {"status": f"Digest: {digest}"} in lines
    image = shop.service.get(f"{port.host}/multi:1")
    assert image.id == ids["amd64"]
    assert [m.media_type for m in image.manifests] == [OCI_MANIFEST, OCI_INDEX]
    await port.pull(f"{port.host}/multi", platform=Platform(os="linux", architecture="arm64"))
    assert shop.service.get(f"{port.host}/multi:1").id == ids["arm64"]
    with pytest.raises(NotFound, match="no matching manifest for linux/riscv64 in the manifest list entries"):
        await port.pull(f"{port.host}/multi", platform=Platform(os="linux", architecture="riscv64"))
    shown = await port.images.puller.inspect_remote(f"{port.host}/multi:1", NOBODY)
    assert shown["Descriptor"]["digest"] == digest
    assert [p["architecture"] for p in shown["Platforms"]] == ["arm64", "amd64"]


def test_variants_rank() -> None:
    def child(variant: str) -> Descriptor:
        return Descriptor(digest=variant, platform=Platform("arm", "linux", variant=variant))

    children = [child("v5"), child("v7"), child("")]
    assert choose_platform(children, Platform("arm", "linux", variant="v7")).digest == "v7"
    assert choose_platform(children, Platform("arm", "linux", variant="v6")).digest == ""


async def test_two_pullers_share_one_download(shop: Shop, port: Port) -> None:
    await put_index(port)
    one, two = await asyncio.gather(port.pull(f"{port.host}/multi"), port.pull(f"{port.host}/multi"))
    assert one[-1] == two[-1]
    assert len(shop.layers.unpacked) == 1
    assert [action for action, _ in shop.actions()] == ["pull"]


@pytest.mark.parametrize(
    ("name", "tag", "sentence"),
    [
        ("{host}/gone", "1", "manifest for {host}/gone:1 not found: manifest unknown: manifest unknown"),
        ("{home}/gone", "1", "manifest for {home}/gone:1 not found: manifest unknown: manifest unknown"),
        ("{host}/UPPER", "1", "invalid reference format: repository name .* must be lowercase"),
        ("127.0.0.1:1/x", "1", 'Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused'),
    ],
)
async def test_pulls_that_fail(port: Port, name: str, tag: str, sentence: str) -> None:
    where = {"host": port.host, "home": port.home}
    with pytest.raises(EngineError, match="^" + sentence.format(**where).replace("(", r"\(")):
        await port.pull(name.format(**where), tag)


async def test_pushes_that_fail(shop: Shop, port: Port) -> None:
    with pytest.raises(SystemFailure, match=f"^An image does not exist locally with the tag: {port.host}/app$"):
        await port.push(f"{port.host}/app")
    await shop.make(f"{port.host}/app:1", {"a": b"1"})
    with pytest.raises(SystemFailure, match=f"^tag does not exist: {port.host}/app:2$"):
        await port.push(f"{port.host}/app", "2")


async def test_a_corrupt_blob_is_refused_and_leaves_nothing(shop: Shop, port: Port) -> None:
    await put_index(port)
    layer = Digest.of(gzip.compress(LAYER, mtime=0))
    path = port.elsewhere.blobs.local_path(layer)
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(SystemFailure, match=f"^filesystem layer verification failed for digest {layer}$"):
        await port.pull(f"{port.host}/multi")
    assert not shop.store.all() and not shop.layers.known
    assert layer not in await shop.digests()


async def test_a_push_to_the_embedded_registry_writes_links_only(shop: Shop, port: Port) -> None:
    image = await shop.make(f"{port.home}/app:1", {"a": b"1" * 1000})
    async with shop.content.packed(image.diff_ids[0]) as blob:
        pass
    before = await shop.digests()
    inode = shop.blobs.local_path(blob.digest).stat().st_ino
    lines = await port.push(f"{port.home}/app")
    digest = lines[-1]["aux"]["Digest"]
    assert await shop.digests() - before == {digest}
    assert shop.blobs.local_path(blob.digest).stat().st_ino == inode
    stored = await port.embedded.repositories.manifest("app", "1")
    assert stored.digest == digest and stored.media_type == DOCKER_MANIFEST
    assert (await port.embedded.repositories.tags("app")) == ["1"]
    await shop.remover.remove(f"{port.home}/app:1")
    lines = await port.pull(f"{port.home}/app")
    assert "Downloading" not in words(lines)
    assert shop.service.get(f"{port.home}/app:1").id == image.id


async def test_the_embedded_registry_wants_to_know_who_it_is(shop: Shop, port: Port) -> None:
    add_user(port)
    await shop.make(f"{port.home}/app:1", {"a": b"1"})
    with pytest.raises(SystemFailure, match="^no basic auth credentials$"):
        await port.push(f"{port.home}/app")
    with pytest.raises(SystemFailure, match="^unauthorized: authentication required$"):
        await port.push(f"{port.home}/app", auth=AuthConfig(username="joe", password="wrong"))
    assert await port.embedded.repositories.names() == []
    await port.push(f"{port.home}/app", auth=JOE)
    with pytest.raises(SystemFailure, match="no basic auth credentials"):
        await port.pull(f"{port.home}/app")
    await port.pull(f"{port.home}/app", auth=JOE)


async def test_login(port: Port) -> None:
    add_user(port)

    def to(server: str, password: str) -> AuthConfig:
        return AuthConfig(username="joe", password=password, serveraddress=server)

    assert await port.images.puller.login(to(port.home, "secret")) == ""
    assert await port.images.puller.login(to(port.host, "anything")) == ""
    with pytest.raises(
        Unauthorized, match=f"^login attempt to https://{port.home}/v2/ failed with status: 401 Unauthorized$"
    ):
        await port.images.puller.login(to(port.home, "wrong"))


async def test_login_over_http_is_refused_alike(shop: Shop, port: Port) -> None:
    add_user(port)
    foreign = ImageTransport(Config(), shop.service, None, shop.nursery, ())
    try:
        with pytest.raises(Unauthorized, match="failed with status: 401 Unauthorized$"):
            await foreign.puller.login(AuthConfig(username="joe", password="no", serveraddress=port.home))
        assert await foreign.puller.login(AuthConfig(username="joe", password="secret", serveraddress=port.home)) == ""
    finally:
        await foreign.aclose()


def test_names_of_the_embedded_registry(port_gate: Embedded) -> None:
    assert all(port_gate.is_at(f"{name}:5000") for name in ("localhost", "127.0.0.1", "[::1]", "box"))
    assert not any(port_gate.is_at(name) for name in ("localhost", "localhost:5001", "docker.io"))


async def test_a_collection_spares_the_engines_images(shop: Shop, port: Port) -> None:
    image = await shop.make("app:1", {"a": b"1"})
    stray = await shop.blobs.put(b"stray")
    await port.embedded.collector.collect(grace_seconds=-5.0)
    assert await shop.digests() == {image.id, *image.diff_ids}
    assert stray not in await shop.digests()


async def test_immutable_tags_hold_for_the_engine_too(shop: Shop, port: Port) -> None:
    await shop.make(f"{port.home}/firm/app:1", {"a": b"1"})
    pushed = await port.push(f"{port.home}/firm/app")
    assert (await port.push(f"{port.home}/firm/app"))[-1] == pushed[-1]
    await shop.make(f"{port.home}/firm/app:1", {"a": b"2"})
    with pytest.raises(SystemFailure, match="^denied: the tag 1 is immutable$"):
        await port.push(f"{port.home}/firm/app")
    assert await port.embedded.repositories.resolve("firm/app", "1") == pushed[-1]["aux"]["Digest"]


async def test_quotas_hold_for_the_engine_too(shop: Shop, port: Port) -> None:
    await shop.make(f"{port.home}/small/app:1", {"a": b"1"})
    await port.push(f"{port.home}/small/app")
    await shop.make(f"{port.home}/small/app:2", {"a": os.urandom(QUOTA)})
    with pytest.raises(SystemFailure, match="quota"):
        await port.push(f"{port.home}/small/app", "2")
    assert await port.embedded.repositories.tags("small/app") == ["1"]


async def test_quotas_hold_for_what_is_linked_from_another_repository(shop: Shop, port: Port) -> None:
    await shop.make(f"{port.home}/small/first:1", {"a": b"1"})
    await port.push(f"{port.home}/small/first")
    image = await shop.make(f"{port.home}/large/app:1", {"a": os.urandom(QUOTA)})
    await port.push(f"{port.home}/large/app")
    await shop.service.tag(image, f"{port.home}/small/app", "1")
    with pytest.raises(SystemFailure, match="quota"):
        await port.push(f"{port.home}/small/app")
    assert not await port.embedded.repositories.tags("small/app")


@pytest.fixture
def port_gate(tmp_path: Path) -> Embedded:
    server = RegistryServer(Settings(root=tmp_path))
    return Embedded(server.access, server.repositories, [("127.0.0.1", 5000)], ("box",))


@pytest.mark.parametrize(
    ("name", "tag", "meant"),
    [
        ("busybox", "latest", "docker.io/library/busybox:latest"),
        ("busybox:1", "2", "docker.io/library/busybox:2"),
        ("busybox:1", "", "docker.io/library/busybox:1"),
        ("busybox", "", "docker.io/library/busybox:latest"),
        ("x.io/a", "sha256:" + hashlib.sha256().hexdigest(), "x.io/a@sha256:" + hashlib.sha256().hexdigest()),
    ],
)
def test_what_a_pull_request_means(name: str, tag: str, meant: str) -> None:
    assert str(pull_reference(name, tag)) == meant


async def test_import_from_a_url(shop: Shop, port: Port) -> None:
    await shop.make(f"{port.host}/app:1", {"a": b"1"})
    await port.push(f"{port.host}/app")
    blob = shop.store.forms(shop.service.get(f"{port.host}/app:1").diff_ids[0])[0]
    body = await port.images.puller.download(f"{port.host}/v2/app/blobs/{blob.digest}")
    image = await shop.loader.import_tar(body, lambda _: None)
    assert image.size == 1
    with pytest.raises(NotFound, match="with status 404"):
        await port.images.puller.download(f"http://{port.host}/v2/nothing")
    with pytest.raises(InvalidParameter, match="invalid URL escape"):
        await port.images.puller.download("%2Fdata%2Ffile.tar")
    await shop.loader.import_tar(chunks(LAYER), lambda _: None)
