"""What a host offers to containers, found by trying it where trying leaves nothing behind.

Each probe returns one `Finding`: ok, limited (berth runs, something is less than it could be) or missing (containers
cannot run). A probe never changes the host: mounts and namespaces live in a child that ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from engine.config import Config
from engine.kernel.apparmor import is_enabled_sync, is_supported_sync, parser_sync
from engine.runtime.cgroups import Cgroups
from engine.runtime.oci import PREFERENCE, probe_runtimes, trouble_running

_PROGRAM_SECONDS = 20
_WANTED_CONTROLLERS = ("cpu", "cpuset", "memory", "pids", "devices", "freezer", "blkio")
_V2_CONTROLLERS = ("cpu", "cpuset", "memory", "pids", "io")
_CAPABILITIES = {  # number in the kernel's bit set: name, what is lost without it
    0: ("CAP_CHOWN", "images cannot be unpacked"),
    1: ("CAP_DAC_OVERRIDE", "images cannot be unpacked"),
    12: ("CAP_NET_ADMIN", "no container networks"),
    18: ("CAP_SYS_CHROOT", "images cannot be unpacked safely"),
    21: ("CAP_SYS_ADMIN", "no namespaces and mounts: containers cannot run"),
    24: ("CAP_SYS_RESOURCE", "limits cannot be raised above the host's, --privileged gives less"),
    27: ("CAP_MKNOD", "device files cannot be made"),
}
_VITAL = {0, 1, 18, 21}


class State(StrEnum):
    OK = "ok"
    LIMITED = "limited"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: its state, what was found, and what to do where it is not ok."""

    name: str
    state: State
    detail: str
    advice: str = ""


def _run(*command: str) -> tuple[bool, str]:
    """Run a program; whether it succeeded, and its last line of output."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROGRAM_SECONDS, check=False)
    except FileNotFoundError:
        return False, f"{command[0]} is not installed"
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return done.returncode == 0, lines[-1] if lines else ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def kernel() -> Finding:
    """Overlay over many layers, pidfds and the mount interface berth relies on came by 5.4."""
    release = platform.release()
    major, minor = (int(part) for part in (release.split("-")[0] + ".0").split(".")[:2])
    if (major, minor) >= (5, 4):
        return Finding("kernel", State.OK, release)
    return Finding("kernel", State.MISSING, release, "berth needs Linux 5.4 or newer")


def privileges() -> Finding:
    """Root, and the capabilities that a container engine uses."""
    if os.geteuid() != 0:
        return Finding("root", State.MISSING, f"running as user {os.geteuid()}", "run it as root: sudo berth check")
    bits = int(
        next(line for line in _text("/proc/self/status").splitlines() if line.startswith("CapEff")).split()[1], 16
    )
    lacking = [number for number in _CAPABILITIES if not bits >> number & 1]
    if not lacking:
        return Finding("root", State.OK, "root with all capabilities that matter")
    words = "; ".join(f"{_CAPABILITIES[n][0]}: {_CAPABILITIES[n][1]}" for n in lacking)
    state = State.MISSING if _VITAL.intersection(lacking) else State.LIMITED
    return Finding("root", state, f"without {words}", "give this machine or container the capability")


def control_groups() -> Finding:
    """cgroup v1, hybrid or v2 with the controllers that limits need."""
    groups = Cgroups.detect_sync()
    if not groups.v1 and not groups.unified:
        return Finding("cgroups", State.MISSING, "no hierarchy is mounted", "mount cgroup2 on /sys/fs/cgroup")
    wanted = _WANTED_CONTROLLERS if groups.version == 1 else _V2_CONTROLLERS
    lacking = [name for name in wanted if name not in groups.controllers]
    layout = "hybrid (v1 controllers, v2 beside)" if groups.v1 and groups.unified else f"v{groups.version}"
    detail = f"{layout}, driver {groups.driver}"
    if lacking:
        return Finding("cgroups", State.LIMITED, f"{detail}, without {' '.join(lacking)}", "limits of these do nothing")
    return Finding("cgroups", State.OK, detail)


async def _runtimes() -> Iterator[Finding]:
    installed = [name for name in PREFERENCE if shutil.which(name)]
    if not installed:
        return iter(
            [Finding("runtime", State.MISSING, "neither crun nor runc is installed", "apt-get install crun runc")]
        )
    found = []
    try:
        systemd = Cgroups.detect_sync().driver == "systemd"
        runtimes = await probe_runtimes({}, None, Path("/run/berth"), systemd=systemd)
    except FileNotFoundError as error:
        return iter([Finding("runtime", State.MISSING, str(error), "apt-get install runc, or see the reason above")])
    for name, runtime in runtimes.known.items():
        trouble = await trouble_running(runtime)
        words = f"{name} {runtime.version}" + (" (default)" if name == runtimes.default else "")
        advice = "" if name == runtimes.default or not trouble else f"{runtimes.default} is used instead"
        state = State.LIMITED if trouble else State.OK
        found.append(
            Finding("runtime", state, f"{words}: {trouble}" if trouble else f"{words} runs a container", advice)
        )
    return iter(found)


def overlay(data_root: Path) -> Finding:
    """A real overlay mount on the data root's file system, in a mount namespace that ends with the probe."""
    place = next(folder for folder in (data_root, *data_root.parents) if folder.is_dir())
    script = (
        'set -e; cd "$1"; d=$(mktemp -d .berth-check-XXXXXX); trap "cd /; rm -rf $1/$d" EXIT; cd "$d";'
        "mkdir l u w m; mount -t overlay overlay -o lowerdir=l,upperdir=u,workdir=w m; echo x >m/f; umount m"
    )
    worked, words = _run("unshare", "-m", "sh", "-c", script, "sh", str(place))
    if worked:
        return Finding("overlayfs", State.OK, f"works on {place}")
    return Finding("overlayfs", State.LIMITED, f"{place}: {words}", "plain copies are used, which costs time and space")


def firewall() -> Finding:
    """nftables through a dry run that the kernel checks and forgets."""
    worked, words = _run("nft", "--check", "add table inet berth-check")
    if worked:
        return Finding("nftables", State.OK, _run("nft", "--version")[1])
    return Finding("nftables", State.MISSING, words, "apt-get install nftables; the kernel needs nf_tables")


def forwarding() -> Finding:
    """Whether packets are passed on; the daemon turns it on for IPv4 by itself."""
    four, six = _text("/proc/sys/net/ipv4/ip_forward"), _text("/proc/sys/net/ipv6/conf/all/forwarding")
    words = f"IPv4 {'on' if four == '1' else 'off'}, IPv6 {'on' if six == '1' else 'off' if six else 'absent'}"
    if not four:
        return Finding("forwarding", State.MISSING, words, "the kernel has no IPv4 forwarding")
    if four == "1" or os.access("/proc/sys/net/ipv4/ip_forward", os.W_OK):
        return Finding("forwarding", State.OK, words + ("" if four == "1" else " (berth serve turns it on)"))
    return Finding("forwarding", State.LIMITED, words, "sysctl -w net.ipv4.ip_forward=1")


def bridges() -> Finding:
    """A bridge and a veth pair, made in a network namespace of their own."""
    script = "ip link add name br-check type bridge && ip link add name ve-check0 type veth peer name ve-check1"
    worked, words = _run("unshare", "-n", "sh", "-c", script)
    if worked:
        return Finding("bridge and veth", State.OK, "can be made")
    return Finding("bridge and veth", State.LIMITED, words, "only --network host and none will work")


def user_namespaces() -> Finding:
    worked, words = _run("unshare", "-U", "true")
    if worked:
        return Finding("user namespaces", State.OK, "can be made")
    return Finding("user namespaces", State.LIMITED, words, "sysctl -w user.max_user_namespaces=15000")


def seccomp() -> Finding:
    if "errno" in _text("/proc/sys/kernel/seccomp/actions_avail"):
        return Finding("seccomp", State.OK, "filters are supported")
    return Finding("seccomp", State.LIMITED, "the kernel has no filters", "containers run unconfined")


def apparmor() -> Finding:
    if is_supported_sync():
        return Finding("apparmor", State.OK, "enabled")
    if is_enabled_sync() and not parser_sync():
        words = "the kernel has it, but there is no apparmor_parser to load profiles"
        return Finding("apparmor", State.LIMITED, words, "apt-get install apparmor; until then it confines nothing")
    return Finding("apparmor", State.OK, "not enabled on this host (optional)")


def small_programs() -> Finding:
    """tini for `--init`; xz and zstd are inside berth."""
    if any(shutil.which(name) for name in ("docker-init", "tini-static", "tini")):
        return Finding("init", State.OK, "tini is installed")
    return Finding("init", State.LIMITED, "no tini or docker-init", "apt-get install tini, for `run --init`")


def disk(data_root: Path) -> Finding:
    place = next(folder for folder in (data_root, *data_root.parents) if folder.is_dir())
    free = shutil.disk_usage(place).free / 2**30
    words = f"{free:.1f} GiB free on {place}"
    if free >= 2:
        return Finding("disk", State.OK, words)
    return Finding("disk", State.LIMITED, words, "images need space: free some, or choose another --data-root")


def registry_port(address: str) -> Finding:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            words = f"{address}: {error.strerror}"
            return Finding("registry port", State.LIMITED, words, "choose another with --registry-addr")
    return Finding("registry port", State.OK, f"{address} is free")


def api_socket(path: Path) -> Finding:
    """Whether somebody already answers where the daemon would listen."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return Finding("socket", State.OK, f"{path} is free")
    words = f"{path}: a daemon already answers there"
    return Finding("socket", State.LIMITED, words, "run side by side: berth serve -H unix:///run/berth/docker.sock")


def look(config: Config) -> Iterator[Finding]:
    """Every finding, in the order in which a reader wants them."""
    yield kernel()
    yield privileges()
    yield control_groups()
    yield from asyncio.run(_runtimes())
    probes: tuple[Callable[[], Finding], ...] = (firewall, bridges, forwarding, user_namespaces, seccomp, apparmor)
    yield overlay(config.data_root)
    for probe in probes:
        yield probe()
    yield small_programs()
    yield disk(config.data_root)
    if config.registry_addr != "none":
        yield registry_port(config.registry_addr)
    for host in config.hosts:
        if host.startswith("unix://"):
            with contextlib.suppress(OSError):
                yield api_socket(Path(host.removeprefix("unix://")))
