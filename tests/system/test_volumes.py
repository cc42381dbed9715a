"""Volumes with file systems of their own, on the real kernel; and volumes through the real docker command line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import pytest_asyncio

from engine.errors import SystemFailure
from engine.events import EventBus
from engine.filters import Filters
from engine.journal import Journal
from engine.tasks import Nursery, run_blocking
from engine.volumes.service import LIST_FILTERS, VolumeService
from engine.volumes.store import VolumeStore

pytestmark = pytest.mark.system

TMPFS = {"type": "tmpfs", "device": "tmpfs", "o": "size=1m,mode=0700,nosuid"}
Docker = Callable[..., CompletedProcess[str]]


class NoUsers:
    """No container uses any volume."""

    def users_of_volume(self, name: str) -> tuple[str, ...]:
        return ()


class Bench:
    """A service that can be killed and started again on the same disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.journal = Journal(root / "journal")
        self.nursery = Nursery("volumes")

    async def start(self, running: dict[str, list[str]] | None = None) -> VolumeService:
        await self.journal.aclose()
        await run_blocking(self.journal.open_sync)
        store = VolumeStore(self.journal)
        service = VolumeService(self.root / "volumes", store, EventBus(), self.nursery, NoUsers())
        await service.restore(running or {})
        return service


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    service = await made.start()
    for volume in service.list(Filters.parse(None, LIST_FILTERS)):
        await service.remove(volume.name)
    await made.nursery.aclose()
    await made.journal.aclose()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def mount_of(path: Path) -> str:
    """The mountinfo line of a mount point, or empty."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return next((line for line in lines if line.split()[4] == str(path)), "")


async def test_a_file_system_lives_from_the_first_user_to_the_last(bench: Bench) -> None:
    volumes = await bench.start()
    await volumes.create("mem", options=TMPFS)
    path = volumes.path("mem")
    assert not mount_of(path)
    await volumes.mount("mem", "c1")
    await volumes.mount("mem", "c2")
    line = mount_of(path)
    assert "nosuid" in line
    assert "size=1024k,mode=700" in line
    (path / "file").write_text("kept while used")
    await volumes.unmount("mem", "c1")
    assert (path / "file").exists()
    await volumes.unmount("mem", "c2")
    assert not mount_of(path)
    assert not (path / "file").exists()


async def test_a_killed_daemon_finds_its_mounts_again(bench: Bench) -> None:
    volumes = await bench.start()
    for name in ("used", "left"):
        await volumes.create(name, options=TMPFS)
        await volumes.mount(name, "c1")
    again = await bench.start({"used": ["c1"]})
    assert mount_of(again.path("used"))
    assert not mount_of(again.path("left"))
    await again.unmount("used", "c1")
    assert not mount_of(again.path("used"))


async def test_a_reboot_took_the_mounts(bench: Bench) -> None:
    volumes = await bench.start()
    await volumes.create("mem", options=TMPFS)
    again = await bench.start({"mem": ["c1"]})
    await again.mount("mem", "c1")
    assert mount_of(again.path("mem"))
    await again.unmount("mem", "c1")


async def test_a_folder_of_the_host_as_a_volume(bench: Bench, tmp_path: Path) -> None:
    volumes = await bench.start()
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "file").write_text("precious")
    await volumes.create("bound", options={"type": "none", "device": str(tmp_path / "host"), "o": "bind,ro"})
    path = await volumes.mount("bound", "c1")
    assert (path / "file").read_text() == "precious"
    assert " ro," in mount_of(path)
    # A daemon that was killed while it was mounted, and a removal then: the host's files are not the volume's.
    again = await bench.start()
    await again.remove("bound")
    await bench.nursery.aclose()
    assert (tmp_path / "host" / "file").read_text() == "precious"


async def test_a_mount_that_fails_says_what_and_where(bench: Bench) -> None:
    volumes = await bench.start()
    await volumes.create("bad", options={"type": "none", "device": "/does/not/exist", "o": "bind"})
    with pytest.raises(SystemFailure) as caught:
        await volumes.mount("bad", "c1")
    path = volumes.path("bad")
    assert caught.value.message == (
        f"error while mounting volume '{path}': failed to mount local volume: mount /does/not/exist:{path}, "
        "flags: 0x1000: no such file or directory"
    )
    assert volumes.users("bad") == ()


def test_a_named_volume_keeps_what_a_container_wrote(docker: Docker) -> None:
    docker("run", "--rm", "-v", "story-keep:/data", "busybox", "sh", "-c", "echo kept > /data/file", check=True)
    again = docker("run", "--rm", "-v", "story-keep:/data:ro", "busybox", "cat", "/data/file", check=True)
    assert again.stdout == "kept\n"
    refused = docker("run", "--rm", "-v", "story-keep:/data:ro", "busybox", "touch", "/data/x")
    assert "Read-only file system" in refused.stderr
    docker("volume", "rm", "story-keep", check=True)


def test_a_volume_in_use_is_not_removed(docker: Docker) -> None:
    container = docker("create", "-v", "story-used:/data", "busybox", "true", check=True).stdout.strip()
    refused = docker("volume", "rm", "-f", "story-used")
    assert f"remove story-used: volume is in use - [{container}]" in refused.stderr
    assert docker("volume", "ls", "-q", "-f", "dangling=true").stdout.split() == []
    docker("rm", container, check=True)
    assert docker("volume", "ls", "-q", "-f", "dangling=true").stdout.split() == ["story-used"]
    docker("volume", "rm", "story-used", check=True)


def test_anonymous_volumes_go_with_their_container(docker: Docker) -> None:
    docker("run", "--rm", "-v", "/anon", "busybox", "true", check=True)
    assert docker("volume", "ls", "-q").stdout == ""
    container = docker("create", "-v", "/anon", "busybox", "true", check=True).stdout.strip()
    (mount,) = json.loads(docker("inspect", "-f", "{{json .Mounts}}", container, check=True).stdout)
    assert (mount["Type"], mount["Destination"], len(mount["Name"])) == ("volume", "/anon", 64)
    docker("rm", container, check=True)
    assert docker("volume", "ls", "-q").stdout.split() == [mount["Name"]]
    assert mount["Name"] in docker("volume", "prune", "-f", check=True).stdout


def test_an_empty_volume_is_filled_from_the_image(docker: Docker) -> None:
    filled = docker("run", "--rm", "-v", "story-fill:/bin", "busybox", "ls", "/bin/busybox")
    assert filled.stdout == "/bin/busybox\n"
    bare = docker(
        "run", "--rm", "--mount", "type=volume,src=story-bare,dst=/etc,volume-nocopy", "busybox", "ls", "/etc/passwd"
    )
    assert bare.returncode != 0
    docker("volume", "rm", "story-fill", "story-bare", check=True)


def test_a_tmpfs_volume_is_mounted_for_its_container(docker: Docker) -> None:
    options = [word for key, value in TMPFS.items() for word in ("-o", f"{key}={value}")]
    docker("volume", "create", *options, "story-mem", check=True)
    seen = docker("run", "--rm", "-v", "story-mem:/data", "busybox", "df", "-k", "/data", check=True)
    assert "tmpfs" in seen.stdout
    assert " 1024 " in seen.stdout
    place = docker("volume", "inspect", "-f", "{{.Mountpoint}}", "story-mem", check=True).stdout.strip()
    assert subprocess.run(["mountpoint", "-q", place], check=False).returncode != 0
    docker("volume", "rm", "story-mem", check=True)
