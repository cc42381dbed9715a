"""Which containers ``docker ps`` shows: its filters, its order, its limit. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from engine.containers.model import Container, Status
from engine.errors import InvalidParameter
from engine.filters import Filters
from engine.networks.sandbox import shown_ports

ALLOWED = frozenset(
    "ancestor before expose exited health id isolation is-task label name network publish since status volume".split()
)
LAST_PORT = 65535
PRUNE_ALLOWED = frozenset({"until", "label", "label!"})


@dataclass(frozen=True, slots=True)
class ListQuery:
    """What a client asked for."""

    all: bool = False
    limit: int = 0
    filters: Filters = field(default_factory=Filters)


@dataclass(frozen=True, slots=True)
class Context:
    """What the filters need from outside: images by reference, networks by name or id, containers by reference."""

    image_ids: Callable[[str], Collection[str]]
    network_names: Callable[[str], Collection[str]]
    find: Callable[[str], Container]


def select(newest_first: Iterable[Container], query: ListQuery, context: Context) -> list[Container]:
    """The containers to show, newest first. Raises ``InvalidParameter`` or ``NotFound`` for a bad filter value."""
    filters = query.filters
    tests = _tests(filters, context)
    everything = query.all or query.limit > 0 or bool(filters.get("status"))
    chosen: list[Container] = []
    for container in newest_first:
        if not (everything or container.is_running or container.state.status is Status.RESTARTING):
            continue
        if all(test(container) for test in tests):
            chosen.append(container)
            if 0 < query.limit == len(chosen):
                break
    return chosen


Test = Callable[[Container], bool]


def _tests(filters: Filters, context: Context) -> list[Test]:
    if not filters:
        return []
    tests: list[Test] = [
        lambda c: filters.matches_prefix("id", c.id),
        lambda c: filters.matches_pattern("name", c.name) or filters.matches_pattern("name", "/" + c.name),
        lambda c: filters.match_labels(c.labels),
    ]
    if filters.boolean("is-task"):
        tests.append(lambda c: False)
    for key, make in _MAKERS.items():
        if filters.get(key):
            tests.append(make(filters, context))
    if filters.get("publish") or filters.get("expose"):
        tests.append(_ports(filters))
    return tests


_STATUSES = ("created", "running", "paused", "restarting", "removing", "exited", "dead")
_HEALTHS = ("none", "starting", "healthy", "unhealthy")


def _require(key: str, noun: str, wanted: Iterable[str], known: Collection[str]) -> None:
    for value in wanted:
        if value not in known:
            raise InvalidParameter(
                f"invalid filter '{key}={value}': invalid value for {noun} ({value}): must be one of {', '.join(known)}"
            )


def _status(filters: Filters, _: Context) -> Test:
    wanted = filters.get("status")
    _require("status", "state", wanted, _STATUSES)
    return lambda c: c.state.status.value in wanted


def _exited(filters: Filters, _: Context) -> Test:
    for value in filters.get("exited"):
        if not re.fullmatch(r"[+-]?[0-9]+", value):
            raise InvalidParameter(
                f"invalid filter 'exited={value}': strconv.Atoi: parsing \"{value}\": invalid syntax"
            )
    codes = {int(value) for value in filters.get("exited")}
    return lambda c: c.state.exit_code in codes and not c.is_running and c.state.started_at != 0


def _health(filters: Filters, _: Context) -> Test:
    wanted = filters.get("health")
    _require("health", "health", wanted, _HEALTHS)
    return lambda c: (c.state.health.status if c.state.health else "none") in wanted


def _ancestor(filters: Filters, context: Context) -> Test:
    ids = {image_id for value in filters.get("ancestor") for image_id in context.image_ids(value)}
    return lambda c: c.image_id in ids


def _before(filters: Filters, context: Context) -> Test:
    limits = [context.find(value).created_at for value in filters.get("before")]
    return lambda c: c.created_at < min(limits)


def _since(filters: Filters, context: Context) -> Test:
    limits = [context.find(value).created_at for value in filters.get("since")]
    return lambda c: c.created_at > max(limits)


def _network(filters: Filters, context: Context) -> Test:
    names = {name for value in filters.get("network") for name in context.network_names(value)}
    return lambda c: bool(names & c.networks.keys())


def _volume(filters: Filters, _: Context) -> Test:
    wanted = set(filters.get("volume"))
    return lambda c: any(m.name in wanted or m.destination in wanted or m.source in wanted for m in c.mounts)


def _ports(filters: Filters) -> Test:
    """A port that is published as, or exposed as, what was asked for: with both filters either is enough."""
    public, private = _wanted(filters, "publish"), _wanted(filters, "expose")

    def has_one(container: Container) -> bool:
        for port, bindings in shown_ports(container.sandbox).items():
            protocol = port.partition("/")[2]
            if port in private or any(f"{binding['HostPort']}/{protocol}" in public for binding in bindings or ()):
                return True
        return False

    return has_one


def _wanted(filters: Filters, key: str) -> set[str]:
    """``80``, ``80/udp``, ``8000-8010/tcp`` to single ports with protocol."""
    ports: set[str] = set()
    for value in filters.get(key):
        numbers, _, protocol = value.partition("/")
        first, dash, last = numbers.partition("-")
        try:
            low = _port(first)
            high = _port(last) if dash else low
            if high < low:
                raise ValueError(f"invalid range specified for port: {numbers}")
        except ValueError as error:
            raise InvalidParameter(f"error while looking up for {key} {value}: {error}") from error
        ports.update(f"{number}/{protocol or 'tcp'}" for number in range(low, high + 1))
    return ports


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]+", text):
        raise ValueError(f'strconv.ParseUint: parsing "{text}": invalid syntax')
    if int(text) > LAST_PORT:
        raise ValueError(f'strconv.ParseUint: parsing "{text}": value out of range')
    return int(text)


_MAKERS = {
    "status": _status,
    "exited": _exited,
    "health": _health,
    "ancestor": _ancestor,
    "before": _before,
    "since": _since,
    "network": _network,
    "volume": _volume,
}
