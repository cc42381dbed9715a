"""Finds out what the host offers: reads /proc, /sys and /dev once at start, and device files when a container starts.

Every function blocks and is called through ``run_blocking``.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml

from engine.config import Config, ConfigError
from engine.containers.cdi import CdiCatalog, catalog_of
from engine.containers.host import DeviceNode, HostFacts
from engine.containers.security import ALL_CAPABILITIES
from engine.errors import os_words
from engine.kernel import apparmor

_SKIPPED_FOLDERS = frozenset({"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"})

RECURSIVE_READ_ONLY_SINCE = (5, 12)
_V1_CONTROLS = {
    "memory": ("memory", "memory.limit_in_bytes"),
    "swap": ("memory", "memory.memsw.limit_in_bytes"),
    "swappiness": ("memory", "memory.swappiness"),
    "reservation": ("memory", "memory.soft_limit_in_bytes"),
    "oom_kill_disable": ("memory", "memory.oom_control"),
    "kernel_memory_tcp": ("memory", "memory.kmem.tcp.limit_in_bytes"),
    "cpu_shares": ("cpu", "cpu.shares"),
    "cpu_cfs": ("cpu", "cpu.cfs_quota_us"),
    "cpu_realtime": ("cpu", "cpu.rt_period_us"),
    "cpuset": ("cpuset", "cpuset.cpus"),
    "pids": ("pids", "cgroup.procs"),
    "blkio_weight": ("blkio", "blkio.weight"),
    "blkio_weight_device": ("blkio", "blkio.weight_device"),
    "blkio_throttle": ("blkio", "blkio.throttle.read_bps_device"),
}
_V2_CONTROLS = {
    "memory": frozenset({"memory", "swap", "reservation"}),
    "cpu": frozenset({"cpu_shares", "cpu_cfs"}),
    "cpuset": frozenset({"cpuset"}),
    "pids": frozenset({"pids"}),
    "io": frozenset({"blkio_weight", "blkio_throttle"}),
}
_V2_WEIGHT_DEVICE = "*/io.bfq.weight"  # of one scheduler; without that, runc says nothing and crun fails


def probe_host_sync(cgroup_driver: str = "cgroupfs", *, will_forward: bool = False) -> HostFacts:
    """Everything that does not change while the daemon runs; ``cgroup_driver`` is the daemon's choice.

    ``will_forward``: the daemon turns forwarding on with its first bridge, however the kernel has it now.
    """
    version, supports, cpus, mems = _cgroups()
    release = re.match(r"(\d+)\.(\d+)", platform.release())
    kernel = (int(release[1]), int(release[2])) if release else (0, 0)
    return HostFacts(
        cgroup_version=version,
        cgroup_driver=cgroup_driver,
        supports=supports,
        cpus=os.cpu_count() or 1,
        cpuset_cpus=cpus or _read("/sys/devices/system/cpu/online") or "0",
        cpuset_mems=mems or _read("/sys/devices/system/node/online") or "0",
        memory_total=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        capabilities=_capabilities(),
        arch=platform.machine(),
        kernel=kernel,
        seccomp="Seccomp:" in _read("/proc/self/status"),
        apparmor=apparmor.is_supported_sync(),
        user_namespaces=Path("/proc/self/ns/user").exists(),
        cgroup_namespaces=Path("/proc/self/ns/cgroup").exists(),
        ipv4_forwarding=will_forward or _read("/proc/sys/net/ipv4/ip_forward") == "1",
        recursive_readonly=kernel >= RECURSIVE_READ_ONLY_SINCE,
    )


def device_nodes_sync(path: str) -> list[DeviceNode]:
    """The device at ``path`` (links followed), or those below it when it is a folder. Raises ``OSError``."""
    status = Path(path).stat()
    if stat.S_ISDIR(status.st_mode):
        return list(_walk(path))
    node = _device(path, status)
    return [node] if node else []


def cdi_documents_sync(folders: Iterable[str]) -> list[tuple[str, Any]]:
    """The CDI specification files of these folders, the winning ones last: (path, content, None if unreadable)."""
    found: list[tuple[str, Any]] = []
    for folder in folders:
        with contextlib.suppress(FileNotFoundError):
            for path in sorted(Path(folder).iterdir()):
                if path.suffix in (".json", ".yaml", ".yml"):
                    try:
                        found.append((str(path), _decoded(path.read_bytes())))
                    except (OSError, yaml.YAMLError):
                        found.append((str(path), None))
    return found


def _decoded(content: bytes) -> Any:
    """JSON, whatever the file's name says, else YAML: JSON is YAML, but a YAML parser may refuse its tabs."""
    try:
        return msgspec.json.decode(content)
    except ValueError:
        return yaml.safe_load(content)


def cdi_catalog_sync(config: Config) -> CdiCatalog:
    """The devices that the specification files describe now, unless the administrator turned CDI off."""
    return catalog_of(cdi_documents_sync(config.cdi_spec_dirs)) if config.has_cdi else CdiCatalog(is_on=False)


def seccomp_profile_sync(config: Config) -> str:
    """The daemon's own seccomp profile: its text, or docker's word for one. Raises ``ConfigError``."""
    place = config.seccomp_profile
    if place in ("", "builtin", "unconfined"):
        return place or "builtin"
    try:
        return Path(place).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"opening seccomp profile ({place}) failed: {os_words(error)}") from error


def all_devices_sync() -> list[DeviceNode]:
    """Every device file of the host's /dev but terminals and the console, for privileged containers."""
    return [node for node in _walk("/dev") if node.path != "/dev/console"]


def _walk(folder: str) -> Iterator[DeviceNode]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in _SKIPPED_FOLDERS:
                    yield from _walk(entry.path)
            elif not entry.is_symlink():
                node = _device(entry.path, entry.stat(follow_symlinks=False))
                if node:
                    yield node
        except FileNotFoundError:
            continue  # devices come and go while we look


def _device(path: str, status: os.stat_result) -> DeviceNode | None:
    kind = "c" if stat.S_ISCHR(status.st_mode) else "b" if stat.S_ISBLK(status.st_mode) else ""
    if not kind:
        return None
    major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    return DeviceNode(path, kind, major, minor, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)


def _cgroups() -> tuple[int, frozenset[str], str, str]:
    """The version that controls resources, its working controls, usable CPUs and memory nodes; by what is mounted."""
    v1: dict[str, str] = {}
    v2 = ""
    for line in _read("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        point, kind = left.split()[4], right.split()[0]
        if kind == "cgroup":
            v1.update(dict.fromkeys(right.split()[2].split(","), point))
        elif kind == "cgroup2":
            v2 = v2 or point
    if "memory" in v1 or "cpu" in v1 or not v2:
        supports = {name for name, (c, file) in _V1_CONTROLS.items() if c in v1 and Path(v1[c], file).exists()}
        folder = v1.get("cpuset", "")
        return 1, frozenset(supports), _read(f"{folder}/cpuset.cpus"), _read(f"{folder}/cpuset.mems")
    controllers = _read(f"{v2}/cgroup.controllers").split()
    found: set[str] = set()
    for controller in controllers:
        found |= _V2_CONTROLS.get(controller, frozenset())
    if any(Path(v2).glob(_V2_WEIGHT_DEVICE)):
        found.add("blkio_weight_device")
    return 2, frozenset(found), _read(f"{v2}/cpuset.cpus.effective"), _read(f"{v2}/cpuset.mems.effective")


def _capabilities() -> frozenset[str]:
    status = dict(line.split(":\t", 1) for line in _read("/proc/self/status").splitlines() if ":\t" in line)
    mask = int(status.get("CapPrm", "0"), 16) & int(status.get("CapBnd", "0"), 16)
    return frozenset(name for number, name in enumerate(ALL_CAPABILITIES) if mask >> number & 1)


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "replace").strip()
    except OSError:
        return ""
