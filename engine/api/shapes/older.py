"""What a create request of an older API version means: what it could not have asked is refused or taken away, and
defaults that have changed since are written out. What was the container's and is a network's now moves there. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from engine.api.shapes.containers import CreateRequest
from engine.containers.namespaces import joined_container
from engine.containers.settings import BindOptions, EndpointSettings, HostConfig, Mount, NetworkingConfig
from engine.errors import InvalidParameter

Version = tuple[int, int]

RECURSIVE_READ_ONLY = (1, 44)
"""From here on a read-only bind makes the mounts below it read-only, too."""
OWN_CGROUPS = (1, 41)
"""From here on containers may have a control group namespace of their own by default, also with cgroup v1."""
PLATFORMS = (1, 41)
"""From here on a container's platform can be chosen."""
_MAC_WARNING = (
    "The container-wide MacAddress field is now deprecated. It should be specified in EndpointsConfig instead."
)


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


def move_hardware_address(body: CreateRequest, version: Version) -> tuple[CreateRequest, list[str]]:
    """The container's own hardware address becomes that of its main network; with dockerd's warnings.

    Raises ``InvalidParameter`` where there is no such network, or where it is to have another address.
    """
    address, mode = body.config.mac_address, body.host.network_mode
    endpoints = dict(body.networking.endpoints_config or {})
    before_endpoints = version < RECURSIVE_READ_ONLY
    if not address:
        if before_endpoints:  # such a client knows no addresses of endpoints
            plain = {name: wish and msgspec.structs.replace(wish, mac_address="") for name, wish in endpoints.items()}
            return _with_endpoints(body, plain), []
        return body, []
    warnings = [] if before_endpoints else [_MAC_WARNING]
    body = CreateRequest(
        config=msgspec.structs.replace(body.config, mac_address=""), host=body.host, networking=body.networking
    )
    if mode in ("host", "none") or joined_container(mode) is not None:
        if before_endpoints:
            raise InvalidParameter("conflicting options: mac-address and the network mode")
        return body, warnings
    main = _main_endpoint(mode, endpoints, before_endpoints=before_endpoints)
    wish = endpoints.get(main) or EndpointSettings()
    if not before_endpoints and wish.mac_address not in ("", address):
        raise InvalidParameter(
            "the container-wide MAC address must match the endpoint-specific MAC address for the main network, "
            "or be left empty"
        )
    endpoints[main] = msgspec.structs.replace(wish, mac_address=address)
    return _with_endpoints(body, endpoints), warnings


def _main_endpoint(mode: str, endpoints: Mapping[str, EndpointSettings | None], *, before_endpoints: bool) -> str:
    """The name of the endpoint that is meant by what is said of the container as a whole."""
    if endpoints and before_endpoints:
        return next(iter(endpoints))
    names = ("bridge", "default") if mode in ("", "default", "bridge") else (mode,)
    if not endpoints:
        return names[0]
    found = next((name for name in names if name in endpoints), None)
    if found is None:
        raise InvalidParameter(
            "unable to migrate container-wide MAC address to a specific network: HostConfig.NetworkMode must match "
            "the identity of a network in NetworkSettings.Networks"
        )
    return found


def _with_endpoints(body: CreateRequest, endpoints: Mapping[str, EndpointSettings | None]) -> CreateRequest:
    networking = msgspec.structs.replace(body.networking, endpoints_config=endpoints or None)
    return CreateRequest(config=body.config, host=body.host, networking=networking)


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
