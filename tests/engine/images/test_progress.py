"""Progress lines as docker's clients parse them."""

from __future__ import annotations

import pytest

from engine.images.progress import Line, Paced, bar, drawn, human_size, status, step, stream


def test_shapes() -> None:
    assert status("Digest: x") == {"status": "Digest: x"}
    assert status("Pulling from a", "latest") == {"status": "Pulling from a", "id": "latest"}
    assert step("abc", "Waiting") == {"status": "Waiting", "progressDetail": {}, "id": "abc"}
    assert stream("x\n") == {"stream": "x\n"}
    assert bar("abc", "Pushing", 5, 0)["progressDetail"] == {"current": 5}
    assert bar("abc", "Pushing", 5, 10)["progressDetail"] == {"current": 5, "total": 10}
    assert "id" not in bar("", "Importing", 5, 10)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0B"), (999, "999B"), (1000, "1kB"), (1_982_256, "1.982MB"), (52_622_500, "52.62MB")]
)
def test_human_sizes(size: int, text: str) -> None:
    assert human_size(size) == text


def test_drawn_bar() -> None:
    assert drawn(0, 0) == ""
    assert drawn(10, 0) == "     10B"
    assert drawn(5, 10) == "[" + "=" * 25 + ">" + " " * 25 + "]       5B/10B"
    assert drawn(20, 10).endswith("]      20B")


def test_paced_reports_the_first_and_the_last_byte() -> None:
    lines: list[Line] = []
    told = Paced(lines.append, "abc", "Downloading", 10_000_000)
    for current in range(0, 10_000_001, 1000):
        told(current)
    told(10_000_000)
    counts = [line["progressDetail"]["current"] for line in lines]
    assert counts[0] == 0 and counts[-1] == 10_000_000
    assert len(counts) < 25
