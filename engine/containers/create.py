"""Make a container: check what was asked, lay it over the image, prepare volumes and the writable layer, then promise
it.

Nothing of a refused or failed create stays: names, anonymous volumes and the snapshot are undone in reverse order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from engine.clock import now_ns
from engine.containers import mounts as mount_rules
from engine.containers.defaults import DaemonDefaults, default_hostname, with_defaults
from engine.containers.host import HostFacts
from engine.containers.journalist import Journalist
from engine.containers.links import links_of
from engine.containers.logoptions import check_log_options, log_socket
from engine.containers.merge import command_line, image_settings, merge_image
from engine.containers.model import Container
from engine.containers.mounts import MountPoint
from engine.containers.namespaces import joined_container
from engine.containers.settings import ContainerConfig, EndpointSettings, HostConfig, NetworkingConfig
from engine.containers.subpaths import is_empty_folder_sync, subpath_sync
from engine.containers.validation import validate_create
from engine.errors import InvalidParameter, NotFound
from engine.images.model import Image
from engine.images.service import ImageService, require_platform
from engine.kernel.durable import sync_folders_sync
from engine.names import is_valid_name, new_id
from engine.networks.service import NetworkService
from engine.runtime.oci import Runtimes
from engine.snapshots.archive import Archives
from engine.snapshots.base import LayerKey, Snapshotter
from engine.tasks import run_blocking
from engine.volumes.service import VolumeService
from registry.manifest import Platform


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """What a client sent."""

    name: str
    config: ContainerConfig
    host_config: HostConfig
    networking: NetworkingConfig
    platform: Platform | None = None
    flat_read_only: bool = False
    """Read-only binds leave the mounts below them as they are, as before API 1.44."""
    shared_cgroups: bool = False
    """With cgroup v1 the default is the host's namespace, whatever the daemon's is, as before API 1.41."""


class Creator:
    """Makes containers."""

    def __init__(
        self,
        defaults: DaemonDefaults,
        facts: HostFacts,
        journalist: Journalist,
        images: ImageService,
        volumes: VolumeService,
        networks: NetworkService,
        snapshotter: Snapshotter,
        archives: Archives,
        directory: Path,
        runtimes: Runtimes,
    ) -> None:
        self._defaults = defaults
        self._facts = facts
        self._records = journalist
        self._images = images
        self._volumes = volumes
        self._networks = networks
        self._snapshotter = snapshotter
        self._archives = archives
        self._directory = directory
        self._runtimes = runtimes

    async def create(self, request: CreateRequest) -> tuple[Container, list[str]]:
        """The new container and docker's warnings. Raises an ``EngineError``; then nothing has changed."""
        host, warnings = self._check(request)
        socket = log_socket(host.log_config.type, host.log_config.config or {})
        if socket and not await run_blocking(os.path.exists, socket):
            raise InvalidParameter(f"stat {socket}: no such file or directory")
        image = self._image(request.config.image, request.platform)
        link_ids = self._check_others(request.host_config)
        config = self._merge(request.config, image)
        async with contextlib.AsyncExitStack() as held, contextlib.AsyncExitStack() as undo:
            await held.enter_async_context(self._images.holding(image))
            container_id = new_id()
            name = self._take_name(request.name, container_id, undo)
            container = self._draft(container_id, name, request, image, config, host)
            container = await self._with_networks(container, request.networking)
            layers = await self._images.layers(image) if image is not None else ()
            limit = _size_limit(host)
            try:
                await self._snapshotter.prepare(container_id, layers, limit)
            except ValueError as error:
                raise InvalidParameter(str(error)) from error
            undo.push_async_callback(self._snapshotter.remove, container_id)
            container = msgspec.structs.replace(container, layers=tuple(layers), link_ids=link_ids)
            await self._make_working_dir(container)
            container = await self._with_mounts(container, request.flat_read_only, undo, held)
            await run_blocking(_make_directory_sync, self._directory / container_id)
            undo.push_async_callback(run_blocking, _drop_directory_sync, self._directory / container_id)
            # A record that outlives a loss of power while its folders do not would be a container that cannot start.
            await run_blocking(sync_folders_sync, self._snapshotter.root, self._directory)
            await asyncio.gather(
                self._records.save(container, durable=True), self._volumes.keep(container.anonymous_volumes)
            )
            undo.pop_all()
        self._volumes.release(container.id)
        self._records.event(container, "create")
        return container, warnings

    def _image(self, reference: str, platform: Platform | None) -> Image | None:
        """The image, which has to be for the platform that was asked for: a client pulls where it is told of none."""
        image = self._images.get(reference) if reference else None
        if image is not None and platform is not None:
            require_platform(image, platform, reference)
        return image

    def _check_others(self, host: HostConfig) -> dict[str, str]:
        """The containers that this one names; those it links to, by alias. Raises ``InvalidParameter``.

        As 404 an unknown one would make the docker command line pull.
        """
        for mode in (host.pid_mode, host.ipc_mode):
            if joined := joined_container(mode):
                try:
                    self._records.store.find(joined)
                except NotFound as error:
                    raise InvalidParameter(error.message) from error
        link_ids = {}
        for name, alias in links_of(host):
            try:
                link_ids[alias] = self._records.store.find(name).id
                target = self._records.store.network_owner(self._records.store.find(name))
            except NotFound as error:
                raise InvalidParameter(f"could not get container for {name}: {error.message}") from error
            if target.host_config.network_mode == "host":
                raise InvalidParameter(
                    "conflicting options: host type networking can't be used with links. "
                    "This would result in undefined behavior"
                )
        return link_ids

    def reload(self, defaults: DaemonDefaults) -> None:
        """What containers that are made from now on get where they do not say it."""
        self._defaults = defaults

    def _check(self, request: CreateRequest) -> tuple[HostConfig, list[str]]:
        """Check everything that can be checked without touching the host; the host settings with defaults filled in."""
        try:
            found = validate_create(
                request.config,
                request.host_config,
                self._facts,
                runtimes=self._runtimes.known,
                systemd_cgroup=self._facts.cgroup_driver == "systemd",
            )
            defaults = self._defaults
            if request.shared_cgroups and self._facts.cgroup_version == 1:
                defaults = replace(defaults, cgroupns_mode="host")
            host = with_defaults(request.host_config, self._facts, defaults, found.discarded)
            check_log_options(host.log_config.type, host.log_config.config or {})
        except ValueError as error:
            raise InvalidParameter(str(error)) from error
        return host, list(found.warnings)

    def _merge(self, config: ContainerConfig, image: Image | None) -> ContainerConfig:
        try:
            if image is not None:
                config = merge_image(config, image_settings(msgspec.to_builtins(image.config)))
            if not command_line(config):
                raise ValueError("no command specified")
            if config.working_dir:
                config = msgspec.structs.replace(config, working_dir=mount_rules.clean(config.working_dir))
        except ValueError as error:
            raise InvalidParameter(str(error)) from error
        return config

    def _take_name(self, wanted: str, container_id: str, undo: contextlib.AsyncExitStack) -> str:
        store = self._records.store
        if wanted:
            name = wanted.removeprefix("/")
            if not is_valid_name(name):
                raise InvalidParameter(f"Invalid container name ({wanted}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
            store.reserve_name(name, container_id)
        else:
            name = store.reserve_random_name(container_id)
        undo.callback(store.release_name, name, container_id)
        return name

    def _draft(
        self,
        container_id: str,
        name: str,
        request: CreateRequest,
        image: Image | None,
        config: ContainerConfig,
        host: HostConfig,
    ) -> Container:
        if not host.network_mode.startswith("container:"):
            hostname = default_hostname(config, host, container_id, os.uname().nodename)
            config = msgspec.structs.replace(config, hostname=hostname)
        command = command_line(config)
        return Container(
            id=container_id,
            name=name,
            created_at=now_ns(),
            image=request.config.image,
            image_id=str(image.id) if image is not None else "",
            path=command[0],
            args=command[1:],
            config=config,
            host_config=host,
            storage_driver=self._snapshotter.name,
            runtime=host.runtime,
        )

    async def _with_networks(self, container: Container, networking: NetworkingConfig) -> Container:
        mode = self._resolve_joined(container.host_config.network_mode)
        host = msgspec.structs.replace(container.host_config, network_mode=mode)
        endpoints: Mapping[str, EndpointSettings] = {
            name: settings or EndpointSettings() for name, settings in (networking.endpoints_config or {}).items()
        }
        wish = await self._networks.validate_wish(mode, endpoints, EndpointSettings())
        return msgspec.structs.replace(container, host_config=host, networks=dict(wish))

    def _resolve_joined(self, mode: str) -> str:
        """``container:NAME`` is kept by id, so that a rename does not change it; an unknown one is for the start."""
        name = joined_container(mode)
        if name is None:
            return mode
        try:
            return f"container:{self._records.store.find(name).id}"
        except NotFound:
            return mode

    async def _with_mounts(
        self,
        container: Container,
        flat_read_only: bool,
        undo: contextlib.AsyncExitStack,
        held: contextlib.AsyncExitStack,
    ) -> Container:
        host = container.host_config
        try:
            sources = {text: self._source_of(text) for text in host.volumes_from or ()}
            inherited = {text: source.mounts for text, source in sources.items()}
            planned = [
                mount_rules.near_root(point, str(self._directory.parent), flat_read_only=flat_read_only)
                for point in mount_rules.plan_mounts(container.config, host, inherited)
            ]
        except ValueError as error:
            raise InvalidParameter(str(error)) from error
        # An anonymous volume goes with the last of the containers that have it.
        known = {name for source in sources.values() for name in source.anonymous_volumes}
        anonymous = [point.name for point in planned if point.name in known]
        settled = [await self._settle_mount(container, point, anonymous, undo, held) for point in planned]
        return msgspec.structs.replace(container, mounts=tuple(settled), anonymous_volumes=tuple(anonymous))

    async def _make_working_dir(self, container: Container) -> None:
        """The working folder is there from the create on, so that one can copy into it. Raises ``InvalidParameter``."""
        folder = container.config.working_dir
        if folder in ("", "/"):
            return
        try:
            await self._archives.make_folder(container.id, tuple(LayerKey(key) for key in container.layers), folder)
        except NotADirectoryError as error:
            raise InvalidParameter(f"Cannot mkdir: {folder} is not a directory") from error

    def _source_of(self, text: str) -> Container:
        name, _ = mount_rules.parse_volumes_from(text)
        try:
            return self._records.store.find(name)
        except NotFound as error:
            raise InvalidParameter(f"No such container: {name}") from error

    async def _settle_mount(
        self,
        container: Container,
        point: MountPoint,
        anonymous: list[str],
        undo: contextlib.AsyncExitStack,
        held: contextlib.AsyncExitStack,
    ) -> MountPoint:
        if point.type == "bind":
            if mount_rules.needs_source(point) and not await run_blocking(os.path.lexists, point.source):
                raise InvalidParameter(str(mount_rules.missing_source(point)))
            return point
        if point.type == "image" and not point.image_id:
            return await self._settle_image(point, held)
        if point.type != "volume":
            return point
        options = point.wish.volume_options if point.wish and point.wish.volume_options else None
        driver_options = options.driver_config.options if options and options.driver_config else None
        known = bool(point.name) and self._volumes.exists(point.name)
        labels = options.labels if options else None
        volume = await self._volumes.create(point.name, point.driver, driver_options, labels, holder=container.id)
        if not known:
            undo.push_async_callback(self._volumes.remove, volume.name, force=True)
        undo.callback(self._volumes.release, container.id)
        if not point.name:
            anonymous.append(volume.name)
        point = mount_rules.with_volume(point, volume.name, volume.driver, volume.mountpoint)
        if point.copy_data:
            await self._fill(container, point)
        return point

    async def _settle_image(self, point: MountPoint, held: contextlib.AsyncExitStack) -> MountPoint:
        image = self._images.get(point.name)
        await held.enter_async_context(self._images.holding(image))
        layers = tuple(await self._images.layers(image))
        return msgspec.structs.replace(point, image_id=str(image.id), layers=layers)

    async def _fill(self, container: Container, point: MountPoint) -> None:
        """Fill an empty volume with what the image has at the mount's place, owners and modes kept."""
        options = point.wish.volume_options if point.wish else None
        subpath = options.subpath if options else ""
        if not subpath and not await self._volumes.is_empty(point.name):
            return
        layers = tuple(LayerKey(key) for key in container.layers)
        async with self._volumes.in_use(point.name, container.id) as path:
            if subpath:
                try:
                    path = await run_blocking(subpath_sync, path, subpath)
                except InvalidParameter:
                    return  # the start says so
                if not await run_blocking(is_empty_folder_sync, path):
                    return
            await self._archives.copy_up(container.id, layers, point.destination, path)


def _size_limit(host: HostConfig) -> str | None:
    options = host.storage_opt or {}
    for key in options:
        if key != "size":
            raise InvalidParameter(f"Unknown option {key}")
    return options.get("size")


def _make_directory_sync(path: Path) -> None:
    path.mkdir(mode=0o710, parents=True)


def _drop_directory_sync(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.rmdir()
