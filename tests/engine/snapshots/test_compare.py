"""What counts as a change, and how a tree is measured."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.snapshots.compare import ADDED, MODIFIED, against_lower, usage


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    upper, lower = tmp_path / "upper", tmp_path / "lower"
    upper.mkdir()
    lower.mkdir()
    return upper, lower


def found(trees: tuple[Path, Path]) -> list[tuple[bytes, int]]:
    return against_lower(*(os.fsencode(tree) for tree in trees))


def test_what_was_only_copied_up_is_no_change(trees: tuple[Path, Path]) -> None:
    for tree in trees:
        (tree / "d").mkdir()
        (tree / "d" / "f").write_text("same")
        os.utime(tree / "d" / "f", (1, 1))
    os.utime(trees[0] / "d", (5, 5))
    assert found(trees) == []


def test_size_time_and_mode_of_files_but_not_times_of_folders(trees: tuple[Path, Path]) -> None:
    for tree in trees:
        for name in ("mode", "size", "time"):
            (tree / name).write_text("x")
            os.utime(tree / name, (1, 1))
        (tree / "folder").mkdir()
    upper = trees[0]
    (upper / "mode").chmod(0o700)
    (upper / "size").write_text("xx")
    os.utime(upper / "size", (1, 1))
    os.utime(upper / "time", ns=(10**9, 10**9 + 1))
    (upper / "folder").chmod(0o700)
    assert found(trees) == [(b"/folder", MODIFIED), (b"/mode", MODIFIED), (b"/size", MODIFIED), (b"/time", MODIFIED)]


def test_a_link_below_is_not_walked_through(trees: tuple[Path, Path], tmp_path: Path) -> None:
    upper, lower = trees
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "same").touch()
    (lower / "name").symlink_to(outside)
    (upper / "name").mkdir()
    (upper / "name" / "same").touch()
    assert found(trees) == [(b"/name", MODIFIED), (b"/name/same", ADDED)]


def test_usage_counts_linked_files_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    os.link(tmp_path / "a", tmp_path / "b")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "c").write_bytes(b"1")
    (tmp_path / "l").symlink_to("a")
    assert usage(os.fsencode(tmp_path)) == (7, 4)
    assert usage(os.fsencode(tmp_path / "none")) == (0, 0)
