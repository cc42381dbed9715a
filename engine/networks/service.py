"""What one can do with networks: make, list and remove them, and give containers their place on them.

The order of a daemon's start: ``start`` (networks and bridges), ``adopt_sandbox`` for every container that still
runs, then ``settle`` (the firewall becomes what the model says, in one transaction, and is watched from then on).
Published ports and open connections do not notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from collections.abc import Mapping
from ipaddress import ip_interface
from typing import Any, TypeVar

import msgspec

from engine.clock import now_ns
from engine.config import Config, own_ports
from engine.errors import Conflict, EngineError, Forbidden, InvalidParameter, NotFound, SystemFailure, os_words
from engine.events import EventBus
from engine.filters import Filters
from engine.journal import Journal
from engine.kernel.idmap import IdMap
from engine.measures import Measures
from engine.names import new_id
from engine.networks import ipam
from engine.networks.announcement import announcement_plan
from engine.networks.bridge import ALIAS, BridgeDriver
from engine.networks.creation import CreateNetwork, check_name, plan_blocks, refuse_duplicate_bridge
from engine.networks.defaultbridge import Interface, told_block, with_way_out
from engine.networks.driver import Driver, PassiveDriver
from engine.networks.firewall import Firewall
from engine.networks.handles import NamespaceHandles
from engine.networks.ipam import Subnet
from engine.networks.keeper import SandboxKeeper
from engine.networks.links import HostLinks
from engine.networks.macvlan import MacvlanDriver
from engine.networks.model import (
    OPTION_BRIDGE,
    OPTION_MTU,
    EndpointState,
    EndpointWish,
    IpamBlock,
    Network,
    PortsWish,
    SandboxDocument,
    SandboxRequest,
)
from engine.networks.namefiles import ResolvConf
from engine.networks.nameserver import NameServer
from engine.networks.ports import HostPorts
from engine.networks.sandbox import Sandbox
from engine.networks.store import NetworkStore
from engine.networks.wishes import check_wish
from engine.tasks import run_blocking

log = logging.getLogger(__name__)

W = TypeVar("W", bound=EndpointWish)

TABLE = "berth"
DEFAULT_BRIDGE = "docker0"


def table_name(config: Config) -> str:
    """The firewall table of this daemon.

    Daemons side by side differ in their bridge, or where they have none in their data root, and so in their table.
    """
    if config.bridge_name == "none":
        return f"{TABLE}-none-{hashlib.sha256(os.fsencode(config.data_root)).hexdigest()[:12]}"
    return TABLE if config.bridge_name == DEFAULT_BRIDGE else f"{TABLE}-{config.bridge_name}"


class NetworkService:
    """Networks, and the sandboxes of running containers."""

    def __init__(
        self,
        config: Config,
        journal: Journal,
        events: EventBus,
        *,
        links: HostLinks | None = None,
        firewall: Firewall | None = None,
        drivers: Mapping[str, Driver] | None = None,
        host_ports: HostPorts | None = None,
        name_server: NameServer | None = None,
        measures: Measures | None = None,
        ids: IdMap | None = None,
    ) -> None:
        self._config = config
        self._measures = measures or Measures()
        self._events = events
        self._store = NetworkStore(journal)
        self._links = links or HostLinks()
        self._firewall = firewall or Firewall(table_name(config), is_enabled=config.iptables, has_ipv6=config.ip6tables)
        self._drivers: Mapping[str, Driver] = drivers or {
            "bridge": BridgeDriver(self._links, self._firewall, forwards=config.ip_forward),
            "macvlan": MacvlanDriver(self._links, "macvlan"),
            "ipvlan": MacvlanDriver(self._links, "ipvlan"),
            "host": PassiveDriver(),
            "null": PassiveDriver(),
        }
        self._has_bridge = config.bridge != "none"
        self._handles = NamespaceHandles(config.exec_root)
        self._keeper = SandboxKeeper(
            self._store,
            self._drivers,
            self._firewall,
            host_ports or HostPorts(daemons=own_ports(config)),
            has_bridge=self._has_bridge,
            host_gateways=config.host_gateway_ips,
            default_host_ip=config.ip,
            host_dns=ResolvConf(config.dns, config.dns_search, config.dns_opts),
            name_server=name_server or NameServer(config.exec_root),
            handles=self._handles,
            ids=ids,
        )
        self._settled = False
        self._settling = asyncio.Lock()
        self._creating = asyncio.Lock()

    # ---- the daemon's life

    async def start(self) -> None:
        """Networks from the journal, the three predefined ones, bridges on the host. Raises ``SystemFailure``."""
        self._store.load()
        try:
            await run_blocking(self._handles.start_sync)
            await self._links.open()
            for name, driver in (("host", "host"), ("none", "null")):
                if self._store.by_name(name) is None:
                    await self._store.put(Network(id=new_id(), name=name, driver=driver, has_ipv4=False))
            await self._ensure_default_bridge()
        except (OSError, ValueError) as error:
            raise SystemFailure(f"Error initializing network controller: {os_words(error)}") from error
        for network in self._store:
            if network.is_config_only or (network.name == "bridge"):
                continue
            try:
                await self._drivers[network.driver].create(network)
            except (OSError, ValueError):
                log.exception("network %s cannot be restored", network.name)

    async def _ensure_default_bridge(self) -> None:
        known = self._store.by_name("bridge")
        if not self._has_bridge:
            if known is not None:
                await self._store.delete(known)
            return
        network = await self._default_bridge(known)
        if network != known:
            await self._store.put(network)
        await self._drivers["bridge"].create(network)

    async def _default_bridge(self, known: Network | None) -> Network:
        config, name = self._config, self._config.bridge_name
        options = {
            OPTION_BRIDGE + "default_bridge": "true",
            OPTION_BRIDGE + "enable_icc": str(config.icc).lower(),
            OPTION_BRIDGE + "enable_ip_masquerade": str(config.ip_masq).lower(),
            OPTION_BRIDGE + "host_binding_ipv4": config.ip,
            OPTION_BRIDGE + "name": name,
            OPTION_MTU: str(config.mtu),
        }
        network_id = known.id if known is not None else new_id()
        return Network(
            id=network_id,
            name="bridge",
            driver="bridge",
            created_ns=known.created_ns if known is not None else now_ns(),
            has_ipv6=config.ipv6,
            blocks=tuple(await self._default_blocks(known, network_id)),
            options=options,
        )

    async def _default_blocks(self, known: Network | None, network_id: str) -> list[IpamBlock]:
        """The default bridge's subnets: as told, as the interface has them, as last time, or from a free pool."""
        config = self._config
        if config.bip and ip_interface(config.bip).version != 4:
            raise ValueError(f"bip must be an IPv4 address: {config.bip}")
        link = await self._links.link(config.bridge_name)
        present: dict[int, list[Interface]] = {4: [], 6: []}
        for address in await self._links.addresses() if link is not None else ():
            if link is not None and address.index == link.index:
                present[address.interface.version].append(address.interface)
        is_users = bool(config.bridge) and link is not None and link.alias != ALIAS
        told = {4: (config.bip, config.fixed_cidr), 6: (config.bip6, config.fixed_cidr_v6)}
        blocks = [
            told_block(*told[version], present[version], is_users=is_users)
            or await self._free_block(known, network_id, version)
            for version in ((4, 6) if config.ipv6 else (4,))
        ]
        return [with_way_out(block, config.default_gateway, config.default_gateway_v6) for block in blocks]

    async def _free_block(self, known: Network | None, network_id: str, version: int) -> IpamBlock:
        taken = await self._host_subnets()
        for block in known.blocks if known is not None else ():
            if block.network.version == version and ipam.overlaps(block.network, taken) is None:
                return IpamBlock(subnet=block.subnet, gateway=block.gateway)
        taken += [subnet for subnet, network in self._store.subnets() if network.name != "bridge"]
        if version == 4:
            subnet = ipam.choose_subnet(self._pools, taken)
        else:
            subnet = ipam.choose_ipv6_subnet(self._pools, network_id, taken)
        return IpamBlock(subnet=str(subnet), gateway=ipam.first_host(subnet))

    @property
    def _pools(self) -> tuple[tuple[str, int], ...]:
        return self._config.default_address_pools or (*ipam.DEFAULT_POOLS, *ipam.OVERFLOW_POOLS)

    async def _host_subnets(self) -> list[Subnet]:
        routes = [route.destination for route in await self._links.routes()]
        return [*routes, *(address.interface.network for address in await self._links.addresses())]

    async def settle(self) -> None:
        """Every container that still runs was adopted: make the firewall right.

        Done by the first start if not before.
        """
        async with self._settling:
            if self._settled:
                return
            try:
                await self._firewall.apply()
            except OSError as error:
                raise SystemFailure(f"cannot set up the firewall: {os_words(error)}") from error
            try:
                await self._keeper.settle()
            except OSError:
                log.exception("containers of user-defined networks may be without a name server")
            self._settled = True

    async def aclose(self, *, remove: bool = False) -> None:
        """Stop. Running containers keep their network; with ``remove`` (no container runs) nothing of ours is left."""
        await self._keeper.aclose()
        if remove:
            for network in self._store:
                with contextlib.suppress(OSError, ValueError):
                    await self._drivers[network.driver].remove(network)
            await run_blocking(self._handles.remove_sync)
        await self._firewall.aclose(remove=remove)
        await self._links.aclose()

    # ---- sandboxes

    async def validate_wish(self, mode: str, endpoints: Mapping[str, W], blank: W | None = None) -> dict[str, W]:
        """Check a new container's networks.

        Those that are given are all it joins; only where there is none it joins that of ``mode``, with ``blank``. The
        result is by network name, that of ``mode`` first. A network that does not exist is no error before the start,
        as with dockerd; it keeps the name it was given. Raises an ``EngineError``.
        """
        if mode.startswith("container:"):
            if endpoints:
                raise InvalidParameter(
                    "conflicting options: container type network can't be used with links or networks"
                )
            return {}
        known = {self._known_name(name): wish for name, wish in endpoints.items()}
        first = self._known_name(mode)
        if not known and blank is not None:
            known[first] = blank
        if first in ("host", "none") and known.keys() - {first}:
            raise InvalidParameter(
                "conflicting options: cannot attach both user-defined and non-user-defined network-modes"
            )
        for name, wish in known.items():
            try:
                self.check_wish(name, wish)
            except InvalidParameter as error:
                raise InvalidParameter(f"invalid config for network {name}: {error.message}") from error
        return dict(sorted(known.items(), key=lambda item: (item[0] != first, item[0])))

    def check_wish(self, name: str, wish: EndpointWish) -> None:
        """What a container asks of one network it is connected to. Raises ``InvalidParameter``."""
        check_wish(self._store.by_name(name), wish)

    def _known_name(self, reference: str) -> str:
        if reference in ("", "default"):
            return "bridge"
        try:
            return self.find(reference).name
        except NotFound:
            return reference

    async def open_sandbox(self, request: SandboxRequest) -> Sandbox:
        """Everything a starting container needs of the network.

        Raises an ``EngineError``; then nothing is left of it.
        """
        if not self._settled:
            await self.settle()
        with self._measures.network_action("allocate"):
            sandbox = await self._keeper.open(request)
        for endpoint in sandbox.endpoints.values():
            self._event("connect", endpoint.network_id, container=request.container_id)
        return sandbox

    async def sandbox_started(self, container_id: str, init_pid: int) -> None:
        """Init runs: descriptors that only the start needed are closed, and its namespace gets a path."""
        await self._keeper.started(container_id, init_pid)

    def sandbox_key(self, document: SandboxDocument) -> str:
        """The path by which a running container's namespace can be entered; empty if that is another container's."""
        return self._handles.path(document)

    async def adopt_sandbox(self, container_id: str, init_pid: int, state: Mapping[str, Any]) -> Sandbox:
        """Take over a container that still runs, from what its record kept (``to_document``). Raises ``ValueError``."""
        document = msgspec.convert(dict(state), SandboxDocument)
        return await self._keeper.adopt(init_pid, msgspec.structs.replace(document, container_id=container_id))

    async def close_sandbox(self, container_id: str) -> None:
        """The container ended: free its ports now and its addresses soon. An unknown container is fine."""
        sandbox = self._keeper.get(container_id)
        with self._measures.network_action("release"):
            self._keeper.close(container_id)
        for endpoint in sandbox.endpoints.values() if sandbox is not None else ():
            self._event("disconnect", endpoint.network_id, container=container_id)

    def sandbox(self, container_id: str) -> Sandbox | None:
        """The sandbox of a running container."""
        return self._keeper.get(container_id)

    @staticmethod
    def to_document(sandbox: Sandbox) -> dict[str, Any]:
        """What the container's record must keep to hand to ``adopt_sandbox``."""
        document: dict[str, Any] = msgspec.to_builtins(sandbox.document())
        return document

    async def rename_container(self, container_id: str, name: str) -> None:
        """A running container has another name."""
        await self._keeper.rename(container_id, name)

    # ---- networks

    def find(self, reference: str) -> Network:
        """By name, id or unique id prefix. Raises ``NotFound``."""
        return self._store.find(reference)

    def networks(self, filters: Filters = Filters()) -> list[Network]:  # noqa: B008 - immutable
        """All networks that the filters let through, predefined and older ones first."""
        dangling = filters.boolean("dangling") if "dangling" in filters else None
        kinds = {kind.lower() for kind in filters.get("type")}
        if kinds - {"custom", "builtin"}:
            raise InvalidParameter(f"invalid filter: 'type'='{(kinds - {'custom', 'builtin'}).pop()}'")

        def shows(network: Network) -> bool:
            return (
                _contains(filters.get("name"), network.name)
                and _contains(filters.get("id"), network.id)
                and filters.matches("driver", network.driver)
                and filters.matches("scope", network.scope)
                and filters.match_labels(network.labels)
                and (not kinds or ("builtin" if network.is_predefined else "custom") in kinds)
                and (dangling is None or dangling == self._is_dangling(network))
            )

        return [network for network in self._store if shows(network)]

    def _is_dangling(self, network: Network) -> bool:
        return not network.is_predefined and not self._keeper.on_network(network.id)

    def endpoints(self, network: Network) -> dict[str, tuple[Sandbox, EndpointState]]:
        """The running containers on a network, by container id."""
        return self._keeper.on_network(network.id)

    async def create(self, request: CreateNetwork) -> tuple[Network, str]:
        """Make a network; the text is a warning for the client, mostly empty. Raises an ``EngineError``."""
        check_name(request)
        async with self._creating:
            if self._store.by_name(request.name) is not None:
                raise Conflict(f"network with name {request.name} already exists")
            network = await self._plan(request)
            driver = self._drivers[network.driver]
            try:
                announcement_plan(network.options)
                driver.check(network)
            except ValueError as error:
                raise InvalidParameter(str(error)) from error
            if not network.is_config_only:
                try:
                    await driver.create(network)
                except (OSError, ValueError) as error:
                    with contextlib.suppress(OSError):
                        await driver.remove(network)
                    words = f"cannot create network {network.name}: {os_words(error)}"
                    raise SystemFailure(words if isinstance(error, OSError) else str(error)) from error
            await self._store.put(network)
        self._event("create", network.id)
        return network, ""

    async def _plan(self, request: CreateNetwork) -> Network:
        network_id = new_id()
        source: Network | None = None
        if request.config_from:
            source = self._store.by_name(request.config_from)
            if source is None or not source.is_config_only:
                raise NotFound(f'configuration network "{request.config_from}" does not exist')
        blocks: tuple[IpamBlock, ...] = tuple(request.blocks)
        if not request.is_config_only:
            wanted = request
            if source is not None:
                wanted = CreateNetwork(
                    name=request.name, has_ipv6=source.has_ipv6, blocks=source.blocks, options=source.options
                )
            blocks = plan_blocks(wanted, network_id, self._pools, self._live_subnets(), await self._host_subnets())
        network = Network(
            id=network_id,
            name=request.name,
            driver="null" if request.is_config_only else request.driver,
            created_ns=now_ns(),
            is_internal=request.is_internal or (source is not None and source.is_internal),
            is_attachable=request.is_attachable,
            is_config_only=request.is_config_only,
            config_from=request.config_from,
            has_ipv4=request.has_ipv4,
            has_ipv6=source.has_ipv6 if source is not None else request.has_ipv6,
            ipam_driver=request.ipam_driver or "default",
            ipam_options=dict(request.ipam_options) if request.ipam_options is not None else None,
            blocks=blocks,
            has_own_subnets=bool(request.blocks or (source is not None and source.blocks)),
            options={
                **({} if request.is_config_only else self._config.default_network_opts.get(request.driver, {})),
                **(source.options if source is not None else request.options),
            },
            labels=dict(request.labels),
        )
        if network.driver == "bridge" and not network.is_config_only:
            refuse_duplicate_bridge(network, [n for n in self._store if not n.is_config_only])
        return network

    def _live_subnets(self) -> list[tuple[Subnet, Network]]:
        return [(subnet, network) for subnet, network in self._store.subnets() if not network.is_config_only]

    async def remove(self, reference: str) -> Network:
        """Remove a network that no running container uses. Raises an ``EngineError``."""
        network = self.find(reference)
        if network.is_predefined:
            raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
        active = self._keeper.on_network(network.id)
        if active:
            names = ", ".join(f'name:"{s.name}" id:"{s.container_id[:12]}"' for s, _ in active.values())
            raise Forbidden(f"error while removing network: network {network.name} has active endpoints ({names})")
        users = [n.name for n in self._store if network.is_config_only and n.config_from == network.name]
        if users:
            raise Forbidden(f"configuration network {network.name!r} is in use")
        await self._store.delete(network)
        if not network.is_config_only:
            try:
                await self._drivers[network.driver].remove(network)
            except OSError as error:
                raise SystemFailure(f"error while removing network: {os_words(error)}") from error
        self._event("destroy", network)
        return network

    async def prune(self, filters: Filters, until_ns: int | None = None) -> list[str]:
        """Remove every network of the user's that no running container uses; the names of those removed."""
        removed = []
        for network in self._store:
            unused = not (network.is_predefined or network.is_config_only) and not self._keeper.on_network(network.id)
            wanted = filters.match_labels(network.labels) and not filters.excludes_labels(network.labels)
            if unused and wanted and (until_ns is None or network.created_ns < until_ns):
                with contextlib.suppress(EngineError):
                    removed.append((await self.remove(network.id)).name)
        self._events.publish("network", "prune", "", {"reclaimed": "0"})
        return removed

    async def connect(
        self,
        container_id: str,
        reference: str,
        wish: EndpointWish | None,
        ports: PortsWish = PortsWish(),  # noqa: B008
    ) -> EndpointState:
        """Connect a running container, whose ports are published if no other network has done it.

        Raises an ``EngineError``; then nothing has changed.
        """
        network = self.find(reference)
        with self._measures.network_action("connect"):
            endpoint = await self._keeper.connect(container_id, network, wish, ports)
        self._event("connect", network, container=container_id)
        return endpoint

    async def disconnect(self, container_id: str, reference: str) -> None:
        """Disconnect a running container. Raises an ``EngineError``."""
        network = self.find(reference)
        await self._keeper.disconnect(container_id, network)
        self._event("disconnect", network, container=container_id)

    def _event(self, action: str, of: Network | str, **attributes: str) -> None:
        network = self._store.by_id(of) if isinstance(of, str) else of
        if network is not None:
            attributes |= {"name": network.name, "type": network.driver}
            self._events.publish("network", action, network.id, attributes)


def _contains(wanted: tuple[str, ...], value: str) -> bool:
    return not wanted or any(part in value for part in wanted)


__all__ = ["CreateNetwork", "NetworkService", "Sandbox", "SandboxRequest", "table_name"]
