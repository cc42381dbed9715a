"""What a create request of an older API version means: what it could not have asked is refused or taken away, and
defaults that have changed since are written out. Pure.
"""

from __future__ import annotations

import msgspec

from engine.api.shapes.containers import CreateRequest
from engine.containers.settings import BindOptions, HostConfig, Mount, NetworkingConfig
from engine.errors import InvalidParameter

Version = tuple[int, int]

RECURSIVE_READ_ONLY = (1, 44)
"""From here on a read-only bind makes the mounts below it read-only, too."""
OWN_CGROUPS = (1, 41)
"""From here on containers may have a control group namespace of their own by default, also with cgroup v1."""
PLATFORMS = (1, 41)
"""From here on a container's platform can be chosen."""


def for_version(body: CreateRequest, version: Version) -> CreateRequest:
    """``body`` as today's engine has to read it. Raises ``InvalidParameter`` for what that version could not ask."""
    config, host, networking = body.config, body.host, body.networking
    if version < (1, 40):
        host = msgspec.structs.replace(
            host, pids_limit=None, kernel_memory_tcp=0, ipc_mode=host.ipc_mode or "shareable"
        )
    if version < (1, 42):
        host = msgspec.structs.replace(host, console_size=(0, 0), mounts=_mounts_before_42(host, version))
    if version < (1, 43):
        host = msgspec.structs.replace(host, annotations=None)
    if version < RECURSIVE_READ_ONLY:
        if config.healthcheck is not None:
            config = msgspec.structs.replace(
                config, healthcheck=msgspec.structs.replace(config.healthcheck, start_interval=0)
            )
        endpoints = networking.endpoints_config or {}
        if len(endpoints) > 1:
            names = ", ".join(endpoints)
            raise InvalidParameter(f"Container cannot be created with multiple network endpoints: {names}")
        _refuse_forced_recursion(host)
    if version < (1, 45):
        _refuse_subpaths(host)
    if version < (1, 48):
        _refuse_images(host)
        networking = _without_priorities(networking)
    return CreateRequest(config=config, host=host, networking=networking)


def _mounts_before_42(host: HostConfig, version: Version) -> tuple[Mount, ...] | None:
    """Options that were not looked at: those of another type of mount, and those of binds that came later."""
    return tuple(_mount_before_42(mount, version) for mount in host.mounts) if host.mounts is not None else None


def _mount_before_42(mount: Mount, version: Version) -> Mount:
    bind = mount.bind_options
    if bind is not None:
        recursion_known = version >= (1, 40)
        bind = msgspec.structs.replace(
            bind, create_mountpoint=False, non_recursive=bind.non_recursive and recursion_known
        )
    return msgspec.structs.replace(
        mount,
        bind_options=bind,
        volume_options=mount.volume_options if mount.type == "volume" else None,
        tmpfs_options=mount.tmpfs_options if mount.type == "tmpfs" else None,
    )


def _without_priorities(networking: NetworkingConfig) -> NetworkingConfig:
    endpoints = networking.endpoints_config
    if endpoints is None:
        return networking
    plain = {name: wish and msgspec.structs.replace(wish, gw_priority=0) for name, wish in endpoints.items()}
    return msgspec.structs.replace(networking, endpoints_config=plain)


def _refuse_forced_recursion(host: HostConfig) -> None:
    for mount in host.mounts or ():
        if mount.type == "bind" and (mount.bind_options or BindOptions()).read_only_force_recursive:
            raise InvalidParameter("BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer")


def _refuse_images(host: HostConfig) -> None:
    if any(mount.type == "image" for mount in host.mounts or ()):
        raise InvalidParameter('Mount type "Image" needs API v1.48 or newer')


def _refuse_subpaths(host: HostConfig) -> None:
    for mount in host.mounts or ():
        if mount.volume_options is not None and mount.volume_options.subpath:
            raise InvalidParameter("VolumeOptions.Subpath needs API v1.45 or newer")
