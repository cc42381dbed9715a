"""Text for people: aligned columns, sizes and ages, worded as docker's command line words them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

_DECIMAL_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns three spaces apart, as wide as their widest cell; the last column is not padded."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = ("   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
    return "\n".join(text)


def size(count: int) -> str:
    """Bytes in decimal units with three significant digits: 1.24MB."""
    value = float(count)
    unit = 0
    while value >= 1000 and unit < len(_DECIMAL_UNITS) - 1:
        value /= 1000
        unit += 1
    return f"{value:.3g}{_DECIMAL_UNITS[unit]}" if value < 999.5 else f"{value:.0f}{_DECIMAL_UNITS[unit]}"


def age(seconds: float) -> str:
    """A length of time in words: "Less than a second", "About a minute", "3 hours"."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    minutes = whole // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    for limit, divisor, word in ((48, 1, "hours"), (24 * 14, 24, "days"), (24 * 60, 168, "weeks")):
        if hours < limit:
            return f"{hours // divisor} {word}"
    return f"{hours // 720} months" if hours < 24 * 730 else f"{hours // 8760} years"


def ago(unix_seconds: float, now: datetime | None = None) -> str:
    """How long ago a moment was, in words."""
    moment = now or datetime.now(UTC)
    return age(moment.timestamp() - unix_seconds) + " ago"
