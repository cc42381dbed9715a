"""Stories of layers and snapshots on the real kernel: stacking, hostile archives, changes, diffs, removal."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import io
import os
import stat
import subprocess
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.kernel.mount import MountStep
from engine.snapshots import layers as layers_module
from engine.snapshots.base import Change, ChangeKind, LayerKey, Snapshotter, chain_id
from engine.snapshots.layers import BlobSource, Layers
from engine.snapshots.probe import open_snapshots
from engine.snapshots.trash import Trash
from engine.snapshots.workers import WorkerDied, Workers
from engine.tasks import Nursery, close_pools

pytestmark = pytest.mark.system


@dataclass
class Room:
    """Layers and snapshots below one root, wired as the daemon does."""

    root: Path
    workers: Workers
    trash: Trash
    layers: Layers
    snapshots: Snapshotter
    nursery: Nursery

    async def add(self, data: bytes, parents: tuple[str, ...] = ()) -> str:
        """Unpack an archive; its diff ID."""
        diff_id = "sha256:" + hashlib.sha256(data).hexdigest()
        blob = self.root / "blob"
        blob.write_bytes(data)
        await self.layers.unpack(BlobSource(blob), diff_id, parents)
        return diff_id

    def keys(self, *diff_ids: str) -> tuple[LayerKey, ...]:
        found = self.layers.resolve(diff_ids)
        assert found is not None
        return found

    def content(self, *diff_ids: str) -> Path:
        return self.layers.folder(self.keys(*diff_ids)[-1])


both = pytest.mark.parametrize("room", ["overlay2", "vfs"], indirect=True)


@pytest.fixture
async def room(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Room]:
    workers, nursery = Workers(), Nursery("test")
    trash = Trash(tmp_path / "trash", workers, nursery)
    layers = Layers(tmp_path, workers, trash, nursery)
    snapshots = await open_snapshots(tmp_path, workers, trash, layers, getattr(request, "param", ""))
    mounts = Path("/proc/self/mountinfo").read_text()
    yield Room(tmp_path, workers, trash, layers, snapshots, nursery)
    await nursery.aclose()
    await workers.aclose()
    close_pools()
    assert str(tmp_path) not in mounts
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


Member = tuple[str, bytes | None, dict[str, object]]


def folder(name: str, **fields: object) -> Member:
    return name, None, {"type": tarfile.DIRTYPE, "mode": 0o755, **fields}


def file(name: str, data: bytes = b"", **fields: object) -> Member:
    return name, data, fields


def link(name: str, target: str, **fields: object) -> Member:
    return name, None, {"type": tarfile.SYMTYPE, "linkname": target, **fields}


def hard(name: str, target: str) -> Member:
    return name, None, {"type": tarfile.LNKTYPE, "linkname": target}


def tar(*members: Member) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as writer:
        for name, data, fields in members:
            info = tarfile.TarInfo(name)
            info.size = len(data or b"")
            for key, value in fields.items():
                setattr(info, key, value)
            writer.addfile(info, io.BytesIO(data or b""))
    return out.getvalue()


def mounted(steps: tuple[MountStep, ...], target: Path, script: str) -> str:
    """Run a shell script in a mount namespace of its own where ``steps`` were performed at ``target``."""
    target.mkdir(exist_ok=True)
    lines = []
    for step in steps:
        kind = f"-t {step.fstype}" if step.fstype else ""
        lines.append(f"cd {step.cwd or '/'} && mount {kind} -o '{','.join(step.options)}' {step.source} {step.target}")
    command = " && ".join([*lines, f"cd {target}", script])
    done = subprocess.run(["unshare", "-m", "sh", "-ec", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def run_in(room: Room, key: str, diff_ids: tuple[str, ...], script: str) -> str:
    target = room.root / "mnt"
    steps = await room.snapshots.mount_steps(key, room.keys(*diff_ids), str(target))
    return await asyncio.to_thread(mounted, steps, target, script)


async def test_entries_arrive_with_owner_mode_time_and_attributes(room: Room) -> None:
    diff_id = await room.add(
        tar(
            folder("./", mode=0o711, uid=3, gid=4),
            folder("d", mode=0o1777, uid=5, mtime=1_600_000_000),
            file("d/f", b"hello", mode=0o4751, uid=7, gid=8, mtime=1_500_000_000),
            link("d/l", "/outside/none", uid=9),
            hard("h", "d/f"),
            ("null", None, {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3, "mode": 0o666}),
            ("pipe", None, {"type": tarfile.FIFOTYPE, "mode": 0o600}),
            file("x", pax_headers={"SCHILY.xattr.user.a": "b", "SCHILY.xattr.trusted.overlay.opaque": "y"}),
        )
    )
    root = room.content(diff_id)
    assert (stat.S_IMODE(root.stat().st_mode), root.stat().st_uid, root.stat().st_gid) == (0o711, 3, 4)
    info = (root / "d/f").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, info.st_mtime) == (0o4751, 7, 8, 1_500_000_000)
    assert (root / "h").stat().st_ino == info.st_ino
    assert ((root / "d").stat().st_mtime, stat.S_IMODE((root / "d").stat().st_mode)) == (1_600_000_000, 0o1777)
    assert (os.readlink(root / "d/l"), (root / "d/l").lstat().st_uid) == ("/outside/none", 9)
    assert (root / "null").stat().st_rdev == os.makedev(1, 3)
    assert stat.S_ISFIFO((root / "pipe").stat().st_mode)
    assert os.listxattr(root / "x") == ["user.a"]
    assert room.layers.size(room.keys(diff_id)[0]) == len("hello") + len("/outside/none")


async def test_one_content_is_unpacked_once_whoever_asks(room: Room) -> None:
    data = tar(folder("d"), file("d/f", os.urandom(3_000_000)))
    diff_id = "sha256:" + hashlib.sha256(data).hexdigest()
    blob = room.root / "blob.gz"
    blob.write_bytes(gzip.compress(data, 1))
    told: list[int] = []
    keys = await asyncio.gather(*(room.layers.unpack(BlobSource(blob), diff_id, (), told.append) for _ in range(8)))
    assert set(keys) == {diff_id[7:]}
    assert [layer.diff_id for layer in room.layers.all()] == [diff_id]
    assert told and max(told) <= blob.stat().st_size


async def test_a_wrong_diff_id_leaves_nothing(room: Room) -> None:
    blob = room.root / "blob"
    blob.write_bytes(tar(file("f", b"x")))
    with pytest.raises(ValueError, match="does not match its diff ID"):
        await room.layers.unpack(BlobSource(blob), "sha256:" + "0" * 64)
    assert room.layers.all() == []
    assert list((room.root / "layers" / "tmp").iterdir()) == []


async def test_cancelling_the_last_waiter_kills_the_job(room: Room) -> None:
    fifo = room.root / "never"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR)
    waiters = [asyncio.ensure_future(room.layers.unpack(BlobSource(fifo), "sha256:" + "1" * 64)) for _ in range(2)]
    while not list((room.root / "layers" / "tmp").iterdir()):
        await asyncio.sleep(0.01)
    waiters[0].cancel()
    await asyncio.sleep(0.05)
    assert not waiters[1].done()
    waiters[1].cancel()
    await asyncio.gather(*waiters, return_exceptions=True)
    while list((room.root / "layers" / "tmp").iterdir()):
        await asyncio.sleep(0.01)
    os.close(writer)


@both
async def test_deletions_hide_what_lies_below(room: Room) -> None:
    base = await room.add(
        tar(folder("a"), file("a/1"), file("a/2"), folder("b"), file("b/1"), file("c"), folder("e"), file("e/1"))
    )
    top = await room.add(
        tar(
            folder("a"), file("a/.wh.1"), folder("b"), file("b/new"), file("b/.wh..wh..opq"), file(".wh.c"),
            file(".wh.e"), folder("e"), file("e/2"), file("stays"), file(".wh.stays"),
        ),
        (base,),
    )  # fmt: skip
    assert room.keys(base, top)[1] == top[7:]
    await room.snapshots.prepare("s", room.keys(base, top))
    seen = await run_in(room, "s", (base, top), "find a b c e stays 2>/dev/null | sort; true")
    assert seen.split() == ["a", "a/2", "b", "b/new", "e", "e/2", "stays"]


@both
async def test_a_layer_that_needs_its_parents_is_bound_to_them(room: Room) -> None:
    base = await room.add(
        tar(folder("opt", mode=0o750, uid=42), file("opt/tool", b"t"), folder("lib"), link("l", "lib"))
    )
    data = tar(file("opt/more", b"m"), hard("copy", "opt/tool"), file("l/so", b"s"), file("opt/.wh.tool"))
    top = await room.add(data, (base,))
    key = room.keys(base, top)[1]
    assert key == chain_id([base, top])[7:]
    assert room.layers.get(key).parents == (base[7:],)
    await room.snapshots.prepare("s", room.keys(base, top))
    seen = await run_in(room, "s", (base, top), "stat -c '%n %a %u' opt; ls opt lib; cat copy; readlink l")
    assert seen.split() == ["opt", "750", "42", "lib:", "so", "opt:", "more", "tlib"]


async def test_a_bottom_layer_may_make_folders_up_but_is_bound_elsewhere(room: Room) -> None:
    data = tar(file("x/y", b"1"))
    base = await room.add(tar(folder("x", mode=0o700)))
    diff_id = await room.add(data)
    assert room.layers.resolve([base, diff_id]) is None
    assert await room.add(data, (base,)) == diff_id
    assert stat.S_IMODE((room.content(base, diff_id) / "x").stat().st_mode) == 0o700
    assert stat.S_IMODE((room.content(diff_id) / "x").stat().st_mode) == 0o755


async def test_bound_layers_wait_for_parents_that_arrive_later(room: Room) -> None:
    base, top = tar(folder("x")), tar(file("x/y"))
    ids = ["sha256:" + hashlib.sha256(data).hexdigest() for data in (base, top)]
    for name, data in zip("bt", (base, top), strict=True):
        (room.root / name).write_bytes(data)
    waiting = asyncio.ensure_future(room.layers.unpack(BlobSource(room.root / "t"), ids[1], ids[:1]))
    while room.layers._jobs or not list((room.root / "trash").iterdir()):
        await asyncio.sleep(0.01)
        if any(name[0] == chain_id(ids) for name in room.layers._jobs):
            break
    await room.layers.unpack(BlobSource(room.root / "b"), ids[0])
    assert await waiting == chain_id(ids)[7:]


HOSTILE = {
    "absolute name": (file("/etc/evil", b"x"), "etc/evil"),
    "climbing name": (file("../../../../etc/evil", b"x"), "etc/evil"),
    "inner climb": (file("a/../../b", b"x"), "b"),
}


@pytest.mark.parametrize("story", HOSTILE)
async def test_names_never_lead_out(room: Room, story: str) -> None:
    member, lands = HOSTILE[story]
    diff_id = await room.add(tar(member))
    assert (room.content(diff_id) / lands).read_bytes() == b"x"


async def test_links_never_lead_out(room: Room, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("mine")
    up = "../" * 20 + str(victim).lstrip("/")
    diff_id = await room.add(
        tar(
            folder(str(victim).lstrip("/")),
            link("abs", str(victim)), file("abs/evil", b"x"),
            link("rel", up), file("rel/evil2", b"x"),
            link("file", f"{victim}/file"), file("file", b"overwritten"),
            link("dangling", "/nowhere/at/all"), file("dangling/inside", b"x"),
        )
    )  # fmt: skip
    assert sorted(os.listdir(victim)) == ["file"]
    assert (victim / "file").read_text() == "mine"
    root = room.content(diff_id)
    assert sorted(os.listdir(root / str(victim).lstrip("/"))) == ["evil", "evil2"]
    assert (root / "file").read_bytes() == b"overwritten" and not (root / "file").is_symlink()


@pytest.mark.parametrize(
    "members",
    [
        (hard("h", "/etc/passwd"),),
        (hard("h", "../../etc/passwd"),),
        (link("l", "/etc"), hard("h", "l/passwd")),
        (file("d/.wh..."), file("d/.wh..")),
        (file(".wh."),),
        (file("n" * 300),),
        (("s", None, {"type": b"V"}),),
    ],
)
async def test_what_cannot_be_right_is_refused_whole(room: Room, members: tuple[Member, ...]) -> None:
    with pytest.raises((ValueError, OSError)):
        await room.add(tar(*members))
    assert room.layers.all() == []


async def test_kinds_may_change_within_an_archive(room: Room) -> None:
    diff_id = await room.add(
        tar(
            file("a"), folder("a"), file("a/b", b"1"), folder("c"), file("c/d"), file("c", b"2"),
            link("e", "a"), folder("e"), file("e/f"), file("g", b"old"), file("g", b"new"), hard("g", "g"),
        )
    )  # fmt: skip
    root = room.content(diff_id)
    assert (root / "a/b").read_bytes() == b"1"
    assert (root / "c").read_bytes() == b"2"
    assert sorted(os.listdir(root / "a")) == ["b"] and not (root / "e").is_symlink()
    assert (root / "g").read_bytes() == b"new"


async def test_one_place_under_two_names(room: Room) -> None:
    diff_id = await room.add(
        tar(
            folder("usr"), folder("usr/lib"), link("lib", "usr/lib"), file("usr/lib/a", b"1"), file("lib/a", b"2"),
            file("x", b"3"), file("x/y", b"4"),
        )
    )  # fmt: skip
    root = room.content(diff_id)
    assert ((root / "usr/lib/a").read_bytes(), (root / "x/y").read_bytes()) == (b"2", b"4")


async def test_many_small_files_arrive_whole(room: Room) -> None:
    members = [(f"d/{n}", os.urandom(n * 37 % 5000)) for n in range(400)]
    for name, data in members[::50]:  # some come twice, some are linked to while they may still be on their way
        members.append((name, data + b"again"))
    entries = [folder("d", mode=0o500), *(file(name, data) for name, data in members), hard("last", "d/399")]
    diff_id = await room.add(tar(*entries))
    for name, data in dict(members).items():
        assert (room.content(diff_id) / name).read_bytes() == data
    assert (room.content(diff_id) / "last").read_bytes() == dict(members)["d/399"]


async def test_127_layers_fit_one_mount(room: Room) -> None:
    ids: list[str] = []
    for number in range(127):
        ids.append(await room.add(tar(folder("d"), file(f"d/{number}", b"x")), tuple(ids[-1:])))
    await room.snapshots.prepare("s" * 64, room.keys(*ids))
    assert (await run_in(room, "s" * 64, tuple(ids), "ls d | wc -l")).strip() == "127"


@both
async def test_a_container_root_looks_like_the_image_says(room: Room) -> None:
    base = await room.add(
        tar(folder("./", mode=0o711, uid=12), folder("etc", mode=0o700, uid=13), file("etc/hosts", b"h"))
    )
    top = await room.add(tar(file("f")), (base,))
    await room.snapshots.prepare("s", room.keys(base, top))
    seen = await run_in(room, "s", (base, top), "stat -c '%a %u' . etc; cat etc/hosts; readlink etc/mtab; ls -A | sort")
    assert seen.split() == ["711", "12", "700", "13", "/proc/mounts", ".dockerenv", "dev", "etc", "f", "proc", "sys"]
    assert await room.snapshots.changes("s", room.keys(base, top)) == []


@both
async def test_changes_and_diff_of_a_written_snapshot(room: Room) -> None:
    base = await room.add(
        tar(
            folder("d"), file("d/keep"), file("d/gone"), file("d/edit", b"1"), folder("t"), file("t/in"), folder("r"),
            file("r/1"), file("r/2"), link("k", "d"), folder("m"),
        )
    )  # fmt: skip
    keys = room.keys(base)
    await room.snapshots.prepare("s", keys)
    script = (
        "rm d/gone; echo 2 >d/edit; mkdir -p n/m; echo x >n/m/f; rm -r t; rm -r r; mkdir r; echo >r/2; rm k; mkdir k;"
        "echo >k/x; chmod 700 m; ln n/m/f n/hard; mkfifo p"
    )
    await run_in(room, "s", (base,), script)
    changes = await room.snapshots.changes("s", keys)
    m, a, d = ChangeKind.MODIFIED, ChangeKind.ADDED, ChangeKind.DELETED
    assert changes == [
        Change(path, kind)
        for path, kind in (
            ("/d", m), ("/d/edit", m), ("/d/gone", d), ("/k", m), ("/k/x", a), ("/m", m), ("/n", a), ("/n/hard", a),
            ("/n/m", a), ("/n/m/f", a), ("/p", a), ("/r", m), ("/r/1", d), ("/r/2", m), ("/t", d),
        )
    ]  # fmt: skip
    out = room.root / "diff.tar"
    info = await room.snapshots.write_diff("s", keys, out)
    assert info.diff_id == "sha256:" + hashlib.sha256(out.read_bytes()).hexdigest()
    assert info.tar_bytes == out.stat().st_size
    with tarfile.open(out) as archive:
        names = archive.getnames()
    assert {"d/.wh.gone", ".wh.t", "n/hard", "k/x", "m"} <= set(names)
    assert {"r/.wh..wh..opq", "r/.wh.1"} & set(names)
    top = await room.add(out.read_bytes(), (base,))
    await room.snapshots.prepare("again", room.keys(base, top))
    look = "find . -mindepth 1 | sort; stat -c %h n/hard; stat -c %a m"
    assert await run_in(room, "again", (base, top), look) == await run_in(room, "s", (base,), look)
    if room.snapshots.name == "overlay2":
        assert (await room.snapshots.usage("s")).size_bytes == len("2\nx\n\n\n")


@both
async def test_removal_is_instant_and_leaves_nothing(room: Room) -> None:
    base = await room.add(tar(folder("d"), *(file(f"d/{n}") for n in range(500))))
    keys = room.keys(base)
    await room.snapshots.prepare("s", keys)
    assert await room.snapshots.keys() == ["s"]
    with pytest.raises(FileExistsError):
        await room.snapshots.prepare("s", keys)
    await room.snapshots.remove("s")
    assert await room.snapshots.keys() == []
    await room.layers.remove(keys[0])
    assert room.layers.resolve([base]) is None
    while list((room.root / "trash").iterdir()):
        await asyncio.sleep(0.01)
    left = {path.name for path in room.root.joinpath("layers").rglob("*")}
    assert left == {"l", "tmp", "init"}


async def test_a_restart_finds_layers_and_sweeps_the_rest(room: Room) -> None:
    base = await room.add(tar(file("f")))
    (room.root / "layers" / ("e" * 64) / "fs").mkdir(parents=True)
    (room.root / "layers" / "tmp" / "half").mkdir()
    (room.root / "snapshots" / "x.new").mkdir()
    await room.snapshots.prepare("kept", ())
    (room.root / "layers" / "init" / "torn" / "fs").mkdir(parents=True)
    (room.root / "layers" / "init" / "torn" / "stack.json").touch()
    (room.root / "layers" / "l" / "stale").symlink_to("nowhere")
    again = Layers(room.root, room.workers, room.trash, room.nursery)
    await open_snapshots(room.root, room.workers, room.trash, again)
    assert [layer.diff_id for layer in again.all()] == [base]
    assert sorted(p.name for p in (room.root / "layers").iterdir()) == sorted([base[7:], "l", "tmp", "init"])
    assert [p.name for p in (room.root / "layers" / "l").iterdir()] == [base[7:23]]
    assert list((room.root / "layers" / "tmp").iterdir()) == []
    assert [p.name for p in (room.root / "snapshots").iterdir()] == ["kept"]
    assert len(list((room.root / "layers" / "init").iterdir())) == 1


async def test_a_killed_worker_is_an_error_that_says_so(room: Room) -> None:
    fifo = room.root / "never"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR)
    args = {
        "source": str(fifo), "offset": 0, "length": None, "diff_id": "0" * 64, "target": str(room.root),
        "mode": "bottom", "steps": [], "copies": [],
    }  # fmt: skip
    async with room.workers.job("unpack", args) as job:
        children = subprocess.run(["pgrep", "-x", "berth-worker"], capture_output=True, text=True).stdout.split()
        mine = [int(pid) for pid in children if _grandparent(int(pid)) == os.getpid()]
        while not mine:
            await asyncio.sleep(0.01)
            children = subprocess.run(["pgrep", "-x", "berth-worker"], capture_output=True, text=True).stdout.split()
            mine = [int(pid) for pid in children if _grandparent(int(pid)) == os.getpid()]
        os.kill(mine[0], 9)
        with pytest.raises(WorkerDied, match="killed by signal 9"):
            await job.result()
    os.close(writer)


def _grandparent(pid: int) -> int:
    parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return int(Path(f"/proc/{parent}/stat").read_text().rsplit(")", 1)[1].split()[1])


async def test_the_foundry_ends_when_idle(tmp_path: Path) -> None:
    workers = Workers(idle_seconds=0.05)
    (tmp_path / "f").write_text("abc")
    assert await workers.run("usage", {"folders": [str(tmp_path)]}) == [[3, 1]]
    foundry = workers._foundry
    assert foundry is not None
    while foundry.process.poll() is None:
        await asyncio.sleep(0.01)
    assert await workers.run("usage", {"folders": [str(tmp_path)]}) == [[3, 1]]
    await workers.aclose()
    close_pools()


async def test_deletion_and_unpacking_do_not_wait_for_each_other(room: Room) -> None:
    for name in ("t1", "t2", "t3"):
        folder = room.root / name
        folder.mkdir()
        for number in range(250):  # too many for a pool thread
            (folder / str(number)).touch()
        await room.trash.take(folder)
    fifo = room.root / "never"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR)
    args = {
        "source": str(fifo), "offset": 0, "length": None, "diff_id": "0" * 64, "target": str(room.root),
        "mode": "bottom", "steps": [], "copies": [],
    }  # fmt: skip
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(os.cpu_count() or 2):  # every processor's lane is taken
            await stack.enter_async_context(room.workers.job("unpack", args))
        async with asyncio.timeout(20):
            while os.listdir(room.root / "trash"):
                await asyncio.sleep(0.01)
    os.close(writer)


async def test_a_transient_snapshot_can_be_mounted_again(room: Room) -> None:
    base = await room.add(tar(file("f", b"1")))
    keys = room.keys(base)
    await room.snapshots.prepare("s", keys)
    target = room.root / "mnt"
    for number in range(2):
        steps = await room.snapshots.mount_steps("s", keys, str(target), transient=True)
        assert (
            await asyncio.to_thread(mounted, steps, target, f"echo {number} >>g; cat g") == "0\n1\n"[: 2 * number + 2]
        )
    assert await run_in(room, "s", (base,), "cat g") == "0\n1\n"


async def test_a_layer_that_a_loss_of_power_may_have_spoilt_is_unpacked_again(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tar(file("f", b"right"))
    diff_id = await room.add(data)
    await room.snapshots.prepare("one", room.keys(diff_id))
    key = room.keys(diff_id)[0]
    (room.content(diff_id) / "f").write_bytes(b"00000")  # what was never written, though its length was
    monkeypatch.setattr(layers_module, "boot_id_sync", lambda: "another boot")
    again = Layers(room.root, room.workers, room.trash, room.nursery)
    await again.start()
    assert not again.has(key)
    with pytest.raises(FileNotFoundError, match="the layer is lost"):
        await again.require([key])

    async def mend(wanted: LayerKey) -> None:
        assert wanted == key
        await again.unpack(BlobSource(room.root / "blob"), diff_id)

    again.mend_with(mend)
    await again.require([key])
    assert (again.folder(key) / "f").read_bytes() == b"right"


async def test_a_layer_that_is_on_disk_is_kept_by_every_boot(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers_module, "SETTLE_SECONDS", 0.01)
    diff_id = await room.add(tar(file("f", b"right")))
    key = room.keys(diff_id)[0]
    mark = room.root / "layers" / key / "settled"
    async with asyncio.timeout(30):
        while not mark.exists():
            await asyncio.sleep(0.01)
    monkeypatch.setattr(layers_module, "boot_id_sync", lambda: "another boot")
    again = Layers(room.root, room.workers, room.trash, room.nursery)
    await again.start()
    assert again.has(key)


async def test_a_daemon_that_was_killed_leaves_the_rest_to_the_next(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    diff_id = await room.add(tar(file("f", b"right")))
    key = room.keys(diff_id)[0]
    again = Layers(room.root, room.workers, room.trash, room.nursery)
    await again.start()
    assert again.has(key) and not (room.root / "layers" / key / "settled").exists()
    await again.settle()
    assert (room.root / "layers" / key / "settled").exists()
