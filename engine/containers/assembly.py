"""Everything one run of a container is made of, put together before its start and put away after its end.

In order: run folder, volumes, network sandbox, OCI specification, shim. Each part's undo is registered before the next
part is made. The run folder lies under the exec root (gone after a reboot), the container's own folder (log, name
files) under the data root.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiofiles
import msgspec

from engine.clock import rfc3339
from engine.config import Config
from engine.containers import cdi, rundir
from engine.containers.accounts import Accounts
from engine.containers.grace import end_with_host
from engine.containers.host import DeviceNode, HostFacts
from engine.containers.hostprobe import all_devices_sync, cdi_catalog_sync, device_nodes_sync
from engine.containers.joined import Joined, Users
from engine.containers.limits import Findings, check_limits
from engine.containers.links import link_environment, link_targets, links_of
from engine.containers.live import Live
from engine.containers.logsettings import log_file_name, plan_log
from engine.containers.logtag import LogSubject
from engine.containers.merge import replace_env, with_home
from engine.containers.model import Container
from engine.containers.mounts import MountPoint
from engine.containers.namespaces import joined_container
from engine.containers.remap import MappedView
from engine.containers.rootview import KERNEL_VIEWS, check_propagation, hand_over, keep_source_flags, planned
from engine.containers.security import (
    ALL_CAPABILITIES,
    DEFAULT_APPARMOR_PROFILE,
    apparmor_profile,
    parse_security_options,
)
from engine.containers.settings import ExecSettings, HostConfig, Ulimit
from engine.containers.sources import Sources
from engine.containers.spec import SpecInput, build_spec, capability_sets
from engine.containers.store import ContainerStore
from engine.errors import Conflict, InvalidParameter, NotFound, SystemFailure, os_words
from engine.kernel import apparmor
from engine.kernel.idmap import IdMap
from engine.networks.model import Link, SandboxRequest
from engine.networks.sandbox import Sandbox
from engine.networks.service import NetworkService
from engine.runtime.cgroups import Cgroups
from engine.runtime.oci import (
    Runtime,
    Runtimes,
    guards_proc,
    kill_leftover,
    offers_recursive_read_only,
    runtime_annotations,
    tell_processors,
    update_resources,
)
from engine.runtime.shims import LogSpec, Shim, Shims, ShimSpec
from engine.snapshots.base import LayerKey, Snapshotter
from engine.snapshots.trash import Trash
from engine.tasks import Nursery, run_blocking
from engine.volumes.service import VolumeService

log = logging.getLogger(__name__)

IPV6_OFF_SYSCTLS = ("net.ipv6.conf.all.disable_ipv6", "net.ipv6.conf.default.disable_ipv6")
NAME_FILES = {"/etc/resolv.conf": "resolv_path", "/etc/hostname": "hostname_path", "/etc/hosts": "hosts_path"}


@dataclass(frozen=True, slots=True)
class Host:
    """What the daemon found on this machine, once."""

    facts: HostFacts
    cgroups: Cgroups
    runtimes: Runtimes
    init_binary: str
    seccomp_profile: str = "builtin"


@dataclass(frozen=True, slots=True)
class Assembled:
    """A container that is ready to run."""

    shim: Shim
    sandbox: Sandbox
    mounts: tuple[MountPoint, ...]
    limits: Mapping[str, Any]


class Assembly:
    """Puts runs together and away."""

    def __init__(
        self,
        config: Config,
        host: Host,
        store: ContainerStore,
        shims: Shims,
        snapshotter: Snapshotter,
        networks: NetworkService,
        volumes: VolumeService,
        accounts: Accounts,
        trash: Trash,
        nursery: Nursery,
    ) -> None:
        self._config = config
        self._host = host
        self._store = store
        self._shims = shims
        self._snapshotter = snapshotter
        self._networks = networks
        self._volumes = volumes
        self._sources = Sources(volumes, snapshotter)
        self._joined = Joined(store, host.facts, self.run_dir)
        self._accounts = accounts
        self._trash = trash
        self._nursery = nursery
        self._expecting: asyncio.Task[None] | None = None
        self.run_root = config.exec_root / "containers"
        self.data_root = config.data_root / "containers"

    def run_dir(self, container_id: str) -> Path:
        """The folder of one run: bundle, sockets, exit record."""
        return self.run_root / container_id

    def directory(self, container_id: str) -> Path:
        """The container's own folder: log and name files."""
        return self.data_root / container_id

    def log_path(self, container: Container) -> Path | None:
        """The log's file, or the one that keeps a remote log readable; None when nothing is kept."""
        wish = container.host_config.log_config
        name = log_file_name(wish.type or self._config.log_driver, wish.config or {}, container.id)
        return self.directory(container.id) / name if name else None

    def cgroup_path(self, container: Container) -> str:
        """The value of ``linux.cgroupsPath``."""
        parent = container.host_config.cgroup_parent or self._config.cgroup_parent or None
        return self._host.cgroups.container_path(container.id, parent)

    def apparmor_profile(self, container: Container) -> str:
        """The AppArmor profile of a container, or "" where the host has none."""
        host = container.host_config
        return apparmor_profile(host, parse_security_options(host.security_opt), self._host.facts)

    def runtime_of(self, container: Container) -> Runtime:
        """The OCI runtime of a container. Raises ``InvalidParameter`` when it is not configured any more."""
        runtime = self._host.runtimes.known.get(container.runtime or self._host.runtimes.default)
        if runtime is None:
            raise InvalidParameter(f"unknown or invalid runtime name: {container.runtime}")
        return runtime

    def check_limits(self, container: Container) -> None:
        """What updates have made of its limits is possible on this host. Raises ``InvalidParameter``."""
        try:
            check_limits(container.host_config, self._host.facts, Findings())
        except ValueError as error:
            raise InvalidParameter(str(error)) from error

    def with_shared_names(self, container: Container) -> Container:
        """A container in another's network is called as that one is. Raises ``NotFound``."""
        return self._joined.with_shared_names(container)

    def expect_process(self) -> None:
        """A process is about to be put into control groups: let the kernel prepare for it meanwhile."""
        if self._expecting is None or self._expecting.done():
            move = run_blocking(self._host.cgroups.expect_move_sync)
            self._expecting = self._nursery.start(move, name="expect a process")

    # Putting together.

    async def assemble(self, container: Container, live: Live, undo: contextlib.AsyncExitStack) -> Assembled:
        """Make all parts; ``undo`` learns how to unmake each of them."""
        self.expect_process()
        layers = tuple(LayerKey(key) for key in container.layers)
        await self._snapshotter.require(layers)
        run_dir = self.run_dir(container.id)
        rootfs = run_dir / "rootfs"
        await run_blocking(rundir.make_fresh_sync, run_dir)
        undo.push_async_callback(run_blocking, rundir.drop_sync, run_dir)
        users = await self._joined.users(container)
        ids, root = (users.ids, users.ids.root) if users is not None else (None, (0, 0))
        mounts, image_steps = await self._sources.prepare(container, run_dir, undo, ids)
        shm = await self._joined.shared_memory(container, root, undo)
        sandbox = await self._open_sandbox(container, users, undo)
        live.sandbox = sandbox
        spec = await self._spec(container, sandbox, mounts, str(rootfs), shm, ids)
        await _load_profile(spec["process"])
        if container.config.tty and live.console_size:  # told since the creation; the record's is there already
            spec["process"]["consoleSize"] = {"height": live.console_size[0], "width": live.console_size[1]}
        runtime = self.runtime_of(container)
        own = runtime_annotations(runtime, spec["linux"]["resources"])
        spec["annotations"] = {**own, **spec.get("annotations", {})}
        steps = await self._snapshotter.mount_steps(
            container.id, layers, str(rootfs), transient=container.host_config.auto_remove
        )
        steps = (*steps, *image_steps)
        for mount in spec["mounts"]:
            await self._keep_mode(container, mount)
        spec["mounts"] = await run_blocking(keep_source_flags, spec["mounts"], _mount_flags_sync)
        if sandbox.userns_path:
            view = MappedView(self._config.data_root, run_dir, sandbox.userns_path)
            steps, spec["mounts"] = view.steps(steps), view.mounts(spec["mounts"], await mount_table())
        guarded = () if guards_proc(runtime) else planned(spec["mounts"])
        if not offers_recursive_read_only(runtime):
            spec["mounts"], handed = hand_over(spec["mounts"], str(run_dir / rundir.READ_ONLY))
            steps = (*steps, *handed)
        async with aiofiles.open(run_dir / "config.json", "wb") as file:
            await file.write(msgspec.json.encode(spec))
        undo.callback(_forget_shim, live)
        shim = await self._shims.spawn(
            ShimSpec(
                container_id=container.id,
                run_dir=run_dir,
                bundle=run_dir,
                runtime=runtime,
                mounts=steps,
                terminal=container.config.tty,
                open_stdin=container.config.open_stdin,
                stdin_once=container.config.stdin_once,
                console_size=live.console_size or _console_size(container),
                log=self._log_spec(container),
                spill_dir=self.directory(container.id),
                hold_fds=sandbox.hold_fds,
                cgroup_path=self.cgroup_path(container),
                program=spec["process"]["args"][0],
                shared_pid=container.host_config.pid_mode != "",
                guarded=guarded,
                end_with_host=end_with_host(container.config),
                owner=root,
            )
        )
        undo.push_async_callback(shim.discard)
        live.shim = shim
        return Assembled(shim, sandbox, mounts, spec["linux"]["resources"])

    async def _open_sandbox(
        self, container: Container, users: Users | None, undo: contextlib.AsyncExitStack
    ) -> Sandbox:
        host = container.host_config
        request = SandboxRequest(
            container_id=container.id,
            name=container.name,
            hostname=container.config.hostname,
            domainname=container.config.domainname,
            directory=self.directory(container.id),
            mode=host.network_mode,
            joined_id=joined_container(host.network_mode) or "",
            joined_pid=self._joined.network_pid(container),
            endpoints={} if container.config.network_disabled else container.networks,
            ports=container.ports,
            dns=host.dns or self._config.dns,
            dns_search=host.dns_search or self._config.dns_search,
            dns_options=host.dns_options or self._config.dns_opts,
            extra_hosts=host.extra_hosts or (),
            links=self._links(container),
            mac_address=container.config.mac_address,
            is_mapped=users is not None,
            userns_pid=users.owner_pid if users is not None else 0,
            has_ipv6=not any((host.sysctls or {}).get(name, "").strip() == "1" for name in IPV6_OFF_SYSCTLS),
        )
        undo.push_async_callback(self._networks.close_sandbox, container.id)
        return await self._networks.open_sandbox(request)

    def _linked(self, container: Container) -> list[tuple[Container, str, str]]:
        """The containers that ``--link`` names, each with its alias and address. Raises ``Conflict``."""
        found: list[tuple[Container, str, str]] = []
        if "bridge" not in container.networks:
            return found
        names = {alias: name for name, alias in links_of(container.host_config)}
        for target, alias in link_targets(container):
            try:
                other = self._store.network_owner(self._store.find(target))
            except NotFound:
                other = None  # it was removed since
            if other is None or not other.is_running:
                gone = other.name if other else names[alias]
                raise Conflict(f"Cannot link to a non running container: /{gone} AS /{container.name}/{alias}")
            endpoint = other.sandbox.endpoints.get("bridge") if other.sandbox else None
            if endpoint is None:
                raise Conflict(f"Cannot link to /{other.name}, as it does not belong to the default network")
            found.append((other, alias, endpoint.ip_address))
        return found

    def _links(self, container: Container) -> tuple[Link, ...]:
        return tuple(
            Link(other.name, alias, address, (other.config.hostname,))
            for other, alias, address in self._linked(container)
        )

    def _link_environment(self, container: Container) -> list[str]:
        return [
            variable
            for other, alias, address in self._linked(container)
            for variable in link_environment(
                container.name, alias, address, other.config.exposed_ports or (), other.config.env or ()
            )
        ]

    async def _spec(
        self,
        container: Container,
        sandbox: Sandbox,
        mounts: tuple[MountPoint, ...],
        rootfs: str,
        shm: str | None,
        ids: IdMap | None,
    ) -> dict[str, Any]:
        host = container.host_config
        user = await self._accounts.resolve(container)
        devices = await run_blocking(all_devices_sync) if host.privileged else ()
        taken = {point.destination for point in mounts}
        name_files = {
            destination: path
            for destination, member in NAME_FILES.items()
            if destination not in taken and (path := getattr(sandbox, member))
        }
        try:
            mounts = check_propagation(mounts, await mount_table(), str(self._config.data_root))
        except ValueError as error:
            raise InvalidParameter(str(error)) from error
        given = SpecInput(
            config=container.config,
            host=host,
            facts=self._host.facts,
            user=user,
            rootfs=rootfs,
            cgroup_path=self.cgroup_path(container),
            hostname=container.config.hostname,
            netns=sandbox.netns_path,
            mounts=mounts,
            name_files=name_files,
            shm_path=shm,
            joined_pids=self._joined.pids(container),
            ids=ids,
            userns=sandbox.userns_path,
            init_binary=self._config.init_path or self._host.init_binary,
            default_init=self._config.init,
            lookup_device=device_nodes_sync,
            host_devices=devices,
            default_ulimits=_ulimits(self._config),
            default_seccomp=self._host.seccomp_profile,
            no_new_privileges=self._config.no_new_privileges,
            link_env=self._link_environment(container),
        )
        try:
            spec = build_spec(given)
            if host.devices or host.device_requests:
                await self._inject_devices(spec, host)
        except ValueError as error:
            raise InvalidParameter(str(error)) from error
        return spec

    async def _keep_mode(self, container: Container, mount: dict[str, Any]) -> None:
        """A tmpfs without a mode of its own has that of the folder it covers, as runc does by itself."""
        if mount["type"] != "tmpfs" or mount["destination"] in KERNEL_VIEWS:
            return
        if any(option.startswith("mode=") for option in mount["options"]):
            return
        mode = await self._accounts.folder_mode(container, mount["destination"])
        if mode is not None:
            mount["options"].append(f"mode={mode:o}")

    async def _inject_devices(self, spec: dict[str, Any], host: HostConfig) -> None:
        """The devices that CDI specifications describe. Raises ``ValueError``."""
        catalog = await run_blocking(cdi_catalog_sync, self._config)
        names = cdi.requested_names(host, catalog)
        nodes = [
            node for path in cdi.host_paths(names, catalog) for node in await run_blocking(_nodes_or_none_sync, path)
        ]
        cdi.inject(spec, names, catalog, {node.path: node for node in nodes})

    def _log_spec(self, container: Container) -> LogSpec:
        wish = container.host_config.log_config
        path = self.log_path(container)
        subject = LogSubject(
            id=container.id,
            name=container.name,
            image=container.config.image,
            image_id=container.image_id,
            command=" ".join((container.path, *container.args)),
            created=rfc3339(container.created_at),
            hostname=os.uname().nodename,
            labels=container.labels,
            env=tuple(container.config.env or ()),
            log_path=str(path or ""),
        )
        try:
            plan = plan_log(wish.type or self._config.log_driver, wish.config or {}, subject)
        except ValueError as error:
            raise SystemFailure(f"failed to initialize logging driver: {error}") from error
        return LogSpec(plan.driver, str(path or ""), plan.rotation, plan.attributes, plan.sink, plan.buffer_bytes)

    # The record's facts.

    async def with_facts(self, container: Container, assembled: Assembled) -> Container:
        """The record of a container that now runs: what its network got. Raises OSError."""
        await tell_processors(self.runtime_of(container), assembled.limits, self.cgroup_path(container))
        await self._networks.sandbox_started(container.id, container.state.pid)
        return msgspec.structs.replace(container, sandbox=assembled.sandbox.document(), mounts=assembled.mounts)

    def without_facts(self, container: Container) -> Container:
        """The record of a container that runs no more."""
        return msgspec.structs.replace(container, sandbox=None)

    async def adopt(self, container: Container, live: Live, shim: Shim) -> None:
        """After a restart of the daemon: take over what still runs."""
        live.shim = shim
        for point in container.mounts:
            if point.type == "volume":
                await self._volumes.mount(point.name, container.id)
        if container.sandbox is not None and shim.init_pid is not None:
            live.sandbox = await self._networks.adopt_sandbox(
                container.id, shim.init_pid, msgspec.to_builtins(container.sandbox)
            )

    # Putting away.

    async def put_away(self, container: Container, live: Live) -> None:
        """Release what a finished run held. Never fails: what goes wrong is logged and swept at the next start."""
        shim, live.shim, live.sandbox = live.shim, None, None
        releases = [self._networks.close_sandbox(container.id)]
        if shim is not None:
            releases.append(shim.discard())
        releases += [self._volumes.unmount(p.name, container.id) for p in container.mounts if p.type == "volume"]
        for result in await asyncio.gather(*releases, return_exceptions=True):
            if isinstance(result, Exception):
                log.error("container %s: putting away its run: %s", container.id, result, exc_info=result)
        await run_blocking(rundir.drop_sync, self.run_dir(container.id))

    async def kill_leftover(self, container_id: str) -> None:
        """End the processes of a container whose shim is gone."""
        container = self._store.get(container_id)
        if container is not None:
            await kill_leftover(
                self.runtime_of(container), container_id, self._host.cgroups, self.cgroup_path(container)
            )

    async def trash_directory(self, container_id: str) -> None:
        """Put the container's own folder in the trash."""
        await self._trash.take(self.directory(container_id))

    async def writable_size(self, container_id: str) -> int:
        """Bytes in the writable layer; 0 when there is none."""
        try:
            return (await self._snapshotter.usage(container_id)).size_bytes
        except OSError:
            return 0

    async def sweep(self) -> None:
        """Put in the trash what a create or a removal that was cut short left on disk."""
        for key in await self._snapshotter.keys():
            if self._store.get(key) is None:
                await self._snapshotter.remove(key)
        for folder in await run_blocking(rundir.list_sync, self.data_root):
            if self._store.get(folder.name) is None:
                await self._trash.take(folder)

    async def run_dirs(self, run_root: Path) -> list[Path]:
        """The run folders that exist."""
        return await run_blocking(rundir.list_sync, run_root)

    async def drop_run_dir(self, run_dir: Path) -> None:
        """Delete one run folder."""
        await run_blocking(rundir.drop_sync, run_dir)

    # Processes.

    async def limit(self, container: Container, resources: Mapping[str, Any]) -> None:
        """Change the limits of a running container. Raises ``SystemFailure``."""
        try:
            cgroups, place = self._host.cgroups, self.cgroup_path(container)
            await update_resources(self.runtime_of(container), container.id, resources, cgroups, place)
        except (OSError, TimeoutError) as error:
            raise SystemFailure(os_words(error)) from error

    async def freeze(self, container: Container) -> None:
        """Stop every process. Raises ``SystemFailure``."""
        try:
            await run_blocking(self._host.cgroups.freeze_sync, self.cgroup_path(container))
        except (OSError, TimeoutError) as error:
            raise SystemFailure(f"Cannot pause container {container.id}: {os_words(error)}") from error

    async def thaw(self, container: Container) -> None:
        """Let them go on. Raises ``SystemFailure``."""
        try:
            await run_blocking(self._host.cgroups.thaw_sync, self.cgroup_path(container))
        except (OSError, TimeoutError) as error:
            raise SystemFailure(f"Cannot unpause container {container.id}: {os_words(error)}") from error

    async def exec_process(self, container: Container, settings: ExecSettings) -> dict[str, Any]:
        """The process object of an exec: the container's own, with what the client asked for laid over it."""
        async with aiofiles.open(self.run_dir(container.id) / "config.json", "rb") as file:
            spec = json.loads(await file.read())
        process: dict[str, Any] = spec["process"]
        process.pop("consoleSize", None)
        process["args"] = list(settings.cmd or ())
        process["terminal"] = settings.tty
        env = [v for v in process["env"] if settings.tty or not v.startswith("TERM=")]
        if settings.tty and not any(v.startswith("TERM=") for v in env):
            env.append("TERM=xterm")
        if not any(v.startswith("HOME=") for v in container.config.env or ()):
            env = [v for v in env if not v.startswith("HOME=")]  # it was the container's user's
        process["cwd"] = settings.working_dir or container.config.working_dir or "/"
        try:
            user = await self._accounts.resolve(container, settings.user or container.config.user)
        except ValueError as error:
            raise InvalidParameter(str(error)) from error
        process["env"] = list(with_home(replace_env(env, settings.env or ()), user.home))
        process["user"] = {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.additional_gids)}
        granted = process["capabilities"]["bounding"]
        if settings.privileged:
            granted = [c for c in ALL_CAPABILITIES if c in self._host.facts.capabilities]
        process["capabilities"] = capability_sets(granted, user.uid)
        await _load_profile(process)
        return process


async def _load_profile(process: Mapping[str, Any]) -> None:
    """What runs under docker's AppArmor profile finds it in the kernel. Raises ``SystemFailure``."""
    if process.get("apparmorProfile") == DEFAULT_APPARMOR_PROFILE:
        try:
            await run_blocking(apparmor.ensure_sync, DEFAULT_APPARMOR_PROFILE)
        except OSError as error:
            raise SystemFailure(str(error)) from error


def _console_size(container: Container) -> tuple[int, int] | None:
    rows, columns = container.host_config.console_size
    return (rows, columns) if rows and columns else None


def _ulimits(config: Config) -> dict[str, Ulimit]:
    return {name: Ulimit(name=name, soft=soft, hard=hard) for name, (soft, hard) in config.default_ulimits.items()}


def _nodes_or_none_sync(path: str) -> list[DeviceNode]:
    try:
        return device_nodes_sync(path)
    except OSError:
        return []


def _forget_shim(live: Live) -> None:
    live.shim = None
    live.sandbox = None


def _mount_flags_sync(path: str) -> int:
    try:
        return os.statvfs(path).f_flag
    except OSError:  # made by the shim, or missing, which the runtime says
        return 0


async def mount_table() -> str:
    """The text of ``/proc/self/mountinfo``."""
    async with aiofiles.open("/proc/self/mountinfo", errors="surrogateescape") as file:
        return await file.read()
