"""Saves container records, tells the event stream and feeds the metrics: what every state change does."""

from __future__ import annotations

from collections.abc import Mapping

from engine.containers.model import Container
from engine.containers.store import ContainerStore
from engine.events import EventBus
from engine.measures import Measures


class Journalist:
    """The container store and the event bus, used together, and what is measured."""

    def __init__(self, store: ContainerStore, events: EventBus, measures: Measures | None = None) -> None:
        self.store = store
        self.measures = measures or Measures()
        self._events = events

    async def save(self, container: Container, *, durable: bool = False) -> None:
        """Replace the record in memory and in the journal."""
        await self.store.save(container, durable=durable)

    def event(self, container: Container, action: str, extra: Mapping[str, str] | None = None) -> None:
        """Publish a container event with docker's attributes: image, name, labels, and what the action adds."""
        attributes = {**container.labels, "image": container.image, "name": container.name, **(extra or {})}
        self._events.publish("container", action, container.id, attributes)

    def pruned(self, reclaimed_bytes: int) -> None:
        """Publish the end of a prune."""
        self._events.publish("container", "prune", "", {"reclaimed": str(reclaimed_bytes)})
