"""A copied snapshot's changes against the facts taken when it was made."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from engine.snapshots.compare import ADDED, DELETED, MODIFIED
from engine.snapshots.stacking import Stacker, against_facts, facts_of, walk


def facts(folder: Path) -> dict[str, list[int]]:
    return {os.fsdecode(path): facts_of(info) for path, info in walk(os.fsencode(folder))}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "d" / "e").mkdir(parents=True)
    (root / "d" / "e" / "f").write_text("1")
    (root / "gone" / "deep").mkdir(parents=True)
    (root / "turned").mkdir()
    (root / "turned" / "inner").touch()
    return root


def test_changes_are_told_with_their_parents(root: Path) -> None:
    before = facts(root)
    assert against_facts(os.fsencode(root), before) == []
    (root / "d" / "e" / "f").write_text("22")
    shutil.rmtree(root / "gone")
    shutil.rmtree(root / "turned")
    (root / "turned").symlink_to("d")
    (root / "new").mkdir()
    (root / "new" / "x").touch()
    assert against_facts(os.fsencode(root), before) == [
        (b"/d", MODIFIED),
        (b"/d/e", MODIFIED),
        (b"/d/e/f", MODIFIED),
        (b"/gone", DELETED),
        (b"/new", ADDED),
        (b"/new/x", ADDED),
        (b"/turned", MODIFIED),
    ]


def test_links_in_a_lower_layer_lead_nowhere(tmp_path: Path) -> None:
    outside, dest, layer = (tmp_path / name for name in ("outside", "dest", "layer"))
    for folder in (outside, dest, layer):
        folder.mkdir()
    (dest / "name").symlink_to(outside)
    (layer / "name").mkdir()
    (layer / "name" / "evil").write_text("x")
    os.link(layer / "name" / "evil", layer / "twin")
    Stacker(os.fsencode(layer), os.fsencode(dest)).run(keep_root=True)
    assert list(outside.iterdir()) == []
    assert (dest / "name" / "evil").read_text() == "x" and not (dest / "name").is_symlink()
    assert (dest / "twin").stat().st_ino == (dest / "name" / "evil").stat().st_ino
