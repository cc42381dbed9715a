"""When to probe, and what a result changes."""

from __future__ import annotations

import pytest

from engine.clock import SECOND
from engine.containers.health import (
    HealthPlan,
    go_duration,
    health_plan,
    judge,
    next_delay,
    timeout_words,
    with_fresh_health,
)
from engine.containers.model import Container, Health, HealthProbe, State
from engine.containers.settings import ContainerConfig, HealthConfig, HostConfig

PLAN = HealthPlan(("x",), 30 * SECOND, 10 * SECOND, 2, 60 * SECOND, 5 * SECOND)


def probe(code: int, at: int = 0) -> HealthProbe:
    return HealthProbe(start=at, end=at + 1, exit_code=code, output="")


def container(check: HealthConfig | None, health: Health | None = None) -> Container:
    return Container(
        id="a", name="a", created_at=0, image="", image_id="", path="x", args=(),
        config=ContainerConfig(healthcheck=check), host_config=HostConfig(), state=State(health=health),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("check", "command"),
    [
        (None, None),
        (HealthConfig(), None),
        (HealthConfig(test=("NONE",)), None),
        (HealthConfig(test=("CMD",)), None),
        (HealthConfig(test=("CMD", "probe", "-x")), ("probe", "-x")),
        (HealthConfig(test=("CMD-SHELL", "probe -x")), ("/bin/sh", "-c", "probe -x")),
    ],
)
def test_plans(check: HealthConfig | None, command: tuple[str, ...] | None) -> None:
    plan = health_plan(ContainerConfig(healthcheck=check))
    assert (plan.command if plan else None) == command


def test_defaults_are_dockers() -> None:
    plan = health_plan(ContainerConfig(healthcheck=HealthConfig(test=("CMD", "x")), shell=("/bin/ash",)))
    assert plan == HealthPlan(("x",), 30 * SECOND, 30 * SECOND, 3, 0, 5 * SECOND)


def test_a_shell_of_ones_own() -> None:
    plan = health_plan(ContainerConfig(healthcheck=HealthConfig(test=("CMD-SHELL", "x")), shell=("/bin/ash", "-ec")))
    assert plan is not None
    assert plan.command == ("/bin/ash", "-ec", "x")


def test_a_new_run_starts_over_and_keeps_the_log() -> None:
    check = HealthConfig(test=("CMD", "x"))
    old = Health(status="unhealthy", failing_streak=3, log=(probe(1),))
    assert with_fresh_health(container(check, old)).state.health == Health("starting", 0, (probe(1),))
    assert with_fresh_health(container(check)).state.health == Health()
    assert with_fresh_health(container(None, old)).state.health is None


def test_probing_is_quicker_while_starting() -> None:
    assert next_delay(PLAN, "starting", 10 * SECOND) == 5 * SECOND
    assert next_delay(PLAN, "healthy", 10 * SECOND) == 30 * SECOND
    assert next_delay(PLAN, "starting", 60 * SECOND) == 30 * SECOND


def test_one_success_is_health() -> None:
    assert judge(Health("unhealthy", 9), PLAN, probe(0), 0).status == "healthy"


def test_failures_in_the_start_period_do_not_count() -> None:
    health = judge(Health(), PLAN, probe(1, 59 * SECOND), 0)
    assert (health.status, health.failing_streak, len(health.log)) == ("starting", 0, 1)


def test_enough_failures_in_a_row_are_illness() -> None:
    once = judge(Health(), PLAN, probe(1, 61 * SECOND), 0)
    assert (once.status, once.failing_streak) == ("starting", 1)
    assert judge(once, PLAN, probe(-1, 91 * SECOND), 0).status == "unhealthy"
    was_healthy = judge(Health("healthy"), PLAN, probe(1, SECOND), 0)
    assert (was_healthy.status, was_healthy.failing_streak) == ("healthy", 1)


def test_five_results_are_kept() -> None:
    health = Health()
    for number in range(8):
        health = judge(health, PLAN, probe(0, number), 0)
    assert [p.start for p in health.log] == [3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (5, "5ns"),
        (1_500, "1.5µs"),
        (500_000_000, "500ms"),
        (30 * SECOND, "30s"),
        (1_500_000_000, "1.5s"),
        (90 * SECOND, "1m30s"),
        (3600 * SECOND, "1h0m0s"),
    ],
)
def test_durations_as_go_prints_them(nanoseconds: int, text: str) -> None:
    assert go_duration(nanoseconds) == text


def test_words_of_a_timeout() -> None:
    assert timeout_words(SECOND, "") == "Health check exceeded timeout (1s)"
    assert timeout_words(SECOND, "half") == "Health check exceeded timeout (1s): half"
