"""The OCI runtime specification of a container, from everything that is known when it starts.

Pure: the caller has resolved names, created volumes and namespaces, and read the image's passwd file. The result is
what dockerd would write for the same settings (moby ``daemon/oci_linux.go``), so that images and tools find the
environment they expect. https://github.com/opencontainers/runtime-spec/blob/main/config.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.containers import devices, namespaces, resources, security
from engine.containers.host import DeviceNode, HostFacts
from engine.containers.merge import command_line, environment, with_home
from engine.containers.mounts import MountPoint
from engine.containers.rootview import mount_list, root_propagation
from engine.containers.settings import ContainerConfig, HostConfig, Ulimit
from engine.containers.users import ResolvedUser
from engine.kernel.idmap import IdMap, IdRange

OCI_VERSION = "1.0.2"
INIT_PATH = "/sbin/docker-init"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecInput:
    """What a specification is made from.

    ``config`` is merged with the image's, ``host`` has its defaults filled in (``defaults.with_defaults``).
    """

    config: ContainerConfig
    host: HostConfig
    facts: HostFacts
    user: ResolvedUser
    rootfs: str
    cgroup_path: str
    hostname: str
    netns: str | None
    """Path of the network namespace; ``None`` is the host's."""
    mounts: Sequence[MountPoint] = ()
    """All with their ``source`` on the host; a volume's subpath and an image's root already resolved."""
    name_files: Mapping[str, str] = field(default_factory=dict)
    """Destination (``/etc/hosts`` …) to host path."""
    shm_path: str | None = None
    """Host path bound to /dev/shm (shareable and joined IPC); ``None``: a tmpfs of its own, or the host's."""
    joined_pids: Mapping[str, int] = field(default_factory=dict)
    """First process of the container whose ``ipc`` or ``pid`` namespace is joined."""
    init_binary: str = "/usr/bin/tini-static"
    default_init: bool = False
    lookup_device: devices.Lookup = field(default=lambda _: ())
    host_devices: Sequence[DeviceNode] = ()
    """All devices of the host; needed for privileged containers only."""
    default_ulimits: Mapping[str, Ulimit] = field(default_factory=dict)
    default_seccomp: str = "builtin"
    no_new_privileges: bool = False
    """The daemon's default."""
    link_env: Sequence[str] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    ids: IdMap | None = None
    """The container's ids, where they are not the host's."""
    userns: str = ""
    """Path of the user namespace that has them."""


def build_spec(given: SpecInput) -> dict[str, Any]:
    """The specification as a JSON-ready dictionary. Raises ``ValueError`` with dockerd's words for what cannot be."""
    options = security.parse_security_options(given.host.security_opt, no_new_privileges=given.no_new_privileges)
    capabilities = security.granted_capabilities(given.host, given.facts)
    spec: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "process": _process(given, options, capabilities),
        "root": {"path": given.rootfs},
        "mounts": _mounts(given, options),
        "linux": _linux(given, options, capabilities),
    }
    if given.host.readonly_rootfs:
        spec["root"]["readonly"] = True
    if given.host.uts_mode != "host":
        spec["hostname"] = given.hostname
    annotations = {**given.annotations, **(given.host.annotations or {})}
    if annotations:
        spec["annotations"] = annotations
    return spec


def uses_init(host: HostConfig, default_init: bool) -> bool:
    """Whether an init process is put before the command (never in a shared PID namespace)."""
    return (host.init if host.init is not None else default_init) and host.pid_mode == ""


def _process(given: SpecInput, options: security.SecurityOptions, capabilities: Sequence[str]) -> dict[str, Any]:
    config, host, user = given.config, given.host, given.user
    args = command_line(config)
    if uses_init(host, given.default_init):
        args = (INIT_PATH, "--", *args)
    process: dict[str, Any] = {
        "terminal": config.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.additional_gids)},
        "args": list(args),
        "env": list(with_home(environment(config, given.hostname, given.link_env), user.home)),
        "cwd": config.working_dir or "/",
        "capabilities": capability_sets(capabilities, user.uid),
        "oomScoreAdj": host.oom_score_adj,
        "noNewPrivileges": options.no_new_privileges,
    }
    if config.tty and any(host.console_size):
        process["consoleSize"] = {"height": host.console_size[0], "width": host.console_size[1]}
    limits = resources.rlimits(host, given.default_ulimits)
    if limits:
        process["rlimits"] = limits
    profile = security.apparmor_profile(host, options, given.facts)
    if profile:
        process["apparmorProfile"] = profile
    return process


def capability_sets(capabilities: Sequence[str], uid: int) -> dict[str, list[str]]:
    """The sets of a process: another user than root gets the bounding set only, as execve(2) would leave it."""
    held = list(capabilities) if uid == 0 else []
    return {"bounding": list(capabilities), "effective": held, "permitted": held, "inheritable": []}


def _mounts(given: SpecInput, options: security.SecurityOptions) -> list[dict[str, Any]]:
    shm_path = given.shm_path or ("/dev/shm" if given.host.ipc_mode == "host" else None)
    mounts = mount_list(
        given.host,
        given.mounts,
        given.name_files,
        shm_path,
        recursive_readonly=given.facts.recursive_readonly,
        writable_cgroups=options.writable_cgroups,
        cgroups_bound=given.facts.cgroup_version == 2 and given.host.cgroupns_mode == "host",
    )
    if uses_init(given.host, given.default_init):
        mounts.append(
            {"destination": INIT_PATH, "type": "bind", "source": given.init_binary, "options": ["bind", "ro"]}
        )
    return mounts


def _linux(given: SpecInput, options: security.SecurityOptions, capabilities: Sequence[str]) -> dict[str, Any]:
    host = given.host
    plan = devices.plan_devices(host, given.lookup_device, given.host_devices)
    limits = resources.linux_resources(host, _block_number(given.lookup_device))
    linux: dict[str, Any] = {
        "sysctl": _sysctls(given),
        "resources": {"devices": list(plan.rules), **limits},
        "cgroupsPath": given.cgroup_path,
        "namespaces": namespaces.namespace_list(host, given.netns, given.joined_pids, given.userns),
    }
    if given.ids is not None:
        linux["uidMappings"], linux["gidMappings"] = _mappings(given.ids.uids), _mappings(given.ids.gids)
    if plan.nodes:
        linux["devices"] = list(plan.nodes)
    if not host.privileged:
        masked, readonly = host.masked_paths, host.readonly_paths
        linux["maskedPaths"] = list(security.DEFAULT_MASKED_PATHS if masked is None else masked)
        linux["readonlyPaths"] = list(security.DEFAULT_READONLY_PATHS if readonly is None else readonly)
    seccomp = security.seccomp_filter(host, options, given.facts, capabilities, given.default_seccomp)
    if seccomp is not None:
        linux["seccomp"] = seccomp
    propagation = root_propagation(given.mounts)
    if propagation:
        linux["rootfsPropagation"] = propagation
    return linux


def _mappings(ranges: Sequence[IdRange]) -> list[dict[str, int]]:
    return [{"containerID": one.inside, "hostID": one.outside, "size": one.count} for one in ranges]


def _block_number(lookup: devices.Lookup) -> resources.DeviceNumber:
    def number(path: str) -> tuple[int, int]:
        found = lookup(path)
        if not found:
            raise ValueError(f"{path} is not a device")
        return found[0].major, found[0].minor

    return number


def _sysctls(given: SpecInput) -> dict[str, str]:
    """The user's, and docker's two for a namespace of one's own: low ports and ping without privileges."""
    sysctls: dict[str, str] = {}
    if given.netns is not None and given.host.network_mode != "host":
        sysctls["net.ipv4.ip_unprivileged_port_start"] = "0"
        last = given.ids.last_gid if given.ids is not None else 2147483647
        sysctls["net.ipv4.ping_group_range"] = f"0 {last}"
    if given.config.domainname:
        sysctls["kernel.domainname"] = given.config.domainname
    return {**sysctls, **(given.host.sysctls or {})}
