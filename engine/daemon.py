"""The composition root: builds every service, restores state, serves, stops. Nothing else builds services.

Start: journal, helpers (zygote, workers), what lies on disk, networks, running containers, firewall, registry,
sockets, then the containers whose policy wants them. A client is answered only when all that was restored. Stop:
sockets first; running containers, their shims, published ports and logs go on without us.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import shutil
import signal
import sqlite3
import ssl
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import uvloop

from engine.api.app import Api, Route
from engine.api.archive import ArchiveRoutes
from engine.api.commit import CommitRoutes
from engine.api.containers import ContainerRoutes
from engine.api.exec import ExecRoutes
from engine.api.images import ImageRoutes
from engine.api.listeners import Listeners
from engine.api.metrics import MetricsListener
from engine.api.networks import NetworkRoutes
from engine.api.stats import StatsRoutes
from engine.api.system import SystemRoutes
from engine.api.tls import server_context
from engine.api.update import UpdateRoutes
from engine.api.usage import DiskUsageReport
from engine.api.views import ContainerViews
from engine.api.volumes import VolumeRoutes
from engine.api.websocket import WebsocketRoutes
from engine.config import IGNORED, Config, ConfigError, reload_attributes, reload_config
from engine.containers.accounts import Accounts
from engine.containers.archive import Archiver
from engine.containers.assembly import Assembly, Host
from engine.containers.boot import Boot
from engine.containers.caretaker import Caretaker
from engine.containers.commit import Committer
from engine.containers.connect import Connector
from engine.containers.create import Creator
from engine.containers.defaults import DaemonDefaults
from engine.containers.exec import Execs
from engine.containers.halt import Halt
from engine.containers.hostprobe import probe_host_sync, seccomp_profile_sync
from engine.containers.journalist import Journalist
from engine.containers.lifecycle import Lifecycle
from engine.containers.live import LiveTable
from engine.containers.logoptions import check_log_options
from engine.containers.prober import Prober
from engine.containers.processes import Processes
from engine.containers.removal import Remover
from engine.containers.service import ContainerService
from engine.containers.settings import LogConfig
from engine.containers.stats import Collectors
from engine.containers.store import ContainerStore
from engine.containers.supervisor import Supervisor
from engine.containers.update import Updater
from engine.errors import EngineError, os_words
from engine.events import EventBus
from engine.images.content import ImageContent
from engine.images.service import ImageService
from engine.images.store import ImageStore
from engine.images.transport import ImageTransport
from engine.journal import Journal
from engine.kernel.idmap import idmap_of_sync
from engine.kernel.memory import give_back_sync, limit_arenas_sync
from engine.kernel.process import go_ahead
from engine.logs import configure_logging
from engine.measures import Measures
from engine.names import new_id
from engine.networks.service import NetworkService
from engine.runtime.cgroups import Cgroups
from engine.runtime.hoststate import host_is_stopping, tell_service_manager_sync
from engine.runtime.idmapping import check_idmapping_sync
from engine.runtime.oci import Runtimes, probe_runtimes
from engine.runtime.shims import Shims
from engine.snapshots.archive import Archives
from engine.snapshots.base import Snapshotter
from engine.snapshots.layers import Layers
from engine.snapshots.probe import open_snapshots
from engine.snapshots.trash import Trash
from engine.snapshots.workers import Workers
from engine.tasks import KeyedLocks, Nursery, close_pools, run_blocking
from engine.volumes.service import VolumeService
from engine.volumes.store import VolumeStore
from registry.config import Settings
from registry.configfile import embedded_settings
from registry.server.app import RegistryServer

log = logging.getLogger(__name__)

CLOSE_SECONDS = 2.0
MEMORY_INTERVAL_SECONDS = 30.0
COLLECT_INTERVAL_SECONDS = 6 * 3600.0
TINI_NAMES = ("docker-init", "tini-static", "tini")


class Uses:
    """Answers "who uses this?" for images and volumes, which may not know containers."""

    def __init__(self, store: ContainerStore) -> None:
        self._store = store

    def containers_of(self, image_id: str) -> Sequence[tuple[str, bool]]:
        """Containers that stand on an image, and whether they run."""
        return [
            (c.id, c.is_running)
            for c in self._store
            if c.image_id == image_id or any(m.image_id == image_id for m in c.mounts if m.type == "image")
        ]

    def layers_in_use(self) -> Collection[str]:
        """Layers below containers, whether their images are still there or not."""
        return {key for c in self._store for keys in (c.layers, *(m.layers for m in c.mounts)) for key in keys}

    def users_of_volume(self, name: str) -> Collection[str]:
        """Containers that mount a volume, but for those that take it along into their removal."""
        return [
            c.id
            for c in self._store
            if any(m.type == "volume" and m.name == name for m in c.mounts)
            and not (c.state.removes_volumes and name in c.anonymous_volumes)
        ]


@dataclass(frozen=True, slots=True)
class Ground:
    """What every service stands on: journal, events, helper processes, file systems, images."""

    journal: Journal
    events: EventBus
    measures: Measures
    host: Host
    shims: Shims
    workers: Workers
    trash: Trash
    layers: Layers
    snapshotter: Snapshotter
    archives: Archives
    registry: RegistryServer
    image_store: ImageStore
    images: ImageService


@dataclass(frozen=True, slots=True)
class Nouns:
    """Containers, and the networks and volumes that they use."""

    store: ContainerStore
    live: LiveTable
    locks: KeyedLocks
    journalist: Journalist
    networks: NetworkService
    volumes: VolumeService
    accounts: Accounts
    assembly: Assembly
    lifecycle: Lifecycle
    service: ContainerService
    supervisor: Supervisor


class Daemon:
    """One engine with its registry. ``start``, then ``stop``."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._nursery = Nursery("daemon")
        self._exits = contextlib.AsyncExitStack()
        self._reloaders: list[Callable[[Config], None]] = [configure_logging]
        self._told_runtimes = (config.runtimes, config.default_runtime)

    async def start(self) -> None:
        """Everything up to the moment when clients are answered. What was started is stopped again when this fails."""
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(self.stop)
            ground = await self._lay_ground()
            nouns = await self._build_nouns(ground)
            wanted = await nouns.supervisor.restore(nouns.assembly.run_root)
            await nouns.networks.settle()
            await self._open_doors(ground, nouns)
            self._nursery.start(_give_back_memory(), name="give back memory")
            Boot(nouns.store, nouns.supervisor, self._nursery).begin(wanted)
            undo.pop_all()

    async def stop(self) -> None:
        """Stop what was started, in reverse order."""
        await self._exits.aclose()

    async def _lay_ground(self) -> Ground:
        config, exits, nursery = self.config, self._exits, self._nursery
        for key in config.ignored:
            log.warning("%s has no effect: %s", key, IGNORED[key])
        _check_log_defaults(config)
        await run_blocking(_make_roots_sync, config)
        journal = Journal(config.data_root / "journal.db")
        await run_blocking(journal.open_sync)
        exits.push_async_callback(journal.aclose)
        events = EventBus()
        host = await self._survey()
        shims = Shims(config.exec_root, nursery)
        exits.push_async_callback(shims.aclose)
        await shims.start()
        workers = Workers()
        exits.push_async_callback(workers.aclose)
        exits.push_async_callback(nursery.aclose)
        trash = Trash(config.data_root / "trash", workers, nursery)
        layers = Layers(config.data_root, workers, trash, nursery)
        snapshotter = await open_snapshots(
            config.data_root, workers, trash, layers, config.storage_driver, config.storage_opts
        )
        if host.facts.ids is not None:
            roots = (config.data_root, config.exec_root)
            await run_blocking(check_idmapping_sync, *roots, host.facts.ids, snapshotter.name)
        registry = RegistryServer(registry_settings(config))
        image_store = ImageStore(journal)
        image_store.restore()
        content = ImageContent(image_store, registry.blobs, layers, registry.leases, nursery=nursery)
        layers.mend_with(content.mend)
        return Ground(
            journal=journal,
            events=events,
            measures=Measures(is_on=bool(config.metrics_addr)),
            host=host,
            shims=shims,
            workers=workers,
            trash=trash,
            layers=layers,
            snapshotter=snapshotter,
            archives=Archives(workers, layers, snapshotter),
            registry=registry,
            image_store=image_store,
            images=ImageService(image_store, content, events),
        )

    async def _build_nouns(self, ground: Ground) -> Nouns:
        config, exits, nursery, host = self.config, self._exits, self._nursery, ground.host
        images, snapshotter = ground.images, ground.snapshotter
        store = ContainerStore(ground.journal)
        store.load()
        networks = NetworkService(config, ground.journal, ground.events, measures=ground.measures, ids=host.facts.ids)
        exits.push_async_callback(_close_networks, networks, store)
        await networks.start()
        images.users = images.content.users = uses = Uses(store)
        await images.content.sweep()
        volumes = VolumeService(
            config.data_root / "volumes", VolumeStore(ground.journal), ground.events, nursery, uses,
            is_closed=host.facts.ids is not None,
        )  # fmt: skip
        await volumes.restore(_volumes_in_use(store))
        journalist, live, locks = Journalist(store, ground.events, ground.measures), LiveTable(), KeyedLocks()
        accounts = Accounts(lambda key: config.data_root / "snapshots" / key / snapshotter.upper, ground.layers.folder)
        assembly = Assembly(
            config, host, store, ground.shims, snapshotter, networks, volumes, accounts, ground.trash, nursery
        )
        lifecycle = Lifecycle(journalist, live, assembly, locks)
        execs = Execs(journalist, live, assembly, nursery)
        remover = Remover(
            journalist, live, lifecycle, assembly, execs, volumes, snapshotter, locks, images.content.layers_let_go
        )
        caretaker = Caretaker(journalist, live, lifecycle, nursery, config.on_unhealthy)
        prober = Prober(journalist, assembly, locks, nursery, caretaker.turned_unhealthy)
        supervisor = Supervisor(
            journalist, live, assembly, lifecycle, ground.shims, locks, nursery, prober, remover.auto_remove,
            execs.ended,
        )  # fmt: skip
        lifecycle.watch_with(supervisor.watch)
        exits.callback(supervisor.close)
        exits.push_async_callback(Halt(store, lifecycle, supervisor, host_is_stopping).with_host)
        creator = Creator(
            _defaults(config, host), host.facts, journalist, images, volumes, networks, snapshotter,
            ground.archives, assembly.data_root, host.runtimes,
        )  # fmt: skip
        self._reloaders.append(lambda changed: self._retake_runtimes(changed, host, creator))
        service = ContainerService(
            journalist, live, creator, lifecycle, remover, execs, assembly, images, networks, locks
        )
        return Nouns(
            store, live, locks, journalist, networks, volumes, accounts, assembly, lifecycle, service, supervisor
        )

    async def _open_doors(self, ground: Ground, nouns: Nouns) -> None:
        """Registry first, then the API: whoever is answered can push."""
        config, exits = self.config, self._exits
        registry = ground.registry if config.registry_addr != "none" else None
        if registry is not None:
            await registry.start()
            self._reloaders.append(lambda changed: registry.reload(registry_settings(changed)))
            exits.push_async_callback(registry.stop)
        transport = ImageTransport(config, ground.images, registry, self._nursery)
        exits.push_async_callback(transport.aclose)
        self._reloaders.append(transport.reload)
        engine_id = await _engine_id(ground.journal)
        views = ContainerViews(nouns.service, nouns.networks, ground.image_store, config.data_root)
        system = self._system(ground, nouns, views, engine_id)
        if config.metrics_addr:
            metrics = MetricsListener(ground.measures, ground.events, system.about)
            exits.push_async_callback(metrics.close)
            await metrics.open(config.metrics_addr)
        api = Api(self._routes(ground, nouns, transport, views, system), self._nursery)
        listeners = Listeners(api, config.group)
        exits.push_async_callback(listeners.close, CLOSE_SECONDS)
        await listeners.open(config.hosts, _tls(config))
        name, runtimes = {"name": os.uname().nodename}, ground.host.runtimes
        ground.events.publish("daemon", "start", engine_id, name)

        def tell(changed: Config) -> None:
            ground.events.publish("daemon", "reload", engine_id, reload_attributes(changed, runtimes.default) | name)

        self._reloaders.append(tell)

    def _system(self, ground: Ground, nouns: Nouns, views: ContainerViews, engine_id: str) -> SystemRoutes:
        usage = DiskUsageReport(
            nouns.service, views, ground.images, nouns.volumes,
            lambda: sum(layer.size_bytes for layer in ground.layers.all()),
        )  # fmt: skip
        system = SystemRoutes(
            self.config, ground.host, engine_id, nouns.store, ground.image_store, ground.events, usage,
            ground.snapshotter.name,
        )  # fmt: skip
        self._reloaders.append(system.reloaded)
        return system

    def _routes(
        self, ground: Ground, nouns: Nouns, transport: ImageTransport, views: ContainerViews, system: SystemRoutes
    ) -> list[Route]:
        images = ground.images
        connector = Connector(nouns.journalist, nouns.live, nouns.networks, nouns.locks)
        tables = (
            system,
            ContainerRoutes(nouns.service, views),
            ExecRoutes(nouns.service),
            VolumeRoutes(nouns.volumes),
            NetworkRoutes(nouns.networks, connector),
            ImageRoutes(images, transport.puller, transport.pusher, self._nursery, transport.platform),
        )
        return [route for routes in tables for route in routes.table()] + self._inside_routes(ground, nouns)

    def _inside_routes(self, ground: Ground, nouns: Nouns) -> list[Route]:
        """What looks into containers, or changes them as they are."""
        journalist, assembly, host = nouns.journalist, nouns.assembly, ground.host
        archiver = Archiver(
            journalist,
            ground.archives,
            ground.snapshotter,
            nouns.volumes,
            nouns.accounts,
            nouns.locks,
            assembly.directory,
            host.facts,
            self.config.data_root,
        )
        collectors = Collectors(nouns.store, nouns.live, assembly, host.cgroups, host.facts.memory_total, self._nursery)
        committer = Committer(journalist, nouns.lifecycle, ground.snapshotter, ground.images, host.facts)
        tables = (
            ArchiveRoutes(archiver),
            StatsRoutes(nouns.service, collectors, Processes(journalist, assembly, host.cgroups)),
            UpdateRoutes(Updater(journalist, assembly, host.facts, nouns.locks)),
            CommitRoutes(committer),
            WebsocketRoutes(nouns.service),
        )
        return [route for routes in tables for route in routes.table()]

    async def _survey(self) -> Host:
        """What this machine offers."""
        config = self.config
        driver = next((o.partition("=")[2] for o in config.exec_opts if o.startswith("native.cgroupdriver=")), None)
        cgroups = await run_blocking(Cgroups.detect_sync, driver)
        if missing := await run_blocking(cgroups.make_room_sync):
            log.warning("containers cannot be limited by %s: this container does not have it to give", missing)
        facts = await run_blocking(partial(probe_host_sync, cgroups.driver, will_forward=config.ip_forward))
        facts = replace(facts, ids=await run_blocking(idmap_of_sync, config.userns_remap))
        runtimes = await _probe_runtimes(config, cgroups)
        init = next((found for name in TINI_NAMES if (found := shutil.which(name))), "")
        profile = await run_blocking(seccomp_profile_sync, config)
        return Host(facts, cgroups, runtimes, init, profile)

    def _retake_runtimes(self, config: Config, host: Host, creator: Creator) -> None:
        """Once more what containers get where they do not say it, and, where that was changed, what they run with."""

        async def retake() -> None:
            try:
                host.runtimes.take(await _probe_runtimes(config, host.cgroups))
            except OSError as error:
                log.error("the runtimes were not reloaded: %s", error)
            creator.reload(_defaults(config, host))

        creator.reload(_defaults(config, host))
        told = (config.runtimes, config.default_runtime)
        if told != self._told_runtimes:
            self._told_runtimes = told
            self._nursery.start(retake(), name="runtimes")

    def reload(self) -> None:
        """SIGHUP: take over what may change while running; a file that cannot be used changes nothing."""
        try:
            changed = reload_config(self.config)
            registry_settings(changed)
        except ValueError as error:  # of ours or of the registry's keys
            log.error("the configuration was not reloaded: %s", error)
            return
        self.config = changed
        for reload in self._reloaders:
            reload(self.config)
        log.info("configuration reloaded")


async def _give_back_memory() -> None:
    """Pulls and loads leave the heap full of holes; hand them back now and then."""
    while True:
        await asyncio.sleep(MEMORY_INTERVAL_SECONDS)
        await run_blocking(give_back_sync)


async def _close_networks(networks: NetworkService, containers: ContainerStore) -> None:
    """Bridges and rules stay as long as a container needs them."""
    await networks.aclose(remove=not any(container.is_running for container in containers))


async def _engine_id(journal: Journal) -> str:
    known = journal.load("engine").get("id")
    if known is not None:
        return known.decode()
    fresh = new_id()
    await journal.put("engine", "id", fresh.encode())
    return fresh


def _check_log_defaults(config: Config) -> None:
    try:
        check_log_options(config.log_driver, config.log_opts)
    except ValueError as error:
        raise ConfigError(f"failed to set log opts: {error}") from error


def _make_roots_sync(config: Config) -> None:
    config.data_root.mkdir(mode=0o711, parents=True, exist_ok=True)
    config.exec_root.mkdir(mode=0o711, parents=True, exist_ok=True)
    for folder in (config.data_root / "containers", config.exec_root / "containers"):
        folder.mkdir(mode=0o710, exist_ok=True)
    # A mapped container's root is nobody on the host, and must get to its root file system.
    (config.exec_root / "containers").chmod(0o711 if config.userns_remap else 0o710)


def _volumes_in_use(containers: ContainerStore) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for container in containers:
        for mount in container.mounts if container.is_running else ():
            if mount.type == "volume":
                found.setdefault(mount.name, []).append(container.id)
    return found


async def _probe_runtimes(config: Config, cgroups: Cgroups) -> Runtimes:
    configured = {n: {"path": r.path, "runtimeArgs": r.args} for n, r in config.runtimes.items()}
    return await probe_runtimes(
        configured, config.default_runtime or None, config.exec_root, systemd=cgroups.driver == "systemd"
    )


def _defaults(config: Config, host: Host) -> DaemonDefaults:
    return DaemonDefaults(
        shm_size=config.default_shm_size,
        ipc_mode=config.default_ipc_mode,
        cgroupns_mode=config.default_cgroupns_mode,
        runtime=host.runtimes.default,
        sharing_runtime="" if config.default_runtime else host.runtimes.sharing,
        log_config=LogConfig(type=config.log_driver, config=dict(config.log_opts)),
        cgroup_parent=config.cgroup_parent,
    )


def registry_settings(config: Config) -> Settings:
    """The embedded registry's folder is a registry:2 folder; what is ours alone lies beside it. Raises ConfigError."""
    root = config.data_root / "registry"
    own = root / "berth"
    base = Settings(
        root=root,
        address=config.registry_addr if config.registry_addr != "none" else ":0",  # which is never opened
        own_tls_folder=own / "tls",
        htpasswd=own / "htpasswd",
        htpasswd_optional=True,
        grants_file=own / "grants.yml",
        grants_file_optional=True,
        # Only this process knows which blobs its images need: `berth registry gc` refuses this folder.
        collect_interval_seconds=COLLECT_INTERVAL_SECONDS,
    )
    return embedded_settings(config.registry, base)


def _tls(config: Config) -> ssl.SSLContext | None:
    if not (config.tls or config.tlsverify):
        return None
    context = server_context()
    context.load_cert_chain(config.tlscert, config.tlskey)
    if config.tlsverify:
        context.load_verify_locations(config.tlscacert)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT. Exits with 1 and one sentence when the daemon cannot start."""
    configure_logging(config)
    limit_arenas_sync()
    go_ahead()
    try:
        uvloop.run(_serve(config))
    except (OSError, EngineError, ValueError, sqlite3.Error, ExceptionGroup) as error:
        log.debug("start failed", exc_info=error)
        sys.exit(f"berth: failed to start daemon: {os_words(error)}")


async def _serve(config: Config) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    daemon = Daemon(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    loop.add_signal_handler(signal.SIGHUP, daemon.reload)
    with _pidfile(config.pidfile):
        await daemon.start()
        # What was imported and built lives as long as the process. The collector takes 20 ms to look at it all, and no
        # client is answered meanwhile.
        gc.collect()
        gc.freeze()
        log.info("ready")
        tell_service_manager_sync("READY=1")
        try:
            await stopped.wait()
            log.info("stopping")
            tell_service_manager_sync("STOPPING=1")
        finally:
            await daemon.stop()
            close_pools()


@contextlib.contextmanager
def _pidfile(path: Path) -> Iterator[None]:
    """Hold the pid file. Raises ``OSError`` when its process lives and is a daemon."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        other = int(path.read_text())
        if other != os.getpid() and b"berth" in Path(f"/proc/{other}/cmdline").read_bytes():
            raise FileExistsError(f"process {other} of pid file {path} is still running")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(os.getpid()))
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
