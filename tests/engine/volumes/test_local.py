"""Folders of local volumes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from engine.volumes import local as local_driver
from engine.volumes.local import LocalFolders
from engine.volumes.model import MountRequest


def folders(tmp_path: Path) -> LocalFolders:
    made = LocalFolders(tmp_path / "volumes")
    made.prepare_sync()
    return made


def test_a_volume_is_a_folder_and_is_taken_away_whole(tmp_path: Path) -> None:
    local = folders(tmp_path)
    local.create_sync("one")
    local.create_sync("one")
    assert local.data("one") == tmp_path / "volumes" / "one" / "_data"
    assert local.data("one").stat().st_mode & 0o777 == 0o755
    assert list(local.names_sync()) == ["one"]
    gone = local.discard_sync("one")
    assert gone is not None
    assert local.names_sync() == {}
    assert (gone / "_data").is_dir()
    local.empty_trash_sync(gone)
    assert not gone.exists()
    assert local.discard_sync("one") is None


def test_volumes_come_and_go_on_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = folders(tmp_path)
    seen: list[list[str]] = []
    monkeypatch.setattr(local_driver, "sync_folders_sync", lambda root: seen.append(sorted(os.listdir(root))))
    local.create_sync("one")
    local.discard_sync("one")
    assert seen == [["one"], [".trash"]]


def test_a_removal_that_was_cut_short_is_finished_at_the_next_start(tmp_path: Path) -> None:
    local = folders(tmp_path)
    local.create_sync("one")
    gone = local.discard_sync("one")
    assert gone is not None
    local.prepare_sync()
    assert not gone.exists()


def test_links_in_a_volume_are_not_followed_when_it_is_deleted(tmp_path: Path) -> None:
    local = folders(tmp_path)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    local.create_sync("one")
    (local.data("one") / "link").symlink_to(precious)
    gone = local.discard_sync("one")
    assert gone is not None
    local.empty_trash_sync(gone)
    assert (precious / "file").read_text() == "x"


def test_emptiness_and_size(tmp_path: Path) -> None:
    local = folders(tmp_path)
    local.create_sync("one")
    assert local.is_empty_sync("one")
    assert local.is_empty_sync("missing")
    (local.data("one") / "sub").mkdir()
    assert local.size_sync("one") == 0  # folders count for nothing
    (local.data("one") / "sub" / "file").write_bytes(b"x" * 1000)
    os.link(local.data("one") / "sub" / "file", local.data("one") / "again")
    (local.data("one") / "link").symlink_to("/etc")
    assert not local.is_empty_sync("one")
    assert local.size_sync("one") == 1000 + len("/etc")
    assert local.size_sync("missing") == 0
    assert not local.is_mounted_sync("one")
    local.unmount_sync("one")


class _Quota:
    def __init__(self) -> None:
        self.limits: list[tuple[Path, int]] = []

    def limit_sync(self, folder: Path, size_bytes: int) -> None:
        self.limits.append((folder, size_bytes))


def test_a_size_is_a_project_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On xfs or ext4 with project quotas a volume has a size, as with dockerd."""
    known = _Quota()
    monkeypatch.setattr(local_driver.quota, "probe_sync", lambda _root, _first: known)
    limited = LocalFolders(tmp_path / "volumes")
    assert not limited.can_limit
    limited.prepare_sync()
    assert limited.can_limit
    limited.create_sync("small", 5 << 20)
    limited.create_sync("small", 5 << 20)
    limited.create_sync("large")
    assert known.limits == [(tmp_path / "volumes" / "small", 5 << 20)]


def test_a_server_that_nobody_knows_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_name: str, _port: None) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(local_driver.socket, "getaddrinfo", unknown)
    local = folders(tmp_path)
    local.create_sync("one")
    words = "error resolving passed in network volume address: lookup nosuch.invalid: no such host"
    with pytest.raises(OSError, match=f"^{words}$"):
        local.mount_sync("one", MountRequest(":/x", "nfs", ("addr=nosuch.invalid",)))
