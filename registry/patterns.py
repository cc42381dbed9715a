"""Patterns for repository and tag names, pure: `*` matches within a path component, `**` across components, `?` one
character."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = []
    position = 0
    while position < len(pattern):
        if pattern.startswith("**", position):
            parts.append(".*")
            position += 2
        elif pattern[position] == "*":
            parts.append("[^/]*")
            position += 1
        elif pattern[position] == "?":
            parts.append("[^/]")
            position += 1
        else:
            parts.append(re.escape(pattern[position]))
            position += 1
    return re.compile("".join(parts))


def matches(pattern: str, name: str) -> bool:
    """Whether the whole `name` fits. `team/**` also fits `team` itself."""
    if pattern.endswith("/**") and name == pattern[:-3]:
        return True
    return _compiled(pattern).fullmatch(name) is not None


def matches_any(patterns: Iterable[str], name: str) -> bool:
    """Whether one of the patterns fits."""
    return any(matches(pattern, name) for pattern in patterns)
