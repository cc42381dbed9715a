"""Builders of container records for tests."""

from __future__ import annotations

from typing import Any

from engine.clock import SECOND
from engine.containers.model import Container, State, Status
from engine.containers.settings import ContainerConfig, HostConfig, RestartPolicy


def container(number: int = 1, **changes: Any) -> Container:
    """A created container; ``number`` decides id, name and age. Keys of its parts: ``state``, ``config``, ``host``."""
    state = changes.pop("state", {})
    config = {"image": "busybox", "cmd": ("true",), **changes.pop("config", {})}
    host = {"network_mode": "default", "restart_policy": RestartPolicy(name="no"), **changes.pop("host", {})}
    fields: dict[str, Any] = {
        "id": f"{number:x}".rjust(2, "a") * 32,
        "name": f"box{number}",
        "created_at": number * SECOND,
        "image": "busybox",
        "image_id": "sha256:" + "e" * 64,
        "path": "true",
        "args": (),
        **changes,
    }
    return Container(config=ContainerConfig(**config), host_config=HostConfig(**host), state=State(**state), **fields)


def running(number: int = 1, **changes: Any) -> Container:
    """A running one."""
    state = {"status": Status.RUNNING, "pid": 4000 + number, "started_at": number * SECOND, **changes.pop("state", {})}
    return container(number, state=state, **changes)


def ended(number: int = 1, exit_code: int = 0, **changes: Any) -> Container:
    """One that has run."""
    state = {
        "status": Status.EXITED,
        "exit_code": exit_code,
        "started_at": number * SECOND,
        "finished_at": (number + 1) * SECOND,
        **changes.pop("state", {}),
    }
    return container(number, state=state, **changes)
