"""Identifiers, unique prefixes, random names and the name grammar. Pure but for randomness."""

from __future__ import annotations

import bisect
import re
import secrets
from collections.abc import Iterator

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_HEX = re.compile(r"[0-9a-f]+")


def new_id() -> str:
    """A fresh identifier: 64 hexadecimal digits, never all-decimal in its first twelve (it may become a hostname)."""
    while True:
        candidate = secrets.token_hex(32)
        if not candidate[:12].isdigit():
            return candidate


def short(identifier: str) -> str:
    """The twelve digits that people see."""
    return identifier.removeprefix("sha256:")[:12]


def is_valid_name(name: str) -> bool:
    """Whether ``name`` may name a container (docker's grammar, at least two characters)."""
    return NAME.fullmatch(name) is not None


class PrefixIndex:
    """Identifiers that can be found by a unique prefix in logarithmic time."""

    def __init__(self) -> None:
        self._sorted: list[str] = []

    def add(self, identifier: str) -> None:
        """Insert ``identifier``; twice is once."""
        at = bisect.bisect_left(self._sorted, identifier)
        if at == len(self._sorted) or self._sorted[at] != identifier:
            self._sorted.insert(at, identifier)

    def discard(self, identifier: str) -> None:
        """Forget ``identifier`` if it is here."""
        at = bisect.bisect_left(self._sorted, identifier)
        if at < len(self._sorted) and self._sorted[at] == identifier:
            del self._sorted[at]

    def find(self, prefix: str) -> list[str]:
        """Up to two identifiers that begin with ``prefix``: none, the one, or proof of ambiguity."""
        if not _HEX.fullmatch(prefix):
            return []
        at = bisect.bisect_left(self._sorted, prefix)
        return [i for i in self._sorted[at : at + 2] if i.startswith(prefix)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sorted)


_MOODS = (
    "able agile airy ample amber azure brave breezy bright brisk calm candid cheery clear clever coastal cosy "
    "crisp daring deft eager early earnest easy fair fleet fond free fresh frank gentle glad golden grand "
    "happy hardy hearty honest humble jolly keen kind lively loyal lucid lucky mellow merry mild neat nimble "
    "noble open patient placid polite prompt proud quick quiet rapid ready robust rosy serene sharp shiny "
    "silent sleek smart snug sober solid spry steady stout sunny sure swift tidy tranquil true trusty upbeat "
    "vivid warm wise witty young zesty "
).split()
_SAILORS = (
    "amundsen anson baffin barents bering bligh bougainville cabot cavendish chichester clerke columbus cook "
    "cousteau crozier davis diaz drake ekman ericson fitzroy flinders franklin frobisher gama gilbert hawkins "
    "hopper hudson humboldt jansson joyon knox kotzebue lapouge lovelace macarthur magellan malaspina mawson "
    "maury moitessier nansen nares nordenskjold parry peary piccard polo quiros raleigh ross scoresby scott "
    "shackleton slocum stark sverdrup tabarly tasman tereshkova torres vancouver vespucci weddell wegener "
    "wilkes worsley zheng "
).split()


def random_name() -> str:
    """A name for a container that was given none; collisions are the caller's to notice."""
    return f"{secrets.choice(_MOODS)}_{secrets.choice(_SAILORS)}"
