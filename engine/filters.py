"""The filters query language of the Engine API: parse, validate and match. Pure.

A filter is JSON, either ``{"label": ["a=b"]}`` or the older ``{"label": {"a=b": true}}``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import msgspec

from engine.clock import instant_ns
from engine.errors import InvalidParameter


class Filters:
    """A parsed filter: keys to values. Falsy when it holds nothing."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, tuple[str, ...]] | None = None) -> None:
        self._values = dict(values or {})

    @classmethod
    def parse(cls, raw: str | None, allowed: Collection[str] | None) -> Filters:
        """Parse the query value. Raises ``InvalidParameter`` on bad JSON or a key outside ``allowed`` (None: any)."""
        if not raw:
            return cls()
        try:
            document = msgspec.json.decode(raw, type=dict[str, dict[str, bool] | list[str]])
        except (msgspec.DecodeError, UnicodeError) as error:
            raise InvalidParameter(f"invalid filter: {error}") from error
        values: dict[str, tuple[str, ...]] = {}
        for key, given in document.items():
            if allowed is not None and key not in allowed:
                raise InvalidParameter(f"invalid filter '{key}'")
            values[key] = tuple(given) if isinstance(given, list) else tuple(k for k, v in given.items() if v)
        return cls(values)

    def __bool__(self) -> bool:
        return bool(self._values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str) -> tuple[str, ...]:
        """All values given for ``key``; empty when absent."""
        return self._values.get(key, ())

    def until(self, now_ns: int) -> int | None:
        """The one instant of the filter ``until``, None without it. Raises ``InvalidParameter``."""
        values = self.get("until")
        if len(values) > 1:
            raise InvalidParameter("more than one until filter specified")
        return until_instant(values[0], now_ns) if values else None

    def boolean(self, key: str, default: bool = False) -> bool:
        """A filter that is a truth value. Raises ``InvalidParameter`` on anything else."""
        values = self.get(key)
        if not values:
            return default
        truths = {_BOOLEANS.get(v.lower()) for v in values}
        if None in truths or len(truths) > 1:
            shown = " ".join(values)
            raise InvalidParameter(f"invalid filter '{key}=[{shown}]'")
        return bool(truths.pop())

    def matches(self, key: str, value: str) -> bool:
        """True when ``key`` is absent or one of its values is exactly ``value``."""
        values = self.get(key)
        return not values or value in values

    def matches_pattern(self, key: str, value: str) -> bool:
        """Like ``matches``, but a value may also be a regular expression found in ``value`` (docker's name filter)."""
        values = self.get(key)
        return not values or value in values or any(_search(pattern, value) for pattern in values)

    def matches_prefix(self, key: str, value: str) -> bool:
        """True when ``key`` is absent or ``value`` begins with one of its values."""
        values = self.get(key)
        return not values or any(value.startswith(v) for v in values)

    def match_labels(self, labels: Mapping[str, str], key: str = "label") -> bool:
        """True when every ``k`` or ``k=v`` asked for is in ``labels``."""
        return all(_has_label(labels, wanted) for wanted in self.get(key))

    def excludes_labels(self, labels: Mapping[str, str]) -> bool:
        """True when a ``label!`` of a prune filter names one of ``labels``."""
        return any(_has_label(labels, wanted) for wanted in self.get("label!"))


def until_instant(value: str, now_ns: int) -> int:
    """One value of the filter ``until``. Raises ``InvalidParameter``."""
    try:
        return instant_ns(value, now_ns)
    except ValueError as error:
        raise InvalidParameter(f'failed to parse value as time or duration: "{value}"') from error


_BOOLEANS = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}


def _has_label(labels: Mapping[str, str], wanted: str) -> bool:
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)


def _search(pattern: str, value: str) -> bool:
    try:
        return re.search(pattern, value) is not None
    except re.error:
        return False
