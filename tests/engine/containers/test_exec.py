"""Exec instances from creation to their exit code."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from engine.containers import exec as module
from engine.containers.exec import Exec
from engine.containers.live import StreamChoice
from engine.containers.model import Status, exited
from engine.containers.settings import ExecSettings
from engine.errors import Conflict, InvalidParameter, NotFound, SystemFailure
from engine.runtime.shims import ShimLost
from tests.support.containers import container, ended, running
from tests.support.runs import Bench, FakeShim, refused, until

RUNNING = running(2, name="box")
LS = ExecSettings(cmd=("ls", "-l"))


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(
        tmp_path,
        RUNNING,
        container(1, name="new"),
        ended(3, name="old"),
        running(4, name="frozen", state={"status": Status.PAUSED}),
        ended(5, name="again", state={"status": Status.RESTARTING}),
    )
    yield made
    await made.aclose()


@pytest_asyncio.fixture
async def shim(bench: Bench) -> FakeShim:
    return bench.adopt(RUNNING)


async def started(bench: Bench, settings: ExecSettings = LS) -> Exec:
    instance = bench.execs.claim(bench.execs.create("box", settings).id)
    await bench.execs.prepare(instance, None, None)
    await bench.execs.start(instance)
    return instance


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("new", "is not running"),
        ("old", "is not running"),
        ("frozen", "Container frozen is paused, unpause the container before exec"),
        ("again", "is restarting, wait until the container is running"),
    ],
)
async def test_only_running_containers_take_execs(bench: Bench, name: str, words: str) -> None:
    with pytest.raises(Conflict, match=words):
        bench.execs.create(name, LS)


async def test_a_command_is_needed(bench: Bench) -> None:
    with pytest.raises(InvalidParameter, match="No exec command specified"):
        bench.execs.create("box", ExecSettings())
    with pytest.raises(NotFound, match="No such container: nobody"):
        bench.execs.create("nobody", LS)
    with pytest.raises(NotFound, match="No such exec instance: e1"):
        bench.execs.find("e1")


async def test_an_execs_life(bench: Bench, shim: FakeShim) -> None:
    instance = await started(bench)
    assert (instance.running, instance.pid, instance.exit_code) == (True, 77, None)
    assert bench.execs.of_container(RUNNING.id) == [instance.id]
    shim.end_exec(instance.id, 3)
    await until(lambda: not instance.running)
    assert instance.exit_code == 3
    assert bench.execs.of_container(RUNNING.id) == []
    assert bench.actions() == ["exec_create: ls -l", "exec_start: ls -l", "exec_die"]
    assert bench.attributes("exec_die") == {
        "image": "busybox",
        "name": "box",
        "execID": instance.id,
        "exitCode": "3",
    }


async def test_it_is_started_once(bench: Bench, shim: FakeShim) -> None:
    instance = await started(bench)
    with pytest.raises(Conflict, match=f"Error: Exec command {instance.id} is already running"):
        bench.execs.claim(instance.id)
    shim.end_exec(instance.id, 0)
    await until(lambda: not instance.running)
    with pytest.raises(Conflict, match="has already run"):
        bench.execs.claim(instance.id)


async def test_the_container_must_still_run_when_it_is_started(bench: Bench) -> None:
    instance = bench.execs.create("box", LS)
    await bench.records.save(running(2, name="box", state={"status": Status.PAUSED}))
    with pytest.raises(Conflict, match="is paused"):
        bench.execs.claim(instance.id)
    await bench.records.save(RUNNING)
    assert bench.execs.claim(instance.id) is instance


async def test_streams_and_sizes_are_as_asked(bench: Bench, shim: FakeShim) -> None:
    settings = ExecSettings(cmd=("sh",), tty=True, console_size=(24, 80))
    instance = bench.execs.create("box", settings)
    stream = await bench.execs.prepare(instance, StreamChoice(True, True, False), None)
    assert stream is not None
    stream.close()
    spec = shim.prepared[0]
    assert (spec.terminal, spec.open_stdin, spec.console_size) == (True, True, (24, 80))
    assert shim.attached == [
        {"stdin": True, "stdout": True, "stderr": False, "exec_id": instance.id, "close_stdin_on_eof": True}
    ]
    assert await bench.execs.prepare(instance, None, (0, 0)) is None
    assert (shim.prepared[1].open_stdin, shim.prepared[1].console_size) == (False, None)
    await bench.execs.prepare(instance, None, (5, 6))
    assert shim.prepared[2].console_size == (5, 6)


@pytest.mark.parametrize(("hint", "kind"), [(126, InvalidParameter), (127, InvalidParameter), (128, SystemFailure)])
async def test_what_cannot_run_keeps_its_exit_code(
    bench: Bench, shim: FakeShim, hint: int, kind: type[Exception]
) -> None:
    shim.exec_failure = refused("no such program", hint)
    instance = bench.execs.claim(bench.execs.create("box", LS).id)
    with pytest.raises(kind, match="no such program"):
        await bench.execs.start(instance)
    assert (instance.exit_code, instance.running) == (hint, False)


async def test_a_lost_shim_ends_it(bench: Bench, shim: FakeShim) -> None:
    instance = await started(bench)
    shim.end_exec(instance.id, ShimLost())
    await until(lambda: not instance.running)
    assert instance.exit_code == 137


async def test_resizing_and_killing(bench: Bench, shim: FakeShim) -> None:
    idle = bench.execs.create("box", LS)
    with pytest.raises(Conflict, match="cannot resize a stopped exec"):
        await bench.execs.resize(idle.id, 1, 2)
    with pytest.raises(Conflict, match="is not running"):
        await bench.execs.kill(idle.id, "TERM")
    instance = await started(bench)
    await bench.execs.resize(instance.id, 24, 80)
    assert shim.sizes == [(24, 80, instance.id)]
    await bench.execs.kill(instance.id, "TERM")
    await bench.execs.kill(instance.id, "")
    assert shim.exec_signals == [(instance.id, 15), (instance.id, 9)]
    await bench.records.save(exited(bench.store.find("box"), 0, 9))
    with pytest.raises(Conflict, match="is not running"):
        await bench.execs.resize(instance.id, 24, 80)


async def test_a_container_that_is_gone_takes_its_execs_along(bench: Bench, shim: FakeShim) -> None:
    instance = bench.execs.create("box", LS)
    bench.execs.forget("another")
    assert bench.execs.find(instance.id) is instance
    bench.execs.forget(RUNNING.id)
    with pytest.raises(NotFound):
        bench.execs.find(instance.id)


async def test_only_the_last_ended_ones_are_remembered(
    bench: Bench, shim: FakeShim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 2)
    waiting = bench.execs.create("box", LS)
    ended_ones = []
    for _ in range(6):
        instance = bench.execs.create("box", LS)
        instance.exit_code = 0
        ended_ones.append(instance.id)
    known = [exec_id for exec_id in ended_ones if exec_id in bench.execs._by_id]
    assert known == ended_ones[-len(known) :]
    assert len(known) < 5
    assert bench.execs.find(waiting.id) is waiting


def test_a_command_without_arguments_ends_with_a_space_in_events() -> None:
    assert ExecSettings(cmd=("ls", "-l", "x y")).command == "ls -l x y"
    assert ExecSettings(cmd=("true",)).command == "true "
