"""Paths as docker's copy endpoints clean, resolve and name them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from engine.snapshots import paths


@pytest.mark.parametrize(
    ("asked", "cleaned", "base"),
    [
        ("/", "/", "/"),
        ("", "/", "/"),
        (".", "/.", "."),
        ("./", "/./", "."),
        ("/.", "/.", "."),
        ("/./", "/./", "."),
        ("a/b", "/a/b", "b"),
        ("/a/b/", "/a/b/", "b"),
        ("a/b/.", "/a/b/.", "."),
        ("a//../b", "/b", "b"),
        ("../../x", "/x", "x"),
        ("//x", "/x", "x"),
        ("/a/..", "/", "/"),
    ],
)
def test_trailing_dots_and_slashes_are_kept(asked: str, cleaned: str, base: str) -> None:
    assert paths.absolute(asked) == cleaned
    assert paths.base_name(cleaned) == base


@pytest.mark.parametrize(
    ("mode", "go"),
    [
        (stat.S_IFREG | 0o644, 0o644),
        (stat.S_IFDIR | 0o1777, 1 << 31 | 1 << 20 | 0o777),
        (stat.S_IFLNK | 0o777, 1 << 27 | 0o777),
        (stat.S_IFREG | 0o6755, 1 << 23 | 1 << 22 | 0o755),
        (stat.S_IFCHR | 0o600, 1 << 26 | 1 << 21 | 0o600),
        (stat.S_IFBLK | 0o600, 1 << 26 | 0o600),
        (stat.S_IFIFO | 0o600, 1 << 25 | 0o600),
        (stat.S_IFSOCK | 0o600, 1 << 24 | 0o600),
    ],
)
def test_modes_in_gos_bits(mode: int, go: int) -> None:
    assert paths.go_mode(mode) == go


def test_the_last_link_is_followed_only_behind_a_slash(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    assert paths.Place(f"{tmp_path}/link").stat()["link_target"] == str(tmp_path / "folder")
    found = paths.Place(f"{tmp_path}/link/").stat()
    assert (found["name"], found["link_target"], bool(found["mode"] & 1 << 31)) == ("link", "", True)


def test_a_slash_behind_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        paths.Place(f"{tmp_path}/file/")


def test_extraction_points(tmp_path: Path) -> None:
    (tmp_path / "data" / "in").mkdir(parents=True)
    (tmp_path / "file").touch()
    assert paths.extraction_point(f"{tmp_path}/data/.", False, []) == os.fsencode(tmp_path / "data")
    with pytest.raises(NotADirectoryError, match="extraction point is not a directory"):
        paths.extraction_point(f"{tmp_path}/file", False, [])
    with pytest.raises(OSError, match="container rootfs is marked read-only"):
        paths.extraction_point(f"{tmp_path}/data", True, [])
    with pytest.raises(OSError, match="mounted volume is marked read-only"):
        paths.extraction_point(f"{tmp_path}/data/in", True, [["/", False], [f"{tmp_path}/data", True]])
    paths.extraction_point(f"{tmp_path}/data", True, [[f"{tmp_path}/data", False]])
    (tmp_path / "data" / "out").symlink_to(tmp_path)
    (tmp_path / "way").symlink_to("data")
    paths.extraction_point(f"{tmp_path}/data/in", True, [[f"{tmp_path}/way", False]])
    with pytest.raises(OSError, match="container rootfs is marked read-only"):
        paths.extraction_point(f"{tmp_path}/data/out", True, [[f"{tmp_path}/data", False]])
    with pytest.raises(FileNotFoundError):
        paths.extraction_point(f"{tmp_path}/none", False, [])
