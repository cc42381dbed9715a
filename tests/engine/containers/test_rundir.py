"""Run folders begin empty, whatever was there."""

from __future__ import annotations

from pathlib import Path

from engine.containers import rundir


def test_a_fresh_folder_forgets_the_last_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    rundir.make_fresh_sync(folder)
    (folder / "exit.json").touch()
    (folder / "rootfs" / "left").touch()
    rundir.make_fresh_sync(folder)
    assert [path.name for path in rundir.list_sync(folder)] == ["rootfs"]
    assert rundir.list_sync(folder / "rootfs") == []
    rundir.drop_sync(folder)
    rundir.drop_sync(folder)
    assert not folder.exists() and rundir.list_sync(folder) == []
