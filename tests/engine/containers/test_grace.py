"""Whose time and signal it is that ends a container."""

from __future__ import annotations

import signal

import pytest

from engine.containers.grace import end_with_host, stop_seconds, stop_signal
from engine.containers.settings import ContainerConfig


def test_a_container_says_how_it_wants_to_end() -> None:
    own = ContainerConfig(stop_signal="SIGINT", stop_timeout=3)
    assert (stop_signal(own), stop_seconds(own)) == (signal.SIGINT, 3)
    assert (stop_signal(ContainerConfig()), stop_seconds(ContainerConfig())) == (signal.SIGTERM, 10)


@pytest.mark.parametrize(
    ("wanted", "end"),
    [
        ({}, (signal.SIGTERM, 10)),
        ({"stop_signal": "RTMIN+3", "stop_timeout": 0}, (signal.SIGRTMIN + 3, 0)),
        ({"stop_timeout": -1}, (signal.SIGTERM, 60)),
        ({"stop_timeout": 600}, (signal.SIGTERM, 60)),
        ({"stop_signal": "77"}, (0, 2)),
        ({"stop_signal": "77", "stop_timeout": 1}, (0, 1)),
    ],
)
def test_a_host_that_stops_waits_for_nobody_for_ever(wanted: dict[str, object], end: tuple[int, int]) -> None:
    assert end_with_host(ContainerConfig(**wanted)) == end  # type: ignore[arg-type]
