"""Making containers: what the record says, and that a refused or failed create leaves nothing."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio

from engine.containers import create
from engine.containers.create import CreateRequest, Creator
from engine.containers.defaults import DaemonDefaults
from engine.containers.host import HostFacts
from engine.containers.model import Container, Status
from engine.containers.settings import (
    ContainerConfig,
    EndpointSettings,
    HostConfig,
    LogConfig,
    Mount,
    NetworkingConfig,
    VolumeOptions,
)
from engine.errors import Conflict, EngineError, InvalidParameter, NotFound
from engine.filters import Filters
from engine.images.model import RuntimeConfig
from engine.images.service import ImageService
from engine.journal import Journal
from engine.networks.service import NetworkService
from engine.runtime.oci import Runtime, Runtimes
from engine.snapshots.archive import Archives
from engine.snapshots.base import LayerKey, Snapshotter
from engine.volumes.service import VolumeService
from engine.volumes.store import VolumeStore
from registry.manifest import Platform
from tests.support.containers import container
from tests.support.runs import Bench, FakeImage, FakeImages, FakeJournal, FakeNetworks

IMAGE_ID = "sha256:" + "e" * 64


class NoUsers:
    """No container uses any volume."""

    def users_of_volume(self, name: str) -> tuple[str, ...]:
        return ()


class CreateBench(Bench):
    """A creator on fakes and real volumes."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, container(1, name="taken"))
        self.root = root
        self.copied: list[tuple[tuple[str, ...], str, Path]] = []
        self.copy_failure: Exception | None = None
        self.folders_made: list[str] = []
        image = FakeImage(IMAGE_ID, config=RuntimeConfig(cmd=["sh"], env=["A=1"], volumes={"/data": {}}))
        self.images = FakeImages({"busybox": image, "plain": FakeImage(IMAGE_ID, config=RuntimeConfig(cmd=["sh"]))})
        self.all_volumes = VolumeService(
            root / "volumes", VolumeStore(cast(Journal, FakeJournal())), self.events, self.nursery, NoUsers()
        )
        self.creator = Creator(
            DaemonDefaults(),
            HostFacts(),
            self.records,
            cast(ImageService, self.images),
            self.all_volumes,
            cast(NetworkService, FakeNetworks()),
            cast(Snapshotter, self.snapshotter),
            cast(Archives, self),
            root / "containers",
            Runtimes({"runc": cast(Runtime, None)}, "runc"),
        )

    async def copy_up(self, key: str, layers: Sequence[LayerKey], source: str, target: Path) -> None:
        if self.copy_failure is not None:
            raise self.copy_failure
        self.copied.append((tuple(layers), source, target))

    async def make_folder(self, key: str, layers: Sequence[LayerKey], folder: str) -> None:
        if folder == "/etc/passwd":
            raise NotADirectoryError(folder)
        self.folders_made.append(folder)

    async def create(
        self,
        name: str = "",
        *,
        config: dict[str, Any] | None = None,
        host: dict[str, Any] | None = None,
        networks: dict[str, EndpointSettings | None] | None = None,
    ) -> Container:
        request = CreateRequest(
            name,
            ContainerConfig(**{"image": "plain", **(config or {})}),
            HostConfig(**(host or {})),
            NetworkingConfig(endpoints_config=networks),
        )
        made, _ = await self.creator.create(request)
        return made

    def left(self) -> dict[str, object]:
        """Everything that a create may leave behind."""
        folder = self.root / "containers"
        return {
            "records": [c.name for c in self.store],
            "names": sorted(self.store._by_name),
            "folders": sorted(os.listdir(folder)) if folder.exists() else [],
            "snapshots": len(self.snapshotter.prepared) - len(self.snapshotter.removed),
            "volumes": [name for name in os.listdir(self.root / "volumes") if name != ".trash"],
            "events": self.events.past(Filters.parse('{"type": ["container"]}', ["type"]), 0),
        }


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[CreateBench]:
    made = CreateBench(tmp_path)
    await made.all_volumes.restore({})
    yield made
    await made.aclose()


async def test_a_containers_folders_are_on_disk_before_its_record(
    bench: CreateBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[Path, ...]] = []

    def note(*folders: Path) -> None:
        assert not bench.journal.load("container")
        assert len(os.listdir(bench.root / "containers")) == 1
        synced.append(folders)

    monkeypatch.setattr(create, "sync_folders_sync", note)
    await bench.create("web")
    assert synced == [(bench.root, bench.root / "containers")]


async def test_a_record_is_the_wish_over_the_image(bench: CreateBench) -> None:
    made = await bench.create("/web", config={"image": "busybox", "env": ("B=2",)})
    assert bench.now(made.id) is made
    assert (made.name, made.image, made.image_id) == ("web", "busybox", IMAGE_ID)
    assert (made.path, made.args) == ("sh", ())
    assert set(made.config.env or ()) == {"A=1", "B=2"}
    assert made.config.hostname == made.id[:12]
    assert made.layers == ("layer1", "layer2")
    assert made.state.status is Status.CREATED
    assert (made.host_config.network_mode, list(made.networks)) == ("default", ["bridge"])
    assert bench.snapshotter.prepared == [(made.id, ("layer1", "layer2"), None)]
    assert (bench.root / "containers" / made.id).is_dir()
    assert bench.journal.durable == [True]
    assert bench.attributes("create")["name"] == "web"


async def test_a_container_without_a_name_gets_one(bench: CreateBench) -> None:
    made = await bench.create()
    assert bench.store.find(made.name) is made
    assert "_" in made.name


async def test_anonymous_volumes_are_made_filled_and_remembered(bench: CreateBench) -> None:
    made = await bench.create(config={"image": "busybox"})
    (point,) = made.mounts
    assert (point.type, point.destination, point.driver) == ("volume", "/data", "local")
    assert made.anonymous_volumes == (point.name,)
    assert bench.copied == [(("layer1", "layer2"), "/data", Path(point.source))]


async def test_a_named_volume_that_exists_is_used_as_it_is(bench: CreateBench) -> None:
    volume = await bench.all_volumes.create("data")
    Path(volume.mountpoint, "here").touch()
    made = await bench.create(host={"binds": ("data:/srv",)})
    assert made.mounts[0].source == volume.mountpoint
    assert made.anonymous_volumes == ()
    assert bench.copied == []


async def test_labels_of_a_mount_go_to_its_volume(bench: CreateBench) -> None:
    wish = Mount(type="volume", source="fresh", target="/x", volume_options=VolumeOptions(labels={"a": "b"}))
    await bench.create(host={"mounts": (wish,)})
    assert bench.all_volumes.get("fresh").labels == {"a": "b"}


async def test_volumes_of_another_container(bench: CreateBench) -> None:
    await bench.create("first", host={"binds": ("data:/srv",)})
    made = await bench.create(host={"volumes_from": ("first:ro",)})
    assert (made.mounts[0].name, made.mounts[0].destination, made.mounts[0].rw) == ("data", "/srv", False)


async def test_anonymous_volumes_of_another_container_go_with_either(bench: CreateBench) -> None:
    first = await bench.create("first", config={"volumes": {"/srv": {}}}, host={"binds": ("data:/data",)})
    made = await bench.create(host={"volumes_from": ("first",)})
    assert len(first.anonymous_volumes) == 1
    assert made.anonymous_volumes == first.anonymous_volumes


async def test_links_are_kept_with_the_id_they_lead_to(bench: CreateBench) -> None:
    other = bench.store.find("taken")
    made = await bench.create(host={"links": ("taken:db",)})
    assert (made.host_config.links, made.link_ids) == (("taken:db",), {"db": other.id})


async def test_joined_networks_are_kept_by_id(bench: CreateBench) -> None:
    other = bench.store.find("taken")
    made = await bench.create(host={"network_mode": "container:taken"})
    assert made.host_config.network_mode == f"container:{other.id}"
    # Not found here would make the command line pull the image; the start says it.
    unknown = await bench.create(host={"network_mode": "container:nobody"})
    assert unknown.host_config.network_mode == "container:nobody"
    assert made.config.hostname == ""


async def test_networks_are_kept_by_name(bench: CreateBench) -> None:
    wish = EndpointSettings(aliases=("db",))
    made = await bench.create(networks={"n2": wish, "bridge": None}, host={"network_mode": "front"})
    assert made.networks == {"front": wish, "bridge": EndpointSettings()}


async def test_a_size_limit_reaches_the_snapshot(bench: CreateBench) -> None:
    await bench.create(host={"storage_opt": {"size": "1.5G"}})
    assert bench.snapshotter.prepared[0][2] == "1.5G"


@pytest.mark.parametrize(
    ("name", "config", "host", "kind", "words"),
    [
        ("taken", {}, {}, Conflict, 'The container name "/taken" is already in use'),
        ("-x", {}, {}, InvalidParameter, r"Invalid container name \(-x\), only \[a-zA-Z0-9\]"),
        ("ok", {"image": "gone"}, {}, NotFound, "No such image: gone"),
        ("ok", {"image": ""}, {}, InvalidParameter, "no command specified"),
        ("ok", {"stop_signal": "NOPE"}, {}, InvalidParameter, "NOPE"),
        ("ok", {}, {"storage_opt": {"colour": "red"}}, InvalidParameter, "Unknown option colour"),
        (
            "ok",
            {},
            {"log_config": LogConfig(type="syslog", config={"syslog-address": "unix:///no/socket"})},
            InvalidParameter,
            "^stat /no/socket: no such file or directory$",
        ),
        ("ok", {}, {"volumes_from": ("nobody",)}, InvalidParameter, "No such container: nobody"),
        ("ok", {}, {"binds": ("relative/x:/y",)}, InvalidParameter, "relative/x"),
        (
            "ok",
            {},
            {"mounts": (Mount(type="bind", source="/no/such/place", target="/x"),)},
            InvalidParameter,
            "bind source path does not exist: /no/such/place",
        ),
        ("ok", {}, {"links": ("nobody:db",)}, InvalidParameter, "could not get container for nobody"),
        ("ok", {}, {"runtime": "nope"}, InvalidParameter, "nope"),
        ("ok", {}, {"pid_mode": "container:nobody"}, InvalidParameter, "^No such container: nobody$"),
        ("ok", {}, {"ipc_mode": "container:nobody"}, InvalidParameter, "^No such container: nobody$"),
    ],
)
async def test_a_refused_create_leaves_nothing(
    bench: CreateBench,
    name: str,
    config: dict[str, Any],
    host: dict[str, Any],
    kind: type[EngineError],
    words: str,
) -> None:
    before = bench.left()
    with pytest.raises(kind, match=words):
        await bench.create(name, config=config, host=host)
    assert bench.left() == before


async def test_the_working_folder_is_written_plainly(bench: CreateBench) -> None:
    made = await bench.create(config={"working_dir": "/tmp//x/../"})
    assert made.config.working_dir == "/tmp"


async def test_a_volume_is_filled_below_its_subpath(bench: CreateBench) -> None:
    await bench.all_volumes.create("data", "", None, None)
    below = bench.root / "volumes" / "data" / "_data" / "sub"
    below.mkdir()
    (below.parent / "full").mkdir()
    (below.parent / "full" / "file").touch()
    for subpath in ("sub", "full", "none"):
        options = VolumeOptions(subpath=subpath)
        await bench.create(
            host={"mounts": (Mount(type="volume", source="data", target="/data", volume_options=options),)}
        )
    assert [target for _, _, target in bench.copied] == [below]


async def test_an_image_for_another_platform_is_not_found(bench: CreateBench) -> None:
    config, arm = ContainerConfig(image="plain"), Platform(architecture="arm64", os="linux", variant="v8")
    with pytest.raises(NotFound) as caught:
        await bench.creator.create(CreateRequest("ok", config, HostConfig(), NetworkingConfig(), arm))
    assert caught.value.message == (
        "image with reference plain was found but its platform (linux/amd64) "
        "does not match the specified platform (linux/arm64/v8)"
    )
    amd = Platform(architecture="amd64", os="linux")
    made, _ = await bench.creator.create(CreateRequest("ok", config, HostConfig(), NetworkingConfig(), amd))
    assert made.image == "plain"


async def test_a_failed_create_leaves_nothing(bench: CreateBench) -> None:
    before = bench.left()
    bench.snapshotter.failure = ValueError("size limits do not work here")
    with pytest.raises(InvalidParameter, match="size limits do not work here"):
        await bench.create("ok", config={"image": "busybox"})
    bench.snapshotter.failure = None
    bench.copy_failure = OSError("No space left on device")
    with pytest.raises(OSError, match="No space left"):
        await bench.create("ok", config={"image": "busybox"})
    bench.copy_failure = None
    bench.journal.failure = OSError("journal is full")
    with pytest.raises(OSError, match="journal is full"):
        await bench.create("ok", config={"image": "busybox"}, host={"binds": ("fresh:/srv",)})
    assert bench.left() == before


async def test_a_volume_that_was_there_survives_a_failed_create(bench: CreateBench) -> None:
    await bench.all_volumes.create("data")
    bench.journal.failure = OSError("journal is full")
    with pytest.raises(OSError, match="journal is full"):
        await bench.create("ok", host={"binds": ("data:/srv",)})
    assert bench.all_volumes.exists("data")


async def test_the_working_folder_is_there_from_the_create_on(bench: CreateBench) -> None:
    await bench.create("web", config={"working_dir": "/app/x/"})
    await bench.create("root", config={"working_dir": "/"})
    assert bench.folders_made == ["/app/x"]
    before = bench.left()
    with pytest.raises(InvalidParameter, match="Cannot mkdir: /etc/passwd is not a directory"):
        await bench.create("bad", config={"working_dir": "/etc/passwd"})
    assert {**bench.left(), "events": before["events"]} == before


async def test_an_image_is_mounted_by_its_layers(bench: CreateBench) -> None:
    made = await bench.create("web", host={"mounts": (Mount(type="image", source="busybox", target="/i"),)})
    (point,) = made.mounts
    assert (point.type, point.name, point.image_id, point.rw) == ("image", "busybox", IMAGE_ID, False)
    assert point.layers == bench.images.layer_keys
    with pytest.raises(NotFound, match="No such image: none"):
        await bench.create("bad", host={"mounts": (Mount(type="image", source="none", target="/i"),)})


@pytest.mark.parametrize(
    ("version", "shared", "mode"), [(1, True, "host"), (1, False, "private"), (2, True, "private")]
)
async def test_older_clients_share_the_hosts_control_groups_with_v1(
    bench: CreateBench, version: int, shared: bool, mode: str
) -> None:
    bench.creator.reload(DaemonDefaults(cgroupns_mode="private"))
    bench.creator._facts = HostFacts(cgroup_version=version, cgroup_namespaces=True)
    request = CreateRequest("", ContainerConfig(image="plain"), HostConfig(), NetworkingConfig(), shared_cgroups=shared)
    made, _ = await bench.creator.create(request)
    assert made.host_config.cgroupns_mode == mode
