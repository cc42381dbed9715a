"""Prometheus finds what the engine did at metrics-addr."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator

import pytest

from tests.support.daemons import Berth, free_port, running

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


class MeasuredBerth(Berth):
    """A berth that serves metrics."""

    def __init__(self, port: int) -> None:
        super().__init__(options=("--metrics-addr", f"127.0.0.1:{port}"), registry=False)
        self.port = port

    def metrics(self) -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name.removeprefix("engine_daemon_"): float(value) for name, _, value in samples}


@pytest.fixture(scope="module")
def berth() -> Iterator[MeasuredBerth]:
    with running(MeasuredBerth(free_port())) as daemon:
        yield daemon


def test_actions_states_events_and_health_checks_are_counted(berth: MeasuredBerth) -> None:
    before = berth.metrics()
    probe = ("--health-cmd=false", "--health-interval=100ms")
    berth.docker("run", "-d", "--name=box", *probe, "busybox", "sleep", "1000", check=True)
    berth.docker("create", "--name=idle", "busybox", check=True)
    berth.docker("diff", "box", check=True)
    berth.docker("commit", "box", "again", check=True)
    while not (found := berth.metrics())["health_checks_total"]:
        pass
    assert found["health_checks_failed_total"] == found["health_checks_total"]
    assert found['container_states_containers{state="running"}'] == 1
    assert found['container_states_containers{state="stopped"}'] == 1
    assert found["events_total"] > before["events_total"]
    berth.docker("rm", "-f", "box", "idle", check=True)
    found = berth.metrics()
    for action, count in {"create": 2, "start": 1, "changes": 1, "commit": 1, "delete": 2}.items():
        assert found[f'container_actions_seconds_count{{action="{action}"}}'] == count
        assert found[f'container_actions_seconds_bucket{{action="{action}",le="+Inf"}}'] == count
    assert found['network_actions_seconds_count{action="allocate"}'] == 1
    assert found['container_states_containers{state="running"}'] == 0


def test_an_address_that_is_taken_ends_the_start(berth: MeasuredBerth) -> None:
    other = MeasuredBerth(berth.port)
    words = f"failed to start metrics server: listen tcp 127.0.0.1:{berth.port}: bind: address already in use"
    try:
        with pytest.raises(RuntimeError, match=words):
            other.start()
    finally:
        other.stop()
        other.remove()
