"""What inspect shows of a container's wish, fact and paths."""

from __future__ import annotations

from typing import Any

import pytest

from engine.api.shapes.inspect import (
    InspectFacts,
    health_view,
    inspect_view,
    network_settings,
    state_view,
    with_own_names,
)
from engine.clock import SECOND, ZERO_TIME
from engine.containers.model import Health, HealthProbe, State, Status
from engine.containers.mounts import MountPoint
from engine.containers.settings import EndpointSettings
from tests.support.containers import container, ended, running


def facts(**changes: Any) -> InspectFacts:
    fields: dict[str, Any] = {
        "directory": "/var/lib/berth/containers/x",
        "exec_ids": (),
        "networks": {"bridge": {"IPAddress": "172.17.0.2", "IPPrefixLen": 16, "MacAddress": "02:42", "Gateway": "g"}},
        "ports": {"80/tcp": None},
        "sandbox_id": "s1",
        "sandbox_key": "/var/run/docker/netns/s1",
        "graph": {"MergedDir": "/m"},
        **changes,
    }
    return InspectFacts(**fields)


@pytest.mark.parametrize(
    ("status", "flags"),
    [
        (Status.CREATED, set()),
        (Status.RUNNING, {"Running"}),
        (Status.PAUSED, {"Running", "Paused"}),
        (Status.RESTARTING, {"Running", "Restarting"}),
        (Status.EXITED, set()),
        (Status.REMOVING, set()),
        (Status.DEAD, {"Dead"}),
    ],
)
def test_the_state_has_its_flags(status: Status, flags: set[str]) -> None:
    view = state_view(State(status=status))
    assert view["Status"] == status.value
    assert {key for key in ("Running", "Paused", "Restarting", "Dead") if view[key]} == flags


def test_the_state_has_its_facts() -> None:
    view = state_view(State(pid=7, exit_code=3, error="why", oom_killed=True, started_at=SECOND, finished_at=0))
    assert (view["Pid"], view["ExitCode"], view["Error"], view["OOMKilled"]) == (7, 3, "why", True)
    assert (view["StartedAt"], view["FinishedAt"]) == ("1970-01-01T00:00:01Z", ZERO_TIME)
    assert "Health" not in view


@pytest.mark.parametrize(
    ("mode", "own", "shown"),
    [
        ("default", "", "02:42:00:00:00:01"),
        ("bridge", "", "02:42:00:00:00:01"),
        ("mine", "", "02:42:00:00:00:02"),
        ("mine", "02:42:00:00:00:03", "02:42:00:00:00:03"),
        ("host", "", None),
    ],
)
def test_the_main_networks_hardware_address_is_shown_as_the_containers(mode: str, own: str, shown: str | None) -> None:
    networks = {
        "bridge": EndpointSettings(mac_address="02:42:00:00:00:01"),
        "mine": EndpointSettings(mac_address="02:42:00:00:00:02"),
    }
    record = container(networks=networks, host={"network_mode": mode}, config={"mac_address": own})
    assert inspect_view(record, facts())["Config"].get("MacAddress") == shown


def test_health_has_its_last_results() -> None:
    health = Health(status="unhealthy", failing_streak=3, log=(HealthProbe(SECOND, 2 * SECOND, 1, "no"),))
    assert state_view(State(health=health))["Health"] == health_view(health)
    assert health_view(health) == {
        "Status": "unhealthy",
        "FailingStreak": 3,
        "Log": [{"Start": "1970-01-01T00:00:01Z", "End": "1970-01-01T00:00:02Z", "ExitCode": 1, "Output": "no"}],
    }


def test_old_members_repeat_the_default_bridge() -> None:
    front = {"front": {"IPAddress": "10.0.0.2", "IPPrefixLen": 24}}
    view = network_settings(facts(networks={**front, **facts().networks}))
    assert (view["IPAddress"], view["IPPrefixLen"], view["MacAddress"], view["Gateway"]) == (
        "172.17.0.2",
        16,
        "02:42",
        "g",
    )
    assert view["Ports"] == {"80/tcp": None}
    assert (view["SandboxID"], view["SandboxKey"]) == ("s1", "/var/run/docker/netns/s1")


def test_old_members_are_empty_on_other_networks() -> None:
    view = network_settings(facts(networks={"front": {"IPAddress": "10.0.0.2", "IPPrefixLen": 24}}))
    assert (view["IPAddress"], view["IPPrefixLen"], view["MacAddress"]) == ("", 0, "")
    assert "front" in view["Networks"]
    assert network_settings(facts(networks={}))["EndpointID"] == ""


def test_old_versions_show_a_containers_own_names_among_its_aliases() -> None:
    record = container(2, config={"hostname": "host"})
    networks = {"front": {"Aliases": ["db", "host"]}, "back": {"Aliases": None}, "bridge": {"Aliases": None}}
    shown = with_own_names(record, facts(networks=networks)).networks
    own = record.id[:12]
    assert shown["front"]["Aliases"] == ["db", "host", own]
    assert shown["back"]["Aliases"] == [own, "host"]
    assert shown["bridge"]["Aliases"] is None


def test_the_whole_document() -> None:
    record = running(
        5,
        name="web",
        args=("-c", "x"),
        mounts=(
            MountPoint(type="bind", destination="/z", source="/host", rw=False, propagation="rprivate"),
            MountPoint(type="volume", destination="/a", source="/v/d", name="d", driver="local", mode="z"),
        ),
        state={"restart_count": 4},
    )
    view = inspect_view(record, facts(exec_ids=("e1",), size_rw=1, size_root=9))
    assert (view["Id"], view["Name"], view["Path"], view["Args"]) == (record.id, "/web", "true", ["-c", "x"])
    assert (view["Image"], view["RestartCount"], view["Driver"]) == (record.image_id, 4, "overlay2")
    assert view["ExecIDs"] == ["e1"]
    assert (view["SizeRw"], view["SizeRootFs"]) == (1, 9)
    assert view["GraphDriver"] == {"Data": {"MergedDir": "/m"}, "Name": "overlay2"}
    assert view["ResolvConfPath"] == "/var/lib/berth/containers/x/resolv.conf"
    assert view["LogPath"] == f"/var/lib/berth/containers/x/{record.id}-json.log"
    assert view["Created"] == "1970-01-01T00:00:05Z"
    assert view["Mounts"] == [
        {
            "Type": "volume",
            "Name": "d",
            "Source": "/v/d",
            "Destination": "/a",
            "Driver": "local",
            "Mode": "z",
            "RW": True,
            "Propagation": "",
        },
        {
            "Type": "bind",
            "Source": "/host",
            "Destination": "/z",
            "Mode": "",
            "RW": False,
            "Propagation": "rprivate",
        },
    ]


@pytest.mark.parametrize(("mode", "network"), [("default", "bridge"), ("front", "front")])
def test_the_hardware_address_that_was_asked_for_is_in_the_configuration(mode: str, network: str) -> None:
    wish = {network: EndpointSettings(mac_address="02:42:01:02:03:04"), "other": EndpointSettings(mac_address="02:43")}
    record = container(2, host={"network_mode": mode}, networks=wish)
    assert inspect_view(record, facts())["Config"]["MacAddress"] == "02:42:01:02:03:04"


def test_a_container_that_never_ran_has_no_files() -> None:
    view = inspect_view(container(), facts())
    assert (view["ResolvConfPath"], view["HostnamePath"], view["HostsPath"], view["LogPath"]) == ("", "", "", "")
    assert view["ExecIDs"] is None
    assert not {"SizeRw", "SizeRootFs"} & set(view)
    failed = inspect_view(container(state={"error": "no such program"}), facts())
    assert failed["HostsPath"].endswith("/hosts")


def test_other_log_drivers_have_no_file() -> None:
    assert inspect_view(ended(), facts(has_log=False))["LogPath"] == ""
