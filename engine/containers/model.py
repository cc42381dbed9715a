"""The life of a container: what it is, the states it can be in, and the transitions between them. Pure.

A container is one frozen record, replaced whole: readers never lock. It keeps apart

* the **wish**: what the user asked for (``config``, ``host_config``, ``networks``), changed by update and rename only;
* the **fact**: what is so now (``state``, ``sandbox``, ``endpoints``), changed by the lifecycle and the supervisor.

The states and who moves a container between them::

    created ──start──► running ◄──unpause── paused
       │                 │  ▲  └───pause──────►
       │               exit │ start after back-off
       │                 ▼  │
       │            restarting ──stop──► exited        exit with no restart: running ──► exited
       └──────remove──────► removing ──failed──► dead  exited ──start──► running

A container is ``removing`` from the moment its removal is journalled; what a crash leaves in that state is removed at
the next start. ``restarting`` means that the process is gone and a timer (or a start) is on its way; a stop ends it.

An exit is believed from three sources, in this order: the shim's message, the shim's exit record on disk (the daemon
was away), the absence of both (the machine went down: exit code 255 is recorded, as dockerd does).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import msgspec

from engine.containers.mounts import MountPoint
from engine.containers.settings import ContainerConfig, EndpointSettings, HostConfig
from engine.networks.model import PortsWish, SandboxDocument

LOST_EXIT_CODE = 255


class Status(enum.StrEnum):
    """Docker's container states."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    REMOVING = "removing"
    EXITED = "exited"
    DEAD = "dead"


class HealthProbe(msgspec.Struct, frozen=True):
    """One result of a health command; times in nanoseconds."""

    start: int
    end: int
    exit_code: int
    output: str


class Health(msgspec.Struct, frozen=True):
    """What the health checks say; ``status`` is starting, healthy or unhealthy."""

    status: str = "starting"
    failing_streak: int = 0
    log: tuple[HealthProbe, ...] = ()


class State(msgspec.Struct, frozen=True):
    """The fact about the process; times in nanoseconds since the epoch, 0 for never. ``removes_volumes`` is what was
    promised of the anonymous volumes of a container that is being removed."""

    status: Status = Status.CREATED
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    oom_killed: bool = False
    started_at: int = 0
    finished_at: int = 0
    restart_count: int = 0
    manually_stopped: bool = False
    health: Health | None = None
    removes_volumes: bool = False


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """One container, wish and fact."""

    id: str
    name: str
    created_at: int
    image: str
    image_id: str
    path: str
    args: tuple[str, ...]
    config: ContainerConfig
    host_config: HostConfig
    networks: dict[str, EndpointSettings] = msgspec.field(default_factory=dict)
    mounts: tuple[MountPoint, ...] = ()
    layers: tuple[str, ...] = ()
    storage_driver: str = "overlay2"
    runtime: str = ""
    platform: str = "linux"
    state: State = State()
    sandbox: SandboxDocument | None = None
    anonymous_volumes: tuple[str, ...] = ()
    link_ids: dict[str, str] = msgspec.field(default_factory=dict)
    """The containers that its links lead to, by alias: whoever takes such a name later is not linked."""

    @property
    def is_running(self) -> bool:
        """Whether a process of it exists (paused included)."""
        return self.state.status in (Status.RUNNING, Status.PAUSED)

    @property
    def labels(self) -> Mapping[str, str]:
        """Its labels, never None."""
        return self.config.labels or {}

    @property
    def ports(self) -> PortsWish:
        """The ports it exposes and wants published."""
        host = self.host_config
        return PortsWish(tuple(self.config.exposed_ports or ()), host.port_bindings or {}, host.publish_all_ports)


def replace_state(container: Container, **changes: Any) -> Container:
    """The container with some fields of its state changed."""
    return msgspec.structs.replace(container, state=msgspec.structs.replace(container.state, **changes))


def started(container: Container, pid: int, at_ns: int) -> Container:
    """Running: a new process, with the traces of the last one gone."""
    return replace_state(
        container,
        status=Status.RUNNING,
        pid=pid,
        exit_code=0,
        error="",
        oom_killed=False,
        started_at=at_ns,
        manually_stopped=False,
        finished_at=container.state.finished_at,
    )


def start_failed(container: Container, exit_code: int, error: str) -> Container:
    """The runtime could not start it: docker keeps ``created`` (or ``exited``) and shows the error."""
    status = Status.CREATED if container.state.started_at == 0 else Status.EXITED
    return replace_state(container, status=status, pid=0, exit_code=exit_code, error=error)


def exited(container: Container, exit_code: int, at_ns: int, *, oom_killed: bool = False) -> Container:
    """The process ended and nothing will start it again by itself."""
    return replace_state(
        container, status=Status.EXITED, pid=0, exit_code=exit_code, finished_at=at_ns, oom_killed=oom_killed
    )


def restarting(container: Container, exit_code: int, at_ns: int, *, oom_killed: bool = False) -> Container:
    """The process ended and the policy wants it again; the count goes up when the next process runs."""
    ended = exited(container, exit_code, at_ns, oom_killed=oom_killed)
    return replace_state(ended, status=Status.RESTARTING, restart_count=container.state.restart_count + 1)


def paused(container: Container) -> Container:
    """Frozen."""
    return replace_state(container, status=Status.PAUSED)


def resumed(container: Container) -> Container:
    """Thawed."""
    return replace_state(container, status=Status.RUNNING)


def removing(container: Container, *, volumes: bool = False) -> Container:
    """Its removal has been promised, with or without that of its anonymous volumes."""
    return replace_state(container, status=Status.REMOVING, removes_volumes=volumes)
