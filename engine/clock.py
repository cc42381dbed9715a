"""Times as docker writes them: RFC 3339 with nanoseconds, Go durations, and the zero time. Pure.

An instant is an ``int`` of nanoseconds since the epoch; 0 is Go's zero time (``0001-01-01T00:00:00Z``).
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

ZERO_TIME = "0001-01-01T00:00:00Z"
SECOND = 1_000_000_000
_UNIX_SECONDS = re.compile(r"[0-9]+(\.[0-9]{1,9})?")

_UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": SECOND,
    "m": 60 * SECOND,
    "h": 3600 * SECOND,
}
_PART = re.compile(r"(\d*)(?:\.(\d*))?(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[Tt ](\d\d):(\d\d)(?::(\d\d))?(?:\.(\d{1,9})\d*)?)?(Z|z|[+-]\d\d:\d\d)?"
)


def now_ns() -> int:
    """The wall clock."""
    return time.time_ns()


def rfc3339(instant_ns: int) -> str:
    """``2026-01-02T03:04:05.123456789Z`` with trailing zeros of the fraction dropped, as Go's RFC3339Nano."""
    if instant_ns == 0:
        return ZERO_TIME
    seconds, nanos = divmod(instant_ns, SECOND)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{text}.{nanos:09d}".rstrip("0") + "Z" if nanos else text + "Z"


def rfc3339_fixed(instant_ns: int) -> str:
    """The same with all nine digits, as ``docker logs -t`` prints."""
    seconds, nanos = divmod(instant_ns, SECOND)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanos:09d}Z"


def parse_rfc3339(text: str) -> int:
    """The instant of a date or date and time; without a zone it is UTC. Raises ``ValueError``."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"not an RFC 3339 time: {text}")
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    at = datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0), tzinfo=UTC)
    offset = 0
    if zone and zone not in "Zz":
        offset = (int(zone[1:3]) * 3600 + int(zone[4:6]) * 60) * (1 if zone[0] == "+" else -1)
    return (int(at.timestamp()) - offset) * SECOND + int((fraction or "0").ljust(9, "0"))


def duration_ns(text: str) -> int:
    """A Go duration (``1h30m``, ``-1.5s``, ``0``) in nanoseconds. Raises ``ValueError``."""
    body = text[1:] if text[:1] in ("+", "-") else text
    if body == "0":
        return 0
    if not body:
        raise ValueError(f"not a duration: {text!r}")
    position, total = 0, 0
    while position < len(body):
        match = _PART.match(body, position)
        if match is None or not (match[1] or match[2]):
            raise ValueError(f"not a duration: {text}")
        unit, fraction = _UNITS[match[3]], match[2] or "0"
        total += int(match[1] or 0) * unit + int(fraction) * unit // 10 ** len(fraction)
        position = match.end()
    return -total if text.startswith("-") else total


def instant_ns(text: str, now: int) -> int:
    """Unix seconds (a fraction allowed), a duration before ``now``, or RFC 3339. Raises ``ValueError``."""
    if _UNIX_SECONDS.fullmatch(text):
        seconds, _, fraction = text.partition(".")
        return int(seconds) * SECOND + int((fraction or "0").ljust(9, "0"))
    try:
        return now - duration_ns(text)
    except ValueError:
        return parse_rfc3339(text)
