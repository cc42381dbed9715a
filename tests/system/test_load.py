"""Many containers, and containers that behave badly: nothing fails, nothing is lost, nobody else notices."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from subprocess import CompletedProcess
from typing import Any

import pytest

from cli.client import Client
from engine.runtime.cgroups import Cgroups
from tests.support.daemons import Berth

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

Docker = Callable[..., CompletedProcess[str]]
AT_ONCE = 200
IN_PARALLEL = 50
LISTED = 1000


@pytest.fixture
def client(berth: Berth, busybox: str) -> Client:
    """The API, without the time that a command line takes to start."""
    return Client(berth.host)


def create(client: Client, *command: str, name: str | None = None, **host: Any) -> str:
    body = {"Image": "busybox", "Cmd": list(command), "HostConfig": host}
    return str(client.json("POST", "/containers/create", {"name": name}, body=body)["Id"])


def start(client: Client, identifier: str) -> None:
    client.json("POST", f"/containers/{identifier}/start")


def remove(client: Client, identifier: str) -> None:
    client.json("DELETE", f"/containers/{identifier}", {"force": True})


@pytest.fixture
def crowd(client: Client) -> Iterator[Callable[[int], list[str]]]:
    """Makes containers, many at a time, and removes them all."""
    made: list[str] = []

    def make(count: int) -> list[str]:
        with ThreadPoolExecutor(IN_PARALLEL) as pool:
            fresh = list(pool.map(lambda _: create(client, "sleep", "1000", NetworkMode="none"), range(count)))
        made.extend(fresh)
        return fresh

    yield make
    with ThreadPoolExecutor(IN_PARALLEL) as pool:
        list(pool.map(lambda identifier: remove(client, identifier), made))


def test_two_hundred_run_at_once_and_outlive_the_daemon(
    berth: Berth, client: Client, crowd: Callable[[int], list[str]]
) -> None:
    identifiers = crowd(AT_ONCE)
    with ThreadPoolExecutor(IN_PARALLEL) as pool:
        list(pool.map(lambda identifier: start(client, identifier), identifiers))
    before = {one["Id"]: one["State"] for one in client.json("GET", "/containers/json")}
    assert {before[identifier] for identifier in identifiers} == {"running"}
    berth.kill()
    berth.start()
    after = {one["Id"]: one["State"] for one in client.json("GET", "/containers/json")}
    assert {after[identifier] for identifier in identifiers} == {"running"}


def test_fifty_lives_in_parallel(client: Client) -> None:
    def live(number: int) -> tuple[int, bytes]:
        identifier = create(client, "sh", "-c", f"echo {number}; exit {number}")
        start(client, identifier)
        code = client.json("POST", f"/containers/{identifier}/wait")["StatusCode"]
        log = b"".join(client.chunks("GET", f"/containers/{identifier}/logs", {"stdout": True}))
        client.json("DELETE", f"/containers/{identifier}")
        return code, log[8:]

    with ThreadPoolExecutor(IN_PARALLEL) as pool:
        assert list(pool.map(live, range(IN_PARALLEL))) == [
            (number, f"{number}\n".encode()) for number in range(IN_PARALLEL)
        ]


def test_a_thousand_are_listed(client: Client, crowd: Callable[[int], list[str]]) -> None:
    identifiers = set(crowd(LISTED))
    found = client.json("GET", "/containers/json", {"all": True})
    assert identifiers <= {one["Id"] for one in found}


def test_a_fork_bomb_stays_in_its_limit(docker: Docker, client: Client, busybox: str) -> None:
    bomb = "bomb() { bomb | bomb & }; bomb; sleep 1000"
    identifier = create(client, "sh", "-c", bomb, PidsLimit=30)
    start(client, identifier)
    time.sleep(1)
    groups = Cgroups.detect_sync()
    assert 0 < len(groups.pids_sync(groups.container_path(identifier))) <= 30
    assert docker("run", "--rm", busybox, "echo", "others live", check=True).stdout == "others live\n"
    remove(client, identifier)
    assert groups.pids_sync(groups.container_path(identifier)) == []


def test_a_gigabyte_of_output_is_all_kept_in_what_the_rotation_leaves(berth: Berth, client: Client) -> None:
    log = {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "2"}}
    line = "x" * 99
    identifier = create(client, "sh", "-c", f"yes {line} | head -c 1000000000; echo the end", LogConfig=log)
    start(client, identifier)
    assert client.json("POST", f"/containers/{identifier}/wait")["StatusCode"] == 0
    kept = b"".join(client.chunks("GET", f"/containers/{identifier}/logs", {"stdout": True, "tail": "2"}))
    assert kept.endswith(b"the end\n")
    folder = berth.data_root / "containers" / identifier
    assert sum(file.stat().st_size for file in folder.iterdir()) < 3_000_000
    remove(client, identifier)


def test_who_closes_its_output_runs_on_and_its_exit_counts(client: Client) -> None:
    identifier = create(client, "sh", "-c", "echo before; exec >&- 2>&-; sleep 0.3; exit 7")
    start(client, identifier)
    time.sleep(0.1)
    assert client.json("GET", f"/containers/{identifier}/json")["State"]["Running"] is True
    assert client.json("POST", f"/containers/{identifier}/wait")["StatusCode"] == 7
    assert b"before" in b"".join(client.chunks("GET", f"/containers/{identifier}/logs", {"stdout": True}))
    remove(client, identifier)


def test_who_ignores_the_signal_is_killed_after_the_grace(client: Client) -> None:
    identifier = create(client, "sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
    start(client, identifier)
    time.sleep(0.2)
    begun = time.monotonic()
    client.json("POST", f"/containers/{identifier}/stop", {"t": 1})
    assert 1.0 <= time.monotonic() - begun < 5.0
    assert client.json("GET", f"/containers/{identifier}/json")["State"]["ExitCode"] == 137
    remove(client, identifier)


def test_a_hundred_restarts_leave_one_container_and_all_of_its_log(client: Client) -> None:
    identifier = create(client, "sh", "-c", "echo started; exec sleep 1000")
    start(client, identifier)
    for _ in range(100):
        client.json("POST", f"/containers/{identifier}/restart", {"t": 0})
    log = b"".join(client.chunks("GET", f"/containers/{identifier}/logs", {"stdout": True}))
    state = client.json("GET", f"/containers/{identifier}/json")["State"]
    assert state["Running"] is True
    assert 90 <= log.count(b"started") <= 101  # some are killed before they speak
    groups = Cgroups.detect_sync()
    assert groups.pids_sync(groups.container_path(identifier)) == [state["Pid"]]
    remove(client, identifier)


def test_random_kills_of_the_daemon_lose_no_answered_request(berth: Berth, client: Client) -> None:
    """Lives go on while the daemon dies again and again; whoever was answered finds what it was told."""
    promised: list[str] = []
    for number in range(6):
        with ThreadPoolExecutor(8) as pool:
            working = [pool.submit(create, client, "sh", "-c", f"echo {number}-{n}") for n in range(16)]
            time.sleep(0.01 * number)
            berth.kill()
        promised += [task.result() for task in working if task.exception() is None]
        berth.start()
    found = {one["Id"] for one in client.json("GET", "/containers/json", {"all": True})}
    assert set(promised) <= found, json.dumps(sorted(set(promised) - found))
    for identifier in promised[:10]:
        start(client, identifier)
        assert client.json("POST", f"/containers/{identifier}/wait")["StatusCode"] == 0
    for identifier in found:
        remove(client, identifier)
