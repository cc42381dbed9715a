"""Group commit: whole or not at all, and what can never change is one file with several names."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from registry.digest import Digest
from registry.store.commits import write_files_sync

from .conftest import Store

LINK = Digest.of(b"x").encode()
HEX = Digest.of(b"x").encoded


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


async def test_a_pushed_manifests_fixed_links_are_one_file_and_its_tag_is_another(store: Store) -> None:
    digest = await store.image("a", "v1")
    folder = store.root / "docker/registry/v2/repositories/a/_manifests"
    revision = folder / "revisions/sha256" / digest.encoded / "link"
    history = folder / "tags/v1/index/sha256" / digest.encoded / "link"
    current = folder / "tags/v1/current/link"
    assert revision.samefile(history)
    assert current.stat().st_nlink == 1, "registry:2 overwrites it in place"
    assert current.read_text() == revision.read_text() == digest
    await store.image("a", "v1", b"other")
    assert revision.read_text() == digest != current.read_text()


def test_the_same_link_twice_in_a_batch_leaves_nothing_behind(tmp_path: Path) -> None:
    one, two = f"{tmp_path}/a/{HEX}/link", f"{tmp_path}/b/{HEX}/link"
    write_files_sync([(one, LINK), (two, LINK), (one, LINK)])
    assert everything(tmp_path) == {f"a/{HEX}/link", f"b/{HEX}/link"}
    write_files_sync([(two, LINK), (one, LINK)])
    assert everything(tmp_path) == {f"a/{HEX}/link", f"b/{HEX}/link"}
    assert Path(one).read_bytes() == Path(two).read_bytes() == LINK


def test_file_systems_without_hard_links_get_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no such thing here")

    monkeypatch.setattr(os, "link", refuse)
    one, two = tmp_path / "a" / HEX / "link", tmp_path / "b" / HEX / "link"
    write_files_sync([(str(one), LINK), (str(two), LINK)])
    assert one.read_bytes() == two.read_bytes() == LINK and not one.samefile(two)


def test_a_batch_that_fails_leaves_no_unfinished_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(OSError, match="full"):
        write_files_sync([(f"{tmp_path}/a/{HEX}/link", LINK), (f"{tmp_path}/b/{HEX}/link", LINK)])
    assert everything(tmp_path) == set()
