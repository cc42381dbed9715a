"""dockerd's metrics, over real HTTP."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from engine.api.metrics import MetricsListener
from engine.config import ConfigError
from engine.events import EventBus
from engine.measures import Measures

ABOUT = {
    "ID": "me",
    "NCPU": 2,
    "MemTotal": 1 << 34,
    "ContainersRunning": 3,
    "ContainersPaused": 1,
    "ContainersStopped": 4,
    "Driver": "overlay2",
    "OperatingSystem": 'Best "OS"',
}


class Bench:
    """A listener and what it tells of."""

    def __init__(self) -> None:
        self.measures = Measures(is_on=True)
        self.events = EventBus()
        self.listener = MetricsListener(self.measures, self.events, lambda: ABOUT)


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    await made.listener.close()


async def test_prometheus_finds_dockerds_names(bench: Bench, unused_tcp_port: int) -> None:
    address = f"127.0.0.1:{unused_tcp_port}"
    await bench.listener.open(address)
    bench.events.publish("container", "start", "x")
    bench.measures.probed(failed=True)
    with bench.measures.container_action("start"), bench.measures.network_action("allocate"):
        pass
    async with aiohttp.ClientSession() as client:
        async with client.get(f"http://{address}/metrics") as answer:
            assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            lines = (await answer.text()).splitlines()
        async with client.get(f"http://{address}/") as answer:
            assert (answer.status, await answer.text()) == (404, "404 page not found\n")
    for line in (
        'engine_daemon_container_states_containers{state="running"} 3',
        'engine_daemon_container_states_containers{state="stopped"} 4',
        "engine_daemon_engine_cpus_cpus 2",
        "engine_daemon_engine_memory_bytes 17179869184",
        "engine_daemon_events_total 1",
        "engine_daemon_events_subscribers_total 0",
        "engine_daemon_health_checks_total 1",
        "engine_daemon_health_checks_failed_total 1",
        'engine_daemon_container_actions_seconds_count{action="start"} 1',
        'engine_daemon_network_actions_seconds_bucket{action="allocate",le="0.005"} 1',
        "# TYPE engine_daemon_container_actions_seconds histogram",
        "# HELP engine_daemon_events_total The number of events logged",
    ):
        assert line in lines
    info = next(line for line in lines if line.startswith("engine_daemon_engine_info"))
    assert 'daemon_id="me",graphdriver="overlay2",kernel="",os="Best \\"OS\\""' in info


async def test_an_address_in_use_is_told_as_dockerd_does(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError) as caught:
            await bench.listener.open(address)
    words = f"failed to start metrics server: listen tcp {address}: bind: address already in use"
    assert str(caught.value) == words
    with pytest.raises(OSError, match="bind: cannot assign requested address$"):
        await bench.listener.open("192.0.2.1:9323")
    with pytest.raises(ConfigError, match="address nowhere: missing port in address$"):
        await bench.listener.open("nowhere")
