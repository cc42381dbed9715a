"""Control groups, v1, hybrid and v2: where they are mounted, and what the daemon reads from and does to a container's.

Hierarchies come from /proc/self/mountinfo, never from fixed paths: hosts mount v1 controllers one by one, together, or
beside v2. The runtime makes and removes a container's groups, at the hierarchies' roots as dockerd has them; only what
it left behind is removed here, and never another's group.
"""

import contextlib
import itertools
import os
import posixpath
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from engine.runtime.cgroupstats import CgroupStats, Limits, read_limits_sync, read_stats_sync

SYSTEMD_RUNS = "/run/systemd/system"  # sd_booted(3)
V1_CONTROLLERS = frozenset(
    (
        "cpu",
        "cpuacct",
        "cpuset",
        "memory",
        "devices",
        "freezer",
        "blkio",
        "pids",
        "net_cls",
        "net_prio",
        "perf_event",
        "hugetlb",
        "rdma",
    )
)
DEFAULT_PARENT = "/docker"
DEFAULT_SLICE = "system.slice"
OWN_GROUP = "init"  # as docker's own image of an engine calls it
MOVES = 5  # processes may be started while others are moved
KILL_SECONDS = 5.0
FREEZE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Cgroups:
    """The host's hierarchies. `v1` maps a controller to its mount point; `unified` is v2's, or ""."""

    v1: Mapping[str, str]
    unified: str
    driver: str = "cgroupfs"
    controllers: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def detect_sync(cls, driver: str | None = None) -> "Cgroups":
        """Read this host. Without a `driver`.

        Systemd's where v2 is alone and systemd runs, else cgroupfs, as dockerd chooses.
        """
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            v1, unified = parse_mountinfo(lines.read())
        controllers = frozenset(v1)
        if unified:
            with contextlib.suppress(OSError), open(f"{unified}/cgroup.controllers", encoding="ascii") as file:
                controllers |= frozenset(file.read().split())
        if driver is None:
            driver = "systemd" if not v1 and os.path.isdir(SYSTEMD_RUNS) else "cgroupfs"
        return cls(v1, unified, driver, controllers)

    @property
    def version(self) -> int:
        """2 only where v2 is alone: beside v1 controllers it limits nothing that docker sets."""
        return 2 if self.unified and not self.v1 else 1

    def container_path(self, container_id: str, parent: str | None = None) -> str:
        """The value of `linux.cgroupsPath`."""
        if self.driver == "systemd":
            return f"{parent or DEFAULT_SLICE}:docker:{container_id}"
        return posixpath.normpath(f"/{parent or DEFAULT_PARENT}/{container_id}").replace("//", "/")

    def folder(self, controller: str, path: str) -> str | None:
        """The folder of a container's group in the hierarchy of `controller`; None where the host lacks that."""
        mount = self.unified if self.version == 2 else self.v1.get(controller)
        return mount + resolve(path) if mount else None

    def folders(self, path: str) -> list[str]:
        """A container's folder in every hierarchy, existing or not, each once."""
        mounts = dict.fromkeys(self.v1.values())
        if self.unified:
            mounts[self.unified] = None
        return [mount + resolve(path) for mount in mounts]

    def oom_file(self, path: str) -> str:
        """Where the kernel counts the group's out-of-memory kills, or ""."""
        folder = self.folder("memory", path)
        if folder is None:
            return ""
        return f"{folder}/memory.events" if self.version == 2 else f"{folder}/memory.oom_control"

    def leaf_place(self, path: str) -> tuple[str, str]:
        """Where groups for single execs are made: the folder, and what `runtime exec --cgroup` wants before their name.

        One hierarchy of v1 is enough to tell processes apart, and the freezer's costs nothing. ("", "") without one.
        """
        folder = self.folder("freezer", path)
        return ("", "") if folder is None else (folder, "freezer:")

    def pids_sync(self, path: str) -> list[int]:
        """Every process in the group and the groups below it, sorted."""
        found: set[int] = set()
        for root in self._listing_folders(path):
            for folder in _below(root):
                with contextlib.suppress(OSError), open(f"{folder}/cgroup.procs", encoding="ascii") as lines:
                    found.update(int(line) for line in lines)
        found.discard(0)  # a process of another pid namespace
        return sorted(found)

    def kill_sync(self, path: str) -> bool:
        """SIGKILL all processes of the group, thawing it if need be; whether it is empty afterwards."""
        if self.version == 2:
            folder = self.unified + resolve(path)
            with contextlib.suppress(OSError), open(f"{folder}/cgroup.kill", "w", encoding="ascii") as file:
                file.write("1")
        deadline = time.monotonic() + KILL_SECONDS
        while pids := self.pids_sync(path):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(OSError, TimeoutError):
                self.thaw_sync(path)
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def expect_move_sync(self) -> None:
        """Make the kernel ready for a process that is about to be put into a control group.

        The first such move after a pause waits for an RCU grace period (about 10 ms, kernel/rcu/sync.c below
        cgroup_threadgroup_rwsem); moves that follow closely do not. Writing ourselves where we are moves nothing
        and starts that period while other preparations are under way. A host that refuses it loses nothing.
        """
        place = self._own_procs_file()
        if place:
            with contextlib.suppress(OSError), open(place, "w", encoding="ascii") as file:
                file.write(str(os.getpid()))

    def make_room_sync(self) -> list[str]:
        """Let groups below v2's root have controllers where that root is a container's, ours; those that they lack.

        A group with processes of its own passes no controllers on (but for the hierarchy's real root, which has no
        type), so the processes of the container that this engine runs in are moved into a group beside its containers.
        """
        root = self.unified
        if self.version != 2 or self.driver == "systemd" or not os.path.exists(f"{root}/cgroup.type"):
            return []
        missing = self._not_passed_on(root)
        for _ in range(MOVES if missing else 0):
            _move_all(root, f"{root}/{OWN_GROUP}")
            for controller in missing:
                with contextlib.suppress(OSError):
                    _write(f"{root}/cgroup.subtree_control", f"+{controller}")
            missing = self._not_passed_on(root)
            if not missing:
                break
        return missing

    def _not_passed_on(self, root: str) -> list[str]:
        with open(f"{root}/cgroup.subtree_control", encoding="ascii") as file:
            return sorted(self.controllers.difference(file.read().split()))

    def _own_procs_file(self) -> str:
        mounts = {**self.v1, "": self.unified}
        with contextlib.suppress(OSError), open("/proc/self/cgroup", encoding="ascii", errors="replace") as lines:
            for line in lines:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                mount = mounts.get(controllers.split(",")[0], "")
                if mount:
                    return f"{mount}{path.rstrip('/')}/cgroup.procs"
        return ""

    def freeze_sync(self, path: str) -> None:
        """Stop every process of the group. TimeoutError (after undoing it) when the kernel does not finish that."""
        self._set_frozen(path, True)

    def thaw_sync(self, path: str) -> None:
        self._set_frozen(path, False)

    def lift_pids_limit_sync(self, path: str) -> None:
        """Let the group have any number of processes. OSError when it is gone."""
        folder = self.folder("pids", path)
        if folder is not None:
            _write(f"{folder}/pids.max", "max")

    def lift_cpu_quota_sync(self, path: str) -> None:
        """Let the group have all the processor time there is. OSError when it is gone."""
        folder = self.folder("cpu", path)
        if folder is not None:
            _write(*((f"{folder}/cpu.max", "max") if self.version == 2 else (f"{folder}/cpu.cfs_quota_us", "-1")))

    def stats_sync(self, path: str) -> CgroupStats:
        """Counters now; zero where the host or the group does not have them."""
        return read_stats_sync(self._stat_folders(path), self.version)

    def read_limits_sync(self, path: str) -> Limits:
        """Limits as the kernel has them."""
        return read_limits_sync(self._stat_folders(path), self.version)

    def remove_sync(self, path: str) -> None:
        """Remove the group, with those below it, where it was left behind. What still has processes stays."""
        for root in self.folders(path):
            for folder in reversed(list(_below(root))):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)

    def _stat_folders(self, path: str) -> dict[str, str]:
        kinds = ("cpu", "cpuacct", "cpuset", "memory", "pids", "blkio")
        found = {kind: self.folder(kind, path) for kind in kinds}
        return {kind: folder for kind, folder in found.items() if folder is not None}

    def _listing_folders(self, path: str) -> list[str]:
        if self.version == 2:
            return [self.unified + resolve(path)]
        # any hierarchy lists all; two, in case the runtime could not join one
        kinds = [kind for kind in ("freezer", "devices", "pids", "memory") if kind in self.v1]
        return [self.v1[kind] + resolve(path) for kind in kinds[:2]]

    def _set_frozen(self, path: str, frozen: bool) -> None:
        folder = self.folder("freezer", path)
        if folder is None:
            raise FileNotFoundError("this host has no freezer control group")
        control, state_file = f"{folder}/freezer.state", f"{folder}/freezer.state"
        word, done = ("FROZEN", "FROZEN") if frozen else ("THAWED", "THAWED")
        if self.version == 2:
            control, state_file = f"{folder}/cgroup.freeze", f"{folder}/cgroup.events"
            word, done = ("1", "frozen 1") if frozen else ("0", "frozen 0")
        deadline = time.monotonic() + FREEZE_SECONDS
        for attempt in itertools.count(1):
            # v1 may stay FREEZING while processes are forked, so it is written again each time; a task caught at the
            # wrong moment stays unfrozen for ever, so a thaw now and then lets it move on.
            if frozen and self.version == 1 and attempt % 50 == 0:
                _write(control, "THAWED")
                time.sleep(0.01)
            _write(control, word)
            with open(state_file, encoding="ascii") as file:
                if done in file.read():
                    return
            if time.monotonic() > deadline:
                _write(control, "THAWED" if self.version == 1 else "0")
                raise TimeoutError(f"control group {path} could not be {'frozen' if frozen else 'thawed'}")
            time.sleep(0.001)


def parse_mountinfo(text: str) -> tuple[dict[str, str], str]:
    """v1 mount points by controller, and v2's mount point or "" (proc_pid_mountinfo(5))."""
    v1: dict[str, str] = {}
    unified = ""
    for line in text.splitlines():
        fields, _, kind = line.partition(" - ")
        fstype, _, options = kind.partition(" ")
        point = fields.split(" ")[4]
        if fstype == "cgroup2" and not unified:
            unified = point
        elif fstype == "cgroup":
            for option in options.rsplit(" ", 1)[-1].split(","):
                if option in V1_CONTROLLERS or option.startswith("name="):
                    v1.setdefault(option, point)
    return v1, unified


def resolve(path: str) -> str:
    """The folder below a hierarchy's mount point that a `linux.cgroupsPath` stands for.

    systemd's form `a-b.slice:prefix:name` nests slices by their dashes: /a.slice/a-b.slice/prefix-name.scope.
    """
    if path.count(":") != 2:
        return "/" + path.strip("/")
    slice_name, prefix, name = path.split(":")
    nested = ""
    stem = slice_name.removesuffix(".slice")
    parts = stem.split("-") if stem not in ("", "-") else []
    for count in range(1, len(parts) + 1):
        nested += "/" + "-".join(parts[:count]) + ".slice"
    if name.endswith(".slice"):
        return f"{nested}/{name}"
    return f"{nested}/{prefix}-{name}.scope" if prefix else f"{nested}/{name}.scope"


def _below(root: str) -> Iterator[str]:
    """`root` and every folder below it, parents first; nothing when it does not exist."""
    for folder, _folders, _files in os.walk(root):
        yield folder


def _move_all(source: str, target: str) -> None:
    """As far as the kernel lets it: what ends meanwhile, or is in another's pid namespace, stays out of it."""
    with contextlib.suppress(OSError):
        os.makedirs(target, exist_ok=True)
        with open(f"{source}/cgroup.procs", encoding="ascii") as lines:
            pids = lines.read().split()
        for pid in pids:
            with contextlib.suppress(OSError):
                _write(f"{target}/cgroup.procs", pid)


def _write(path: str, word: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(word)
