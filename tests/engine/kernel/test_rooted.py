"""Files below a folder that nobody trusts."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from engine.kernel.rooted import mode_in_root_sync, read_in_root_sync


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "etc").mkdir(parents=True)
    (folder / "etc/passwd").write_bytes(b"inside")
    (tmp_path / "passwd").write_bytes(b"outside")
    return folder


def test_a_plain_file_is_read(root: Path) -> None:
    assert read_in_root_sync(str(root), "etc/passwd") == b"inside"
    assert read_in_root_sync(str(root), "/etc/passwd") == b"inside"


def test_no_more_than_the_limit_is_read(root: Path) -> None:
    assert read_in_root_sync(str(root), "etc/passwd", limit=3) == b"ins"


def test_links_are_resolved_as_inside_the_root(root: Path) -> None:
    (root / "link").symlink_to("/etc/passwd")
    (root / "climb").symlink_to("../../../../etc/passwd")
    (root / "beside").symlink_to("../passwd")
    assert read_in_root_sync(str(root), "link") == b"inside"
    assert read_in_root_sync(str(root), "climb") == b"inside"
    assert read_in_root_sync(str(root), "beside") is None
    assert read_in_root_sync(str(root), "../passwd") is None


def test_a_folder_that_leads_out_does_not(root: Path, tmp_path: Path) -> None:
    (root / "out").symlink_to(tmp_path)
    assert read_in_root_sync(str(root), "out/passwd") is None


def test_magic_links_do_not_lead_out(tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w+b") as file:
        file.write(b"secret")
        file.flush()
        assert read_in_root_sync("/proc", f"self/fd/{file.fileno()}") is None


def test_what_is_no_regular_file_is_absent(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(root / "fifo")
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("s")
    loop = root / "loop"
    loop.symlink_to("loop")
    for name in ("fifo", "s", "loop", "etc", "absent", "etc/passwd/below"):
        assert read_in_root_sync(str(root), name) is None, name


def test_an_absent_root_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_in_root_sync(str(tmp_path / "absent"), "etc/passwd")


def test_other_failures_are_errors(root: Path) -> None:
    with pytest.raises(OSError, match="name too long"):
        read_in_root_sync(str(root), "x" * 300)


def test_modes_are_those_of_what_links_lead_to_inside(root: Path) -> None:
    (root / "closed").mkdir(mode=0o700)
    (root / "link").symlink_to("/closed")
    (root / "out").symlink_to("../../passwd")
    assert mode_in_root_sync(str(root), "/closed") == stat.S_IFDIR | 0o700
    assert mode_in_root_sync(str(root), "link") == stat.S_IFDIR | 0o700
    assert mode_in_root_sync(str(root), "out") is None
    assert mode_in_root_sync(str(root), "none/below") is None
