"""Places below a volume."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.containers.subpaths import is_empty_folder_sync, subpath_sync
from engine.errors import InvalidParameter


def test_links_lead_to_places_within_but_not_out(tmp_path: Path) -> None:
    root = tmp_path / "volume"
    (root / "a" / "b").mkdir(parents=True)
    (root / "within").symlink_to("a/b")
    (root / "out").symlink_to("../..")
    (root / "absolute").symlink_to("/etc")
    assert subpath_sync(root, "within") == root / "a" / "b"
    assert subpath_sync(root, "a/../a/b") == root / "a" / "b"
    for escape in ("out", "absolute/passwd", "../x"):
        with pytest.raises(InvalidParameter, match="path concatenation escapes the base directory"):
            subpath_sync(root, escape)
    with pytest.raises(InvalidParameter, match="^cannot access path .*/volume/none"):
        subpath_sync(root, "none")


def test_only_a_folder_with_nothing_in_it_is_empty(tmp_path: Path) -> None:
    assert is_empty_folder_sync(tmp_path)
    (tmp_path / "file").touch()
    assert not is_empty_folder_sync(tmp_path)
    assert not is_empty_folder_sync(tmp_path / "file")
    assert not is_empty_folder_sync(tmp_path / "none")
