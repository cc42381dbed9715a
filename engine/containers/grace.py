"""How a container is asked to end, and how long it is waited for before it is killed. Pure."""

from __future__ import annotations

from engine.containers.settings import ContainerConfig
from engine.containers.signals import can_be_sent, parse_signal

DEFAULT_STOP_SECONDS = 10
UNSENT_SECONDS = 2
"""How long a stop waits before it kills where there is no such signal as was asked for."""
HOST_GRACE_SECONDS = 60  # systemd itself ends a service that takes longer than 90 to stop


def stop_signal(config: ContainerConfig) -> int:
    """The number of its own signal; the kernel may have none of that number."""
    return parse_signal(config.stop_signal or "SIGTERM")


def stop_seconds(config: ContainerConfig) -> int:
    """Its own time; negative: for ever."""
    return DEFAULT_STOP_SECONDS if config.stop_timeout is None else config.stop_timeout


def host_seconds(config: ContainerConfig) -> int:
    """What is left of its own time when the whole host stops."""
    wanted = stop_seconds(config)
    return min(wanted, HOST_GRACE_SECONDS) if wanted >= 0 else HOST_GRACE_SECONDS


def end_with_host(config: ContainerConfig) -> tuple[int, int]:
    """The signal and the seconds for whoever ends it with the host; signal 0 asks nobody."""
    number, seconds = stop_signal(config), host_seconds(config)
    return (number, seconds) if can_be_sent(number) else (0, min(seconds, UNSENT_SECONDS))
