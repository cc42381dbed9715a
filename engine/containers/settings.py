"""What a user can ask of a container: the create body's settings as frozen values, which are also the stored wish.

Attribute names are ours, the encoded names are Docker's, so a document in the journal reads like the API. Lists and
maps that dockerd tells apart as nil and empty are ``None`` or empty here too: inspect shows what the client sent.
Decoding what clients send, by Go's rules, is in ``loose.py``; this file has values only.
"""

from __future__ import annotations

import msgspec
from msgspec import field

Strings = tuple[str, ...]


class HealthConfig(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """How to probe a container's health. Durations are nanoseconds; 0 means inherit or default."""

    test: Strings | None = None
    interval: int = 0
    timeout: int = 0
    retries: int = 0
    start_period: int = 0
    start_interval: int = 0


class ContainerConfig(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """The portable half of a container's settings; also the shape of an image's ``config``."""

    hostname: str = ""
    domainname: str = ""
    user: str = ""
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    exposed_ports: dict[str, dict[str, str]] | None = None
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    env: Strings | None = None
    cmd: Strings | None = None
    healthcheck: HealthConfig | None = None
    args_escaped: bool = False
    image: str = ""
    volumes: dict[str, dict[str, str]] | None = None
    working_dir: str = ""
    entrypoint: Strings | None = None
    network_disabled: bool = False
    mac_address: str = ""
    on_build: Strings | None = None
    labels: dict[str, str] | None = None
    stop_signal: str = ""
    stop_timeout: int | None = None
    """Seconds between the stop signal and SIGKILL; ``None`` is dockerd's 10, -1 waits for ever."""
    shell: Strings | None = None


class WeightDevice(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """Relative block-I/O weight (10 to 1000) of one device."""

    path: str = ""
    weight: int = 0


class ThrottleDevice(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """A rate limit of one device, in bytes or operations a second."""

    path: str = ""
    rate: int = 0


class DeviceMapping(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """A host device made visible in the container."""

    path_on_host: str = ""
    path_in_container: str = ""
    cgroup_permissions: str = ""


class DeviceRequest(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """A request to a device driver (``--gpus``, CDI)."""

    driver: str = ""
    count: int = 0
    device_ids: Strings | None = field(default=None, name="DeviceIDs")
    capabilities: tuple[Strings, ...] | None = None
    options: dict[str, str] | None = None


class Ulimit(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """A process limit; -1 is unlimited."""

    name: str = ""
    hard: int = 0
    soft: int = 0


class LogConfig(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """The log driver and its options; an empty type is the daemon's default."""

    type: str = ""
    config: dict[str, str] | None = None


class RestartPolicy(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """When to start again: ``no`` (or empty), ``always``, ``unless-stopped``, ``on-failure``."""

    name: str = ""
    maximum_retry_count: int = 0


class PortBinding(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """A host address and port (text; empty is any, ``a-b`` a range)."""

    host_ip: str = ""
    host_port: str = ""


class BindOptions(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """Options of a ``bind`` mount."""

    propagation: str = ""
    non_recursive: bool = False
    create_mountpoint: bool = False
    read_only_non_recursive: bool = False
    read_only_force_recursive: bool = False


class DriverConfig(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """The volume driver of a mount and its options."""

    name: str = ""
    options: dict[str, str] | None = None


class VolumeOptions(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """Options of a ``volume`` mount."""

    no_copy: bool = False
    labels: dict[str, str] | None = None
    subpath: str = ""
    driver_config: DriverConfig | None = None


class ImageOptions(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """Options of an ``image`` mount."""

    subpath: str = ""


class TmpfsOptions(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """Options of a ``tmpfs`` mount; ``mode`` holds permission bits."""

    size_bytes: int = 0
    mode: int = 0
    options: tuple[Strings, ...] | None = None


class Mount(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """One ``--mount``."""

    type: str = ""
    source: str = ""
    target: str = ""
    read_only: bool = False
    consistency: str = ""
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    image_options: ImageOptions | None = None
    tmpfs_options: TmpfsOptions | None = None


class Resources(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """Limits. Memory in bytes (0 none, swap -1 unlimited); CPU periods and quotas in µs; ``nano_cpus`` in 1e-9 CPUs."""

    cpu_shares: int = 0
    memory: int = 0
    nano_cpus: int = 0
    cgroup_parent: str = ""
    blkio_weight: int = 0
    blkio_weight_device: tuple[WeightDevice, ...] | None = None
    blkio_device_read_bps: tuple[ThrottleDevice, ...] | None = None
    blkio_device_write_bps: tuple[ThrottleDevice, ...] | None = None
    blkio_device_read_iops: tuple[ThrottleDevice, ...] | None = field(default=None, name="BlkioDeviceReadIOps")
    blkio_device_write_iops: tuple[ThrottleDevice, ...] | None = field(default=None, name="BlkioDeviceWriteIOps")
    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_realtime_period: int = 0
    cpu_realtime_runtime: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    devices: tuple[DeviceMapping, ...] | None = None
    device_cgroup_rules: Strings | None = None
    device_requests: tuple[DeviceRequest, ...] | None = None
    kernel_memory_tcp: int = field(default=0, name="KernelMemoryTCP")
    memory_reservation: int = 0
    memory_swap: int = 0
    memory_swappiness: int | None = None
    oom_kill_disable: bool | None = None
    pids_limit: int | None = None
    ulimits: tuple[Ulimit, ...] | None = None
    cpu_count: int = 0
    cpu_percent: int = 0
    io_maximum_iops: int = field(default=0, name="IOMaximumIOps")
    io_maximum_bandwidth: int = field(default=0, name="IOMaximumBandwidth")


class HostConfig(Resources, frozen=True, kw_only=True, rename="pascal"):
    """The half of a container's settings that concerns this host."""

    binds: Strings | None = None
    container_id_file: str = field(default="", name="ContainerIDFile")
    log_config: LogConfig = LogConfig()
    network_mode: str = ""
    port_bindings: dict[str, tuple[PortBinding, ...] | None] | None = None
    restart_policy: RestartPolicy = RestartPolicy()
    auto_remove: bool = False
    volume_driver: str = ""
    volumes_from: Strings | None = None
    console_size: tuple[int, int] = (0, 0)
    """Height, width."""
    annotations: dict[str, str] | None = None
    cap_add: Strings | None = None
    cap_drop: Strings | None = None
    cgroupns_mode: str = ""
    dns: Strings | None = None
    dns_options: Strings | None = None
    dns_search: Strings | None = None
    extra_hosts: Strings | None = None
    group_add: Strings | None = None
    ipc_mode: str = ""
    cgroup: str = ""
    links: Strings | None = None
    oom_score_adj: int = 0
    pid_mode: str = ""
    privileged: bool = False
    publish_all_ports: bool = False
    readonly_rootfs: bool = False
    security_opt: Strings | None = None
    storage_opt: dict[str, str] | None = None
    tmpfs: dict[str, str] | None = None
    uts_mode: str = field(default="", name="UTSMode")
    userns_mode: str = ""
    shm_size: int = 0
    sysctls: dict[str, str] | None = None
    runtime: str = ""
    isolation: str = ""
    mounts: tuple[Mount, ...] | None = None
    masked_paths: Strings | None = None
    readonly_paths: Strings | None = None
    init: bool | None = None


class EndpointIPAMConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Addresses asked for on one network."""

    ipv4_address: str = field(default="", name="IPv4Address")
    ipv6_address: str = field(default="", name="IPv6Address")
    link_local_ips: Strings | None = field(default=None, name="LinkLocalIPs")


class EndpointSettings(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """A container's place on one network: what was asked for, and (in answers) what it got."""

    ipam_config: EndpointIPAMConfig | None = field(default=None, name="IPAMConfig")
    links: Strings | None = None
    aliases: Strings | None = None
    mac_address: str = ""
    driver_opts: dict[str, str] | None = None
    gw_priority: int = 0
    network_id: str = field(default="", name="NetworkID")
    endpoint_id: str = field(default="", name="EndpointID")
    gateway: str = ""
    ip_address: str = field(default="", name="IPAddress")
    ip_prefix_len: int = field(default=0, name="IPPrefixLen")
    ipv6_gateway: str = field(default="", name="IPv6Gateway")
    global_ipv6_address: str = field(default="", name="GlobalIPv6Address")
    global_ipv6_prefix_len: int = field(default=0, name="GlobalIPv6PrefixLen")
    dns_names: Strings | None = field(default=None, name="DNSNames")


class NetworkingConfig(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """The networks a container joins when it first starts, by name or id."""

    endpoints_config: dict[str, EndpointSettings | None] | None = None


class ExecSettings(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """The body of ``POST /containers/{id}/exec``."""

    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    detach_keys: str = ""
    tty: bool = False
    env: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    privileged: bool = False
    user: str = ""
    working_dir: str = ""
    console_size: tuple[int, int] | None = None
    """Height, width."""

    @property
    def command(self) -> str:
        """The command line as events show it: with a space at its end where there are no arguments, as dockerd's."""
        first, *rest = self.cmd or ("",)
        return f"{first} {' '.join(rest)}"
