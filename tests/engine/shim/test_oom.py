"""Kills for want of memory are known even when the group that counted them has gone by then."""

from __future__ import annotations

from pathlib import Path

from engine.shim import oom
from engine.shim.loop import Loop


def _events(folder: Path, kills: int) -> str:
    file = folder / "memory.events"
    file.write_text(f"low 0\noom {kills}\noom_kill {kills}\n")
    return str(file)


class _Deaf(Loop):
    """Remembers who wants to be called instead of watching: no file of a test has kernfs's poll."""

    def watch(self, descriptor: int, events: int, handler: object) -> None:  # type: ignore[override]
        self.handler = handler


def test_the_count_is_the_line_of_kills(tmp_path: Path) -> None:
    assert oom.kills(_events(tmp_path, 3)) == 3
    assert oom.kills(str(tmp_path / "gone")) == 0
    assert oom.kills("") == 0


def test_what_was_noticed_outlives_the_group(tmp_path: Path) -> None:
    """systemd removes a scope at once when its last process has ended; the exit record is written after that."""
    loop, told = _Deaf(lambda _pid, _status: None), []
    path = _events(tmp_path, 0)
    watch = oom.Watch(loop, path, lambda: told.append(True))
    try:
        _events(tmp_path, 1)
        loop.handler(0)  # type: ignore[operator]
        Path(path).unlink()
        loop.handler(0)  # type: ignore[operator]
        assert (watch.noticed, told) == (1, [True])
    finally:
        watch.close()
        loop.close()
