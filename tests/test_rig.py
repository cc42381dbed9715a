"""The rig itself: a guard that never fires would be worse than none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.loop_guard import BlockingCall, LoopGuard


def _project_function(root: Path, source: str) -> Callable[[], None]:
    path = root / "engine" / "made_up.py"
    namespace: dict[str, object] = {}
    exec(compile(source, str(path), "exec"), namespace)
    function = namespace["act"]
    assert callable(function)
    return function


def test_a_blocking_call_of_the_project_on_the_loop_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    act = _project_function(tmp_path, "import time\ndef act():\n    time.sleep(0)\n")
    LoopGuard(tmp_path, None).install(monkeypatch)

    async def main() -> None:
        act()

    with pytest.raises(BlockingCall, match=r"time\.sleep .*made_up\.py:3"):
        asyncio.run(main())


def test_the_same_call_off_the_loop_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    act = _project_function(tmp_path, "import time\ndef act():\n    time.sleep(0)\n")
    LoopGuard(tmp_path, None).install(monkeypatch)

    async def main() -> None:
        await asyncio.to_thread(act)
        time.sleep(0)

    asyncio.run(main())


def test_a_long_turn_of_the_loop_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    act = _project_function(tmp_path, "def act():\n    sum(range(300_000))\n")
    guard = LoopGuard(tmp_path, limit_seconds=0.0001)
    guard.install(monkeypatch)

    async def main() -> None:
        asyncio.get_running_loop().call_soon(act)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert len(guard.complaints) == 1
    assert guard.complaints[0].startswith("act took")
