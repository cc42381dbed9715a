"""Who waits for whom when the daemon starts, and starts that fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from engine.containers import boot as module
from engine.containers.boot import Boot, Condition, Need, needs_of, without_circles
from engine.containers.model import Container, Health, Status, replace_state
from engine.containers.settings import RestartPolicy
from tests.support.containers import container, ended
from tests.support.runs import Bench, until

ALWAYS = {"restart_policy": RestartPolicy(name="always")}


def composed(number: int, service: str, depends: str = "", **changes: object) -> Container:
    labels = {
        "com.docker.compose.project": "shop",
        "com.docker.compose.service": service,
        "com.docker.compose.depends_on": depends,
    }
    return ended(number, name=service, config={"labels": labels}, host=ALWAYS, **changes)


def test_namespaces_links_and_services_are_needed() -> None:
    db = container(1, name="db")
    known = {"db": db, db.id: db}
    joining = container(2, host={"network_mode": "container:db", "ipc_mode": f"container:{db.id}", "links": ("/db:x",)})
    assert needs_of(joining, known.get, {}) == (Need(db.id),)
    assert needs_of(container(3, host={"links": ("gone:x",)}), known.get, {("", ""): [db.id]}) == ()
    web = composed(4, "web", "db:service_healthy:true,job:service_completed_successfully:false,odd,web")
    services = {("shop", "db"): ["d1", "d2"], ("shop", "job"): ["j"], ("other", "odd"): ["o"]}
    services["shop", "web"] = [web.id]
    assert needs_of(web, known.get, services) == (
        Need("d1", Condition.HEALTHY),
        Need("d2", Condition.HEALTHY),
        Need("j", Condition.COMPLETED),
    )


def test_circles_are_cut() -> None:
    a, b, c = Need("a"), Need("b"), Need("c")
    assert without_circles({"a": [b], "b": [c], "c": [a], "d": [a]}) == {"a": (b,), "b": (c,), "c": (), "d": (a,)}


@pytest_asyncio.fixture
async def benches(tmp_path: Path) -> AsyncIterator[list[Bench]]:
    made: list[Bench] = []
    yield made
    for bench in made:
        await bench.nursery.aclose()


def booted(benches: list[Bench], root: Path, *records: Container) -> tuple[Bench, Boot]:
    bench = Bench(root, *records)
    benches.append(bench)
    return bench, Boot(bench.store, bench.supervisor, bench.nursery)


async def test_each_starts_after_what_it_needs(tmp_path: Path, benches: list[Bench]) -> None:
    web = ended(1, name="web", host={**ALWAYS, "network_mode": "container:db"})
    bench, boot = booted(benches, tmp_path, web, ended(2, name="db", host=ALWAYS))
    bench.assembly.hold = asyncio.Event()
    boot.begin([web.id, bench.store.find("db").id])
    await until(lambda: bench.assembly.log == ["assemble"])
    await asyncio.sleep(0.01)
    assert bench.assembly.log == ["assemble"]  # the other one waits
    bench.assembly.hold.set()
    await until(lambda: bench.now(web.id).is_running)
    assert [shim.container_id for shim in bench.assembly.shims] == [bench.store.find("db").id, web.id]


async def test_health_and_completion_are_waited_for(tmp_path: Path, benches: list[Bench]) -> None:
    db = composed(1, "db", state={"status": Status.RUNNING, "pid": 5, "health": Health(status="starting")})
    job = composed(2, "job", state={"status": Status.RUNNING, "pid": 6})
    web = composed(3, "web", "db:service_healthy:true,job:service_completed_successfully:true")
    bench, boot = booted(benches, tmp_path, db, job, web)
    boot.begin([web.id])
    await asyncio.sleep(0.01)
    await bench.records.save(replace_state(db, health=Health(status="healthy")))
    await asyncio.sleep(0.15)
    assert not bench.now(web.id).is_running
    await bench.records.save(replace_state(job, status=Status.EXITED))
    await until(lambda: bench.now(web.id).is_running)


async def test_patience_ends(tmp_path: Path, benches: list[Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONDITION_PATIENCE_SECONDS", 0.01)
    db = composed(1, "db", state={"status": Status.RUNNING, "pid": 5, "health": Health(status="starting")})
    web = composed(2, "web", "db:service_healthy:true")
    bench, boot = booted(benches, tmp_path, db, web)
    boot.begin([web.id])
    await until(lambda: bench.now(web.id).is_running)


async def test_a_start_that_fails_is_tried_again(tmp_path: Path, benches: list[Bench]) -> None:
    record = ended(1, host=ALWAYS, state={"manually_stopped": True})
    bench, boot = booted(benches, tmp_path, record)
    bench.assembly.failure = OSError("the disk is not there yet")
    boot.begin([record.id])
    await until(lambda: bench.now(record.id).state.status is Status.RESTARTING)
    bench.assembly.failure = None
    await until(lambda: bench.now(record.id).is_running)


async def test_a_start_that_fails_is_told_where_no_policy_wants_another(tmp_path: Path, benches: list[Bench]) -> None:
    record = ended(1)
    bench, boot = booted(benches, tmp_path, record)
    bench.assembly.failure = OSError("broken")
    told = bench.live[record.id].waiters.next_exit()
    boot.begin([record.id])
    assert (await asyncio.wait_for(told, 5)).error == "broken"
    assert bench.now(record.id).state.status is not Status.RESTARTING
