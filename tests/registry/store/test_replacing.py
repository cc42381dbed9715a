"""Small files beside the store: whole after a crash, and what was said about them true."""

import os
from pathlib import Path

import pytest

from registry.store.replacing import replace_file_sync


def test_bytes_are_safe_before_they_get_the_name_and_the_name_before_it_is_told(
    tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def note(source: str, target: str) -> None:
        rename(source, target)
        synced.append("renamed")

    monkeypatch.setattr(os, "rename", note)
    monkeypatch.setattr(os, "replace", note)
    path = tmp_path / "made" / "users"
    replace_file_sync(path, b"one", 0o600)
    assert synced == ["users", "renamed", "made"] and path.read_bytes() == b"one"
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("keep_access", "mode"), [(True, 0o640), (False, 0o600)])
def test_who_may_read_it_is_kept_or_said_anew(tmp_path: Path, keep_access: bool, mode: int) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    path.chmod(0o640)
    replace_file_sync(path, b"new", 0o600, keep_access=keep_access)
    assert path.read_bytes() == b"new" and path.stat().st_mode & 0o777 == mode


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        replace_file_sync(path, b"new", 0o600)
    assert [file.name for file in tmp_path.iterdir()] == ["f"] and path.read_bytes() == b"old"
