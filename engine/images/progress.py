"""The lines of a progress stream, as docker's clients parse and draw them. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Line = dict[str, Any]
Report = Callable[[Line], None]
"""Takes one line of the stream; never waits."""

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_BAR = 50


def status(text: str, identifier: str = "") -> Line:
    """A line without a bar: ``{"status": …, "id": …}``."""
    return {"status": text, "id": identifier} if identifier else {"status": text}


def step(identifier: str, text: str) -> Line:
    """A layer's line without numbers: it carries an empty ``progressDetail``, as docker's does."""
    return {"status": text, "progressDetail": {}, "id": identifier}


def bar(identifier: str, text: str, current: int, total: int) -> Line:
    """A layer's line with numbers in bytes; ``total`` 0 or less is unknown."""
    detail = {"current": current, "total": total} if total > 0 else {"current": current}
    line: Line = {"status": text, "progressDetail": detail, "progress": drawn(current, total)}
    if identifier:
        line["id"] = identifier
    return line


def stream(text: str) -> Line:
    """Text printed as it is."""
    return {"stream": text}


def drawn(current: int, total: int) -> str:
    """The bar as text, for clients that do not draw it themselves."""
    if current <= 0 and total <= 0:
        return ""
    if total <= 0:
        return f"{human_size(current):>8}"
    filled = min(current * 100 // total // 2, _BAR)
    numbers = f"{human_size(current):>8}" + (f"/{human_size(total)}" if current <= total else "")
    return f"[{'=' * filled}>{' ' * (_BAR - filled)}] {numbers}"


def human_size(size: float) -> str:
    """Decimal units with four significant digits: ``1.234MB``."""
    unit = 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size /= 1000
        unit += 1
    return f"{size:.4g}{_UNITS[unit]}"


class Paced:
    """Reports the progress of one layer, at most every so many bytes, and the last byte always."""

    __slots__ = ("_every", "_identifier", "_last", "_report", "_text", "_total")

    def __init__(self, report: Report, identifier: str, text: str, total: int) -> None:
        self._report = report
        self._identifier = identifier
        self._text = text
        self._total = total
        self._every = max(total // 100, 512 * 1024)
        self._last = -1

    def __call__(self, current: int) -> None:
        if self._last < 0 or current - self._last >= self._every or (current >= self._total and current > self._last):
            self._last = current
            self._report(bar(self._identifier, self._text, current, self._total))
