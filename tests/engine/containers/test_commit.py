"""The settings of a committed image: the client's, then its changes, then what the container has."""

from __future__ import annotations

import pytest

from engine.containers.commit import image_config, to_image
from engine.containers.settings import ContainerConfig, HealthConfig
from engine.errors import InvalidParameter

CONTAINER = ContainerConfig(
    hostname="box",
    user="1000",
    env=("PATH=/bin", "A=1"),
    cmd=("sleep", "1"),
    entrypoint=("/entry",),
    labels={"a": "b"},
    exposed_ports={"80/tcp": {}},
    volumes={"/data": {}},
    working_dir="/work",
    stop_signal="SIGINT",
    healthcheck=HealthConfig(test=("CMD", "true"), interval=5),
)


def test_the_containers_settings_are_kept() -> None:
    config = image_config(ContainerConfig(), (), CONTAINER)
    assert config == to_image(CONTAINER)
    assert (config.user, config.cmd, config.entrypoint) == ("1000", ["sleep", "1"], ["/entry"])
    assert (config.working_dir, config.stop_signal, config.volumes) == ("/work", "SIGINT", {"/data": {}})
    assert config.healthcheck is not None and config.healthcheck.test == ["CMD", "true"]


def test_changes_win_and_maps_unite() -> None:
    changes = ("ENV A=2 B=3", "LABEL x=y", "EXPOSE 53/udp", "CMD run")
    config = image_config(ContainerConfig(), changes, CONTAINER)
    assert config.env == ["PATH=/bin", "A=2", "B=3"]
    assert config.labels == {"a": "b", "x": "y"}
    assert config.exposed_ports == {"80/tcp": {}, "53/udp": {}}
    assert (config.cmd, config.entrypoint) == (["/bin/sh", "-c", "run"], ["/entry"])


def test_a_new_entry_point_drops_the_command() -> None:
    config = image_config(ContainerConfig(), ('ENTRYPOINT ["/other"]',), CONTAINER)
    assert (config.cmd, config.entrypoint) == (None, ["/other"])


def test_changes_stand_on_the_clients_settings() -> None:
    config = image_config(ContainerConfig(working_dir="/srv", env=("C=4",)), ("WORKDIR app",), CONTAINER)
    assert config.working_dir == "/srv/app"
    assert config.env == ["C=4", "PATH=/bin", "A=1"]


def test_unknown_changes_are_refused() -> None:
    with pytest.raises(InvalidParameter, match="^run is not a valid change command$"):
        image_config(ContainerConfig(), ("RUN true",), CONTAINER)


def test_changes_see_the_containers_environment() -> None:
    config = image_config(ContainerConfig(), ("ENV PATH=/usr/bin:$PATH",), CONTAINER)
    assert "PATH=/usr/bin:/bin" in (config.env or ())
