"""The event stream of ``docker events``: records, a bounded history, and filtered subscriptions.

Publishing never waits and never fails: a subscriber that does not read loses its oldest events, not the publisher's
time. The history answers ``--since`` across the last ``HISTORY`` events.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field

from engine.filters import Filters

HISTORY = 1024
BACKLOG = 4096

FILTERS = frozenset(
    "config container daemon event image label network node plugin scope secret service type volume".split()
)


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened; times in nanoseconds since the epoch."""

    type: str
    action: str
    actor_id: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    scope: str = "local"
    time_ns: int = 0

    def document(self) -> dict[str, object]:
        """The Engine API's ``EventMessage``, legacy fields included."""
        body: dict[str, object] = {}
        if self.type in ("container", "image"):
            body["status"] = self.action
            body["id"] = self.actor_id
            if self.type == "container" and "image" in self.attributes:
                body["from"] = self.attributes["image"]
        body["Type"] = self.type
        body["Action"] = self.action
        body["Actor"] = {"ID": self.actor_id, "Attributes": dict(self.attributes)}
        body["scope"] = self.scope
        body["time"] = self.time_ns // 1_000_000_000
        body["timeNano"] = self.time_ns
        return body


def matches(event: Event, filters: Filters) -> bool:
    """Whether docker's events filters let this event through."""
    if not filters:
        return True
    return (
        _matches_action(event, filters)
        and filters.matches("type", event.type)
        and filters.matches("scope", event.scope)
        and filters.match_labels(event.attributes)
        and all(_matches_object(event, filters, kind) for kind in _OBJECT_KINDS)
        and _matches_image(event, filters)
    )


_OBJECT_KINDS = ("container", "daemon", "network", "node", "plugin", "secret", "service", "volume", "config")


def _matches_action(event: Event, filters: Filters) -> bool:
    wanted = filters.get("event")
    if not wanted:
        return True
    # "exec_create: sh -c x" is found by "exec_create"; "health_status: healthy" by either form.
    return event.action in wanted or event.action.partition(":")[0] in wanted


def _matches_object(event: Event, filters: Filters, kind: str) -> bool:
    wanted = filters.get(kind)
    if not wanted:
        return True
    name = event.attributes.get("name", "")
    return event.type == kind and any(
        event.actor_id.startswith(w) or name.startswith(w.removeprefix("/")) for w in wanted
    )


def _matches_image(event: Event, filters: Filters) -> bool:
    wanted = filters.get("image")
    if not wanted:
        return True
    candidates = {event.actor_id, event.attributes.get("name", ""), event.attributes.get("image", "")}
    candidates |= {c.rpartition(":")[0] for c in candidates if ":" in c}
    return any(w in candidates for w in wanted)


class Subscription:
    """A live, filtered view of the bus; iterate it until closed."""

    def __init__(self, filters: Filters) -> None:
        self._filters = filters
        self._queue: deque[Event] = deque(maxlen=BACKLOG)
        self._ready = asyncio.Event()

    def offer(self, event: Event) -> None:
        """Called by the bus for every event."""
        if matches(event, self._filters):
            self._queue.append(event)
            self._ready.set()

    async def next(self) -> Event:
        """The next matching event, waiting for it."""
        while not self._queue:
            self._ready.clear()
            await self._ready.wait()
        return self._queue.popleft()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            yield await self.next()


class EventBus:
    """Publishes events to subscribers and keeps the last ``HISTORY`` of them."""

    def __init__(self) -> None:
        self._history: deque[Event] = deque(maxlen=HISTORY)
        self._subscribers: set[Subscription] = set()
        self._last_ns = 0
        self.published = 0
        """How many events there were."""

    def publish(
        self, type: str, action: str, actor_id: str, attributes: Mapping[str, str] | None = None, scope: str = "local"
    ) -> Event:
        """Record and deliver one event; cheap, never waits. Times are strictly increasing."""
        self._last_ns = max(time.time_ns(), self._last_ns + 1)
        event = Event(type, action, actor_id, dict(attributes or {}), scope, self._last_ns)
        self._history.append(event)
        self.published += 1
        for subscriber in self._subscribers:
            subscriber.offer(event)
        return event

    def past(self, filters: Filters, since_ns: int, until_ns: int | None = None) -> list[Event]:
        """Events of the history between two instants (nanoseconds, inclusive), oldest first."""
        return [
            e
            for e in self._history
            if e.time_ns >= since_ns and (until_ns is None or e.time_ns <= until_ns) and matches(e, filters)
        ]

    @property
    def listeners(self) -> int:
        """How many subscriptions are open (``NEventsListener`` of /info)."""
        return len(self._subscribers)

    @contextlib.contextmanager
    def subscribe(self, filters: Filters) -> Iterator[Subscription]:
        """A subscription that ends with the ``with`` block."""
        subscription = Subscription(filters)
        self._subscribers.add(subscription)
        try:
            yield subscription
        finally:
            self._subscribers.discard(subscription)
