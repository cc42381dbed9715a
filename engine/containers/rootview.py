"""The list of mounts that makes a container's view of its files: docker's standard ones, then what the settings add.

Pure, and in the order in which a runtime must perform them: no mount hides an earlier one by accident.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from engine.containers.mounts import MountPoint, asked_propagation, clean, tmpfs_data, tmpfs_options
from engine.containers.settings import BindOptions, HostConfig
from engine.kernel.mount import MountStep

OciMount = dict[str, Any]

KERNEL_VIEWS = frozenset({"/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"})
_SOURCE_FLAGS = (
    (os.ST_RDONLY, "ro"),
    (os.ST_NOSUID, "nosuid"),
    (os.ST_NODEV, "nodev"),
    (os.ST_NOEXEC, "noexec"),
    (os.ST_NOATIME, "noatime"),
    (os.ST_NODIRATIME, "nodiratime"),
)
CGROUPS = "/sys/fs/cgroup"
_RECURSIVE = {"private": "rprivate", "slave": "rslave", "shared": "rshared"}


def mount_list(
    host: HostConfig,
    points: Iterable[MountPoint],
    name_files: Mapping[str, str],
    shm_path: str | None,
    *,
    recursive_readonly: bool,
    writable_cgroups: bool | None = None,
    cgroups_bound: bool = False,
) -> list[OciMount]:
    """``mounts`` of the specification; cgroups are writable as ``writable_cgroups`` or, if None, privilege says.

    ``cgroups_bound``: they are the host's mount. To mount v2 in the host's cgroup namespace would change the options
    that all mounts of it share (nsdelegate, memory_recursiveprot), for the whole host.
    """
    mine = {point.destination: _of_point(point, recursive_readonly) for point in points}
    for destination, data in (host.tmpfs or {}).items():
        mine[clean(destination)] = _tmpfs(clean(destination), tmpfs_options(data))
    for destination, path in name_files.items():
        if destination not in mine:
            mine[destination] = _bind(destination, path, [] if not host.readonly_rootfs else ["ro"])
    if shm_path is not None and host.ipc_mode != "none":
        mine.setdefault("/dev/shm", _bind("/dev/shm", shm_path, []))
    standard = _standard(host, writable_cgroups, cgroups_bound)
    base = [mount for mount in standard if not _is_covered(mount["destination"], mine)]
    if host.readonly_rootfs:
        base = [m if m["destination"] in KERNEL_VIEWS else _read_only(m) for m in base]
    return base + sorted(mine.values(), key=lambda mount: clean(mount["destination"]).count("/"))


def _is_covered(destination: str, mine: Mapping[str, OciMount]) -> bool:
    return destination in mine or (destination.startswith("/dev/") and "/dev" in mine)


def _standard(host: HostConfig, writable_cgroups: bool | None, cgroups_bound: bool) -> list[OciMount]:
    """Docker's own mounts. A privileged container sees /sys and its cgroups writable."""
    hidden = ["nosuid", "noexec", "nodev"]
    sys_writable = host.privileged and not host.readonly_rootfs
    cgroups_writable = host.privileged if writable_cgroups is None else writable_cgroups
    cgroup_options = hidden if cgroups_writable else ["ro", *hidden]
    fresh_cgroups = _mount(CGROUPS, "cgroup", "cgroup", cgroup_options)
    mounts = [
        _mount("/proc", "proc", "proc", hidden),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount(
            "/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
        ),
        _mount("/sys", "sysfs", "sysfs", hidden if sys_writable else [*hidden, "ro"]),
        _bind(CGROUPS, CGROUPS, cgroup_options) if cgroups_bound else fresh_cgroups,
        _mount("/dev/mqueue", "mqueue", "mqueue", hidden),
    ]
    if host.ipc_mode != "none":
        mounts.append(_mount("/dev/shm", "tmpfs", "shm", [*hidden, "mode=1777", f"size={host.shm_size}"]))
    return mounts


def _mount(destination: str, kind: str, source: str, options: Sequence[str]) -> OciMount:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def _bind(destination: str, source: str, options: Sequence[str]) -> OciMount:
    return _mount(destination, "bind", source, ["rbind", *options, "rprivate"])


def _tmpfs(destination: str, options: Sequence[str]) -> OciMount:
    return _mount(destination, "tmpfs", "tmpfs", options)


def _read_only(mount: OciMount) -> OciMount:
    options = mount["options"]
    return mount if "ro" in options else {**mount, "options": [*options, "ro"]}


def _of_point(point: MountPoint, recursive_readonly: bool) -> OciMount:
    if point.type == "tmpfs":
        options = point.wish.tmpfs_options if point.wish else None
        return _tmpfs(point.destination, tmpfs_options(tmpfs_data(options, read_only=not point.rw)))
    bind = (point.wish.bind_options if point.wish else None) or BindOptions()
    words = ["bind" if bind.non_recursive else "rbind"]
    if not point.rw:
        words.append(_read_only_word(bind, recursive_readonly))
    if point.propagation:
        # For a mount alone ``private`` says what ``rprivate`` does, and crun would take the r for the bind's, too.
        words.append(point.propagation.removeprefix("r") if bind.non_recursive else point.propagation)
    return _mount(point.destination, "bind", point.source, words)


def _read_only_word(bind: BindOptions, recursive_readonly: bool) -> str:
    """``rro`` makes submounts read-only too, which is docker's default where the kernel can."""
    if bind.non_recursive or bind.read_only_non_recursive:
        return "ro"
    if recursive_readonly:
        return "rro"
    if bind.read_only_force_recursive:
        raise ValueError("rro is not supported: the kernel is too old for recursive read-only mounts")
    return "ro"


def keep_source_flags(mounts: Sequence[OciMount], flags_of: Callable[[str], int]) -> list[OciMount]:
    """Binds with the restrictions of what they show: nothing becomes writable or executable by being bound.

    A bind takes over its source's flags by itself, but crun sets them anew. ``flags_of`` gives ``statvfs``'s.
    """
    kept: list[OciMount] = []
    for mount in mounts:
        if mount["type"] == "bind":
            present = set(mount["options"])
            flags = flags_of(mount["source"])
            words = [word for bit, word in _SOURCE_FLAGS if flags & bit and word not in present]
            if "rro" in present and "ro" in words:
                words.remove("ro")
            mount = {**mount, "options": [*mount["options"], *words]}
        kept.append(mount)
    return kept


def hand_over(mounts: Sequence[OciMount], folder: str) -> tuple[list[OciMount], list[MountStep]]:
    """Binds that are to be read-only all the way down, for a runtime that does not know ``rro``.

    The shim makes each below ``folder`` first; the runtime then binds what is there. Returns the mounts as the runtime
    shall see them, and the shim's steps. These copies of a tree may hear of the host's mounts, and never tell it of
    theirs: taking a copy away would take away what the host has mounted there.
    """
    left: list[OciMount] = []
    steps: list[MountStep] = []
    for mount in mounts:
        if "rro" in mount["options"]:
            target = f"{folder}/{len(steps)}"
            alone = {"private", "rprivate"} & set(mount["options"])
            steps.append(MountStep(mount["source"], target, "", ("rbind", "rprivate" if alone else "rslave", "rro")))
            options = ["ro" if option == "rro" else option for option in mount["options"]]
            mount = {**mount, "source": target, "options": options}
        left.append(mount)
    return left, steps


def planned(mounts: Sequence[OciMount]) -> tuple[tuple[str, str, str], ...]:
    """Destination, source and type of the mounts that could be where the kernel's views belong."""
    asked = [mount for mount in mounts if mount["type"] in ("bind", "tmpfs")]
    return tuple((mount["destination"], mount["source"], mount["type"]) for mount in asked)


def check_propagation(points: Iterable[MountPoint], mountinfo: str, root: str) -> tuple[MountPoint, ...]:
    """Refuse what the host's own mounts cannot do: only what lies on a shared mount can be shared, or followed.

    Binds near ``root``, the daemon's own folder, follow it where they can (``near_root``) and are private elsewhere.
    ``mountinfo`` is the text of ``/proc/self/mountinfo``. Raises ``ValueError`` with dockerd's sentence.
    """
    return tuple(_checked(point, mountinfo, root) for point in points)


def _checked(point: MountPoint, mountinfo: str, root: str) -> MountPoint:
    wanted = _RECURSIVE.get(point.propagation, point.propagation)
    if point.type == "bind" and wanted in ("rshared", "rslave"):
        place, marks = mount_of(point.source, mountinfo)
        accepted = ("shared:",) if wanted == "rshared" else ("shared:", "master:")
        if not any(mark.startswith(accepted) for mark in marks):
            near = point.source.startswith(root) or root.startswith(point.source)
            if wanted == "rslave" and near and not asked_propagation(point):
                return msgspec.structs.replace(point, propagation="rprivate")
            kind = "a shared" if wanted == "rshared" else "a shared or slave"
            raise ValueError(f"path {point.source} is mounted on {place} but it is not {kind} mount")
    return point


def mount_of(path: str, mountinfo: str) -> tuple[str, list[str]]:
    """The mount point that holds ``path`` (the last one made, the deepest) and its propagation marks (proc(5))."""
    best: tuple[str, list[str]] = ("/", [])
    for line in mountinfo.splitlines():
        fields = line.split(" - ")[0].split()
        place = fields[4].encode().decode("unicode_escape")
        inside = place == "/" or path == place or path.startswith(f"{place}/")
        if inside and len(place) >= len(best[0]):
            best = (place, fields[6:])
    return best


def root_propagation(points: Iterable[MountPoint]) -> str:
    """How the root mount must propagate so that the binds can: the strongest that any of them asks for."""
    kinds = {_RECURSIVE.get(point.propagation, point.propagation) for point in points if point.type == "bind"}
    return "shared" if "rshared" in kinds else "rslave" if "rslave" in kinds else ""
