"""What the list shows of a container."""

from __future__ import annotations

from typing import Any

import pytest

from engine.api.shapes.summary import command_words, human_duration, port_list, status_words, summary
from engine.clock import SECOND
from engine.containers.model import Health, Status
from tests.support.containers import container, ended, running

MINUTE, HOUR, DAY = 60, 3600, 86400


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "Less than a second"),
        (0.9, "Less than a second"),
        (1, "1 second"),
        (59.9, "59 seconds"),
        (60, "About a minute"),
        (119, "About a minute"),
        (120, "2 minutes"),
        (59 * MINUTE + 59, "59 minutes"),
        (HOUR, "About an hour"),
        (89 * MINUTE, "About an hour"),
        (90 * MINUTE, "2 hours"),
        (47 * HOUR, "47 hours"),
        (48 * HOUR, "2 days"),
        (13 * DAY, "13 days"),
        (14 * DAY, "2 weeks"),
        (59 * DAY, "8 weeks"),
        (60 * DAY, "2 months"),
        (729 * DAY, "24 months"),
        (730 * DAY, "2 years"),
    ],
)
def test_durations_are_rough(seconds: float, words: str) -> None:
    assert human_duration(seconds) == words


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"status": Status.CREATED}, "Created"),
        ({"status": Status.RUNNING}, "Up 5 seconds"),
        ({"status": Status.RUNNING, "health": Health()}, "Up 5 seconds (health: starting)"),
        ({"status": Status.RUNNING, "health": Health(status="healthy")}, "Up 5 seconds (healthy)"),
        ({"status": Status.RUNNING, "health": Health(status="unhealthy")}, "Up 5 seconds (unhealthy)"),
        ({"status": Status.PAUSED}, "Up 5 seconds (Paused)"),
        ({"status": Status.RESTARTING, "exit_code": 3}, "Restarting (3) 3 seconds ago"),
        ({"status": Status.REMOVING}, "Removal In Progress"),
        ({"status": Status.DEAD}, "Dead"),
        ({"status": Status.EXITED, "exit_code": 137}, "Exited (137) 3 seconds ago"),
        ({"status": Status.EXITED, "finished_at": 0}, "Created"),
    ],
)
def test_status_words(state: dict[str, Any], words: str) -> None:
    record = container(state={"started_at": 5 * SECOND, "finished_at": 7 * SECOND, **state})
    assert status_words(record, 10 * SECOND) == words


def test_arguments_with_spaces_are_quoted() -> None:
    assert command_words(container(path="sh")) == "sh"
    assert command_words(container(path="sh", args=("-c", "echo hi", "x"))) == "sh -c 'echo hi' x"


def test_ports_are_flattened() -> None:
    ports = {
        "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}],
        "53/udp": None,
    }
    assert port_list(ports) == [
        {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
        {"IP": "::", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
        {"PrivatePort": 53, "Type": "udp"},
    ]
    assert port_list(None) == []
    assert port_list({"80/tcp": [{"HostIp": "::", "HostPort": ""}]}) == [{"IP": "::", "PrivatePort": 80, "Type": "tcp"}]


def test_the_whole_element() -> None:
    record = running(5, name="web", config={"labels": {"a": "b"}}, host={"annotations": {"n": "1"}})
    shown = summary(record, 10 * SECOND, "busybox:1", {"bridge": {}}, {}, {"SizeRw": 3, "SizeRootFs": 9})
    assert shown == {
        "Id": record.id,
        "Names": ["/web"],
        "Image": "busybox:1",
        "ImageID": record.image_id,
        "Command": "true",
        "Created": 5,
        "Ports": [],
        "Labels": {"a": "b"},
        "State": "running",
        "Status": "Up 5 seconds",
        "HostConfig": {"NetworkMode": "default", "Annotations": {"n": "1"}},
        "NetworkSettings": {"Networks": {"bridge": {}}},
        "Mounts": [],
        "SizeRw": 3,
        "SizeRootFs": 9,
    }


def test_annotations_are_left_out_for_older_clients() -> None:
    record = running(5, host={"annotations": {"n": "1"}})
    shown = summary(record, 10 * SECOND, "x", {}, None, annotations=False)
    assert shown["HostConfig"] == {"NetworkMode": "default"}


def test_sizes_and_annotations_are_left_out_when_there_are_none() -> None:
    shown = summary(ended(), 10 * SECOND, "x", {}, None)
    assert "SizeRw" not in shown
    assert shown["HostConfig"] == {"NetworkMode": "default"}
