"""A container's settings over its image's."""

from __future__ import annotations

import pytest

from engine.containers.merge import (
    DEFAULT_PATH,
    command_line,
    environment,
    image_settings,
    merge_image,
    replace_env,
    with_home,
)
from engine.containers.settings import ContainerConfig, HealthConfig

IMAGE = image_settings(
    {
        "Cmd": ["serve"],
        "Entrypoint": ["/entry"],
        "Env": ["PATH=/bin", "A=image"],
        "ExposedPorts": {"80/tcp": {}},
        "Volumes": {"/data": {}},
        "Labels": {"a": "image", "b": "image"},
        "WorkingDir": "/srv",
        "User": "www",
        "StopSignal": "SIGQUIT",
        "Healthcheck": {"Test": ["CMD", "probe"], "Interval": 5, "Retries": 2},
    }
)


def test_everything_unsaid_comes_from_the_image() -> None:
    merged = merge_image(ContainerConfig(), IMAGE)
    assert merged == IMAGE


def test_what_the_user_said_wins_and_maps_unite() -> None:
    mine = ContainerConfig(
        env=("A=mine",),
        exposed_ports={"81/tcp": {}},
        volumes={"/x": {}},
        labels={"a": "mine"},
        user="root",
        working_dir="/",
    )
    merged = merge_image(mine, IMAGE)
    assert merged.env == ("A=mine", "PATH=/bin")
    assert set(merged.exposed_ports or {}) == {"80/tcp", "81/tcp"}
    assert set(merged.volumes or {}) == {"/data", "/x"}
    assert merged.labels == {"a": "mine", "b": "image"}
    assert (merged.user, merged.working_dir) == ("root", "/")


def test_no_volumes_are_null_whatever_the_client_sent() -> None:
    assert merge_image(ContainerConfig(cmd=("x",), volumes={}), ContainerConfig()).volumes is None


def test_a_command_keeps_the_images_entry_point() -> None:
    assert command_line(merge_image(ContainerConfig(cmd=("x",)), IMAGE)) == ("/entry", "x")


def test_an_entry_point_drops_the_images_command() -> None:
    assert command_line(merge_image(ContainerConfig(entrypoint=("/mine",)), IMAGE)) == ("/mine",)


def test_an_empty_entry_point_resets_the_images() -> None:
    merged = merge_image(ContainerConfig(entrypoint=("",), cmd=("x",)), IMAGE)
    assert merged.entrypoint is None
    assert command_line(merged) == ("x",)


def test_no_command_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="no command specified"):
        merge_image(ContainerConfig(), ContainerConfig())


def test_health_checks_merge_member_by_member() -> None:
    merged = merge_image(ContainerConfig(healthcheck=HealthConfig(interval=9)), IMAGE)
    assert merged.healthcheck == HealthConfig(test=("CMD", "probe"), interval=9, retries=2)
    assert merge_image(ContainerConfig(), IMAGE).healthcheck == IMAGE.healthcheck


@pytest.mark.parametrize(
    ("mine", "theirs", "merged"),
    [(None, None, None), ((), None, ()), (None, ("A=1",), ("A=1",)), (("A",), ("A=1", "B=2"), ("A", "B=2"))],
)
def test_environment_lists(
    mine: tuple[str, ...] | None, theirs: tuple[str, ...] | None, merged: tuple[str, ...] | None
) -> None:
    got = merge_image(ContainerConfig(env=mine, cmd=("x",)), ContainerConfig(env=theirs))
    assert got.env == merged


def test_the_process_environment_has_dockers_defaults_first() -> None:
    config = ContainerConfig(tty=True, env=("HOSTNAME=mine", "X=1", "TERM"))
    assert environment(config, "box", ("L=1",)) == (f"PATH={DEFAULT_PATH}", "HOSTNAME=mine", "L=1", "X=1")


def test_an_empty_home_counts_as_none() -> None:
    assert with_home(["A=1", "HOME="], "/root") == ("A=1", "HOME=/root")
    assert with_home(["A=1"], "/root") == ("A=1", "HOME=/root")
    assert with_home(["HOME=/srv", "A=1"], "/root") == ("HOME=/srv", "A=1")


def test_replacing_keeps_places() -> None:
    assert replace_env(["A=1", "B=2"], ["B=3", "C=4", "A"]) == ("B=3", "C=4")
