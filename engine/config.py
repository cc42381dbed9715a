"""The daemon's configuration: flags and ``daemon.json``, dockerd's own names, one frozen record.

A key that is neither dockerd's nor ours, bad JSON, a wrong type, and a setting given both as a flag and in the file are
refused with the key's name. ``RELOADABLE`` names what SIGHUP takes over.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

DEFAULT_HOST = "unix:///var/run/docker.sock"
DEFAULT_CONFIG_FILE = Path("/etc/docker/daemon.json")
LOG_LEVELS = ("debug", "info", "warn", "error", "fatal")

RELOADABLE = frozenset(
    "debug log-level labels registry-mirrors insecure-registries default-runtime runtimes shutdown-timeout "
    "max-concurrent-downloads max-concurrent-uploads max-download-attempts".split()
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
    mtu: int = 1500
    dns: tuple[str, ...] = ()
    dns_opts: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    icc: bool = True
    ip: str = "0.0.0.0"
    ip_forward: bool = True
    ip_masq: bool = True
    iptables: bool = True
    ipv6: bool = False
    userland_proxy: bool = False
    default_address_pools: tuple[tuple[str, int], ...] = ()
    # registries
    registry_addr: str = "127.0.0.1:5000"
    # What the embedded registry is told beyond its address; registry/configfile.py knows the keys.
    registry: Mapping[str, Any] = field(default_factory=dict)
    registry_mirrors: tuple[str, ...] = ()
    insecure_registries: tuple[str, ...] = ()
    max_concurrent_downloads: int = 3
    max_concurrent_uploads: int = 5
    max_download_attempts: int = 5
    # containers
    default_runtime: str = ""
    runtimes: Mapping[str, RuntimeConfig] = field(default_factory=dict)
    cgroup_parent: str = ""
    exec_opts: tuple[str, ...] = ()
    init: bool = False
    init_path: str = ""
    log_driver: str = "json-file"
    log_opts: Mapping[str, str] = field(default_factory=dict)
    default_shm_size: int = 64 * 1024 * 1024
    default_ipc_mode: str = "private"
    default_cgroupns_mode: str = ""
    default_ulimits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    no_new_privileges: bool = False
    seccomp_profile: str = ""
    storage_driver: str = ""
    storage_opts: tuple[str, ...] = ()
    live_restore: bool = True
    shutdown_timeout: int = 15
    experimental: bool = False
    # transport security
    tls: bool = False
    tlsverify: bool = False
    tlscacert: str = ""
    tlscert: str = ""
    tlskey: str = ""

    @property
    def bridge_name(self) -> str:
        """The default bridge's interface: ``docker0`` unless told otherwise."""
        return self.bridge or "docker0"


# Keys of dockerd that are accepted and have no effect here, with the reason logged at start.
IGNORED = {
    "features": "there are no optional features",
    "metrics-addr": "metrics are served at the debug address of the registry (registry.http.debug.addr)",
    "userns-remap": "user namespace remapping is not offered",
    "proxies": "proxies are taken from the environment",
    "default-runtime-args": "give them in runtimes",
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtb]?)(?:i?b)?", re.ASCII)
_SIZES = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_FIELDS = {f.name.replace("_", "-"): f for f in fields(Config)}


def load_config(flags: Mapping[str, Any], *, config_file: Path | None = None) -> Config:
    """The configuration from flags (by dockerd's key, e.g. ``data-root``; absent means not given) and the file.

    Without ``config_file`` the default file is read if it exists; a file that was named must exist.
    Raises ``ConfigError``.
    """
    path = config_file or DEFAULT_CONFIG_FILE
    document = read_file(path, must_exist=config_file is not None)
    both = sorted(set(document) & set(flags))
    if both:
        raise ConfigError(
            "the following directives are specified both as a flag and in the configuration file: "
            + ", ".join(f"{k}: (from flag: {flags[k]}, from file: {document[k]})" for k in both)
        )
    values = {key: convert(key, value) for source in (document, flags) for key, value in source.items()}
    config = Config(
        config_file=path, **{_FIELDS[k].name: v for k, v in values.items() if k in _FIELDS and k != "config-file"}
    )
    _check(config)
    return config


def reload_config(current: Config) -> Config:
    """Read the file again and take over what may change while running. Raises ``ConfigError``; then nothing changes."""
    document = read_file(current.config_file, must_exist=False)
    changed = {_FIELDS[k].name: convert(k, v) for k, v in document.items() if k in RELOADABLE}
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
    unknown = sorted(k for k in document if (k not in _FIELDS and k not in IGNORED) or k == "config-file")
    if unknown:
        raise ConfigError(
            f"unable to configure the daemon with file {path}: "
            f"the following directives don't match any configuration option: {', '.join(unknown)}"
        )
    return document


def convert(key: str, value: Any) -> Any:
    """A JSON or flag value to the field's type. Raises ``ConfigError`` naming the key."""
    if key in IGNORED and key not in _FIELDS:
        return value
    special = _CONVERTERS.get(key)
    try:
        if special is not None:
            return special(value)
        return _convert_plain(str(_FIELDS[key].type), value)
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
    match = _SIZE.fullmatch(str(value).lower())
    if match is None:
        raise ValueError(value)
    return int(float(match[1]) * _SIZES[match[2] or "b"])


def _runtimes(value: Any) -> Mapping[str, RuntimeConfig]:
    return {
        name: RuntimeConfig(str(entry.get("path") or name), tuple(entry.get("runtimeArgs") or entry.get("args") or ()))
        for name, entry in value.items()
    }


def _pools(value: Any) -> tuple[tuple[str, int], ...]:
    return tuple((str(ipaddress.ip_network(entry["base"])), int(entry["size"])) for entry in value)


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


_CONVERTERS = {
    "registry": _object,
    "runtimes": _runtimes,
    "default-address-pools": _pools,
    "default-ulimits": _ulimits,
    "default-shm-size": _size,
}


def _check(config: Config) -> None:
    if config.log_level not in LOG_LEVELS:
        raise ConfigError(f"invalid logging level: {config.log_level}")
    if config.bip:
        try:
            ipaddress.ip_interface(config.bip)
        except ValueError as error:
            raise ConfigError(
                f"invalid value for bip: {config.bip!r} is not an address with a prefix length"
            ) from error
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
