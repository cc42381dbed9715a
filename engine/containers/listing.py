"""Which containers ``docker ps`` shows: its filters, its order, its limit. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from engine.containers.model import Container, Status
from engine.errors import InvalidParameter
from engine.filters import Filters

ALLOWED = frozenset(
    "ancestor before expose exited health id isolation is-task label name network publish since status volume".split()
)
LAST_PORT = 65535
_PORT_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]+))?")
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
    return tests


_STATUSES = frozenset(status.value for status in Status)


def _status(filters: Filters, _: Context) -> Test:
    wanted = filters.get("status")
    for value in wanted:
        if value not in _STATUSES:
            raise InvalidParameter(f"invalid filter 'status={value}'")
    return lambda c: c.state.status.value in wanted


def _exited(filters: Filters, _: Context) -> Test:
    try:
        codes = {int(value) for value in filters.get("exited")}
    except ValueError as error:
        raise InvalidParameter(f"invalid filter 'exited={' '.join(filters.get('exited'))}'") from error
    return lambda c: c.state.exit_code in codes and not c.is_running and c.state.started_at != 0


def _health(filters: Filters, _: Context) -> Test:
    wanted = filters.get("health")
    for value in wanted:
        if value not in ("starting", "healthy", "unhealthy", "none"):
            raise InvalidParameter(f"invalid filter 'health={value}'")
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


def _publish(filters: Filters, _: Context) -> Test:
    wanted = _ports(filters.get("publish"), "publish")
    return lambda c: any(
        _host_port_matches(port, bindings or (), wanted)
        for port, bindings in (c.host_config.port_bindings or {}).items()
    )


def _host_port_matches(port: str, bindings: Iterable[object], wanted: set[str]) -> bool:
    protocol = port.partition("/")[2] or "tcp"
    return any(f"{getattr(binding, 'host_port', '')}/{protocol}" in wanted for binding in bindings)


def _expose(filters: Filters, _: Context) -> Test:
    wanted = _ports(filters.get("expose"), "expose")
    return lambda c: any(port in wanted for port in (c.config.exposed_ports or {}))


def _ports(values: Iterable[str], key: str) -> set[str]:
    """``80``, ``80/udp``, ``8000-8010/tcp`` to single ports with protocol."""
    ports: set[str] = set()
    for value in values:
        numbers, _, protocol = value.partition("/")
        match = _PORT_RANGE.fullmatch(numbers)
        if match is None or int(match[2] or 0) > LAST_PORT:
            raise InvalidParameter(f"invalid filter '{key}={value}'")
        ports.update(f"{n}/{protocol or 'tcp'}" for n in range(int(match[1]), int(match[2] or match[1]) + 1))
    return ports


_MAKERS = {
    "status": _status,
    "exited": _exited,
    "health": _health,
    "ancestor": _ancestor,
    "before": _before,
    "since": _since,
    "network": _network,
    "volume": _volume,
    "publish": _publish,
    "expose": _expose,
}
