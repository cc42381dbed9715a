"""What is brought to disk, and in what order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.kernel import durable


def test_a_tree_is_its_files_and_folders_and_no_links(tmp_path: Path, synced: list[str]) -> None:
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "inner" / "file").write_bytes(b"1")
    (tmp_path / "outside").write_bytes(b"2")
    (tree / "link").symlink_to(tmp_path / "outside")
    os.mkfifo(tree / "pipe")
    durable.sync_tree_sync(str(tree))
    assert synced == ["tree", "file", "inner"]


def test_folders_are_synced_in_order(tmp_path: Path, synced: list[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    durable.sync_folders_sync(tmp_path / "b", tmp_path / "a")
    assert synced == ["b", "a"]


def test_a_file_system_is_synced_or_it_is_said(tmp_path: Path) -> None:
    durable.sync_file_system_sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        durable.sync_file_system_sync(tmp_path / "none")


def test_one_boot_has_one_name() -> None:
    assert durable.boot_id_sync() == durable.boot_id_sync() != ""
