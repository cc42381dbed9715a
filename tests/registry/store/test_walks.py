import os
from pathlib import Path

import pytest

from registry.store import walks
from registry.store.walks import find_folders_sync, split_names_sync, tidy_sync


def made(top: Path, *names: str, modified: float = 1000) -> None:
    """Files, and with a slash at the end folders, all of them changed last at that time."""
    for name in names:
        path = top / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(b"")
    for path in (top, *top.rglob("*")):
        os.utime(path, (modified, modified))


def everything(top: Path) -> set[str]:
    return {f"{path.relative_to(top)}{'/' if path.is_dir() else ''}" for path in top.rglob("*")}


def test_unfinished_files_go_with_the_folders_that_were_made_for_them(tmp_path: Path) -> None:
    top = tmp_path / "top"
    made(top, "a/b/c/link.1.tmp", "a/b/c/link.2.tmp", "d/e/link.3.tmp")
    assert tidy_sync(str(top), 2000, True) == 3 and not top.exists()


def test_without_folders_they_go_alone(tmp_path: Path) -> None:
    made(tmp_path, "a/b/c/data.1.tmp")
    assert tidy_sync(str(tmp_path), 2000, False) == 1
    assert everything(tmp_path) == {"a/", "a/b/", "a/b/c/"}


def test_what_is_whole_young_or_a_folder_stays(tmp_path: Path) -> None:
    made(tmp_path, "a/b/c/link", "a/b/d/v1.tmp/link", "e/f/g/link.1.tmp")
    young = tmp_path / "e/f/g/link.1.tmp"
    os.utime(young, (3000, 3000))
    before = everything(tmp_path)
    assert tidy_sync(str(tmp_path), 2000, True) == 0 and everything(tmp_path) == before


def test_empty_folders_go_but_for_those_that_tell_that_something_was_there(tmp_path: Path) -> None:
    top = tmp_path / "_manifests"
    made(top, "tags/", "revisions/sha256/x/")
    assert tidy_sync(str(top), 2000, True) == 0
    assert everything(tmp_path) == {"_manifests/", "_manifests/tags/", "_manifests/revisions/"}


def test_a_young_empty_folder_is_about_to_be_filled(tmp_path: Path) -> None:
    made(tmp_path, "a/b/c/")
    os.utime(tmp_path / "a/b/c", (3000, 3000))
    assert tidy_sync(str(tmp_path), 2000, True) == 0 and "a/b/c/" in everything(tmp_path)


def test_a_folder_that_is_filled_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, "a/b/c/link.1.tmp")
    rmdir = os.rmdir

    def fill_before(path: str) -> None:
        (Path(path) / "link").write_bytes(b"")
        rmdir(path)

    monkeypatch.setattr(os, "rmdir", fill_before)
    assert tidy_sync(str(tmp_path), 2000, True) == 1
    assert everything(tmp_path) == {"a/", "a/b/", "a/b/c/", "a/b/c/link"}


def test_a_tree_that_is_gone_or_a_file_is_nothing_to_walk(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for name in ("none", "file"):
        top = str(tmp_path / name)
        assert (tidy_sync(top, 2000, True), find_folders_sync(top, "x"), split_names_sync(top, "x")) == (
            0,
            [],
            ([], []),
        )


def test_long_walks_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(walks, "WALK_SECONDS", -1.0)
    monkeypatch.setattr(walks.time, "sleep", pauses.append)
    made(tmp_path, *(f"{name}/current/link" for name in "cab"), "d/")
    assert split_names_sync(str(tmp_path), "current/link") == (["a", "b", "c"], ["d"])
    assert pauses == [walks.PAUSE_SECONDS] * 4
