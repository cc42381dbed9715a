"""Which options the log drivers take and what their values may be, refused in dockerd's words. Pure.

`check_log_options` is for a create request; the `parse_*` functions read values for a start. All raise ValueError.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engine.sizes import parse_size

Options = Mapping[str, str]

FILE_DRIVERS = frozenset({"json-file", "local"})
REMOTE_DRIVERS = frozenset({"syslog", "journald", "gelf", "fluentd"})
NON_BLOCKING = "non-blocking"
DEFAULT_BUFFER_BYTES = 1 << 20

_ATTRIBUTES = {"labels", "labels-regex", "env", "env-regex", "tag"}
_ANY_DRIVER = {"mode", "max-buffer-size", "cache-disabled", "cache-max-size", "cache-max-file", "cache-compress"}
_KNOWN = {
    "json-file": {"max-file", "max-size", "compress", *_ATTRIBUTES},
    "local": {"max-file", "max-size", "compress"},
    "syslog": {
        "syslog-address",
        "syslog-facility",
        "syslog-format",
        "syslog-tls-ca-cert",
        "syslog-tls-cert",
        "syslog-tls-key",
        "syslog-tls-skip-verify",
        *_ATTRIBUTES,
    },
    "journald": {*_ATTRIBUTES},
    "gelf": {
        "gelf-address",
        "gelf-compression-type",
        "gelf-compression-level",
        "gelf-tcp-max-reconnect",
        "gelf-tcp-reconnect-delay",
        *_ATTRIBUTES,
    },
    "fluentd": {
        "fluentd-address",
        "fluentd-async",
        "fluentd-async-connect",
        "fluentd-async-reconnect-interval",
        "fluentd-buffer-limit",
        "fluentd-max-retries",
        "fluentd-read-timeout",
        "fluentd-request-ack",
        "fluentd-retry-wait",
        "fluentd-sub-second-precision",
        "fluentd-write-timeout",
        *_ATTRIBUTES,
    },
}
_WORDS = {
    "local": "unknown log opt '{}' for log driver local",
    "gelf": 'unknown log opt "{}" for gelf log driver',
}
_FACILITIES = (
    *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"),
    *("", "", "", "", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7"),
)
_FORMATS = ("", "rfc3164", "rfc5424", "rfc5424micro")
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a remote driver delivers: `place` is host:port or a path; an empty network is the machine's own syslog."""

    network: str
    place: str


def check_log_options(driver: str, options: Options) -> None:
    """What dockerd checks when a container is created. Raises ``ValueError``."""
    if driver == "none":
        return
    mode = options.get("mode", "")
    if mode not in ("", "blocking", NON_BLOCKING):
        raise ValueError(f"logger: logging mode not supported: {mode}")
    if "max-buffer-size" in options:
        if mode != NON_BLOCKING:
            raise ValueError(f"logger: max-buffer-size option is only supported with 'mode={NON_BLOCKING}'")
        try:
            parse_size(options["max-buffer-size"])
        except ValueError as error:
            raise ValueError(f"error parsing option max-buffer-size: {error}") from error
    _check_cache(options)
    if driver not in _KNOWN:
        raise ValueError(f"logger: no log driver named '{driver}' is registered")
    if driver == "gelf":  # its address is looked at before the names of its options
        parse_gelf_address(options.get("gelf-address", ""))
    for key in sorted(options):
        if key not in _KNOWN[driver] and key not in _ANY_DRIVER:
            raise ValueError(_WORDS.get(driver, f"unknown log opt '{{}}' for {driver} log driver").format(key))
    check = _CHECKS.get(driver)
    if check is not None:
        check(options)


def _check_cache(options: Options) -> None:
    checks: dict[str, Callable[[str], object]] = {
        "cache-disabled": parse_bool,
        "cache-compress": parse_bool,
        "cache-max-size": parse_size,
        "cache-max-file": parse_int,
    }
    for key, check in checks.items():
        try:
            if key in options:
                check(options[key])
        except ValueError as error:
            raise ValueError(f"invalid value for option {key}: {options[key]}") from error


def _check_syslog(options: Options) -> None:
    parse_syslog_address(options.get("syslog-address", ""))
    parse_facility(options.get("syslog-facility", ""))
    if options.get("syslog-format", "") not in _FORMATS:
        raise ValueError("Invalid syslog format")


def _check_gelf(options: Options) -> None:
    network = parse_gelf_address(options.get("gelf-address", "")).network
    for key in ("gelf-compression-level", "gelf-compression-type"):
        if key in options and network != "udp":
            raise ValueError("compression is only supported on UDP")
    for key in ("gelf-tcp-max-reconnect", "gelf-tcp-reconnect-delay"):
        if key in options and network != "tcp":
            raise ValueError(f'"{key}" is only valid for TCP')
        if key in options and not _is_within(options[key], 0, None):
            raise ValueError(f'"{key}" must be a positive integer')
    level = options.get("gelf-compression-level", "1")
    if not _is_within(level, -1, 9):
        raise _unknown_gelf(level, "gelf-compression-level")
    kind = options.get("gelf-compression-type", "gzip")
    if kind not in ("gzip", "zlib", "none"):
        raise _unknown_gelf(kind, "gelf-compression-type")


def _is_within(text: str, low: int, high: int | None) -> bool:
    try:
        number = parse_int(text)
    except ValueError:
        return False
    return number >= low and (high is None or number <= high)


def _unknown_gelf(value: str, key: str) -> ValueError:
    return ValueError(f'unknown value "{value}" for log opt "{key}" for gelf log driver')


def _check_fluentd(options: Options) -> None:
    parse_fluentd_address(options.get("fluentd-address", ""))
    if "fluentd-buffer-limit" in options:
        parse_size(options["fluentd-buffer-limit"])
    for key in ("fluentd-retry-wait", "fluentd-write-timeout", "fluentd-read-timeout"):
        if key in options:
            parse_duration(options[key])
    if "fluentd-max-retries" in options:
        _check_retries(options["fluentd-max-retries"])
    for key in ("fluentd-async", "fluentd-async-connect", "fluentd-sub-second-precision", "fluentd-request-ack"):
        if key in options:
            parse_bool(options[key])
    if "fluentd-async" in options and "fluentd-async-connect" in options:
        raise ValueError(
            "conflicting options: cannot specify both 'fluentd-async' and 'fluentd-async-connect', "
            "use 'fluentd-async' only"
        )
    interval = options.get("fluentd-async-reconnect-interval", "")
    if interval and not 0.1 <= parse_duration(interval) <= 10:
        raise ValueError(
            f"invalid value for fluentd-async-reconnect-interval: value ({interval}) must be between 100ms and 10s"
        )


def _check_retries(text: str) -> None:
    if not re.fullmatch(r"[0-9]+", text):
        raise ValueError(f'strconv.ParseUint: parsing "{text}": invalid syntax')
    if int(text) >= 2**31:
        raise ValueError("invalid fluentd-max-retries: value out of range")


_CHECKS: dict[str, Callable[[Options], None]] = {
    "syslog": _check_syslog,
    "gelf": _check_gelf,
    "fluentd": _check_fluentd,
}


# Values.


def log_socket(driver: str, options: Options) -> str:
    """The socket that must be there before a container is made; "" for none."""
    address = parse_syslog_address(options.get("syslog-address", "")) if driver == "syslog" else Address("", "")
    return address.place if address.network in ("unix", "unixgram") else ""


def parse_bool(text: str) -> bool:
    """Go's ``strconv.ParseBool``."""
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise ValueError(f'strconv.ParseBool: parsing "{text}": invalid syntax')


def parse_int(text: str) -> int:
    """Go's ``strconv.Atoi``."""
    if not re.fullmatch(r"[+-]?[0-9]+", text):
        raise ValueError(f'strconv.Atoi: parsing "{text}": invalid syntax')
    return int(text)


def parse_duration(text: str) -> float:
    """Seconds of Go's "1m30s"."""
    parts = _DURATION.findall(text)
    if text != "0" and (not parts or "".join(number + unit for number, unit in parts) != text):
        raise ValueError(f'time: invalid duration "{text}"')
    return float(sum(float(number) * _SECONDS[unit] for number, unit in parts))


def parse_facility(text: str) -> int:
    """A syslog facility by name or number; daemon where none is given."""
    if not text:
        return _FACILITIES.index("daemon")
    if text in _FACILITIES:
        return _FACILITIES.index(text)
    if re.fullmatch(r"[0-9]+", text) and int(text) <= 23:
        return int(text)
    raise ValueError("invalid syslog facility")


def parse_syslog_address(text: str) -> Address:
    """``udp://host``, ``tcp://host:port``, ``tcp+tls://…``, ``unix:///path``, ``unixgram:///path``."""
    if not text:
        return Address("", "")
    scheme, found, rest = text.partition("://")
    if not found or scheme not in ("udp", "tcp", "tcp+tls", "unix", "unixgram"):
        raise ValueError(f"syslog-address should be in form proto://address, got {text}")
    if scheme in ("unix", "unixgram"):
        return Address(scheme, rest)
    host = rest.partition("/")[0]
    return Address(scheme, host if _has_port(host) else f"{host}:514")


def parse_gelf_address(text: str) -> Address:
    """``udp://host:port`` or ``tcp://host:port``."""
    if not text:
        raise ValueError("gelf-address is a required parameter")
    scheme, found, rest = text.partition("://")
    if not found or scheme not in ("udp", "tcp", "tcp+tls", "unix", "unixgram"):
        raise ValueError(f"gelf-address should be in form proto://address, got {text}")
    if scheme not in ("udp", "tcp"):
        raise ValueError("gelf: endpoint needs to be TCP or UDP")
    host = rest.partition("/")[0]
    if not _has_port(host):
        raise ValueError("gelf: please provide gelf-address as proto://host:port")
    return Address(scheme, host)


def parse_fluentd_address(text: str) -> Address:
    """``host``, ``host:port``, ``tcp://…``, ``tls://…`` or ``unix:///path``; this machine where nothing is given."""
    scheme, found, rest = text.partition("://")
    if not found:
        scheme, rest = "tcp", text
    if scheme == "unix":
        if not rest.strip("/"):
            raise ValueError(f"invalid fluentd-address {text}: path is empty")
        return Address(scheme, rest)
    if scheme not in ("tcp", "tls"):
        raise ValueError(f"invalid fluentd-address {text}: unsupported scheme: '{scheme}'")
    if "/" in rest.rstrip("/"):
        raise ValueError(f"invalid fluentd-address {text}: should not contain a path element")
    rest = rest.rstrip("/")
    host, port = rest.rsplit(":", 1) if _has_port(rest) else (rest, "24224")
    try:
        number = parse_int(port)
    except ValueError as error:
        raise ValueError(f"invalid fluentd-address {text}: {error}") from error
    return Address(scheme, f"{host or '127.0.0.1'}:{number}")


def _has_port(host: str) -> bool:
    return re.search(r":[^:\]]*$", host) is not None and (host.count(":") == 1 or host.startswith("["))
