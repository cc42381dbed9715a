"""What follows when a container turns unhealthy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from engine.containers.caretaker import Caretaker
from engine.containers.model import Container, Health, HealthProbe, Status, replace_state
from engine.containers.policy import UNHEALTHY_LABEL, UnhealthyAction, unhealthy_action
from engine.containers.settings import RestartPolicy
from tests.support.containers import running
from tests.support.runs import Bench, FakeShim, until

SICK = Health(status="unhealthy", failing_streak=3, log=())


def sick(action: str, health: Health = SICK, policy: str = "no") -> Container:
    labels = {UNHEALTHY_LABEL: action} if action else {}
    host = {"restart_policy": RestartPolicy(name=policy)}
    return running(1, config={"labels": labels}, host=host, state={"health": health})


class Ward:
    """One unhealthy container and who looks after it."""

    def __init__(self, root: Path, record: Container, default: str = "none") -> None:
        self.bench = Bench(root, record)
        self.record = record
        self.shim: FakeShim = self.bench.adopt(record)
        self.caretaker = Caretaker(
            self.bench.records, self.bench.live, self.bench.lifecycle, self.bench.nursery, default
        )

    @property
    def state(self) -> Status:
        return self.bench.now(self.record.id).state.status


@pytest_asyncio.fixture
async def wards(tmp_path: Path) -> AsyncIterator[list[Ward]]:
    made: list[Ward] = []
    yield made
    for ward in made:
        await ward.bench.nursery.aclose()


def test_the_label_goes_before_the_setting() -> None:
    assert unhealthy_action({}, "none") is UnhealthyAction.NONE
    assert unhealthy_action({}, "restart") is UnhealthyAction.RESTART
    assert unhealthy_action({UNHEALTHY_LABEL: "stop"}, "restart") is UnhealthyAction.STOP
    assert unhealthy_action({UNHEALTHY_LABEL: "dance"}, "restart") is UnhealthyAction.NONE


async def test_by_default_nothing_happens(tmp_path: Path, wards: list[Ward]) -> None:
    wards.append(ward := Ward(tmp_path, sick("none")))
    before = asyncio.all_tasks()
    ward.caretaker.turned_unhealthy(ward.record)
    assert asyncio.all_tasks() == before


async def test_it_is_restarted_and_waits_longer_each_time_it_was_never_well(tmp_path: Path, wards: list[Ward]) -> None:
    wards.append(ward := Ward(tmp_path, sick("restart")))
    ward.caretaker.turned_unhealthy(ward.record)
    await until(lambda: "restart" in ward.bench.actions())
    back_off = ward.bench.live[ward.record.id].unhealthy_back_off
    first = back_off.delay
    ward.caretaker.turned_unhealthy(ward.bench.now(ward.record.id))
    assert back_off.delay == 2 * first
    well = Health(status="unhealthy", log=(HealthProbe(start=1, end=2, exit_code=0, output=""),))
    ward.caretaker.turned_unhealthy(replace_state(ward.bench.now(ward.record.id), health=well))
    assert back_off.delay == first


async def test_who_became_well_meanwhile_is_let_alone(tmp_path: Path, wards: list[Ward]) -> None:
    wards.append(ward := Ward(tmp_path, sick("restart")))
    ward.caretaker.turned_unhealthy(ward.record)
    await ward.bench.records.save(replace_state(ward.record, health=Health(status="healthy")))
    (waiting,) = [task for task in asyncio.all_tasks() if "unhealthy" in task.get_name()]
    await waiting
    assert ward.bench.actions() == []


@pytest.mark.parametrize(("action", "policy", "status"), [
    ("stop", "always", Status.EXITED), ("kill", "no", Status.EXITED), ("kill", "always", Status.RESTARTING),
])  # fmt: skip
async def test_it_is_ended(action: str, policy: str, status: Status, tmp_path: Path, wards: list[Ward]) -> None:
    wards.append(ward := Ward(tmp_path, sick(action, policy=policy)))
    ward.caretaker.turned_unhealthy(ward.record)
    await until(lambda: ward.state is status)


async def test_the_daemons_setting_counts_without_a_label(tmp_path: Path, wards: list[Ward]) -> None:
    wards.append(ward := Ward(tmp_path, sick(""), default="stop"))
    ward.caretaker.turned_unhealthy(ward.record)
    await until(lambda: ward.state is Status.EXITED)
