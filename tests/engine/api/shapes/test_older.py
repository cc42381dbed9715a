"""Create requests of older clients."""

from __future__ import annotations

import pytest

from engine.api.shapes.containers import CreateRequest
from engine.api.shapes.older import for_version
from engine.containers.settings import (
    BindOptions,
    ContainerConfig,
    EndpointSettings,
    HostConfig,
    Mount,
    NetworkingConfig,
    VolumeOptions,
)
from engine.errors import InvalidParameter


def body(host: HostConfig | None = None, networks: tuple[str, ...] = ()) -> CreateRequest:
    networking = NetworkingConfig(endpoints_config={name: EndpointSettings() for name in networks})
    return CreateRequest(config=ContainerConfig(image="x"), host=host or HostConfig(), networking=networking)


def test_todays_requests_stay_as_they_are() -> None:
    asked = body(HostConfig(pids_limit=5), ("a", "b"))
    assert for_version(asked, (1, 51)) == asked


def test_memory_was_shareable_and_processes_unlimited() -> None:
    host = for_version(body(HostConfig(pids_limit=5)), (1, 39)).host
    assert (host.ipc_mode, host.pids_limit) == ("shareable", None)
    assert for_version(body(HostConfig(ipc_mode="host")), (1, 39)).host.ipc_mode == "host"
    assert for_version(body(), (1, 40)).host.ipc_mode == ""


@pytest.mark.parametrize(
    ("asked", "version", "words"),
    [
        (body(networks=("net1", "net2")), (1, 43), "multiple network endpoints: net1, net2"),
        (
            body(HostConfig(mounts=(Mount(type="bind", bind_options=BindOptions(read_only_force_recursive=True)),))),
            (1, 43),
            "ReadOnlyForceRecursive needs API v1.44",
        ),
        (
            body(HostConfig(mounts=(Mount(type="volume", volume_options=VolumeOptions(subpath="a")),))),
            (1, 44),
            "Subpath needs API v1.45",
        ),
    ],
)
def test_what_came_later_is_refused(asked: CreateRequest, version: tuple[int, int], words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        for_version(asked, version)
