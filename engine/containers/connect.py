"""Connect a container to a network and take it off again: the wish in its record, and at once the fact if it runs."""

from __future__ import annotations

import contextlib

import msgspec

from engine.containers.journalist import Journalist
from engine.containers.live import LiveTable
from engine.containers.model import Container, Status
from engine.containers.namespaces import joined_container
from engine.containers.settings import EndpointSettings
from engine.errors import Conflict, EngineError, Forbidden, InvalidParameter, NotFound
from engine.networks.service import NetworkService
from engine.runtime.model import ShimLost
from engine.tasks import KeyedLocks


class Connector:
    """Changes which networks a container is on."""

    def __init__(self, journalist: Journalist, live: LiveTable, networks: NetworkService, locks: KeyedLocks) -> None:
        self._records = journalist
        self._live = live
        self._networks = networks
        self._locks = locks

    async def connect_network(self, container: str, network: str, settings: EndpointSettings) -> None:
        """Join ``container`` to ``network`` (names or ids). Raises an ``EngineError``; then nothing has changed.

        A container that does not run may wish for a network that is still to be made.
        """
        known = self._records.store.find(container)
        async with self._locks(known.id):
            record = self._records.store.require(known.id)
            name, network_id = self._named(network, must_exist=record.is_running)
            mode = record.host_config.network_mode
            if mode == "host" or joined_container(mode) is not None:
                raise InvalidParameter(
                    "container sharing network namespace with another container or host "
                    "cannot be connected to any other network"
                )
            if record.state.status in (Status.REMOVING, Status.DEAD):
                raise Conflict(f"container {record.id} is marked for removal and cannot be connected or disconnected")
            self._networks.check_wish(name, settings)
            if network_id and name in record.networks:
                raise Forbidden(f"endpoint with name {record.name} already exists in network {name}")
            _check_mix(name, record)
            if record.is_running:
                await self._networks.connect(record.id, network_id, settings, record.ports)
                await self._hand_over_ports(record.id)
            await self._save(record, {**record.networks, name: settings})

    async def _hand_over_ports(self, container_id: str) -> None:
        """Host ports that were published just now are the shim's to hold, so that they outlive the daemon."""
        live = self._live[container_id]
        if live.sandbox is None or live.shim is None or not live.sandbox.hold_fds:
            return
        with contextlib.suppress(ShimLost, OSError):  # the container ends, and its ports with it
            await live.shim.hold(live.sandbox.hold_fds)
        live.sandbox.let_go()

    async def disconnect_network(self, container: str, network: str, *, force: bool) -> None:
        """Take ``container`` off ``network`` (name or id). Raises an ``EngineError``.

        A network that exists no more can be left when the container does not run, or with ``force``.
        """
        try:
            known = self._records.store.find(container)
        except NotFound:
            if force:
                self._networks.find(network)
                raise NotFound(f"endpoint {container} not found") from None
            raise
        async with self._locks(known.id):
            record = self._records.store.require(known.id)
            name, network_id = self._named(network, must_exist=record.is_running and not force)
            if name not in record.networks:
                the = "" if record.is_running and network_id else "the "
                raise Forbidden(f"container {record.id} is not connected to {the}network {name}")
            if record.is_running and name == "host":
                raise InvalidParameter(
                    "cannot disconnect container from host network - container was created in host network mode"
                )
            if record.is_running:
                try:
                    await self._networks.disconnect(record.id, network_id or name)
                except EngineError:
                    if not force:
                        raise
            await self._save(record, {n: s for n, s in record.networks.items() if n != name})

    def _named(self, reference: str, *, must_exist: bool) -> tuple[str, str]:
        """A network's name and id. One that is not there has no id, and the name it was called by, or is an error."""
        try:
            found = self._networks.find(reference)
        except NotFound:
            if must_exist:
                raise
            return reference, ""
        return found.name, found.id

    async def _save(self, record: Container, networks: dict[str, EndpointSettings]) -> None:
        sandbox = self._live[record.id].sandbox
        fact = sandbox.document() if sandbox is not None and record.is_running else record.sandbox
        await self._records.save(msgspec.structs.replace(record, networks=networks, sandbox=fact), durable=True)


def _check_mix(name: str, record: Container) -> None:
    """The host's network is had from the start or never; who has none has no other beside it."""
    if name == "host":
        raise InvalidParameter(
            "cannot connect container to host network - container must be created in host network mode"
        )
    if record.networks and (name == "none" or "none" in record.networks):
        raise Forbidden(
            "container cannot be connected to multiple networks with one of the networks in private (none) mode"
        )
