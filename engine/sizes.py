"""Sizes as people write them, read as docker's go-units reads them: "1.5 GiB", "64m", "7b". Pure."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?", re.ASCII | re.IGNORECASE)
_SUFFIX = re.compile(r"([kmgtp])(?:i?b)?|b|")
_POWERS = "kmgtp"
_MAX = 2**63 - 1


def parse_size(text: str, *, decimal: bool = False) -> int:
    """Bytes; a unit is a power of 1024, or of 1000 with ``decimal``. Raises ``ValueError`` in go-units' words."""
    end = max((place for place, letter in enumerate(text, 1) if letter in "0123456789. "), default=0)
    number, suffix = text[:end].removesuffix(" "), text[end:].lower()
    if not end or number.startswith("-"):
        raise ValueError(f"invalid size: '{text}'")
    if not _NUMBER.fullmatch(number):
        raise ValueError(f'strconv.ParseFloat: parsing "{number}": invalid syntax')
    unit = _SUFFIX.fullmatch(suffix)
    if unit is None:
        raise ValueError(f"invalid suffix: '{suffix}'")
    power = _POWERS.index(unit[1]) + 1 if unit[1] else 0
    size = float(number) * (1000 if decimal else 1024) ** power
    if size > _MAX:
        raise ValueError(f"invalid size: '{text}'")
    return int(size)
