from __future__ import annotations

import pytest

from cli import tables


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0B"), (999, "999B"), (1240, "1.24kB"), (1_980_000, "1.98MB"), (999_900, "1000kB"), (10**12, "1TB")],
)
def test_sizes(count: int, text: str) -> None:
    assert tables.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (61, "About a minute"),
        (125, "2 minutes"),
        (3600, "About an hour"),
        (7200, "2 hours"),
        (86400 * 3, "3 days"),
        (86400 * 20, "2 weeks"),
        (86400 * 70, "2 months"),
        (86400 * 800, "2 years"),
    ],
)
def test_ages(seconds: float, text: str) -> None:
    assert tables.age(seconds) == text


def test_columns_line_up() -> None:
    assert tables.table(("A", "LONG"), [("xyz", "1"), ("", "")]) == "A     LONG\nxyz   1\n"
