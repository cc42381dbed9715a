"""Hierarchies wherever they are mounted, groups of either version, on folders that look like a kernel's."""

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from engine.runtime import cgroups
from engine.runtime.cgroups import Cgroups, parse_mountinfo, resolve
from engine.runtime.cgroupstats import BlkioEntry

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:4 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /elsewhere/memory rw,relatime - cgroup cgroup rw,memory
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
PURE = "41 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"


def test_hierarchies_come_from_mountinfo() -> None:
    v1, unified = parse_mountinfo(HYBRID)
    assert v1 == {
        "cpu": "/sys/fs/cgroup/cpu,cpuacct",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
        "memory": "/elsewhere/memory",
        "freezer": "/sys/fs/cgroup/freezer",
        "name=systemd": "/sys/fs/cgroup/systemd",
    }
    assert unified == "/sys/fs/cgroup/unified"
    assert Cgroups(v1, unified).version == 1
    assert Cgroups(*parse_mountinfo(PURE)).version == 2


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("/docker/abc", "/docker/abc"),
        ("system.slice:docker:abc", "/system.slice/docker-abc.scope"),
        ("a-b-c.slice:docker:abc", "/a.slice/a-b.slice/a-b-c.slice/docker-abc.scope"),
        ("-.slice:docker:abc", "/docker-abc.scope"),
        ("user.slice::abc", "/user.slice/abc.scope"),
    ],
)
def test_a_cgroups_path_stands_for_a_folder(path: str, folder: str) -> None:
    assert resolve(path) == folder


def test_default_parents_are_dockerds() -> None:
    assert Cgroups({}, "/x").container_path("abc") == "/docker/abc"
    assert Cgroups({}, "/x").container_path("abc", "/mine/") == "/mine/abc"
    assert Cgroups({}, "/x", "systemd").container_path("abc") == "system.slice:docker:abc"


def fill(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


def test_counters_of_v1(tmp_path: Path) -> None:
    for kind in ("cpu", "cpuacct", "memory", "pids", "blkio", "cpuset"):
        (tmp_path / kind).mkdir()
    ticks = "user 3\nsystem 4\n"
    fill(tmp_path / "cpu/docker/c", cpu__stat="nr_periods 4\nnr_throttled 2\nthrottled_time 30\n", cpu__shares="512")
    fill(tmp_path / "cpuacct/docker/c", cpuacct__usage="900", cpuacct__usage_percpu="400 500 ", cpuacct__stat=ticks)
    fill(
        tmp_path / "memory/docker/c",
        memory__usage_in_bytes="100",
        memory__limit_in_bytes="9223372036854771712",
        memory__stat="cache 5\ntotal_inactive_file 7\n",
    )
    fill(tmp_path / "pids/docker/c", pids__current="3", pids__max="max")
    fill(tmp_path / "blkio/docker/c", **{"blkio.throttle.io_service_bytes": "8:0 Read 10\n8:0 Total 10\nTotal 10\n"})
    groups = Cgroups({kind: str(tmp_path / kind) for kind in ("cpu", "cpuacct", "memory", "pids", "blkio")}, "")
    stats = groups.stats_sync("/docker/c")
    assert (stats.cpu_total, stats.cpu_percpu, stats.throttled_time) == (900, (400, 500), 30)
    assert stats.cpu_user == 3 * (stats.cpu_system // 4)
    assert (stats.memory_usage, stats.memory_limit, stats.memory_stat["total_inactive_file"]) == (100, 0, 7)
    assert (stats.pids, stats.pids_limit) == (3, 0)
    assert stats.io_bytes == (BlkioEntry(8, 0, "Read", 10), BlkioEntry(8, 0, "Total", 10))
    assert groups.read_limits_sync("/docker/c").cpu_shares == 512
    assert groups.oom_file("/docker/c") == str(tmp_path / "memory/docker/c/memory.oom_control")


def test_counters_of_v2(tmp_path: Path) -> None:
    fill(
        tmp_path / "docker/c",
        cpu__stat="usage_usec 9\nuser_usec 5\nsystem_usec 4\nthrottled_usec 1\n",
        cpu__max="50000 100000",
        memory__current="100",
        memory__max="4096",
        memory__swap__max="4096",
        memory__events="max 6\noom_kill 0\n",
        memory__stat="anon 5\ninactive_file 7\n",
        pids__current="2",
        pids__max="10",
        io__stat="8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n",
    )
    groups = Cgroups({}, str(tmp_path))
    stats = groups.stats_sync("/docker/c")
    assert (stats.cpu_total, stats.throttled_time, stats.memory_limit) == (9000, 1000, 4096)
    assert stats.memory_failures == 6
    assert stats.io_bytes == (BlkioEntry(8, 16, "read", 1), BlkioEntry(8, 16, "write", 2))
    assert stats.io_operations == (BlkioEntry(8, 16, "read", 3), BlkioEntry(8, 16, "write", 4))
    limits = groups.read_limits_sync("/docker/c")
    assert (limits.cpu_quota, limits.cpu_period, limits.memory_swap, limits.pids) == (50000, 100000, 8192, 10)


def test_a_missing_group_counts_nothing(tmp_path: Path) -> None:
    stats = Cgroups({}, str(tmp_path)).stats_sync("/docker/gone")
    assert (stats.cpu_total, stats.memory_usage, stats.pids, stats.io_bytes) == (0, 0, 0, ())
    assert Cgroups({}, str(tmp_path)).pids_sync("/docker/gone") == []


def test_processes_of_groups_below_are_listed_too(tmp_path: Path) -> None:
    fill(tmp_path / "docker/c", cgroup__procs="12\n7\n0\n")
    fill(tmp_path / "docker/c/exec-1", cgroup__procs="9\n")
    assert Cgroups({}, str(tmp_path)).pids_sync("/docker/c") == [7, 9, 12]


def test_left_groups_are_removed_with_those_below(tmp_path: Path) -> None:
    (tmp_path / "docker/c/exec-1/deeper").mkdir(parents=True)
    Cgroups({}, str(tmp_path)).remove_sync("/docker/c")
    assert not (tmp_path / "docker/c").exists()
    assert (tmp_path / "docker").exists()


def test_freezing_writes_v2s_file_and_waits_for_the_event(tmp_path: Path) -> None:
    folder = fill(tmp_path / "docker/c", cgroup__freeze="0", cgroup__events="populated 1\nfrozen 1\n")
    Cgroups({}, str(tmp_path)).freeze_sync("/docker/c")
    assert (folder / "cgroup.freeze").read_text() == "1"


def played_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, arriving: int = 0) -> Cgroups:
    """v2's root as a container sees it. `arriving` processes come in while others are moved out; 66 does not move."""
    root = tmp_path / "root"
    fill(root, cgroup__type="domain\n", cgroup__procs="7\n8\n", cgroup__subtree_control="cpu\n")
    late = iter(range(100, 100 + arriving))

    def write(path: str, word: str) -> None:
        file = Path(path)
        inside = (root / "cgroup.procs").read_text().split()
        if file.name == "cgroup.procs":
            if word == "66":
                raise OSError(errno.EPERM, "not mine to move")
            inside.remove(word)
            left = [*inside, *(str(pid) for pid in [next(late, None)] if pid)]
            (root / "cgroup.procs").write_text("\n".join(left))
            with file.open("a") as target:
                target.write(f"{word}\n")
        elif inside:
            raise OSError(errno.EBUSY, "processes of its own")
        else:
            with file.open("a") as target:
                target.write(f" {word[1:]}")

    monkeypatch.setattr(cgroups, "_write", write)
    return Cgroups({}, str(root), controllers=frozenset(("cpu", "memory", "pids")))


@pytest.mark.parametrize("arriving", [0, 2])
def test_a_containers_own_processes_make_room_for_groups_with_controllers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arriving: int
) -> None:
    assert played_root(tmp_path, monkeypatch, arriving=arriving).make_room_sync() == []
    root = tmp_path / "root"
    assert (root / "cgroup.subtree_control").read_text().split() == ["cpu", "memory", "pids"]
    moved = (root / "init" / "cgroup.procs").read_text().split()
    assert moved == ["7", "8", *(str(100 + number) for number in range(arriving))]


def test_what_cannot_be_moved_leaves_groups_without_controllers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, root = played_root(tmp_path, monkeypatch), tmp_path / "root"
    (root / "cgroup.procs").write_text("66\n")
    assert groups.make_room_sync() == ["memory", "pids"]


def test_no_room_is_made_where_there_is_room_or_another_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, root = played_root(tmp_path, monkeypatch), tmp_path / "root"
    assert replace(groups, driver="systemd").make_room_sync() == []
    assert Cgroups({"memory": "/m"}, str(root), controllers=groups.controllers).make_room_sync() == []
    (root / "cgroup.type").unlink()  # the real root
    assert groups.make_room_sync() == []
    (root / "cgroup.type").touch()
    (root / "cgroup.subtree_control").write_text("cpu memory pids\n")
    assert groups.make_room_sync() == []
    assert not (root / "init").exists()
