"""docker cp and export as users know them, on a stopped and on a running root, with volumes in view."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import stat
import struct
import subprocess
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from engine.containers.archive import worded
from engine.errors import EngineError, Forbidden, InvalidParameter, NotFound, SystemFailure
from engine.snapshots.archive import Archives, PathStat
from engine.snapshots.base import BindMount, LayerKey, RootView, Running
from engine.snapshots.layers import BlobSource, Layers
from engine.snapshots.overlay import OverlaySnapshotter
from engine.snapshots.trash import Trash
from engine.snapshots.workers import Workers
from engine.tasks import Nursery, close_pools

pytestmark = pytest.mark.system


@dataclass
class Room:
    """A container's root ``s`` over one layer, and what works on it."""

    root: Path
    snapshots: OverlaySnapshotter
    archives: Archives
    keys: tuple[LayerKey, ...]

    async def put(self, view: RootView, path: str, data: bytes, **options: Any) -> None:
        with worded(path, "c"):
            await self.archives.put(view, path, Body(data), **options)

    async def stat(self, view: RootView, path: str) -> PathStat:
        with worded(path, "c"):
            return await self.archives.stat(view, path)

    async def stopped(self, *binds: BindMount, read_only: bool = False) -> RootView:
        async with self.snapshots.view("s", self.keys, writable=True) as view:
            return replace(view, binds=binds, read_only=read_only)


def image() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as writer:

        def add(name: str, kind: bytes, data: bytes = b"", link: str = "", **fields: object) -> None:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname, info.mode = kind, len(data), link, 0o755
            info.mtime = 1_700_000_000
            for key, value in fields.items():
                setattr(info, key, value)
            writer.addfile(info, io.BytesIO(data))

        add("foo", tarfile.REGTYPE, b"hello")
        add("bar", tarfile.DIRTYPE)
        add("bar/quux", tarfile.DIRTYPE)
        add("bar/quux/baz", tarfile.REGTYPE, b"world")
        add("bar/filesymlink", tarfile.SYMTYPE, link="quux/baz")
        add("bar/dirsymlink", tarfile.SYMTYPE, link="quux")
        add("bar/notarget", tarfile.SYMTYPE, link="quux/missing")
        add("bar/root", tarfile.SYMTYPE, link="/")
        add("out", tarfile.SYMTYPE, link="/../../../../../../etc")
        add("bin", tarfile.DIRTYPE)
        add("bin/busybox", tarfile.REGTYPE, Path("/bin/busybox").read_bytes())
        add("vol", tarfile.DIRTYPE, mode=0o2750, uid=33, gid=34)
        add("vol/image", tarfile.REGTYPE, b"i", pax_headers={"SCHILY.xattr.user.key": "value"})
        add("vol/again", tarfile.LNKTYPE, link="vol/image")
    return out.getvalue()


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    workers, nursery = Workers(), Nursery("test")
    trash = Trash(tmp_path / "trash", workers, nursery)
    layers = Layers(tmp_path, workers, trash, nursery)
    snapshots = OverlaySnapshotter(tmp_path, layers, workers, trash)
    for part in (trash, layers, snapshots):
        await part.start()
    data = image()
    (tmp_path / "blob").write_bytes(data)
    diff_id = "sha256:" + hashlib.sha256(data).hexdigest()
    key = await layers.unpack(BlobSource(tmp_path / "blob"), diff_id)
    await snapshots.prepare("s", (key,))
    yield Room(tmp_path, snapshots, Archives(workers, layers, snapshots), (key,))
    await nursery.aclose()
    await workers.aclose()
    close_pools()


@pytest.fixture
async def running(room: Room) -> AsyncIterator[Running]:
    """A process with its own mount namespace and root, as a container's init has, and a volume at /vol."""
    target = room.root / "mnt"
    target.mkdir()
    (room.root / "volume").mkdir()
    (room.root / "volume" / "inside").write_text("v")
    (step,) = await room.snapshots.mount_steps("s", room.keys, str(target))
    script = (
        f"mount --make-rprivate /; cd {step.cwd}; mount -t overlay -o '{','.join(step.options)}' overlay {target};"
        f"mount --bind {room.root}/volume {target}/vol; cd {target};"
        "exec chroot . /bin/busybox sh -c 'echo ready; exec /bin/busybox sleep 60'"
    )
    process = await asyncio.create_subprocess_exec("unshare", "-m", "sh", "-ec", script, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    yield Running(process.pid)
    process.kill()
    await process.wait()
    process._transport.close()  # type: ignore[attr-defined]


async def names(room: Room, view: RootView, path: str) -> dict[str, bytes]:
    async with room.archives.get(view, path) as (_, chunks):
        data = b"".join([chunk async for chunk in chunks])
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for info in archive:
            content = archive.extractfile(info) if info.isreg() else None
            found[_raw_name(data, info)] = content.read() if content else b""
    return found


def _raw_name(data: bytes, info: tarfile.TarInfo) -> str:
    return data[info.offset : info.offset + 100].split(b"\0")[0].decode()


# moby's integration test of the endpoint (TestCopyFromContainer), as input and expectation.
NAMES = [
    ("/", {"/", "/foo", "/bar/quux/baz", "/bar/filesymlink", "/bar/dirsymlink", "/bar/notarget"}),
    (".", {"./", "./foo", "./bar/quux/baz", "./bar/filesymlink"}),
    ("/.", {"./", "./foo", "./bar/quux/baz"}),
    ("./", {"./", "./foo"}),
    ("/./", {"./", "./foo"}),
    ("/bar/root", {"root"}),
    ("/bar/root/", {"root/", "root/foo", "root/bar/quux/baz", "root/bar/dirsymlink"}),
    ("/bar/root/.", {"./", "./foo", "./bar/quux/baz"}),
    ("bar/quux", {"quux/", "quux/baz"}),
    ("bar/quux/", {"quux/", "quux/baz"}),
    ("bar/quux/.", {"./", "./baz"}),
    ("bar/quux/baz", {"baz"}),
    ("bar/filesymlink", {"filesymlink"}),
    ("bar/dirsymlink", {"dirsymlink"}),
    ("bar/dirsymlink/", {"dirsymlink/", "dirsymlink/baz"}),
    ("bar/dirsymlink/.", {"./", "./baz"}),
    ("bar/notarget", {"notarget"}),
]


async def test_names_in_what_is_copied_out(room: Room) -> None:
    view = await room.stopped()
    for path, wanted in NAMES:
        found = await names(room, view, path)
        assert wanted <= set(found), path
        if not wanted & {"/", "./", "root/"}:
            assert wanted == set(found), path
        for name, data in found.items():
            assert data == {"foo": b"hello", "baz": b"world"}.get(name.rpartition("/")[2], data)


async def test_stat(room: Room) -> None:
    view = await room.stopped()
    found = await room.stat(view, "/bar/filesymlink")
    assert (found.name, found.link_target, found.mode) == ("filesymlink", "/bar/quux/baz", 1 << 27 | 0o777)
    found = await room.stat(view, "bar/")
    assert (found.name, found.is_folder, found.mtime_ns) == ("bar", True, 1_700_000_000_000_000_000)
    assert (await room.stat(view, "out")).link_target == "/etc"


async def test_words_for_what_is_not_there(room: Room) -> None:
    view = await room.stopped()
    with pytest.raises(NotFound, match="^Could not find the file /dne in container c$"):
        await room.stat(view, "/dne")
    with pytest.raises(NotFound, match="^Could not find the file /dne/ in container c$"):
        await room.stat(view, "/dne/")
    with pytest.raises(SystemFailure, match="not a directory"):
        await room.stat(view, "/foo/")
    with pytest.raises(NotFound, match="^Could not find the file /dne in container c$"):
        await room.put(view, "/dne", b"")
    with pytest.raises(InvalidParameter, match="^extraction point is not a directory$"):
        await room.put(view, "/foo", b"")
    with pytest.raises(EngineError, match="tar"):
        await room.put(view, "/bar", b"this is no archive" * 100)


class Body:
    """An upload in small pieces."""

    def __init__(self, data: bytes, step: int = 65536) -> None:
        self._data = data
        self._step = step

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for place in range(0, len(self._data), self._step):
            yield self._data[place : place + self._step]


def upload(*members: tuple[str, bytes | None]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as writer:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.type = tarfile.REGTYPE if data is not None else tarfile.DIRTYPE
            info.size, info.uid, info.mode = len(data or b""), 1000, 0o755
            writer.addfile(info, io.BytesIO(data or b""))
    return out.getvalue()


async def test_copying_in_follows_links_inside_the_root_only(room: Room) -> None:
    view = await room.stopped()
    await room.put(view, "/bar/dirsymlink", upload(("new", b"n"), ("baz", b"changed")))
    upper = room.root / "snapshots/s/diff"
    assert (upper / "bar/quux/new").read_bytes() == b"n"
    assert (upper / "bar/quux/new").stat().st_uid == 1000
    assert (upper / "bar/quux/baz").read_bytes() == b"changed"
    await room.put(view, "/", upload(("bar/root/evil", b"e")))
    assert (upper / "evil").read_bytes() == b"e"
    with pytest.raises(NotFound):  # /out leads to the root's own /etc/..., which has no such folder
        await room.put(view, "/out/none", upload(("x", b"")))
    await room.put(view, "/out", upload(("berth-test-evil", b"")))
    assert not Path("/etc/berth-test-evil").exists()
    with pytest.raises(SystemFailure, match="outside"):
        await room.put(view, "/bar", upload(("../../x", b"")))


async def test_folders_and_files_do_not_replace_each_other_if_so_asked(room: Room) -> None:
    view = await room.stopped()
    put = room.put
    with pytest.raises(SystemFailure, match='cannot overwrite directory "/bar/quux" with non-directory "/bar"'):
        await put(view, "/bar", upload(("quux", b"x")), keep_kinds=True)
    with pytest.raises(SystemFailure, match='cannot overwrite non-directory "/foo" with directory "/"'):
        await put(view, "/", upload(("foo", None)), keep_kinds=True)
    await put(view, "/bar", upload(("quux", b"x")), owner=(5, 6))
    info = (room.root / "snapshots/s/diff/bar/quux").stat()
    assert (info.st_size, info.st_uid, info.st_gid) == (1, 5, 6)


# A default list of rights (acl(5)) in its on-disk form: the owner everything, the group and all others nothing.
DEFAULT_RIGHTS = struct.pack("<I" + "HHI" * 3, 2, 1, 7, 2**32 - 1, 4, 0, 2**32 - 1, 32, 0, 2**32 - 1)


async def test_files_are_as_the_archive_says_wherever_they_are_made(room: Room) -> None:
    """A folder that hands down its group or a list of rights, an umask, and files in the way change nothing of it."""
    view = await room.stopped()
    plain, group, rights = (room.root / "volume" / name for name in ("plain", "group", "rights"))
    for folder in (plain, group, rights):
        folder.mkdir(parents=True)
    os.chown(group, 33, 34)
    group.chmod(0o2755)
    os.setxattr(rights, "system.posix_acl_default", DEFAULT_RIGHTS)
    (plain / "there").write_text("older")
    (plain / "link").symlink_to("there")
    out = io.BytesIO()
    wanted = {}
    with tarfile.open(fileobj=out, mode="w") as writer:
        for folder in ("plain", "group", "rights"):
            for name, mode, uid in (("there", 0o666, 0), ("link", 0o640, 0), ("set", 0o6755, 0), ("other", 0o4711, 7)):
                info = tarfile.TarInfo(f"{folder}/{name}")
                info.size, info.mode, info.uid, info.gid, info.mtime = 3, mode, uid, uid, 1_600_000_000
                writer.addfile(info, io.BytesIO(b"new"))
                wanted[info.name] = (mode, uid, uid, 1_600_000_000)
    await room.put(replace(view, binds=(BindMount(str(room.root / "volume"), "/vol"),)), "/vol", out.getvalue())
    for name, expected in wanted.items():
        path = room.root / "volume" / name
        found = path.lstat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, int(found.st_mtime)) == expected, name
        assert stat.S_ISREG(found.st_mode) and path.read_bytes() == b"new", name


async def test_read_only_roots_and_volumes(room: Room) -> None:
    (room.root / "v1").mkdir()
    (room.root / "v2").mkdir()
    binds = (BindMount(str(room.root / "v1"), "/vol"), BindMount(str(room.root / "v2"), "/new/place", read_only=True))
    view = await room.stopped(*binds, read_only=True)
    with pytest.raises(Forbidden, match="^container rootfs is marked read-only$"):
        await room.put(view, "/bar", upload(("x", b"1")))
    with pytest.raises(Forbidden, match="^mounted volume is marked read-only$"):
        await room.put(view, "/new/place", upload(("x", b"1")))
    await room.put(view, "/vol", upload(("x", b"1")))
    assert (room.root / "v1" / "x").read_bytes() == b"1"
    assert set(await names(room, view, "/vol")) == {"vol/", "vol/x"}
    assert str(room.root) not in Path("/proc/self/mountinfo").read_text()


async def test_a_running_container_is_seen_with_its_volumes(room: Room, running: Running) -> None:
    assert await names(room, running, "/vol") == {"vol/": b"", "vol/inside": b"v"}
    await room.put(running, "/vol", upload(("x", b"1")))
    assert (room.root / "volume" / "x").read_bytes() == b"1"
    await room.put(running, "/", upload(("fresh", b"2")))
    assert (room.root / "snapshots/s/diff/fresh").read_bytes() == b"2"
    async with room.archives.export(running) as chunks:
        data = b"".join([chunk async for chunk in chunks])
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = archive.getnames()
    assert {"vol", "vol/image", "fresh", "bin/busybox", ".dockerenv"} <= set(found)
    assert "vol/inside" not in found
    bare = replace(running, bare=True)
    await room.put(bare, "/vol", upload(("hidden", b"3")))
    assert "vol/hidden" not in await names(room, running, "/vol")
    assert (await names(room, bare, "/vol"))["vol/hidden"] == b"3"


async def test_a_reader_that_leaves_early_ends_its_worker(room: Room) -> None:
    (room.root / "snapshots/s/diff/big").write_bytes(os.urandom(8_000_000))
    view = await room.stopped()
    async with asyncio.timeout(10):
        async with room.archives.get(view, "/big") as (found, chunks):
            assert found.size == 8_000_000
            assert await anext(chunks)


async def test_a_volume_is_filled_from_the_image(room: Room) -> None:
    volume, other, none = (room.root / name for name in ("volume", "other", "none"))
    for folder in (volume, other, none):
        folder.mkdir()
    await room.archives.copy_up("s", room.keys, "/vol", volume)
    info = volume.stat()
    assert (info.st_uid, info.st_gid, info.st_mode & 0o7777, info.st_mtime) == (33, 34, 0o2750, 1_700_000_000)
    assert (volume / "image").read_bytes() == b"i"
    assert (volume / "again").stat().st_ino == (volume / "image").stat().st_ino
    assert os.getxattr(volume / "image", "user.key") == b"value"
    await room.archives.copy_up("s", room.keys, "/bar/dirsymlink", other)
    assert (other / "baz").read_bytes() == b"world"
    for path in ("/nothing/here", "/foo", "/vol/image"):
        await room.archives.copy_up("s", room.keys, path, none)
    assert list(none.iterdir()) == []


async def test_a_folder_is_made_as_roots_with_its_parents(room: Room) -> None:
    await room.archives.make_folder("s", room.keys, "/srv/a/b")
    for path in ("srv/a", "srv/a/b"):
        info = (room.root / "snapshots/s/diff" / path).stat()
        assert (info.st_mode & 0o7777, info.st_uid) == (0o755, 0)
    await room.archives.make_folder("s", room.keys, "/vol")  # is there, in a layer: nothing is written
    assert not (room.root / "snapshots/s/diff/vol").exists()
    with pytest.raises(NotADirectoryError):
        await room.archives.make_folder("s", room.keys, "/foo/below")
