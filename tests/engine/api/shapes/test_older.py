"""Create requests of older clients."""

from __future__ import annotations

import pytest

from engine.api.shapes.containers import CreateRequest
from engine.api.shapes.older import for_version, move_hardware_address
from engine.containers.settings import (
    BindOptions,
    ContainerConfig,
    EndpointSettings,
    HealthConfig,
    HostConfig,
    Mount,
    NetworkingConfig,
    TmpfsOptions,
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
        (body(HostConfig(mounts=(Mount(type="image"),))), (1, 47), 'Mount type "Image" needs API v1.48'),
    ],
)
def test_what_came_later_is_refused(asked: CreateRequest, version: tuple[int, int], words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        for_version(asked, version)


def test_what_came_later_is_not_looked_at() -> None:
    mounts = (
        Mount(
            type="bind",
            bind_options=BindOptions(create_mountpoint=True, non_recursive=True),
            volume_options=VolumeOptions(),
            tmpfs_options=TmpfsOptions(),
        ),
        Mount(type="volume", volume_options=VolumeOptions(no_copy=True)),
    )
    asked = CreateRequest(
        config=ContainerConfig(image="x", healthcheck=HealthConfig(start_interval=5, retries=2)),
        host=HostConfig(console_size=(2, 3), annotations={"a": "b"}, mounts=mounts),
        networking=NetworkingConfig(endpoints_config={"one": EndpointSettings(gw_priority=7)}),
    )
    for version in ((1, 39), (1, 41)):
        read = for_version(asked, version)
        assert (read.host.console_size, read.host.annotations) == ((0, 0), None)
        assert read.host.mounts == (
            Mount(type="bind", bind_options=BindOptions(non_recursive=version > (1, 39))),
            mounts[1],
        )
        assert read.config.healthcheck == HealthConfig(retries=2)
        assert read.networking.endpoints_config == {"one": EndpointSettings()}
    assert for_version(asked, (1, 42)).host.mounts == mounts
    assert for_version(asked, (1, 48)) == asked


MAC, OTHER = "02:42:ac:11:00:09", "02:42:ac:11:00:0a"


def asking(mode: str, own: str = MAC, **endpoints: str | None) -> CreateRequest:
    """A request with a hardware address for the container, and with some for endpoints (None is one without wishes)."""
    wishes = {name: None if mac is None else EndpointSettings(mac_address=mac) for name, mac in endpoints.items()}
    return CreateRequest(
        config=ContainerConfig(image="x", mac_address=own),
        host=HostConfig(network_mode=mode),
        networking=NetworkingConfig(endpoints_config=wishes or None),
    )


@pytest.mark.parametrize(
    ("asked", "version", "networks"),
    [
        (asking("", bridge=None), (1, 51), {"bridge": MAC}),
        (asking("default", default="", other=OTHER), (1, 51), {"default": MAC, "other": OTHER}),
        (asking("default"), (1, 43), {"bridge": MAC}),
        (asking("net"), (1, 44), {"net": MAC}),
        (asking("net", net=MAC), (1, 44), {"net": MAC}),
        (asking("net", another=OTHER), (1, 43), {"another": MAC}),
        (asking("net", "", net=OTHER), (1, 44), {"net": OTHER}),
        (asking("net", "", net=OTHER), (1, 43), {"net": ""}),
        (asking("host"), (1, 44), {}),
        (asking("container:x"), (1, 44), {}),
    ],
)
def test_a_containers_hardware_address_is_its_main_networks(
    asked: CreateRequest, version: tuple[int, int], networks: dict[str, str]
) -> None:
    moved, warnings = move_hardware_address(asked, version)
    endpoints = moved.networking.endpoints_config or {}
    assert {name: wish.mac_address for name, wish in endpoints.items() if wish} == networks
    assert moved.config.mac_address == ""
    assert len(warnings) == (version >= (1, 44) and asked.config.mac_address != "")


@pytest.mark.parametrize(
    ("asked", "version", "words"),
    [
        (asking("host"), (1, 43), "^conflicting options: mac-address and the network mode$"),
        (asking("none"), (1, 43), "^conflicting options: mac-address and the network mode$"),
        (asking("container:x"), (1, 43), "^conflicting options: mac-address and the network mode$"),
        (asking("net", net=OTHER), (1, 44), "must match the endpoint-specific MAC address for the main network"),
        (asking("net", other=""), (1, 44), "^unable to migrate container-wide MAC address to a specific network: "),
    ],
)
def test_a_hardware_address_that_is_no_networks_is_refused(
    asked: CreateRequest, version: tuple[int, int], words: str
) -> None:
    with pytest.raises(InvalidParameter, match=words):
        move_hardware_address(asked, version)
