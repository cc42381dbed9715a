"""Builds, changes and ends the sandboxes of containers.

``open`` makes one before the container's init exists and undoes everything if a step fails; ``started`` lets go of what
only the start needed; ``close`` gives addresses and ports back once the kernel really has let go of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import msgspec

from engine.errors import Conflict, Forbidden, InvalidParameter, NotFound, SystemFailure, os_words
from engine.kernel import namespaces, netlink
from engine.kernel.idmap import IdMap
from engine.kernel.namespaces import NetworkNamespace
from engine.kernel.netlink import RouteSocket
from engine.names import new_id, short
from engine.networks import namefiles
from engine.networks.announcement import Announcer
from engine.networks.driver import Driver
from engine.networks.endpoints import give_back, lease_endpoint
from engine.networks.firewall import Firewall
from engine.networks.handles import NamespaceHandles
from engine.networks.model import (
    OPTION_BRIDGE,
    EndpointState,
    EndpointWish,
    Network,
    PortState,
    PortsWish,
    SandboxDocument,
    SandboxRequest,
)
from engine.networks.nameserver import NameServer
from engine.networks.namespaces import NamespacePool
from engine.networks.ports import HostPorts, PortTaken, PortWish, parse_port, wanted_ports
from engine.networks.resolver import Resolver
from engine.networks.ruleset import Passage
from engine.networks.sandbox import (
    Sandbox,
    gateway_endpoint,
    hosts_of,
    port_map,
    publishing_endpoint,
    translations,
)
from engine.networks.store import NetworkStore
from engine.networks.wishes import choose_interface, wished_interface
from engine.tasks import KeyedLocks, Nursery, run_blocking, run_in

log = logging.getLogger(__name__)


class SandboxKeeper:
    """All sandboxes of running containers, by container."""

    def __init__(
        self,
        store: NetworkStore,
        drivers: Mapping[str, Driver],
        firewall: Firewall,
        host_ports: HostPorts,
        *,
        has_bridge: bool = True,
        host_gateways: Sequence[str] = (),
        default_host_ip: str = "0.0.0.0",
        host_dns: namefiles.ResolvConf | None = None,
        name_server: NameServer,
        handles: NamespaceHandles,
        ids: IdMap | None = None,
    ) -> None:
        self._store = store
        self._drivers = drivers
        self._firewall = firewall
        self._host_ports = host_ports
        self._has_bridge = has_bridge
        self._host_gateways = tuple(host_gateways)
        self._default_host_ip = default_host_ip
        self._daemon_dns = host_dns or namefiles.ResolvConf()
        self._handles = handles
        self._pool = NamespacePool()
        self._mapped_pool = NamespacePool(ids=ids)
        self._announcer = Announcer()
        self._nursery = Nursery("sandboxes")
        self._locks = KeyedLocks()
        self._sandboxes: dict[str, Sandbox] = {}
        self._clearing: dict[str, asyncio.Task[None]] = {}
        self._resolver = Resolver(name_server, self._sandboxes)

    def get(self, container_id: str) -> Sandbox | None:
        """The sandbox of a running container."""
        return self._sandboxes.get(container_id)

    def on_network(self, network_id: str) -> dict[str, tuple[Sandbox, EndpointState]]:
        """The running containers on a network, by container id."""
        return {
            sandbox.container_id: (sandbox, endpoint)
            for sandbox in self._sandboxes.values()
            for endpoint in sandbox.endpoints.values()
            if endpoint.network_id == network_id
        }

    # ---- open

    async def open(self, request: SandboxRequest) -> Sandbox:
        """Build everything a starting container needs. Raises an ``EngineError``; then nothing is left of it."""
        # A restarted container has the addresses again that its last run is still giving back.
        if (last := self._clearing.get(request.container_id)) is not None:
            await asyncio.wait((last,))
        mode = "bridge" if request.mode in ("", "default") else request.mode
        sandbox = Sandbox(request.container_id, request.name, new_id(), mode, directory=str(request.directory))
        sandbox.hostname, sandbox.domainname, sandbox.has_ipv6 = request.hostname, request.domainname, request.has_ipv6
        sandbox.exposed = tuple(dict.fromkeys((*request.ports.exposed, *request.ports.bindings)))
        async with contextlib.AsyncExitStack() as undo:
            if mode.startswith("container:"):
                await self._join(sandbox, request)
            elif mode == "host":
                sandbox.endpoints = {name: self._passive_endpoint(name) for name in request.endpoints if name == "host"}
                await self._write_host_files(sandbox, request)
            else:
                await self._open_own(sandbox, request, undo)
            undo.pop_all()
        self._sandboxes[request.container_id] = sandbox
        return sandbox

    async def _join(self, sandbox: Sandbox, request: SandboxRequest) -> None:
        other_id = request.joined_id or sandbox.mode.partition(":")[2]
        if request.joined_pid is None:
            raise Conflict(f"cannot join network of a non running container: {other_id}")
        sandbox.netns_path = f"/proc/{request.joined_pid}/ns/net"
        if request.is_mapped:
            sandbox.userns_path = f"/proc/{request.joined_pid}/ns/user"
        other = self._sandboxes.get(other_id)
        if other is None:
            raise Conflict(f"cannot join network of a non running container: {other_id}")
        if not other.owns_namespace and other.mode == "host":
            sandbox.netns_path = None
        sandbox.hosts_path, sandbox.hostname_path = other.hosts_path, other.hostname_path
        sandbox.resolv_path, sandbox.directory = other.resolv_path, other.directory

    async def _write_host_files(self, sandbox: Sandbox, request: SandboxRequest) -> None:
        extra = self._extra_hosts(request)

        def write_sync() -> tuple[Path, Path, Path]:
            hosts = namefiles.host_hosts_sync() + "".join(f"{ip}\t{name}\n" for ip, name in extra)
            resolv = self._resolv(request, namefiles.host_resolv_conf_sync(), "host").text()
            return namefiles.write_files_sync(
                request.directory, hosts=hosts, hostname=request.hostname or os.uname().nodename, resolv=resolv
            )

        self._set_paths(sandbox, await run_blocking(write_sync))

    @staticmethod
    def _set_paths(sandbox: Sandbox, paths: tuple[Path, Path, Path]) -> None:
        sandbox.hosts_path, sandbox.hostname_path, sandbox.resolv_path = map(str, paths)

    def _passive_endpoint(self, name: str) -> EndpointState:
        network = self._store.find(name)
        return EndpointState(network_id=network.id, network_name=name, endpoint_id=new_id())

    async def _open_own(self, sandbox: Sandbox, request: SandboxRequest, undo: contextlib.AsyncExitStack) -> None:
        try:
            if request.userns_pid:
                namespace = await self._mapped_pool.make(request.userns_pid)
            else:
                namespace = await (self._mapped_pool if request.is_mapped else self._pool).take()
        except OSError as error:
            raise SystemFailure(f"cannot create a network namespace: {os_words(error)}") from error
        undo.callback(namespace.close)
        sandbox.namespace, sandbox.netns_path, sandbox.userns_path = namespace, namespace.path, namespace.user_path
        wishes = self._wishes(request)
        reserved = {wished_interface(wish) for _, wish in wishes}
        for number, (network, wish) in enumerate(wishes):
            if network.driver == "null":
                sandbox.endpoints[network.name] = self._passive_endpoint(network.name)
                continue
            mac = request.mac_address if number == 0 else ""
            interface = _choose_interface(sandbox, network, wish, reserved)
            endpoint = await self._lease(sandbox, network, wish, interface, mac)
            undo.push_async_callback(self._release, endpoint, namespace)
            await self._attach(network, endpoint, namespace)
            sandbox.endpoints[network.name] = endpoint
        await self._set_default_routes(sandbox)
        await self._publish(sandbox, request.ports, undo)
        await self._link(sandbox, request, undo)
        sandbox.upstream = tuple(request.dns) or self._daemon_dns.servers
        undo.push_async_callback(self._resolver.close, sandbox)
        try:
            await self._resolver.open(sandbox, namespace)
        except OSError as error:
            raise SystemFailure(f"cannot give container {sandbox.name} a name server: {os_words(error)}") from error
        await self._write_own_files(sandbox, request)

    def _wishes(self, request: SandboxRequest) -> list[tuple[Network, EndpointWish | None]]:
        """The networks to join, that of the mode first, the others by name.

        Where the daemon has no default bridge, those that wish for it do without.
        """
        mode = "bridge" if request.mode in ("", "default") else request.mode
        found = {}
        for name, wish in request.endpoints.items():
            if self._has_bridge or name != "bridge":
                network = self._store.find(name)
                found[network.id] = (network, wish)
        return sorted(found.values(), key=lambda one: (mode not in (one[0].name, one[0].id), one[0].name))

    async def _lease(
        self, sandbox: Sandbox, network: Network, wish: EndpointWish | None, interface: str, mac: str
    ) -> EndpointState:
        """An endpoint's addresses and names. What a container that just ended still has is waited for."""
        try:
            return lease_endpoint(self._store, sandbox, network, wish, interface, mac)
        except Forbidden:
            if not self._clearing:
                raise
        await asyncio.wait(tuple(self._clearing.values()))
        return lease_endpoint(self._store, sandbox, network, wish, interface, mac)

    async def _attach(self, network: Network, endpoint: EndpointState, namespace: NetworkNamespace) -> None:
        try:
            await self._drivers[network.driver].attach(network, endpoint, namespace)
        except (OSError, ValueError) as error:
            raise SystemFailure(
                f"failed to create endpoint {endpoint.endpoint_id} on network {network.name}: {os_words(error)}"
            ) from error
        await self._announcer.start(network, endpoint, namespace)

    async def _release(self, endpoint: EndpointState, namespace: NetworkNamespace | None) -> None:
        """Give an endpoint's addresses back once its interface is gone."""
        self._announcer.stop(endpoint)
        network = self._store.by_id(endpoint.network_id)
        if network is not None:
            try:
                await self._drivers[network.driver].detach(network, endpoint, namespace)
            except OSError:
                log.exception("interface %s of network %s is left behind", endpoint.link, network.name)
        give_back(self._store, endpoint)

    # ---- the default route, ports, links, files

    async def _set_default_routes(self, sandbox: Sandbox) -> None:
        ways = []
        for version, everywhere in ((4, "0.0.0.0/0"), (6, "::/0")):
            endpoint = gateway_endpoint(sandbox, version)
            if endpoint is not None:
                gateway = endpoint.gateway if version == 4 else endpoint.ipv6_gateway
                ways.append((everywhere, gateway, endpoint.interface))
        if ways and sandbox.namespace is not None:
            try:
                await run_in("net", _set_routes_sync, sandbox.namespace, ways)
            except OSError as error:
                raise SystemFailure(
                    f"cannot set the default route of container {sandbox.container_id}: {os_words(error)}"
                ) from error

    async def _publish(self, sandbox: Sandbox, ports: PortsWish, undo: contextlib.AsyncExitStack) -> None:
        endpoint = publishing_endpoint(sandbox)
        sandbox.ports = port_map(sandbox.exposed, ())
        try:
            wishes = wanted_ports(ports.exposed, ports.bindings, ports.publish_all)
        except ValueError as error:
            raise InvalidParameter(str(error)) from error
        if not wishes or endpoint is None:
            return
        network = self._store.find(endpoint.network_id)
        failed = (
            f"driver failed programming external connectivity on endpoint {sandbox.name} ({endpoint.endpoint_id}): "
        )
        places = [(wish, self._host_addresses(wish, network, endpoint)) for wish in wishes]
        try:
            held = self._host_ports.reserve(
                [(w, tuple(a for a in addresses if not _is_routed(network, a))) for w, addresses in places]
            )
        except PortTaken as error:
            raise SystemFailure(failed + error.text) from error
        except OSError as error:
            raise SystemFailure(failed + (error.strerror or str(error))) from error
        undo.callback(self._host_ports.release, held)
        undo.callback(sandbox.lose_ports)
        sandbox.held = held
        sandbox.hold_fds = tuple(h.socket.fileno() for h in held if h.socket is not None)
        opened = dict.fromkeys(
            PortState(port=wish.port, host_ip="::" if ":" in address else "0.0.0.0", host_port=0)
            for wish, addresses in places
            for address in addresses
            if _is_routed(network, address)
        )
        kept = [PortState(port=h.wish.port, host_ip=h.host_ip, host_port=h.host_port) for h in held]
        sandbox.published = tuple(sorted((*kept, *opened), key=_port_order))
        sandbox.ports = port_map(sandbox.exposed, sandbox.published)
        undo.push_async_callback(self._firewall.unpublish, sandbox.container_id)
        try:
            await self._firewall.publish(sandbox.container_id, translations(sandbox, endpoint))
        except OSError as error:
            raise SystemFailure(f"{failed}{os_words(error)}") from error

    def _host_addresses(self, wish: PortWish, network: Network, endpoint: EndpointState) -> tuple[str, ...]:
        if wish.host_ip:
            return (wish.host_ip,)
        default = network.options.get(OPTION_BRIDGE + "host_binding_ipv4") or self._default_host_ip
        found: tuple[str, ...] = (default,) if endpoint.ip_address else ()
        if endpoint.global_ipv6_address and default in ("0.0.0.0", "::"):
            found += ("::",)
        return found

    async def _link(self, sandbox: Sandbox, request: SandboxRequest, undo: contextlib.AsyncExitStack) -> None:
        own = [e.ip_address for e in sandbox.endpoints.values() if e.ip_address]
        passages = []
        for link in request.links:
            other = next(
                (s for s in self._sandboxes.values() if link.ip in {e.ip_address for e in s.endpoints.values()}), None
            )
            if other is None or not own:
                continue
            ports = [pair for text in other.exposed for pair in parse_port(text)]
            passages += [Passage(own[0], link.ip, protocol, port) for port, protocol in ports]
        if passages:
            undo.push_async_callback(self._firewall.set_passages, sandbox.container_id, ())
            await self._firewall.set_passages(sandbox.container_id, passages)

    def _extra_hosts(self, request: SandboxRequest) -> tuple[tuple[str, str], ...]:
        bridge = self._store.by_name("bridge")
        own = [block.gateway for block in bridge.blocks if block.gateway] if bridge is not None else []
        gateways = self._host_gateways or own
        try:
            return tuple(namefiles.parse_extra_hosts(request.extra_hosts, gateways))
        except ValueError as error:
            raise InvalidParameter(str(error)) from error

    def _resolv(self, request: SandboxRequest, host_text: str, kind: str) -> namefiles.ResolvConf:
        conf = namefiles.ResolvConf.parse(host_text)
        daemon = self._daemon_dns
        conf = conf.override(daemon.servers, daemon.search, daemon.options)
        conf = conf.override(request.dns, request.dns_search, request.dns_options)
        return conf if kind == "host" or request.dns else conf.for_bridge()

    async def _write_own_files(self, sandbox: Sandbox, request: SandboxRequest) -> None:
        links = [(link.ip, " ".join(dict.fromkeys((link.alias, *link.names, link.name)))) for link in request.links]
        sandbox.extra_hosts = (*self._extra_hosts(request), *links)

        def write_sync() -> tuple[Path, Path, Path]:
            conf = self._resolv(request, namefiles.host_resolv_conf_sync(), "bridge")
            resolv = (conf.for_embedded() if sandbox.has_resolver else conf).text()
            return namefiles.write_files_sync(
                request.directory, hosts=hosts_of(sandbox), hostname=request.hostname, resolv=resolv
            )

        self._set_paths(sandbox, await run_blocking(write_sync))

    # ---- afterwards

    async def started(self, container_id: str, init_pid: int) -> None:
        """Init lives, and with it the namespace and (in the shim) the held ports: we need our own copies no more."""
        sandbox = self._sandboxes.get(container_id)
        if sandbox is None:
            return
        sandbox.init_pid = init_pid
        self._resolver.started(sandbox)
        sandbox.let_go()
        await self._show(sandbox)

    async def _show(self, sandbox: Sandbox) -> None:
        if sandbox.owns_namespace:
            try:
                await run_blocking(self._handles.put_sync, sandbox.sandbox_id, sandbox.init_pid)
            except OSError:
                log.exception("the namespace of container %s cannot be entered by a path", short(sandbox.container_id))

    async def adopt(self, init_pid: int, document: SandboxDocument) -> Sandbox:
        """Take over a container that ran while the daemon did not. Addresses and ports become taken again."""
        sandbox = Sandbox(
            container_id=document.container_id,
            name=document.name,
            sandbox_id=document.sandbox_id,
            mode=document.mode,
            endpoints=dict(document.endpoints),
            ports=port_map(document.exposed, document.ports),
            hosts_path=document.hosts_path,
            hostname_path=document.hostname_path,
            resolv_path=document.resolv_path,
            directory=document.directory,
            published=document.ports,
            exposed=document.exposed,
            init_pid=init_pid,
            hostname=document.hostname,
            domainname=document.domainname,
            extra_hosts=document.extra_hosts,
            upstream=document.upstream,
            has_ipv6=document.has_ipv6,
        )
        for endpoint in sandbox.endpoints.values():
            network = self._store.by_id(endpoint.network_id)
            for address, version in ((endpoint.ip_address, 4), (endpoint.global_ipv6_address, 6)):
                if address and network is not None:
                    with contextlib.suppress(ValueError):  # taken twice: the first container keeps it
                        self._store.lease(network, version, address)
        for port in sandbox.published:
            if not port.host_port:
                continue
            self._host_ports.adopt(port.port.partition("/")[2], port.host_ip, port.host_port)
        target = publishing_endpoint(sandbox)
        if sandbox.published and target is not None:
            self._firewall.adopt(sandbox.container_id, translations(sandbox, target))
        self._sandboxes[sandbox.container_id] = sandbox
        await self._show(sandbox)
        return sandbox

    async def settle(self) -> None:
        """Every running container was adopted: see that those that had a name server have one."""
        await self._resolver.adopt()

    def close(self, container_id: str) -> None:
        """The container has ended. Its host ports are free at once, its addresses when the kernel is done with them."""
        sandbox = self._sandboxes.pop(container_id, None)
        if sandbox is None:
            return
        sandbox.let_go()
        for endpoint in sandbox.endpoints.values():
            self._announcer.stop(endpoint)
        for port in sandbox.published:
            self._host_ports.forget(port.port.partition("/")[2], port.host_ip, port.host_port)
        task = self._nursery.start(self._clear(sandbox), name=f"clear-{short(container_id)}")
        self._clearing[container_id] = task
        task.add_done_callback(lambda done: self._cleared(container_id, done))

    def _cleared(self, container_id: str, task: asyncio.Task[None]) -> None:
        if self._clearing.get(container_id) is task:
            del self._clearing[container_id]

    async def _clear(self, sandbox: Sandbox) -> None:
        await self._resolver.close(sandbox)
        await run_blocking(self._handles.drop_sync, sandbox.sandbox_id)
        # The rule goes first: it must never lead to the next container that gets the address.
        try:
            await self._firewall.unpublish(sandbox.container_id)
            await self._firewall.set_passages(sandbox.container_id, ())
        except OSError:
            log.exception("rules of container %s are left behind", short(sandbox.container_id))
        for endpoint in sandbox.endpoints.values():
            await self._release(endpoint, None)

    async def rename(self, container_id: str, name: str) -> None:
        """The container has another name; what others resolve follows it."""
        sandbox = self._sandboxes.get(container_id)
        if sandbox is None:
            return
        old, sandbox.name = sandbox.name, name
        for key, endpoint in sandbox.endpoints.items():
            names = tuple(dict.fromkeys(name if n == old else n for n in endpoint.dns_names))
            sandbox.endpoints[key] = msgspec.structs.replace(endpoint, dns_names=names)
        await self._resolver.update(sandbox)

    # ---- live changes

    async def connect(
        self, container_id: str, network: Network, wish: EndpointWish | None, ports: PortsWish
    ) -> EndpointState:
        """Add an interface to a running container, and publish its ports if no network could until now.

        Raises an ``EngineError``; then nothing has changed.
        """
        async with self._locks(container_id):
            sandbox = self._require(container_id)
            if network.name in sandbox.endpoints:
                raise Forbidden(f"endpoint with name {sandbox.name} already exists in network {network.name}")
            if network.driver == "null":
                return sandbox.endpoints.setdefault(network.name, self._passive_endpoint(network.name))
            async with contextlib.AsyncExitStack() as undo:
                await self._enter(sandbox, undo)
                interface = _choose_interface(sandbox, network, wish)
                endpoint = await self._lease(sandbox, network, wish, interface, "")
                async with contextlib.AsyncExitStack() as failing:
                    failing.push_async_callback(self._release, endpoint, sandbox.namespace)
                    assert sandbox.namespace is not None
                    await self._attach(network, endpoint, sandbox.namespace)
                    sandbox.endpoints[network.name] = endpoint
                    failing.callback(sandbox.endpoints.pop, network.name)
                    if not sandbox.published:
                        await self._publish(sandbox, ports, failing)
                    await self._reroute(sandbox)
                    failing.pop_all()
            return endpoint

    async def disconnect(self, container_id: str, network: Network) -> None:
        """Take an interface from a running container."""
        async with self._locks(container_id):
            sandbox = self._require(container_id)
            endpoint = sandbox.endpoints.get(network.name)
            if endpoint is None:
                raise Forbidden(f"container {container_id} is not connected to the network {network.name}")
            async with contextlib.AsyncExitStack() as undo:
                await self._enter(sandbox, undo)
                del sandbox.endpoints[network.name]
                await self._release(endpoint, sandbox.namespace)
                await self._reroute(sandbox)

    def _require(self, container_id: str) -> Sandbox:
        sandbox = self._sandboxes.get(container_id)
        if sandbox is None:
            raise NotFound(f"container {container_id} is not running")
        return sandbox

    async def _enter(self, sandbox: Sandbox, undo: contextlib.AsyncExitStack) -> None:
        if sandbox.namespace is not None:
            return
        try:
            sandbox.namespace = namespace = await run_in("net", namespaces.open_namespace_sync, sandbox.init_pid)
        except OSError as error:
            raise Conflict(f"container {sandbox.container_id} is not running") from error
        undo.callback(namespace.close)
        undo.callback(setattr, sandbox, "namespace", None)

    async def _reroute(self, sandbox: Sandbox) -> None:
        """After the set of endpoints changed: default route, the targets of published ports, the hosts file."""
        await self._set_default_routes(sandbox)
        endpoint = publishing_endpoint(sandbox)
        try:
            ports = translations(sandbox, endpoint) if endpoint is not None else []
            await self._firewall.publish(sandbox.container_id, ports)
        except OSError as error:
            raise SystemFailure(
                f"cannot move the published ports of container {sandbox.name}: {os_words(error)}"
            ) from error
        try:
            await self._resolver.update(sandbox, sandbox.namespace)
        except OSError as error:
            raise SystemFailure(
                f"cannot tell the name server about container {sandbox.name}: {os_words(error)}"
            ) from error
        if sandbox.hosts_path:
            await run_blocking(_rewrite_sync, Path(sandbox.hosts_path), hosts_of(sandbox))

    async def aclose(self) -> None:
        """Finish what containers that ended left to do; those that run go on."""
        if self._clearing:
            await asyncio.wait(tuple(self._clearing.values()))
        await self._nursery.aclose()
        await self._announcer.aclose()
        await self._resolver.aclose()
        for sandbox in self._sandboxes.values():
            sandbox.let_go()
        await self._pool.aclose()
        await self._mapped_pool.aclose()


def _set_routes_sync(namespace: NetworkNamespace, ways: Sequence[tuple[str, str, str]]) -> None:
    """Routes as (destination, gateway, interface); a link-local gateway means nothing without the interface."""
    inside = RouteSocket(namespace.socket)
    requests = []
    for destination, gateway, interface in ways:
        link = inside.link_sync(interface)
        requests.append(netlink.add_route(destination, gateway, link.index if link is not None else 0))
    inside.send_sync(*requests)


def _is_routed(network: Network, host_address: str) -> bool:
    """Whether the network leads to published ports by the containers' addresses instead of the host's."""
    return network.gateway_mode(6 if ":" in host_address else 4) == "routed"


def _port_order(state: PortState) -> tuple[int, str, int, int]:
    """By container port; IPv4 before IPv6 where one of both is routed."""
    number, _, protocol = state.port.partition("/")
    rank = 1 if state.host_port else 2 if ":" in state.host_ip else 0
    return int(number), protocol, rank, state.host_port


def _choose_interface(
    sandbox: Sandbox, network: Network, wish: EndpointWish | None, reserved: Set[str] = frozenset()
) -> str:
    """A name that no endpoint has, and none of the ``reserved`` ones unless it was wished for."""
    used = {endpoint.interface for endpoint in sandbox.endpoints.values()}
    return choose_interface(network, wish, used if wished_interface(wish) else used | reserved)


def _rewrite_sync(path: Path, text: str) -> None:
    path.write_text(text)
