"""Namespace modes."""

from __future__ import annotations

import pytest

from engine.containers.namespaces import joined_container, namespace_list, validate_modes
from engine.containers.settings import HostConfig


def test_a_container_has_namespaces_of_its_own() -> None:
    listed = namespace_list(HostConfig(), "/run/netns/x", {})
    assert {n["type"] for n in listed} == {"mount", "network", "uts", "pid", "ipc"}
    assert {"type": "network", "path": "/run/netns/x"} in listed


def test_the_hosts_are_not_listed() -> None:
    host = HostConfig(pid_mode="host", ipc_mode="host", uts_mode="host", cgroupns_mode="host")
    assert namespace_list(host, None, {}) == [{"type": "mount"}]


def test_joined_and_private() -> None:
    host = HostConfig(pid_mode="container:a", ipc_mode="container:b", cgroupns_mode="private")
    listed = namespace_list(host, None, {"pid": 5, "ipc": 7})
    assert {"type": "pid", "path": "/proc/5/ns/pid"} in listed
    assert {"type": "ipc", "path": "/proc/7/ns/ipc"} in listed
    assert {"type": "cgroup"} in listed


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (HostConfig(ipc_mode="x"), "invalid IPC mode: x"),
        (HostConfig(pid_mode="container:"), "invalid PID mode: container:"),
        (HostConfig(uts_mode="container:a"), "invalid UTS mode: container:a"),
        (HostConfig(userns_mode="x"), "invalid user namespace mode: x"),
        (HostConfig(cgroupns_mode="x"), "invalid cgroup namespace mode: x"),
    ],
)
def test_unknown_modes(host: HostConfig, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        validate_modes(host)


def test_known_modes() -> None:
    validate_modes(HostConfig(ipc_mode="shareable", pid_mode="container:x", cgroupns_mode="private"))
    assert joined_container("container:x") == "x"
    assert joined_container("bridge") is None
