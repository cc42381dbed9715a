"""What single values of a configuration mean: durations, sizes, lists, cipher suites. Pure.

Every complaint is a `ConfigError` and begins with the key that it is given as `where`.
"""

from __future__ import annotations

import re
from typing import Any

_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h|d)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_GO_CIPHER = re.compile(r"TLS_(ECDHE_RSA|ECDHE_ECDSA|RSA)_WITH_(AES_\d+_GCM|AES_\d+_CBC|CHACHA20_POLY1305)_(SHA\d*)")
_LONGEST_WARNING = 200


class ConfigError(ValueError):
    """The configuration cannot be used; the message names the key."""


def openssl_cipher(name: str) -> str:
    """OpenSSL's name of a cipher suite that Go calls `TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256`."""
    matched = _GO_CIPHER.fullmatch(name)
    if matched is None:
        raise ConfigError(f"http.tls.ciphersuites: {name} is no cipher suite of TLS 1.2 that is supported")
    exchange, cipher, digest = matched.groups()
    parts = [] if exchange == "RSA" else [exchange.replace("_", "-")]
    if cipher.startswith("CHACHA20"):
        return "-".join((*parts, "CHACHA20-POLY1305"))
    parts.append(cipher.replace("AES_", "AES").removesuffix("_CBC").replace("_", "-"))
    return "-".join((*parts, digest))


def read_warning(text: Any, where: str) -> str:
    """A text that fits into a `Warning` header."""
    if not isinstance(text, str) or not text.isascii() or not text.isprintable() or len(text) > _LONGEST_WARNING:
        raise ConfigError(f"{where}: must be printable ASCII text of at most {_LONGEST_WARNING} characters")
    return text


def texts_of(value: Any, where: str) -> tuple[str, ...]:
    """A list of texts; a single text counts as a list of one."""
    if isinstance(value, str | int | float):
        return (str(value),)
    if not isinstance(value, list) or not all(isinstance(item, str | int | float) for item in value):
        raise ConfigError(f"{where}: must be a list of texts")
    return tuple(str(item) for item in value)


def parse_duration(value: Any, where: str = "duration") -> float:
    """Seconds of a Go duration (`1h30m`, `300ms`); a bare number is nanoseconds, as in registry:2. Days are ours."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value * 1e-9
    text = str(value).strip()
    if text == "0":
        return 0.0
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ConfigError(f"{where}: {text!r} is no duration such as 10s, 1h30m or 168h")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def parse_size(value: Any, where: str = "size") -> int:
    """Bytes of `10GiB`, `500MB`, `1024`; all units are powers of 1024, as docker counts memory."""
    matched = _SIZE.fullmatch(str(value).strip())
    if matched is None:
        raise ConfigError(f"{where}: {value!r} is no size such as 500MB or 10GiB")
    return int(matched[1]) << (10 * " kmgt".index(matched[2].lower() or " "))
