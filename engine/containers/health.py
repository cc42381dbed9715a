"""What health checks mean: when to probe, how a result changes a container's health. Pure, with docker's rules.

A container is ``starting`` until a probe succeeds or ``retries`` of them fail in a row; failures during the start
period do not count while it has never been healthy. The last five results are kept, 4 KiB of output each.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from engine.clock import SECOND
from engine.containers.model import Container, Health, HealthProbe, replace_state
from engine.containers.settings import ContainerConfig

STARTING, HEALTHY, UNHEALTHY = "starting", "healthy", "unhealthy"
KEPT_RESULTS = 5
KEPT_OUTPUT = 4096
_SHELL = ("/bin/sh", "-c")


@dataclass(frozen=True, slots=True)
class HealthPlan:
    """A health check with every default filled in; durations in nanoseconds."""

    command: tuple[str, ...]
    interval: int
    timeout: int
    retries: int
    start_period: int
    start_interval: int


def health_plan(config: ContainerConfig) -> HealthPlan | None:
    """The container's health check, or ``None`` when it has none (or an unknown kind, which docker ignores)."""
    check = config.healthcheck
    if check is None or not check.test:
        return None
    kind, *words = check.test
    if kind not in ("CMD", "CMD-SHELL") or not words:
        return None
    command = (*(config.shell or _SHELL), *words) if kind == "CMD-SHELL" else tuple(words)
    return HealthPlan(
        command=command,
        interval=check.interval or 30 * SECOND,
        timeout=check.timeout or 30 * SECOND,
        retries=check.retries if check.retries > 0 else 3,
        start_period=check.start_period,
        start_interval=check.start_interval or 5 * SECOND,
    )


def with_fresh_health(container: Container) -> Container:
    """The record of a container whose process has just started: ``starting`` where it has a check, the log kept."""
    if health_plan(container.config) is None:
        return replace_state(container, health=None)
    before = container.state.health or Health()
    return replace_state(container, health=msgspec.structs.replace(before, status=STARTING, failing_streak=0))


def next_delay(plan: HealthPlan, status: str, running_for: int) -> int:
    """Nanoseconds until the next probe of a process that has run for ``running_for``."""
    if running_for < plan.start_period and status == STARTING:
        return plan.start_interval
    return plan.interval


def judge(health: Health, plan: HealthPlan, probe: HealthProbe, started_at: int) -> Health:
    """The health after one more result."""
    log = (*health.log, probe)[-KEPT_RESULTS:]
    if probe.exit_code == 0:
        return Health(status=HEALTHY, failing_streak=0, log=log)
    if health.status == STARTING and probe.start - started_at < plan.start_period:
        return msgspec.structs.replace(health, log=log)
    streak = health.failing_streak + 1
    return Health(status=UNHEALTHY if streak >= plan.retries else health.status, failing_streak=streak, log=log)


def kept_text(output: bytes | bytearray) -> str:
    """What is recorded of a probe's output; dots stand for what is cut off."""
    text = bytes(output[:KEPT_OUTPUT]).decode("utf-8", "replace")
    return f"{text}..." if len(output) > KEPT_OUTPUT else text


def timeout_words(timeout: int, output: str) -> str:
    """The output that is recorded for a probe that took too long."""
    words = f"Health check exceeded timeout ({go_duration(timeout)})"
    return f"{words}: {output}" if output else words


def go_duration(nanoseconds: int) -> str:
    """A duration as Go prints it: ``1m30s``, ``1.5s``, ``500ms``."""
    if nanoseconds < SECOND:
        for unit, size in (("ms", 1_000_000), ("µs", 1_000)):
            if nanoseconds >= size:
                return f"{_decimal(nanoseconds / size)}{unit}"
        return f"{nanoseconds}ns" if nanoseconds else "0s"
    minutes, rest = divmod(nanoseconds, 60 * SECOND)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{_decimal(rest / SECOND)}s"
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds


def _decimal(number: float) -> str:
    return f"{number:.9f}".rstrip("0").rstrip(".")
