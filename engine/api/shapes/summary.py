"""A container as ``GET /containers/json`` shows it, and the human words of its status. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.clock import SECOND
from engine.containers.model import Container, Status

MINUTE, HOUR, DAY = 60, 3600, 86400


def human_duration(seconds: float) -> str:
    """Docker's rough durations: ``About a minute``, ``3 hours``, ``2 weeks``."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < MINUTE:
        return f"{whole} seconds"
    minutes = whole // MINUTE
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / HOUR + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{int(seconds / HOUR) // 24 // 365} years"


def status_words(container: Container, now_ns: int) -> str:
    """``Up 5 minutes (healthy)``, ``Exited (0) 3 seconds ago``, …"""
    state = container.state
    since_start = human_duration((now_ns - state.started_at) / SECOND)
    since_end = human_duration((now_ns - state.finished_at) / SECOND)
    match state.status:
        case Status.RUNNING:
            if state.health is None:
                return f"Up {since_start}"
            shown = "health: starting" if state.health.status == "starting" else state.health.status
            return f"Up {since_start} ({shown})"
        case Status.PAUSED:
            return f"Up {since_start} (Paused)"
        case Status.RESTARTING:
            return f"Restarting ({state.exit_code}) {since_end} ago"
        case Status.REMOVING:
            return "Removal In Progress"
        case Status.DEAD:
            return "Dead"
        case Status.CREATED:
            return "Created"
        case _:
            return f"Exited ({state.exit_code}) {since_end} ago" if state.finished_at else "Created"


def command_words(container: Container) -> str:
    """The command line with arguments that contain spaces quoted, as ``docker ps`` shows it."""
    if not container.args:
        return container.path
    return " ".join([container.path, *(f"'{a}'" if " " in a else a for a in container.args)])


def port_list(ports: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """``NetworkSettings.Ports`` flattened."""
    flat: list[dict[str, Any]] = []
    for port, bindings in (ports or {}).items():
        number, _, protocol = port.partition("/")
        if not bindings:
            flat.append({"PrivatePort": int(number), "Type": protocol})
        flat.extend(
            {
                "IP": binding["HostIp"],
                "PrivatePort": int(number),
                **({"PublicPort": int(binding["HostPort"])} if binding["HostPort"] else {}),
                "Type": protocol,
            }
            for binding in bindings or ()
        )
    return flat


def mount_summaries(container: Container) -> list[dict[str, Any]]:
    """The mounts, by destination, as list and inspect show them."""
    shown = []
    for mount in sorted(container.mounts, key=lambda m: m.destination):
        entry = {"Type": mount.type}
        if mount.name:
            entry["Name"] = mount.name
        entry["Source"] = mount.source
        entry["Destination"] = mount.destination
        if mount.driver:
            entry["Driver"] = mount.driver
        shown.append({**entry, "Mode": mount.mode, "RW": mount.rw, "Propagation": mount.propagation})
    return shown


def summary(
    container: Container,
    now_ns: int,
    image: str,
    networks: Mapping[str, Any],
    ports: Mapping[str, Any] | None,
    size: Mapping[str, int] | None = None,
    link_names: Sequence[str] = (),
    *,
    annotations: bool = True,
) -> dict[str, Any]:
    """One element of the list. ``image`` is the name to show, ``networks`` the endpoint documents by network name.

    ``link_names`` are those it has in other containers: ``/container/alias``.
    """
    host = container.host_config
    host_view: dict[str, Any] = {"NetworkMode": host.network_mode}
    if annotations and host.annotations:
        host_view["Annotations"] = host.annotations
    shown: dict[str, Any] = {
        "Id": container.id,
        "Names": [f"/{container.name}", *link_names],
        "Image": image,
        "ImageID": container.image_id,
        "Command": command_words(container),
        "Created": container.created_at // SECOND,
        "Ports": port_list(ports),
        "Labels": container.labels,
        "State": container.state.status.value,
        "Status": status_words(container, now_ns),
        "HostConfig": host_view,
        "NetworkSettings": {"Networks": networks},
        "Mounts": mount_summaries(container),
    }
    if size is not None:
        shown.update(size)
    return shown
