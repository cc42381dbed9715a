"""A container's namespace modes (``host``, ``private``, ``container:X`` …): their grammar and their OCI form. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.containers.settings import HostConfig

_MODES = {
    "IPC": ("", "host", "none", "private", "shareable"),
    "PID": ("", "host"),
    "UTS": ("", "host"),
    "user namespace": ("", "host"),
    "cgroup namespace": ("", "host", "private"),
}
_JOINABLE = frozenset({"IPC", "PID"})


def joined_container(mode: str) -> str | None:
    """The container that a ``container:X`` mode names, else ``None``."""
    kind, found, name = mode.partition(":")
    return name if found and kind == "container" else None


def validate_modes(host: HostConfig) -> None:
    """Check the spelling of all modes. Raises ``ValueError`` with dockerd's sentence."""
    for what, mode in (
        ("IPC", host.ipc_mode),
        ("PID", host.pid_mode),
        ("UTS", host.uts_mode),
        ("user namespace", host.userns_mode),
        ("cgroup namespace", host.cgroupns_mode),
    ):
        joined = what in _JOINABLE and joined_container(mode)
        if mode not in _MODES[what] and not joined:
            raise ValueError(f"invalid {what} mode: {mode}")


def namespace_list(
    host: HostConfig, netns: str | None, joined_pids: Mapping[str, int], userns: str = ""
) -> list[dict[str, Any]]:
    """``linux.namespaces``. A namespace that is not listed is the host's.

    ``netns`` and ``userns`` are the paths of the prepared network and user namespaces (none: the host's);
    ``joined_pids`` gives the first process of the container that ``ipc`` or ``pid`` joins.
    """
    listed: list[dict[str, Any]] = [{"type": "mount"}]
    if userns:
        listed.append({"type": "user", "path": userns})
    if netns is not None:
        listed.append({"type": "network", "path": netns})
    if host.uts_mode != "host":
        listed.append({"type": "uts"})
    for kind, mode in (("pid", host.pid_mode), ("ipc", host.ipc_mode)):
        if joined_container(mode) is not None:
            listed.append({"type": kind, "path": f"/proc/{joined_pids[kind]}/ns/{kind}"})
        elif mode != "host":
            listed.append({"type": kind})
    if host.cgroupns_mode == "private":
        listed.append({"type": "cgroup"})
    return listed
