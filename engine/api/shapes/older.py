"""What a create request of an older API version means: what it could not have asked is refused or taken away, and
defaults that have changed since are written out. Pure.
"""

from __future__ import annotations

import msgspec

from engine.api.shapes.containers import CreateRequest
from engine.containers.settings import BindOptions, HostConfig
from engine.errors import InvalidParameter

Version = tuple[int, int]

RECURSIVE_READ_ONLY = (1, 44)
"""From here on a read-only bind makes the mounts below it read-only, too."""


def for_version(body: CreateRequest, version: Version) -> CreateRequest:
    """``body`` as today's engine has to read it. Raises ``InvalidParameter`` for what that version could not ask."""
    host = body.host
    if version < (1, 40):
        host = msgspec.structs.replace(
            host, pids_limit=None, kernel_memory_tcp=0, ipc_mode=host.ipc_mode or "shareable"
        )
    if version < RECURSIVE_READ_ONLY:
        endpoints = body.networking.endpoints_config or {}
        if len(endpoints) > 1:
            names = ", ".join(endpoints)
            raise InvalidParameter(f"Container cannot be created with multiple network endpoints: {names}")
        _refuse_forced_recursion(host)
    if version < (1, 45):
        _refuse_subpaths(host)
    return msgspec.structs.replace(body, host=host)


def _refuse_forced_recursion(host: HostConfig) -> None:
    for mount in host.mounts or ():
        if mount.type == "bind" and (mount.bind_options or BindOptions()).read_only_force_recursive:
            raise InvalidParameter("BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer")


def _refuse_subpaths(host: HostConfig) -> None:
    for mount in host.mounts or ():
        if mount.volume_options is not None and mount.volume_options.subpath:
            raise InvalidParameter("VolumeOptions.Subpath needs API v1.45 or newer")
