"""Restart decisions and their back-off, as docker makes them. Pure.

The delay doubles from 100 ms to one minute and starts over after a run of ten seconds. A container that somebody
stopped is not started again by its policy; ``always`` starts it again with the daemon, ``unless-stopped`` does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from engine.clock import SECOND
from engine.containers.settings import RestartPolicy

FIRST_DELAY = 0.1
LONGEST_DELAY = 60.0
STABLE_AFTER_NS = 10 * SECOND
UNHEALTHY_LABEL = "berth.on-unhealthy"


class UnhealthyAction(StrEnum):
    """What follows when a container turns unhealthy."""

    NONE = "none"
    RESTART = "restart"
    STOP = "stop"
    KILL = "kill"
    """Kill it, and let its restart policy decide."""


def unhealthy_action(labels: Mapping[str, str], default: str) -> UnhealthyAction:
    """The container's own label, else the daemon's setting; what neither names right is nothing."""
    wanted = labels.get(UNHEALTHY_LABEL, default)
    return UnhealthyAction(wanted) if wanted in tuple(UnhealthyAction) else UnhealthyAction.NONE


def wants_restart(policy: RestartPolicy, exit_code: int, restarts: int, *, manually_stopped: bool) -> bool:
    """Whether a process that just ended is to be started again."""
    if manually_stopped:
        return False
    match policy.name:
        case "always" | "unless-stopped":
            return True
        case "on-failure":
            return exit_code != 0 and (not policy.maximum_retry_count or restarts < policy.maximum_retry_count)
        case _:
            return False


def starts_with_daemon(
    policy: RestartPolicy, exit_code: int, *, ever_started: bool, manually_stopped: bool, was_running: bool
) -> bool:
    """Whether a container without a process is to be started when the daemon (or the machine) starts.

    One that nobody has ever started is not: starting it is somebody's decision.
    """
    if not ever_started:
        return False
    match policy.name:
        case "always":
            return True
        case "unless-stopped":
            return not manually_stopped
        case "on-failure":
            return was_running and exit_code != 0 and not manually_stopped
        case _:
            return False


@dataclass(slots=True)
class BackOff:
    """The delay before the next restart of one container, in seconds."""

    delay: float = 0.0

    def next_delay(self, ran_for_ns: int) -> float:
        """The delay after a run of ``ran_for_ns``."""
        if ran_for_ns >= STABLE_AFTER_NS or self.delay == 0.0:
            self.delay = FIRST_DELAY
        else:
            self.delay = min(self.delay * 2, LONGEST_DELAY)
        return self.delay

    def reset(self) -> None:
        """Start over: somebody started the container by hand."""
        self.delay = 0.0
