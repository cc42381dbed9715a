"""Which containers ``docker ps`` shows."""

from __future__ import annotations

import json
from collections.abc import Collection

import pytest

from engine.containers.listing import ALLOWED, Context, ListQuery, select
from engine.containers.model import Container, Health, Status
from engine.containers.mounts import MountPoint
from engine.containers.settings import EndpointSettings
from engine.errors import InvalidParameter, NotFound, no_such_container
from engine.filters import Filters
from engine.networks.model import EndpointState, PortState, SandboxDocument
from tests.support.containers import container, ended, running

WEB = running(
    5,
    name="web",
    config={"labels": {"tier": "front"}, "exposed_ports": {"80/tcp": {}, "53/udp": {}}},
    sandbox=SandboxDocument(
        sandbox_id="s",
        container_id="c",
        name="web",
        mode="bridge",
        endpoints={"front": EndpointState(network_id="n", network_name="front", endpoint_id="e", link="veth1")},
        ports=(PortState(port="80/tcp", host_ip="0.0.0.0", host_port=8080),),
        exposed=("80/tcp", "53/udp"),
    ),
    networks={"front": EndpointSettings()},
    mounts=(MountPoint(type="volume", name="data", source="/v/data", destination="/srv"),),
    state={"health": Health(status="healthy")},
)
DB = running(4, name="db", image_id="sha256:" + "d" * 64, state={"status": Status.PAUSED})
LOOP = container(3, name="loop", state={"status": Status.RESTARTING, "started_at": 1, "exit_code": 3})
JOB = ended(2, exit_code=7, name="job")
NEW = container(1, name="new")
ALL = [WEB, DB, LOOP, JOB, NEW]


def images(reference: str) -> Collection[str]:
    return {"base": {DB.image_id}, "busybox": {WEB.image_id}}.get(reference, set())


def networks(reference: str) -> Collection[str]:
    return {"front", reference} if reference == "n1" else {reference}


def find(reference: str) -> Container:
    for one in ALL:
        if one.name == reference:
            return one
    raise no_such_container(reference)


def names(*, everything: bool = False, limit: int = 0, **wanted: list[str]) -> list[str]:
    filters = Filters.parse(json.dumps({key.replace("_", "-"): v for key, v in wanted.items()}), ALLOWED)
    query = ListQuery(everything, limit, filters)
    return [c.name for c in select(ALL, query, Context(images, networks, find))]


def test_without_all_only_what_runs() -> None:
    assert names() == ["web", "db", "loop"]
    assert names(everything=True) == ["web", "db", "loop", "job", "new"]


def test_a_limit_counts_what_passes_and_shows_stopped_ones_too() -> None:
    assert names(limit=4) == ["web", "db", "loop", "job"]
    assert names(limit=1, name=["o"]) == ["loop"]
    assert names(limit=9, name=["job"]) == ["job"]


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        ({"id": [WEB.id[:5]]}, ["web"]),
        ({"name": ["^/?w"]}, ["web"]),
        ({"name": ["/db"]}, ["db"]),
        ({"label": ["tier"]}, ["web"]),
        ({"label": ["tier=back"]}, []),
        ({"health": ["healthy"]}, ["web"]),
        ({"health": ["none"]}, ["db", "loop"]),
        ({"ancestor": ["base", "unknown"]}, ["db"]),
        ({"ancestor": ["unknown"]}, []),
        ({"before": ["db"]}, ["loop"]),
        ({"since": ["loop"]}, ["web", "db"]),
        ({"since": ["loop", "db"]}, ["web"]),
        ({"network": ["n1"]}, ["web"]),
        ({"network": ["front", "other"]}, ["web"]),
        ({"network": ["other"]}, []),
        ({"volume": ["data"]}, ["web"]),
        ({"volume": ["/srv"]}, ["web"]),
        ({"volume": ["/v/data"]}, ["web"]),
        ({"volume": ["none"]}, []),
        ({"publish": ["8080"]}, ["web"]),
        ({"publish": ["8000-8100/tcp"]}, ["web"]),
        ({"publish": ["80/tcp"]}, []),  # the container's ports do not count
        ({"publish": ["53/udp"]}, []),
        ({"publish": ["8080/udp"]}, []),
        ({"expose": ["53/udp"]}, ["web"]),
        ({"expose": ["53/udp"], "publish": ["9"]}, ["web"]),
        ({"expose": ["53"]}, []),
        ({"expose": ["70-90"]}, ["web"]),
        ({"is_task": ["true"]}, []),
        ({"is_task": ["false"]}, ["web", "db", "loop"]),
        ({"isolation": ["default"]}, ["web", "db", "loop"]),
    ],
)
def test_filters(wanted: dict[str, list[str]], shown: list[str]) -> None:
    assert names(**wanted) == shown


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        ({"status": ["exited"]}, ["job"]),
        ({"status": ["created", "paused"]}, ["db", "new"]),
        ({"exited": ["7"], "status": ["exited"]}, ["job"]),
        ({"exited": ["7"]}, []),
        ({"exited": ["0"]}, []),
        ({"exited": ["3"]}, ["loop"]),
    ],
)
def test_status_and_exit_code_look_at_stopped_ones_too(wanted: dict[str, list[str]], shown: list[str]) -> None:
    assert names(**wanted) == shown


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (
            {"status": ["asleep"]},
            (
                "invalid filter 'status=asleep': invalid value for state (asleep): "
                "must be one of created, running, paused, restarting, removing, exited, dead"
            ),
        ),
        ({"exited": ["x"]}, "invalid filter 'exited=x': strconv.Atoi: parsing \"x\": invalid syntax"),
        (
            {"health": ["fine"]},
            (
                "invalid filter 'health=fine': invalid value for health (fine): "
                "must be one of none, starting, healthy, unhealthy"
            ),
        ),
        ({"publish": ["x"]}, 'error while looking up for publish x: strconv.ParseUint: parsing "x": invalid syntax'),
        ({"publish": ["5-3"]}, "error while looking up for publish 5-3: invalid range specified for port: 5-3"),
        (
            {"expose": ["1-99999"]},
            'error while looking up for expose 1-99999: strconv.ParseUint: parsing "99999": value out of range',
        ),
        ({"expose": ["²"]}, 'error while looking up for expose ²: strconv.ParseUint: parsing "²": invalid syntax'),
    ],
)
def test_bad_values_are_refused(wanted: dict[str, list[str]], words: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        names(**wanted)
    assert caught.value.message == words


@pytest.mark.parametrize("key", ["before", "since"])
def test_an_unknown_reference_is_not_found(key: str) -> None:
    with pytest.raises(NotFound):
        names(**{key: ["nobody"]})
