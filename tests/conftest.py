"""What every test stands on: a guard on the event loop, leak checks for tasks and descriptors, short temporary roots.

Warnings are errors (pyproject.toml). A test fails when project code makes a blocking call on a running loop, when a
task of the project outlives it, or when it leaves a file, socket or pipe open.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings

from tests.support.loop_guard import LoopGuard

PROJECT = Path(__file__).resolve().parent.parent
_TESTS = PROJECT / "tests"
# How long an example takes says something about the machine, not about us.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by folder, and skip what needs root where we are not."""
    needs_root = pytest.mark.skip(reason="needs root")
    for item in items:
        folder = item.path.relative_to(_TESTS).parts[0] if item.path.is_relative_to(_TESTS) else ""
        if folder in ("system", "compat"):
            item.add_marker(getattr(pytest.mark, folder))
        if os.geteuid() != 0 and (item.get_closest_marker("system") or item.get_closest_marker("compat")):
            item.add_marker(needs_root)


def pytest_collection_finish() -> None:
    """What all tests share is taken out of collections, which would walk it in the middle of some test's turn."""
    gc.collect()
    gc.freeze()


def pytest_configure() -> None:
    """Open a loop once: the first of a process keeps descriptors (uvloop: a signal pipe), which no test leaks."""
    for make in pytest_asyncio_loop_factories().values():
        loop = make()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """asyncio's own loop, or uvloop with BERTH_TEST_LOOP=uvloop; the gates run both."""
    if os.environ.get("BERTH_TEST_LOOP") == "uvloop":
        import uvloop

        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture
def short_root() -> Iterator[Path]:
    """A temporary folder with a path short enough for unix sockets inside it (107 bytes)."""
    folder = Path(tempfile.mkdtemp(prefix="berth-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was synced so far, by name: files under their temporary one."""
    names: list[str] = []

    def note(sync: Callable[[int], None]) -> Callable[[int], None]:
        def instead(descriptor: int) -> None:
            sync(descriptor)
            names.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")).partition(".")[0])

        return instead

    monkeypatch.setattr(os, "fdatasync", note(os.fdatasync))
    monkeypatch.setattr(os, "fsync", note(os.fsync))
    return names


def _open_descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
    return found


def _is_ours(target: str) -> bool:
    # Kernel event objects belong to loops, which pytest-asyncio keeps and closes by itself.
    return not target.startswith(("anon_inode:", "/dev/", "/proc/"))


@pytest.fixture(autouse=True)
def _descriptors(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a unit test that leaves files, sockets or pipes open."""
    if request.node.get_closest_marker("system") or request.node.get_closest_marker("compat"):
        yield
        return
    before = _open_descriptors()
    yield
    if "engine.tasks" in sys.modules:
        sys.modules["engine.tasks"].close_pools()
    if _new_descriptors(before):
        gc.collect()
    leaked = _new_descriptors(before)
    if leaked:
        pytest.fail(f"left open: {leaked}")


def _new_descriptors(before: dict[int, str]) -> list[str]:
    return [target for fd, target in _open_descriptors().items() if before.get(fd) != target and _is_ours(target)]


_NOTICE_TURNS = 100


def _unfinished() -> list[asyncio.Task[object]]:
    return [task for task in asyncio.all_tasks() if task is not asyncio.current_task() and not task.done()]


@pytest_asyncio.fixture
async def _owned_tasks() -> AsyncIterator[None]:
    yield
    # A moment for tasks that have been cancelled, or whose client is gone, and only need to notice.
    for _ in range(_NOTICE_TURNS):
        if not any(_from_project(task) for task in _unfinished()):
            break
        await asyncio.sleep(0.01)
    left = _unfinished()
    ours = [task.get_name() for task in left if _from_project(task)]
    if ours:
        pytest.fail(f"tasks outlived the test: {ours}")


def _from_project(task: asyncio.Task[object]) -> bool:
    code = getattr(task.get_coro(), "cr_code", None)
    path = Path(code.co_filename) if code else Path()
    # tox keeps its environments, and so the libraries, below the project.
    return path.is_relative_to(PROJECT) and not path.is_relative_to(_TESTS) and "site-packages" not in path.parts


@pytest.fixture(autouse=True)
def _loop_guard(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test whose project code blocks a running event loop."""
    if not inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        yield
        return
    guard = LoopGuard(PROJECT, limit_seconds=None if request.node.get_closest_marker("slow_loop") else 0.1)
    guard.install(monkeypatch)
    request.getfixturevalue("_owned_tasks")
    yield
    if guard.complaints:
        pytest.fail("the event loop was blocked:\n" + "\n".join(guard.complaints))
