"""A loss of power: what had reached the disk at a moment is all there is, and another boot finds it.

The data root lies on a disk of its own, an ext4 in a file. A copy of the file has what was written to the disk until
then, and nothing of what the kernel still had in memory.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from registry.digest import Digest
from tests.support.daemons import Berth
from tests.support.plain_registry import PlainRegistry
from tests.support.source_tree import PROJECT

pytestmark = pytest.mark.system

_DISK_BYTES = 1 << 30
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_LARGE_LINES = 500_000


@contextlib.contextmanager
def mounted(image: Path) -> Iterator[Path]:
    """The folder where the disk is mounted."""
    place = image.with_suffix(".mounted")
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
        place.rmdir()


def lose_power(disks: Path) -> None:
    """What ``disk`` has at this moment is ``copy``."""
    subprocess.run(["cp", "--sparse=always", str(disks / "disk"), str(disks / "copy")], check=True)


class Machine(Berth):
    """A berth whose data root is the disk ``image``; each has a boot of its own."""

    def __init__(self, image: Path) -> None:
        super().__init__(registry=False)
        self.mounted = contextlib.ExitStack()
        self.disk = self.mounted.enter_context(mounted(image))
        self.boot = self.root / "boot-id"
        self.boot.write_text(f"{self.root.name}\n")

    @property
    def data_root(self) -> Path:
        return self.disk / "data"

    def command(self) -> list[str]:
        show = f"mount --bind {shlex.quote(str(self.boot))} {_BOOT_ID} && exec {shlex.join(super().command())}"
        return ["unshare", "--mount", "--propagation", "slave", "sh", "-c", show]

    def off(self) -> None:
        """Nothing of it is left."""
        try:
            self.stop()
        finally:
            self.mounted.close()
            self.remove()


@pytest.fixture
def disks() -> Iterator[Path]:
    """A folder with the image of an empty file system, ``disk``."""
    folder = Path(tempfile.mkdtemp(prefix="berth-test-power-", dir="/var/tmp"))
    try:
        with (folder / "disk").open("wb") as image:
            image.truncate(_DISK_BYTES)
        probe = folder / "probe"
        probe.mkdir()
        script = f"mke2fs -q -t ext4 {folder}/disk && mount -o loop {folder}/disk {probe} && umount {probe}"
        tried = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
        if tried.returncode:
            pytest.skip(f"this host has no disks in files: {tried.stderr.strip()}")
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def machine(image: Path) -> Iterator[Machine]:
    made = Machine(image)
    try:
        made.start()
        yield made
    finally:
        made.off()


def import_image(engine: Berth, folder: Path) -> str:
    """The image ``app``: busybox, a large file, and a folder that volumes are filled from. The large file's text."""
    archive = subprocess.run([str(PROJECT / "deploy" / "busybox-rootfs")], capture_output=True, check=True).stdout
    tree = folder / "tree"
    tree.mkdir()
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive, check=True)
    large = "".join(f"{number}\n" for number in range(_LARGE_LINES))
    (tree / "large").write_text(large)
    (tree / "full").mkdir()
    for number in range(30):
        (tree / "full" / str(number)).write_text(f"{number}\n")
    packed = subprocess.run(["tar", "-c", "-C", str(tree), "."], capture_output=True, check=True).stdout
    engine.docker("import", "-", "app", check=True, stdin=packed)
    return large


def states_of(engine: Berth) -> dict[str, str]:
    listed = engine.docker("ps", "-a", "--format", "{{.Names}} {{.State}}", check=True).stdout.splitlines()
    return dict(line.split() for line in listed)


def test_what_was_answered_is_there_after_the_boot(disks: Path) -> None:
    with machine(disks / "disk") as before:
        import_image(before, disks)
        always = ("run", "-d", "--name", "always", "--restart", "always", "--network", "none", "app", "sleep", "1000")
        before.docker(*always, check=True)
        before.docker("run", "-d", "--rm", "--name", "once", "--network", "none", "app", "sleep", "1000", check=True)
        halted = ("run", "-d", "--name", "halted", "--restart", "unless-stopped", "--network", "none", "app")
        before.docker(*halted, "sleep", "1000", check=True)
        before.docker("stop", "-t", "0", "halted", check=True)
        before.docker("create", "--name", "gone", "app", "true", check=True)
        before.docker("volume", "create", "forgotten", check=True)
        before.docker("rm", "gone", check=True)
        before.docker("volume", "rm", "forgotten", check=True)
        before.docker("create", "--name", "made", "-v", "filled:/full", "--network", "none", "app", "true", check=True)
        before.docker("volume", "create", "--label", "a=b", "kept", check=True)
        lose_power(disks)
    with machine(disks / "copy") as after:
        end = time.monotonic() + 20
        while (states := states_of(after)).get("always") != "running" and time.monotonic() < end:
            time.sleep(0.1)
        assert states == {"made": "created", "always": "running", "halted": "exited"}, after.last_words()
        assert after.docker("volume", "ls", "-q", check=True).stdout.split() == ["filled", "kept"]
        assert after.docker("volume", "inspect", "-f", "{{.Labels.a}}", "kept", check=True).stdout == "b\n"
        shown = after.docker("run", "--rm", "--network", "none", "-v", "filled:/x", "app", "sh", "-c", "cat /x/*")
        assert sorted(shown.stdout.split(), key=int) == [str(number) for number in range(30)]
        after.docker("start", "-a", "made", check=True)


def test_a_layer_that_was_not_on_disk_is_not_trusted(disks: Path) -> None:
    with machine(disks / "disk") as before:
        large = import_image(before, disks)
        before.docker("create", "--name", "made", "--network", "none", "app", "cat", "/large", check=True)
        subprocess.run(["sync", "-f", str(before.disk)], check=True)
        lose_power(disks)
    after = Machine(disks / "copy")
    try:
        (spoilt,) = (after.data_root / "layers").glob("*/fs/large")
        spoilt.write_bytes(bytes(len(large)))  # as files are found whose length was written, and their content not
        after.start()
        assert after.docker("start", "-a", "made", check=True).stdout == large
        assert "it will be unpacked again" in after.log.read_text()
    finally:
        after.off()


@contextlib.contextmanager
def registry(disk: Path) -> Iterator[PlainRegistry]:
    with mounted(disk) as place:
        made = PlainRegistry(place / "root")
        try:
            yield made
        finally:
            made.stop()


@pytest.mark.parametrize("size", [3_000, 3_000_000])
async def test_what_was_pushed_and_deleted_is_so_after_the_boot(disks: Path, size: int) -> None:
    data = os.urandom(size)
    digest = Digest.of(data)
    blob = {"mediaType": "application/octet-stream", "digest": digest, "size": size}
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = json.dumps({"schemaVersion": 2, "mediaType": kind, "config": blob, "layers": []}).encode()
    async with aiohttp.ClientSession() as session:
        with registry(disks / "disk") as before:
            base = f"{before.base}/v2/a"
            async with session.post(f"{base}/blobs/uploads/") as answer:
                place = answer.headers["Location"]
            async with session.patch(place, data=io.BytesIO(data)) as answer:
                place = answer.headers["Location"]
            async with session.put(place, params={"digest": digest}) as answer:
                assert answer.status == 201
            for tag in ("kept", "gone"):
                url = f"{base}/manifests/{tag}"
                async with session.put(url, data=manifest, headers={"Content-Type": kind}) as answer:
                    assert answer.status == 201
            async with session.delete(f"{base}/manifests/gone") as answer:
                assert answer.status == 202
            lose_power(disks)
        with registry(disks / "copy") as after:
            base = f"{after.base}/v2/a"
            async with session.get(f"{base}/blobs/{digest}") as answer:
                assert await answer.read() == data
            async with session.get(f"{base}/manifests/kept") as answer:
                assert await answer.read() == manifest
            async with session.get(f"{base}/tags/list") as answer:
                assert (await answer.json())["tags"] == ["kept"]
