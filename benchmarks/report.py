"""Results as Markdown: one section for each program in `results.md`, replaced whole when that program runs again."""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

RESULTS = Path(__file__).with_name("results.md")
_TITLE = """# Measured results

Written by the programs in this folder. Ratios count; absolute numbers depend on the machine.
"""


@dataclass
class Row:
    """One thing measured on both: samples for ours and theirs, in `unit`; `bar` is the ratio we want at most."""

    name: str
    unit: str
    bar: float | None = None
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Our median divided by theirs: below 1 berth is faster (or smaller)."""
        return statistics.median(self.ours) / statistics.median(self.theirs)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _line(row: Row) -> str:
    if not row.ours or not row.theirs:
        cells = [_number(statistics.median(s)) if s else "–" for s in (row.ours, row.theirs)]
        return f"| {row.name} | {cells[0]} {row.unit} | {cells[1]} {row.unit} | – | {row.bar or ''} |"
    ours, theirs = (f"{_number(statistics.median(s))} {row.unit}" for s in (row.ours, row.theirs))
    bar = "" if row.bar is None else f"≤ {row.bar:g} {'✓' if row.ratio <= row.bar else '✗'}"
    return f"| {row.name} | {ours} | {theirs} | {row.ratio:.2f} | {bar} |"


def table(rows: Sequence[Row], ours: str, theirs: str) -> str:
    """A Markdown table of medians and ratios."""
    head = f"| what | {ours} | {theirs} | ratio | wanted |\n| --- | ---: | ---: | ---: | --- |"
    return "\n".join([head, *(_line(row) for row in rows)])


def machine() -> str:
    """One line about where the numbers come from."""
    return f"Linux {platform.release().split('-')[0]}, {os.cpu_count()} processors, Python {platform.python_version()}"


def write_section(name: str, text: str, path: Path = RESULTS) -> None:
    """Put `text` under the heading `name`, in place of what was there."""
    begun = path.read_text(encoding="utf-8") if path.exists() else _TITLE
    section = f"## {name}\n\n{text.strip()}\n"
    pattern = re.compile(rf"^## {re.escape(name)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if pattern.search(begun):
        result = pattern.sub(lambda _match: section + "\n", begun)
    else:
        result = begun.rstrip() + "\n\n" + section
    path.write_text(result.rstrip() + "\n", encoding="utf-8")
