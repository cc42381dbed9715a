"""What dockerd says to a create request before it makes anything: errors, and warnings with what is discarded. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection

from engine.containers import security
from engine.containers.devices import validate_devices
from engine.containers.host import HostFacts
from engine.containers.limits import Findings, check_limits
from engine.containers.mounts import check_destination, parse_bind, parse_mount, parse_volumes_from, tmpfs_options
from engine.containers.namespaces import joined_container, validate_modes
from engine.containers.remap import check_remapped
from engine.containers.settings import ContainerConfig, HealthConfig, HostConfig, RestartPolicy
from engine.containers.signals import parse_signal
from engine.errors import EngineError

LOG_DRIVERS = frozenset({"none", "local", "json-file", "syslog", "journald", "gelf", "fluentd"})
_MIN_HEALTH_NS = 1_000_000
_PORT = re.compile(r"^(\d{1,5})(?:-(\d{1,5}))?$")


def validate_create(
    config: ContainerConfig,
    host: HostConfig,
    facts: HostFacts,
    *,
    runtimes: Collection[str] = ("runc",),
    log_drivers: Collection[str] = LOG_DRIVERS,
    systemd_cgroup: bool = False,
) -> Findings:
    """Check the settings as the client sent them, before the image's are merged in.

    Returns the warnings and the names of settings for ``with_defaults`` to drop. Raises ``ValueError`` with dockerd's
    sentence.
    """
    findings = Findings()
    _check_network_conflicts(config, host)
    _check_config(config)
    _check_host(host)
    check_remapped(host, facts)
    _check_names(host, runtimes, log_drivers, systemd_cgroup=systemd_cgroup)
    check_limits(host, facts, findings)
    _check_kernel(host, facts, findings)
    _check_mounts(host)
    return findings


def _check_network_conflicts(config: ContainerConfig, host: HostConfig) -> None:
    mode = host.network_mode
    if host.uts_mode == "host" and config.hostname:
        raise ValueError("conflicting options: hostname and the UTS mode")
    if mode == "host" and host.links:
        raise ValueError(
            "conflicting options: host type networking can't be used with links. "
            "This would result in undefined behavior"
        )
    target = joined_container(mode)
    if target is None:
        if mode == "container":
            raise ValueError("invalid network mode: invalid container format container:<name|id>")
        return
    if not target:
        raise ValueError("invalid network mode: invalid container format container:<name|id>")
    conflicts = (
        (config.hostname, "hostname and the network mode"),
        (host.links, "container type network can't be used with links. This would result in undefined behavior"),
        (host.dns, "dns and the network mode"),
        (host.extra_hosts, "custom host-to-IP mapping and the network mode"),
        (host.port_bindings or host.publish_all_ports, "port publishing and the container type network mode"),
        (config.exposed_ports, "port exposing and the container type network mode"),
    )
    for present, words in conflicts:
        if present:
            raise ValueError(f"conflicting options: {words}")


def _check_config(config: ContainerConfig) -> None:
    if config.working_dir and not config.working_dir.startswith("/"):
        raise ValueError(f"the working directory '{config.working_dir}' is invalid, it needs to be an absolute path")
    if config.stop_signal:
        try:
            parse_signal(config.stop_signal)
        except EngineError as error:
            raise ValueError(error.message) from error
    for variable in config.env or ():
        if not variable or variable.startswith("="):
            raise ValueError(f"invalid environment variable: {variable}")
    for port in config.exposed_ports or ():
        _check_port(port)
    if config.healthcheck is not None:
        _check_health(config.healthcheck)


def _check_health(health: HealthConfig) -> None:
    for name, value in (
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    ):
        if value != 0 and value < _MIN_HEALTH_NS:
            raise ValueError(f"{name} in Healthcheck cannot be less than 1ms")
    if health.retries < 0:
        raise ValueError("Retries in Healthcheck cannot be negative")
    if health.test and health.test[0] not in ("NONE", "CMD", "CMD-SHELL"):
        raise ValueError(f"Unknown healthcheck type: {health.test[0]}")


def _check_host(host: HostConfig) -> None:
    check_restart_policy(host.restart_policy)
    if host.auto_remove and host.restart_policy.name not in ("", "no"):
        raise ValueError("can't create 'AutoRemove' container with restart policy")
    for entry in host.extra_hosts or ():
        _check_extra_host(entry)
    for address in host.dns or ():
        _check_address(address, "invalid IP address: {}")
    _check_bindings(host)
    for field_name, names in (("CapAdd", host.cap_add), ("CapDrop", host.cap_drop)):
        try:
            security.normalize_capabilities(names)
        except ValueError as error:
            raise ValueError(f"invalid {field_name}: {error}") from error
    security.parse_security_options(host.security_opt)
    validate_devices(host)
    validate_modes(host)
    if not -1000 <= host.oom_score_adj <= 1000:
        raise ValueError(f"Invalid value {host.oom_score_adj}, range for oom score adj is [-1000, 1000]")
    if host.shm_size < 0:
        raise ValueError("SHM size can not be less than 0")
    if "" in (host.annotations or {}):
        raise ValueError("invalid Annotations: the empty string is not permitted as an annotation key")
    for limit in host.ulimits or ():
        if limit.hard != -1 and (limit.soft > limit.hard or limit.soft == -1):
            raise ValueError(f"ulimit soft limit must be less than or equal to hard limit: {limit.soft} > {limit.hard}")


def check_restart_policy(policy: RestartPolicy) -> None:
    """Also used by update. Raises ``ValueError`` with dockerd's sentence."""
    if policy.name in ("", "no", "always", "unless-stopped"):
        if policy.maximum_retry_count != 0:
            negative = " and cannot be negative" if policy.maximum_retry_count < 0 else ""
            raise ValueError(
                f"invalid restart policy: maximum retry count can only be used with 'on-failure'{negative}"
            )
    elif policy.name == "on-failure":
        if policy.maximum_retry_count < 0:
            raise ValueError("invalid restart policy: maximum retry count cannot be negative")
    else:
        raise ValueError(
            f"invalid restart policy: unknown policy '{policy.name}'; "
            "use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        )


def _check_extra_host(entry: str) -> None:
    name, found, address = entry.partition(":")
    if not found or not name:
        raise ValueError(f'bad format for add-host: "{entry}"')
    if address != "host-gateway":
        _check_address(address.strip("[]"), f'invalid IP address in add-host: "{address}"')


def _check_address(address: str, words: str) -> None:
    try:
        ipaddress.ip_address(address.partition("%")[0])
    except ValueError as error:
        raise ValueError(words.format(address)) from error


def _check_bindings(host: HostConfig) -> None:
    for port, bindings in (host.port_bindings or {}).items():
        _check_port(port)
        for binding in bindings or ():
            if binding.host_ip:
                _check_address(binding.host_ip, f'invalid IP address "{binding.host_ip}" in port binding')
            if binding.host_port and not _is_port_range(binding.host_port):
                raise ValueError(f'invalid port specification: "{binding.host_port}"')


def _check_port(port: str) -> None:
    number, _, protocol = port.partition("/")
    if not _is_port_range(number):
        # Ports are keys of the document, and clients are told of them as of its other syntax.
        reason = "value out of range" if number.isdigit() else "invalid syntax" if number else "value is empty"
        raise ValueError(f"invalid JSON: invalid port '{number}': {reason}")
    if protocol.lower() not in ("", "tcp", "udp", "sctp"):
        raise ValueError(f'invalid port specification: "{port}"')


def _is_port_range(text: str) -> bool:
    match = _PORT.match(text)
    if match is None:
        return False
    low, high = int(match[1]), int(match[2] or match[1])
    return low <= high <= 65535


_FOREIGN_LOG_DRIVERS = frozenset(("awslogs", "etwlogs", "gcplogs", "logentries", "splunk"))


def _check_names(
    host: HostConfig, runtimes: Collection[str], log_drivers: Collection[str], *, systemd_cgroup: bool
) -> None:
    driver = host.log_config.type
    if driver in _FOREIGN_LOG_DRIVERS:
        raise ValueError(f"failed to initialize logging driver: {driver} is not offered by this engine")
    if driver and driver not in log_drivers:
        raise ValueError(f"logger: no log driver named '{driver}' is registered")
    if host.runtime and host.runtime not in runtimes:
        raise ValueError(f"unknown or invalid runtime name: {host.runtime}")
    if host.isolation not in ("", "default"):
        raise ValueError(f"invalid isolation ({host.isolation}): linux only supports 'default'")
    if systemd_cgroup and host.cgroup_parent and not host.cgroup_parent.endswith(".slice"):
        raise ValueError('cgroup-parent for systemd cgroup should be a valid slice named as "xxx.slice"')


def _check_kernel(host: HostConfig, facts: HostFacts, findings: Findings) -> None:
    findings.warnings += security.capability_warnings(host, facts)
    if host.network_mode not in ("host", "none") and not facts.ipv4_forwarding:
        findings.warnings.append("IPv4 forwarding is disabled. Networking will not work.")
    if host.network_mode == "host" and host.port_bindings:
        findings.warnings.append("Published ports are discarded when using host network mode")
    if host.cgroupns_mode == "private" and not facts.cgroup_namespaces:
        findings.discard(
            "Your kernel does not support cgroup namespaces.  Cgroup namespace setting discarded.", "cgroupns_mode"
        )


def _check_mounts(host: HostConfig) -> None:
    for path, data in (host.tmpfs or {}).items():
        check_destination(path)
        tmpfs_options(data)
    for text in host.binds or ():
        parse_bind(text, host.volume_driver)
    for mount in host.mounts or ():
        parse_mount(mount)
    for text in host.volumes_from or ():
        parse_volumes_from(text)
