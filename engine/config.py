"""The daemon's configuration: flags and ``daemon.json``, dockerd's own names, one frozen record.

A key that is neither dockerd's nor ours, bad JSON, a wrong type, and a setting given both as a flag and in the file are
refused with the key's name. ``RELOADABLE`` names what SIGHUP takes over.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from engine.sizes import parse_size

DEFAULT_HOST = "unix:///var/run/docker.sock"
DEFAULT_CONFIG_FILE = Path("/etc/docker/daemon.json")
TCP_PORT, TLS_PORT = "2375", "2376"
ON_UNHEALTHY = ("none", "restart", "stop", "kill")
LOG_LEVELS = ("trace", "debug", "info", "warn", "warning", "error", "fatal", "panic")

RELOADABLE = frozenset(
    "debug log-level labels registry-mirrors insecure-registries default-runtime runtimes shutdown-timeout "
    "default-shm-size default-ipc-mode default-cgroupns-mode "
    "max-concurrent-downloads max-concurrent-uploads max-download-attempts features http-proxy https-proxy "
    "no-proxy registry".split()
)
# Of these, the ones that have their defaults again when a reloaded file no longer names them.
_RESET = RELOADABLE & frozenset(
    "max-concurrent-downloads max-concurrent-uploads max-download-attempts features http-proxy https-proxy "
    "no-proxy registry".split()
)


class ConfigError(ValueError):
    """The configuration cannot be used; the text names the key or the flag."""


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """An entry of ``runtimes``: an OCI runtime beside those found on the host."""

    path: str
    args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the daemon was told. Field names are dockerd's keys with ``_`` for ``-``."""

    hosts: tuple[str, ...] = (DEFAULT_HOST,)
    group: str = "docker"
    data_root: Path = Path("/var/lib/berth")
    exec_root: Path = Path("/run/berth")
    pidfile: Path = Path("/run/berth.pid")
    config_file: Path = DEFAULT_CONFIG_FILE
    log_level: str = "info"
    debug: bool = False
    labels: tuple[str, ...] = ()
    # networks
    bridge: str = ""
    bip: str = ""
    fixed_cidr: str = ""
    bip6: str = ""
    fixed_cidr_v6: str = ""
    mtu: int = 1500
    dns: tuple[str, ...] = ()
    dns_opts: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    icc: bool = True
    ip: str = "0.0.0.0"
    ip_forward: bool = True
    ip_masq: bool = True
    iptables: bool = True
    ip6tables: bool = True
    ipv6: bool = False
    host_gateway_ips: tuple[str, ...] = ()
    default_gateway: str = ""
    default_gateway_v6: str = ""
    """Another way out of the default bridge than the bridge itself."""
    default_address_pools: tuple[tuple[str, int], ...] = ()
    default_network_opts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Options of every new network, by its driver."""
    # registries
    registry_addr: str = "127.0.0.1:5000"
    # What the embedded registry is told beyond its address; registry/configfile.py knows the keys.
    registry: Mapping[str, Any] = field(default_factory=dict)
    registry_mirrors: tuple[str, ...] = ()
    insecure_registries: tuple[str, ...] = ()
    max_concurrent_downloads: int = 3
    max_concurrent_uploads: int = 5
    max_download_attempts: int = 5
    http_proxy: str = ""
    https_proxy: str = ""
    no_proxy: str = ""
    # containers
    default_runtime: str = ""
    runtimes: Mapping[str, RuntimeConfig] = field(default_factory=dict)
    cgroup_parent: str = ""
    exec_opts: tuple[str, ...] = ()
    init: bool = False
    init_path: str = ""
    log_driver: str = "json-file"
    log_opts: Mapping[str, str] = field(default_factory=dict)
    cdi_spec_dirs: tuple[str, ...] = ("/etc/cdi", "/var/run/cdi")
    default_shm_size: int = 64 * 1024 * 1024
    default_ipc_mode: str = "private"
    default_cgroupns_mode: str = ""
    default_ulimits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    no_new_privileges: bool = False
    userns_remap: str = ""
    """Whose subordinate ids containers have; empty: the host's."""
    on_unhealthy: str = "none"
    seccomp_profile: str = ""
    storage_driver: str = ""
    storage_opts: tuple[str, ...] = ()
    live_restore: bool = True
    shutdown_timeout: int = 15
    experimental: bool = False
    features: Mapping[str, bool] = field(default_factory=dict)
    metrics_addr: str = ""
    """Where Prometheus finds the engine's metrics; empty: nowhere."""
    # transport security
    tls: bool = False
    tlsverify: bool = False
    tlscacert: str = ""
    tlscert: str = ""
    tlskey: str = ""
    ignored: tuple[str, ...] = ()
    """Keys of ``IGNORED`` that were given, and not to switch off what is not there."""
    flags: frozenset[str] = frozenset()
    """Keys that were given as flags."""

    @property
    def bridge_name(self) -> str:
        """The default bridge's interface: ``docker0`` unless told otherwise."""
        return self.bridge or "docker0"

    @property
    def has_cdi(self) -> bool:
        """Whether devices may be asked for by the names that CDI specifications give them."""
        return self.features.get("cdi", True)


_NO_CONTAINERD = "there is no containerd: the daemon's shims run containers"
# Keys of dockerd that are accepted and have no effect here, with the reason logged at start.
IGNORED = {
    "api-cors-header": "pages of other origins are not answered",
    "allow-direct-routing": "unpublished ports stay closed to other hosts",
    "allow-nondistributable-artifacts": "layers of other hosts are never pushed",
    "bridge-accept-fwmark": "give such packets a rule in the chain berth-user",
    "containerd": _NO_CONTAINERD,
    "containerd-namespace": _NO_CONTAINERD,
    "containerd-plugin-namespace": _NO_CONTAINERD,
    "cpu-rt-period": "set it on the parent control group",
    "cpu-rt-runtime": "set it on the parent control group",
    "cri-containerd": _NO_CONTAINERD,
    "default-runtime-args": "give them in runtimes",
    "default-stop-timeout": "give containers --stop-timeout",
    "firewall-backend": "the firewall is nftables",
    "ip-forward-no-drop": "the policy of the host's own chains is never changed",
    "log-format": "the daemon's log is text",
    "network-control-plane-mtu": "there is no swarm",
    "network-diagnostic-port": "there is no swarm",
    "node-generic-resources": "there is no swarm",
    "nri-opts": _NO_CONTAINERD,
    "oom-score-adjust": "the service unit sets it (OOMScoreAdjust=)",
    "raw-logs": "the daemon's log has no colours",
    "restart": "containers have restart policies",
    "swarm-default-advertise-addr": "there is no swarm",
    "userland-proxy": "published ports use no relay process",
    "userland-proxy-path": "published ports use no relay process",
}
# Keys of dockerd that would change what containers may do, or where their packets go: whoever sets one is told at once.
REFUSED = {
    "authorization-plugins": "authorization plugins are not offered",
    "rootless": "rootless mode is not offered",
    "selinux-enabled": "SELinux labels are not offered",
}
# Older names of keys that hold one value where the newer hold a list.
_SINGULAR = {"host-gateway-ip": "host-gateway-ips"}
_FIELDS = {f.name.replace("_", "-"): f for f in fields(Config) if f.name not in ("ignored", "flags")}
_PROXIES = ("http-proxy", "https-proxy", "no-proxy")


def load_config(flags: Mapping[str, Any], *, config_file: Path | None = None) -> Config:
    """The configuration from flags (by dockerd's key, e.g. ``data-root``; absent means not given) and the file.

    Without ``config_file`` the default file is read if it exists; a file that was named must exist.
    Raises ``ConfigError``.
    """
    path = config_file or DEFAULT_CONFIG_FILE
    document = read_file(path, must_exist=config_file is not None)
    both = sorted(set(document) & set(flags))
    if both:
        shown = {k: [mask_credentials(v) if k in _PROXIES else v for v in (flags[k], document[k])] for k in both}
        raise ConfigError(
            "the following directives are specified both as a flag and in the configuration file: "
            + ", ".join(f"{k}: (from flag: {flag}, from file: {file})" for k, (flag, file) in shown.items())
        )
    values = {key: convert(key, value) for source in (document, flags) for key, value in source.items()}
    for key in REFUSED.keys() & values.keys():
        if values[key]:
            raise ConfigError(f"{key} cannot be {values[key]!r}: {REFUSED[key]}")
    config = Config(
        config_file=path,
        ignored=tuple(sorted(key for key in IGNORED.keys() & values.keys() if values[key] is not False)),
        flags=frozenset(flags),
        **{_FIELDS[k].name: v for k, v in values.items() if k in _FIELDS and k != "config-file"},
    )
    _check(config)
    return config


def reload_config(current: Config) -> Config:
    """Read the file again and take over what may change while running. Raises ``ConfigError``; then nothing changes."""
    document = read_file(current.config_file, must_exist=False)
    defaults = Config()
    changed = {_FIELDS[k].name: getattr(defaults, _FIELDS[k].name) for k in _RESET - current.flags}
    changed |= {_FIELDS[k].name: convert(k, v) for k, v in document.items() if k in RELOADABLE}
    config = replace(current, **changed)
    _check(config)
    return config


def read_file(path: Path, *, must_exist: bool) -> dict[str, Any]:
    """The keys of a ``daemon.json``. Raises ``ConfigError`` for bad JSON or an unknown key."""
    try:
        text = path.read_text()
    except FileNotFoundError as error:
        if must_exist:
            raise ConfigError(f"unable to configure the daemon with file {path}: no such file") from error
        return {}
    except OSError as error:
        raise ConfigError(f"unable to configure the daemon with file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"unable to configure the daemon with file {path}: it is not UTF-8") from error
    if not text.strip():
        return {}
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"unable to configure the daemon with file {path}: invalid JSON: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"unable to configure the daemon with file {path}: it must hold one JSON object")
    document = {key: value for key, value in document.items() if value is not None}
    proxies = document.pop("proxies", {})
    if not isinstance(proxies, dict):
        raise ConfigError(f"unable to configure the daemon with file {path}: proxies must be an object")
    document |= {key: value for key, value in proxies.items() if value is not None}
    for key in _SINGULAR.keys() & document.keys():
        if _SINGULAR[key] in document:
            raise ConfigError(f"unable to configure the daemon with file {path}: {key} and {_SINGULAR[key]} are one")
        document[_SINGULAR[key]] = [document.pop(key)]
    known = _FIELDS.keys() | IGNORED.keys() | REFUSED.keys()
    unknown = sorted(k for k in document if k not in known or k == "config-file")
    if unknown:
        raise ConfigError(
            f"unable to configure the daemon with file {path}: "
            f"the following directives don't match any configuration option: {', '.join(unknown)}"
        )
    return document


def convert(key: str, value: Any) -> Any:
    """A JSON or flag value to the field's type. Raises ``ConfigError`` naming the key."""
    if key not in _FIELDS:
        return value
    special = _CONVERTERS.get(key)
    try:
        if special is not None:
            return special(value)
        return _convert_plain(str(_FIELDS[key].type), value)
    except ConfigError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"invalid value for {key}: {value!r}") from error


def _convert_plain(kind: str, value: Any) -> Any:
    match kind:
        case "bool":
            if not isinstance(value, bool):
                raise TypeError
            return value
        case "int":
            if isinstance(value, bool):
                raise TypeError
            return int(value)
        case "str":
            if not isinstance(value, str):
                raise TypeError
            return value
        case "Path":
            return Path(value)
        case "Mapping[str, str]":
            return {str(k): str(v) for k, v in value.items()}
        case _:
            if isinstance(value, str):
                raise TypeError
            return tuple(str(item) for item in value)


def _size(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return parse_size(str(value))


def _runtimes(value: Any) -> Mapping[str, RuntimeConfig]:
    if "runc" in value:
        raise ConfigError("runtime name 'runc' is reserved")
    return {
        name: RuntimeConfig(str(entry.get("path") or name), tuple(entry.get("runtimeArgs") or entry.get("args") or ()))
        for name, entry in value.items()
    }


def _pools(value: Any) -> tuple[tuple[str, int], ...]:
    return tuple((str(ipaddress.ip_network(entry["base"])), int(entry["size"])) for entry in value)


def _hosts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        raise TypeError
    return tuple(_host(str(item).strip()) for item in value)


def _host(text: str) -> str:
    """An address to listen on; without a scheme it is a TCP one, as dockerd reads it."""
    if not text:
        return DEFAULT_HOST
    return text if "://" in text else f"tcp://{text}"


def _gateway(version: int, value: Any) -> str:
    address = ipaddress.ip_address(value) if isinstance(value, str) else None
    if address is None or address.version != version:
        raise ValueError(value)
    return str(address)


def _addresses(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        raise TypeError
    return tuple(str(ipaddress.ip_address(item)) for item in value)


def _network_options(value: Any) -> Mapping[str, Mapping[str, str]]:
    return {driver: {str(k): str(v) for k, v in options.items()} for driver, options in value.items()}


def _folders(value: Any) -> tuple[str, ...]:
    """An empty one alone means none."""
    if isinstance(value, str):
        raise TypeError
    return () if list(value) == [""] else tuple(str(item) for item in value)


def _features(value: Any) -> Mapping[str, bool]:
    """Booleans, or what Go reads as one, as a flag has them (``--feature cdi=false``; a name alone is on)."""
    found: dict[str, bool] = {}
    for name, entry in value.items():
        text = str(entry).lower() or "true"
        if text not in ("1", "t", "true", "0", "f", "false"):
            raise ValueError(entry)
        found[str(name)] = text in ("1", "t", "true")
    return found


def mask_credentials(url: str) -> str:
    """A URL that may be shown: user and password are replaced."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    if "@" not in parts.netloc:
        return url
    return parts._replace(netloc="xxxxx:xxxxx@" + parts.netloc.rpartition("@")[2]).geturl()


def reload_attributes(config: Config, found_runtime: str) -> dict[str, str]:
    """What the event of a reload tells: the settings now in force that may change while running, as dockerd words them.

    ``found_runtime`` is the default where the configuration names none.
    """
    features = " ".join(f"{name}:{_go_bool(value)}" for name, value in sorted(config.features.items()))
    return {
        "debug": _go_bool(config.debug),
        "default-cgroupns-mode": config.default_cgroupns_mode,
        "default-ipc-mode": config.default_ipc_mode,
        "default-runtime": config.default_runtime or found_runtime,
        "default-shm-size": str(config.default_shm_size),
        "features": f"map[{features}]",
        "insecure-registries": json.dumps(config.insecure_registries, separators=(",", ":")),
        "labels": json.dumps(config.labels, separators=(",", ":")),
        "live-restore": _go_bool(config.live_restore),
        "max-concurrent-downloads": str(config.max_concurrent_downloads),
        "max-concurrent-uploads": str(config.max_concurrent_uploads),
        "max-download-attempts": str(config.max_download_attempts),
        "registry-mirrors": json.dumps(config.registry_mirrors, separators=(",", ":")),
        "runtimes": " ".join(f"{name}:{runtime.path}" for name, runtime in config.runtimes.items()),
        "shutdown-timeout": str(config.shutdown_timeout),
    }


def _go_bool(value: bool) -> str:
    return str(value).lower()


def _ulimits(value: Any) -> Mapping[str, tuple[int, int]]:
    found = {}
    for name, entry in value.items():
        soft, hard = entry.get("Soft", entry.get("Hard")), entry.get("Hard", entry.get("Soft"))
        found[name] = (int(soft), int(hard))
    return found


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError
    return value


_CONVERTERS: Mapping[str, Callable[[Any], Any]] = {
    "hosts": _hosts,
    "host-gateway-ips": _addresses,
    "default-gateway": partial(_gateway, 4),
    "default-gateway-v6": partial(_gateway, 6),
    "default-network-opts": _network_options,
    "cdi-spec-dirs": _folders,
    "features": _features,
    "registry": _object,
    "runtimes": _runtimes,
    "default-address-pools": _pools,
    "default-ulimits": _ulimits,
    "default-shm-size": _size,
}


def tcp_address(text: str, *, tls: bool) -> tuple[str, int]:
    """Host and port of a ``tcp://`` address to listen on, docker's port where it has none. Raises ``ValueError``."""
    address = text.removeprefix("tcp://")
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        host, port = address, TLS_PORT if tls else TCP_PORT
    if not port.isdigit():
        raise ValueError(f"cannot listen on tcp://{address}: {port!r} is no port")
    return host.strip("[]") or "127.0.0.1", int(port)


def metrics_address(text: str) -> tuple[str, int]:
    """Host (empty: all addresses) and port of ``metrics-addr``. Raises ``ConfigError`` in dockerd's words."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        problem = "invalid port" if colon else "missing port in address"
        raise ConfigError(f"failed to start metrics server: listen tcp: address {text}: {problem}")
    return host.strip("[]"), int(port)


def own_ports(config: Config) -> list[tuple[str, int]]:
    """The numeric addresses and TCP ports that the daemon itself takes on this host."""
    given = [
        tcp_address(text, tls=config.tls or config.tlsverify) for text in config.hosts if text.startswith("tcp://")
    ]
    if config.metrics_addr:
        given.append(metrics_address(config.metrics_addr))
    found = []
    for host, port in given:
        with contextlib.suppress(ValueError):  # a name: whoever wants its port will see that it is taken
            found.append((str(ipaddress.ip_address("127.0.0.1" if host == "localhost" else host or "0.0.0.0")), port))
    return found


def _check(config: Config) -> None:
    if config.on_unhealthy not in ON_UNHEALTHY:
        raise ConfigError(f"on-unhealthy is one of {', '.join(ON_UNHEALTHY)}, not {config.on_unhealthy}")
    if config.log_level not in LOG_LEVELS:
        raise ConfigError(f"invalid logging level: {config.log_level}")
    if config.bip:
        try:
            ipaddress.ip_interface(config.bip)
        except ValueError as error:
            raise ConfigError(
                f"invalid value for bip: {config.bip!r} is not an address with a prefix length"
            ) from error
    _check_ipv6(config)
    for version in (4, 6):
        if sum(ipaddress.ip_address(address).version == version for address in config.host_gateway_ips) > 1:
            raise ConfigError(f"only one IPv{version} host gateway IP address can be specified")
    if config.bip and config.bridge == "none":
        raise ConfigError("You specified --bridge none together with --bip: there is no bridge to give an address to")
    if config.max_concurrent_downloads < 1 or config.max_concurrent_uploads < 1 or config.max_download_attempts < 1:
        raise ConfigError("invalid max concurrent downloads, uploads or download attempts: at least 1 is needed")
    for label in config.labels:
        if "=" not in label:
            raise ConfigError(f"bad attribute format: {label}")
    if config.tlsverify and not (config.tlscacert and config.tlscert and config.tlskey):
        raise ConfigError("tlsverify needs tlscacert, tlscert and tlskey")
    if not config.data_root.is_absolute() or not config.exec_root.is_absolute():
        raise ConfigError("data-root and exec-root must be absolute paths")


def _check_ipv6(config: Config) -> None:
    """The default bridge's IPv6 addresses are such."""
    try:
        given = [ipaddress.ip_interface(text) for text in (config.bip6, config.fixed_cidr_v6) if text]
    except ValueError as error:
        raise ConfigError(f"invalid value for bip6 or fixed-cidr-v6: {error}") from error
    if any(one.version != 6 for one in given):
        raise ConfigError("bip6 and fixed-cidr-v6 must be IPv6 addresses with a prefix length")
