"""A container as ``GET /containers/{id}/json`` shows it: wish, fact and paths in Docker's spelling. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from engine.api.shapes.containers import config_json, host_config_json
from engine.api.shapes.summary import mount_summaries
from engine.clock import rfc3339
from engine.containers.model import Container, Health, State, Status
from engine.networks.model import DEFAULT_NETWORKS

OWN_NAMES_APART = (1, 45)
"""From here on the names that a container has of itself are in ``DNSNames``, no longer among its aliases."""


@dataclass(frozen=True, slots=True)
class InspectFacts:
    """What inspect shows beyond the record."""

    directory: str
    exec_ids: Sequence[str]
    networks: Mapping[str, Any]
    ports: Mapping[str, Any]
    sandbox_id: str
    sandbox_key: str
    graph: Mapping[str, str]
    apparmor: str = ""
    links: Sequence[str] = ()
    """``/name:/container/alias`` of each link."""
    has_log: bool = True
    size_rw: int | None = None
    size_root: int | None = None


def state_view(state: State) -> dict[str, Any]:
    """The ``State`` object."""
    shown: dict[str, Any] = {
        "Status": state.status.value,
        "Running": state.status in (Status.RUNNING, Status.PAUSED, Status.RESTARTING),
        "Paused": state.status is Status.PAUSED,
        "Restarting": state.status is Status.RESTARTING,
        "OOMKilled": state.oom_killed,
        "Dead": state.status is Status.DEAD,
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": rfc3339(state.started_at),
        "FinishedAt": rfc3339(state.finished_at),
    }
    if state.health is not None:
        shown["Health"] = health_view(state.health)
    return shown


def health_view(health: Health) -> dict[str, Any]:
    """The ``Health`` object with its last results."""
    return {
        "Status": health.status,
        "FailingStreak": health.failing_streak,
        "Log": [
            {"Start": rfc3339(p.start), "End": rfc3339(p.end), "ExitCode": p.exit_code, "Output": p.output}
            for p in health.log
        ],
    }


def network_settings(facts: InspectFacts) -> dict[str, Any]:
    """The ``NetworkSettings`` object; the old flat members repeat the default bridge's endpoint."""
    flat: Mapping[str, Any] = facts.networks.get("bridge", {})
    return {
        "Bridge": "",
        "SandboxID": facts.sandbox_id,
        "SandboxKey": facts.sandbox_key,
        "Ports": facts.ports,
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        "EndpointID": flat.get("EndpointID", ""),
        "Gateway": flat.get("Gateway", ""),
        "GlobalIPv6Address": flat.get("GlobalIPv6Address", ""),
        "GlobalIPv6PrefixLen": flat.get("GlobalIPv6PrefixLen", 0),
        "IPAddress": flat.get("IPAddress", ""),
        "IPPrefixLen": flat.get("IPPrefixLen", 0),
        "IPv6Gateway": flat.get("IPv6Gateway", ""),
        "MacAddress": flat.get("MacAddress", ""),
        "Networks": facts.networks,
    }


def with_own_names(container: Container, facts: InspectFacts) -> InspectFacts:
    """As before ``DNSNames``: among a network's aliases are the names that a container has of itself."""
    own = (container.id[:12], container.config.hostname)
    networks = {
        name: shown
        if name in DEFAULT_NETWORKS
        else {**shown, "Aliases": list(dict.fromkeys((*(shown["Aliases"] or ()), *own)))}
        for name, shown in facts.networks.items()
    }
    return replace(facts, networks=networks)


def _asked_mac(container: Container) -> str:
    """The hardware address that was asked for on the network of the mode, where clients of old have looked for it."""
    mode = container.host_config.network_mode
    wish = container.networks.get("bridge" if mode in ("", "default") else mode)
    return container.config.mac_address or (wish.mac_address if wish is not None else "")


def inspect_view(container: Container, facts: InspectFacts) -> dict[str, Any]:
    """The whole document."""
    was_started = container.state.started_at != 0 or container.state.error != ""
    directory = facts.directory if was_started else ""
    shown: dict[str, Any] = {
        "Id": container.id,
        "Created": rfc3339(container.created_at),
        "Path": container.path,
        "Args": list(container.args),
        "State": state_view(container.state),
        "Image": container.image_id,
        "ResolvConfPath": _file(directory, "resolv.conf"),
        "HostnamePath": _file(directory, "hostname"),
        "HostsPath": _file(directory, "hosts"),
        "LogPath": _file(directory, f"{container.id}-json.log") if facts.has_log else "",
        "Name": f"/{container.name}",
        "RestartCount": container.state.restart_count,
        "Driver": container.storage_driver,
        "Platform": container.platform,
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": facts.apparmor,
        "ExecIDs": list(facts.exec_ids) or None,
        "HostConfig": {**host_config_json(container.host_config), "Links": list(facts.links) or None},
        "GraphDriver": {"Data": dict(facts.graph), "Name": container.storage_driver},
        "Mounts": mount_summaries(container),
        "Config": config_json(msgspec.structs.replace(container.config, mac_address=_asked_mac(container))),
        "NetworkSettings": network_settings(facts),
    }
    if facts.size_rw is not None:
        shown["SizeRw"] = facts.size_rw
        shown["SizeRootFs"] = facts.size_root
    return shown


def _file(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory else ""
