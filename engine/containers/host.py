"""What the host offers, as values: found by ``hostprobe.py``, consulted by the pure modules that build and check."""

from __future__ import annotations

from dataclasses import dataclass

from engine.kernel.idmap import IdMap


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A device file: ``kind`` is ``c`` or ``b``, ``mode`` its permission bits."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int = 0o666
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Kernel and daemon abilities that decide what a container can get here.

    ``supports`` names the resource controls that work (``memory``, ``swap``, ``swappiness``, ``reservation``,
    ``oom_kill_disable``, ``kernel_memory_tcp``, ``cpu_shares``, ``cpu_cfs``, ``cpu_realtime``, ``cpuset``, ``pids``,
    ``blkio_weight``, ``blkio_weight_device``, ``blkio_throttle``). ``capabilities`` are those the daemon may hand on.
    """

    cgroup_version: int = 1
    cgroup_driver: str = "cgroupfs"
    supports: frozenset[str] = frozenset()
    cpus: int = 1
    cpuset_cpus: str = "0"
    cpuset_mems: str = "0"
    memory_total: int = 0
    capabilities: frozenset[str] = frozenset()
    arch: str = "x86_64"
    kernel: tuple[int, int] = (5, 10)
    seccomp: bool = True
    apparmor: bool = False
    user_namespaces: bool = True
    cgroup_namespaces: bool = True
    ipv4_forwarding: bool = True
    recursive_readonly: bool = False
    """Whether the kernel can make a tree of mounts read-only at once (5.12)."""
    ids: IdMap | None = None
    """The ids of containers that do not have the host's (userns-remap)."""
