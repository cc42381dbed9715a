"""The text that Prometheus scrapes, for the registry's metrics and the engine's: families of samples, histograms. Pure.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4"
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LABELS = (*(f"{bound:g}" for bound in BOUNDS), "+Inf")
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


class Histogram:
    """How long things took, in Prometheus' own default buckets."""

    def __init__(self) -> None:
        self._counts = [0] * len(_LABELS)
        self._seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect.bisect_left(BOUNDS, seconds)] += 1
        self._seconds += seconds

    def samples(self, name: str, tags: Mapping[str, object]) -> list[str]:
        """The lines of one histogram of a family."""
        lines, total = [], 0
        for bound, count in zip(_LABELS, self._counts, strict=True):
            total += count
            lines.append(f"{name}_bucket{labels(**tags, le=bound)} {total}")
        return [*lines, f"{name}_sum{labels(**tags)} {self._seconds:g}", f"{name}_count{labels(**tags)} {total}"]


class Exposition:
    """A text that grows family by family."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def family(self, name: str, kind: str, samples: Iterable[tuple[str, float]], about: str = "") -> None:
        """Samples are pairs of labels, as ``labels`` writes them, and a value."""
        self._head(name, kind, about)
        self._lines.extend(f"{name}{tags} {value:.15g}" for tags, value in samples)

    def histograms(self, name: str, label: str, found: Mapping[str, Histogram], about: str = "") -> None:
        """One histogram for each value of a label."""
        self._head(name, "histogram", about)
        for value, histogram in sorted(found.items()):
            self._lines += histogram.samples(name, {label: value})

    def _head(self, name: str, kind: str, about: str) -> None:
        if about:
            self._lines.append(f"# HELP {name} {about}")
        self._lines.append(f"# TYPE {name} {kind}")

    def text(self) -> bytes:
        """All of it."""
        return ("\n".join(self._lines) + "\n").encode()


def labels(**given: object) -> str:
    """``{name="value",…}``."""
    inside = ",".join(f'{name}="{str(value).translate(_ESCAPES)}"' for name, value in given.items())
    return "{" + inside + "}" if inside else ""
