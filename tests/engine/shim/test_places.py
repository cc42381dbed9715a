"""What mounts cover has the modes that runc gives it, and no link is followed to make it."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.shim import places


def modes(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.lstat().st_mode & 0o7777 for path in root.rglob("*")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def test_folders_and_files_that_are_missing_are_made(root: Path) -> None:
    places.make(str(root), "/a/b", is_file=False)
    places.make(str(root), "/a/c/file", is_file=True)
    assert modes(root) == {"a": 0o755, "a/b": 0o755, "a/c": 0o755, "a/c/file": 0o755}


def test_what_is_there_stays_as_it_is(root: Path) -> None:
    (root / "there").mkdir(mode=0o700)
    places.make(str(root), "/there", is_file=True)
    places.make(str(root), "/there/in", is_file=False)
    assert modes(root) == {"there": 0o700, "there/in": 0o755}


def test_nothing_is_made_through_a_link_or_a_file(root: Path) -> None:
    (root.parent / "outside").mkdir()
    (root / "link").symlink_to("../outside")
    (root / "file").touch()
    before = modes(root.parent)
    for place in ("/link/x", "/link/x/y", "/file/x"):
        places.make(str(root), place, is_file=False)
    places.make(str(root.parent / "missing"), "/x", is_file=False)
    assert modes(root.parent) == before
