"""Containers in memory, found by id, name or unique prefix; the journal holds what must outlive the daemon.

Memory is the truth while the daemon runs. ``save`` replaces a record at once and returns when the journal has it, so a
client is told of nothing that a crash could take back.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from engine.containers.links import link_targets
from engine.containers.model import Container
from engine.containers.namespaces import joined_container
from engine.errors import Conflict, InvalidParameter, name_in_use, no_such_container
from engine.journal import Journal
from engine.names import PrefixIndex, random_name

KIND = "container"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Container).decode


class ContainerStore:
    """Every container this daemon knows."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._by_id: dict[str, Container] = {}
        self._by_name: dict[str, str] = {}
        self._prefixes = PrefixIndex()

    def load(self) -> None:
        """Read the journal; at start only."""
        for body in self._journal.load(KIND).values():
            self._insert(_decode(body))

    def _insert(self, container: Container) -> None:
        self._by_id[container.id] = container
        self._by_name[container.name] = container.id
        self._prefixes.add(container.id)

    def __iter__(self) -> Iterator[Container]:
        return iter(tuple(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, container_id: str) -> Container | None:
        """By full id."""
        return self._by_id.get(container_id)

    def require(self, container_id: str) -> Container:
        """By full id. Raises ``NotFound``."""
        container = self._by_id.get(container_id)
        if container is None:
            raise no_such_container(container_id)
        return container

    def find(self, reference: str) -> Container:
        """By full id, name (a leading slash is fine) or unique prefix of an id. Raises ``NotFound``,
        ``InvalidParameter``."""
        if not reference:
            raise InvalidParameter("invalid container name or ID: value is empty")
        by_id = self._by_id.get(reference)
        if by_id is not None:
            return by_id
        # A name may be reserved for a container that is not there yet.
        by_name = self._by_id.get(self._by_name.get(reference.removeprefix("/"), ""))
        if by_name is not None:
            return by_name
        if "/" in reference.strip("/"):
            return self._linked(reference)
        matches = self._prefixes.find(reference)
        if len(matches) > 1:
            raise InvalidParameter(f"Multiple IDs found with provided prefix: {reference}")
        if not matches:
            raise no_such_container(reference)
        return self._by_id[matches[0]]

    def _linked(self, reference: str) -> Container:
        """``container/alias``: what the container knows by ``--link`` as the alias."""
        holder, _, wanted = reference.strip("/").partition("/")
        linking = self._by_name.get(holder)
        for target, alias in link_targets(self._by_id[linking]) if linking in self._by_id else ():
            if alias == wanted and "/" not in target:
                return self.find(target)
        raise no_such_container(reference)

    def network_owner(self, container: Container) -> Container:
        """The container whose network this one has: its own, or that which ``container:X`` leads to in the end.

        Raises ``NotFound``.
        """
        seen = {container.id}
        while (joined := joined_container(container.host_config.network_mode)) is not None:
            container = self.find(joined)
            if container.id in seen:
                break
            seen.add(container.id)
        return container

    def newest_first(self) -> list[Container]:
        """All of them, as ``docker ps`` orders them."""
        return sorted(self._by_id.values(), key=lambda c: c.created_at, reverse=True)

    def reserve_name(self, name: str, container_id: str) -> None:
        """Take a name before the container exists. Raises ``Conflict`` when somebody has it."""
        holder = self._by_name.get(name)
        if holder is not None and holder != container_id:
            raise name_in_use(name, holder)
        self._by_name[name] = container_id

    def reserve_random_name(self, container_id: str) -> str:
        """Take a name nobody has."""
        for attempt in range(100):
            name = random_name() + (str(attempt) if attempt > 5 else "")
            if name not in self._by_name:
                self._by_name[name] = container_id
                return name
        raise Conflict("no free container name was found")

    def release_name(self, name: str, container_id: str) -> None:
        """Give a reserved name back."""
        if self._by_name.get(name) == container_id:
            del self._by_name[name]

    async def save(self, container: Container, *, durable: bool = False) -> None:
        """Replace the record now; return when the journal has it (``durable``: also after a loss of power).

        A new container that the journal refuses is not there; a known one keeps its new state, which is what is so.
        """
        is_new = container.id not in self._by_id
        self._insert(container)
        try:
            await self._journal.put(KIND, container.id, _encode(container), durable=durable)
        except Exception:
            if is_new:
                self._drop(container)
            raise

    async def delete(self, container: Container) -> None:
        """Forget a container; its name and id are free at once."""
        self._drop(container)
        await self._journal.delete(KIND, container.id, durable=False)

    def _drop(self, container: Container) -> None:
        self._by_id.pop(container.id, None)
        self._prefixes.discard(container.id)
        self.release_name(container.name, container.id)
