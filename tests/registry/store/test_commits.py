"""Group commit: whole or not at all, and what can never change is one file with several names."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

from registry.digest import Digest
from registry.store import placing
from registry.store.commits import GroupCommit
from registry.store.driver import Files
from registry.store.placing import Outcome, place_sync

from .conftest import Store

LINK = Digest.of(b"x").encode()
HEX = Digest.of(b"x").encoded


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def write_files_sync(files: Files) -> None:
    """One batch, nothing before it."""
    place_sync(files, [], [], Outcome())


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


@pytest.mark.parametrize("has_one_journal", [True, False])
async def test_names_are_safe_when_the_writer_is_told(
    tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch, has_one_journal: bool
) -> None:
    monkeypatch.setattr(placing, "_has_one_journal", lambda device: has_one_journal)
    await GroupCommit().write([(f"{tmp_path}/a/one", b"1"), (f"{tmp_path}/b/two", b"2")])
    assert synced == ["one", "two", *([] if has_one_journal else ["a"]), "b"]
    assert everything(tmp_path) == {"a/one", "b/two"}


async def test_the_files_of_the_next_batch_commit_the_names_of_the_one_before(
    tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "_has_one_journal", lambda device: True)
    commit = GroupCommit(lanes=1)
    rename = os.rename
    begun, go_on = threading.Event(), threading.Event()

    def slowly(source: str, target: str) -> None:
        begun.set()
        assert go_on.wait(10)
        rename(source, target)

    monkeypatch.setattr(os, "rename", slowly)
    first = asyncio.ensure_future(commit.write([(f"{tmp_path}/a/one", b"1")]))
    await asyncio.to_thread(begun.wait, 10)
    second = asyncio.ensure_future(commit.write([(f"{tmp_path}/b/two", b"2")]))
    await asyncio.sleep(0)
    first.add_done_callback(lambda _: synced.append("first is told"))
    second.add_done_callback(lambda _: synced.append("second is told"))
    go_on.set()
    await asyncio.gather(first, second)
    assert [name for name in synced if name != "first is told"] == ["one", "two", "b", "second is told"]
    assert synced.index("first is told") > synced.index("two")


async def test_a_batch_that_fails_does_not_take_the_one_before_along(
    tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "_has_one_journal", lambda device: True)
    (tmp_path / "file").write_bytes(b"")
    commit = GroupCommit(lanes=1)
    good = asyncio.ensure_future(commit.write([(f"{tmp_path}/a/one", b"1")]))
    await asyncio.sleep(0)
    bad = commit.write([(f"{tmp_path}/file/two", b"2")])
    results = await asyncio.gather(good, bad, return_exceptions=True)
    assert results[0] is None and isinstance(results[1], NotADirectoryError)
    assert synced == ["one", "a"]


async def test_a_folder_that_cannot_be_synced_is_told_to_who_wrote_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="broken"):
        await GroupCommit().write([(f"{tmp_path}/a/one", b"1")])


async def test_equal_files_are_left_alone_and_synced_while_they_are_young(
    tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = GroupCommit(lanes=1)
    path = tmp_path / "a" / "link"
    path.parent.mkdir()
    path.write_bytes(LINK)  # another program's, which has not synced it
    before = path.stat()
    await commit.write([(str(path), LINK)], unless_same=True)
    assert synced == ["link", "a"]
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    synced.clear()
    monkeypatch.setattr(placing, "_YOUNG_SECONDS", 0.0)
    await commit.write([(str(path), LINK)], unless_same=True)
    assert synced == []


async def test_whoever_comes_at_the_very_end_of_a_batch_is_served(tmp_path: Path) -> None:
    commit = GroupCommit(lanes=1)

    async def write_on(name: str) -> None:
        for number in range(20):
            await commit.write([(f"{tmp_path}/{name}/{number}", b"")])

    async with asyncio.timeout(20):
        await asyncio.gather(*(write_on(name) for name in "abc"))
    assert len(everything(tmp_path)) == 60


async def test_folders_that_somebody_removed_are_made_again(tmp_path: Path) -> None:
    commit = GroupCommit(lanes=1)
    for _ in range(2):
        await commit.write([(f"{tmp_path}/a/b/c/d/e/f/g/h/one", b"1"), (f"{tmp_path}/a/b/two", b"2")])
        assert everything(tmp_path) == {"a/b/c/d/e/f/g/h/one", "a/b/two"}
        shutil.rmtree(tmp_path / "a")


async def test_a_finished_file_is_safe_before_it_gets_its_name(
    tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def note(source: str, target: str) -> None:
        synced.append(f"{os.path.basename(target)} appears")
        rename(source, target)

    monkeypatch.setattr(os, "rename", note)
    monkeypatch.setattr(placing, "_has_one_journal", lambda device: True)
    (tmp_path / "upload").write_bytes(b"large")
    moves = [(f"{tmp_path}/upload", f"{tmp_path}/blobs/data")]
    await GroupCommit().write([(f"{tmp_path}/a/link", b"1")], moves=moves)
    assert synced == ["upload", "link", "data appears", "link appears", "a"]
    assert everything(tmp_path) == {"blobs/data", "a/link"}


async def test_without_a_journal_every_folder_is_synced_before_anybody_is_told(
    tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "_has_one_journal", lambda device: False)
    (tmp_path / "upload").write_bytes(b"large")
    moves = [(f"{tmp_path}/upload", f"{tmp_path}/blobs/data")]
    await GroupCommit().write([(f"{tmp_path}/a/link", b"1"), (f"{tmp_path}/b/link", b"2")], moves=moves)
    assert synced == ["upload", "link", "link", "blobs", "a", "b"]


async def test_nobody_waits_for_the_name_of_what_a_tag_named_once(
    store: Store, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "_has_one_journal", lambda device: False)
    digest = await store.image("a", "v1")
    written = synced[-6:]
    assert written == ["data", "link", "link", digest.partition(":")[2], digest.partition(":")[2], "current"]


@pytest.mark.parametrize(("journal", "is_there"), [("<none>\n", False), ("417\n", True), (None, False)])
def test_a_file_system_of_type_ext4_need_not_have_a_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: str | None, is_there: bool
) -> None:
    monkeypatch.setattr(placing, "_SYS", str(tmp_path))
    (tmp_path / "dev/block").mkdir(parents=True)
    (tmp_path / "dev/block/254:1").symlink_to("../../devices/virtual/block/dm-1")
    (tmp_path / "fs/ext4/dm-1").mkdir(parents=True)
    if journal is not None:  # as kernels before 4.20 do not say
        (tmp_path / "fs/ext4/dm-1/journal_task").write_text(journal)
    assert placing._has_journal("254:1") is is_there


async def test_what_is_spent_goes_when_all_else_is_in_place(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").write_bytes(name.encode())
        (tmp_path / name / "startedat").write_bytes(b"now")
    (tmp_path / "two" / "hashstates").mkdir()
    commit = GroupCommit()
    spent = [(f"{tmp_path}/one", ["startedat"]), (f"{tmp_path}/two", ["startedat"])]
    (tmp_path / "bad").mkdir()
    moves = [(f"{tmp_path}/{name}/data", f"{tmp_path}/blobs/{name}") for name in ("one", "two")]
    with pytest.raises(IsADirectoryError):
        await commit.write([(f"{tmp_path}/bad", b"")], moves=moves, spent=spent)
    assert everything(tmp_path) == {"blobs/one", "blobs/two", "one/startedat", "two/startedat"}
    await commit.write([(f"{tmp_path}/a/link", b"1")], spent=spent)
    assert everything(tmp_path) == {"blobs/one", "blobs/two", "a/link"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "bad", "blobs"]


async def test_what_was_moved_in_a_batch_that_failed_is_moved(
    tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "_has_one_journal", lambda device: True)
    (tmp_path / "upload").write_bytes(b"large")
    (tmp_path / "bad").mkdir()
    commit = GroupCommit(lanes=1)
    first = asyncio.ensure_future(commit.write([(f"{tmp_path}/a/one", b"1")]))
    await asyncio.sleep(0)  # the others gather while it is written
    results = await asyncio.gather(
        commit.write([(f"{tmp_path}/a/two", b"2")], moves=[(f"{tmp_path}/upload", f"{tmp_path}/blobs/data")]),
        commit.write([(f"{tmp_path}/bad", b"3")]),  # a folder: renaming fails, after everything else
        return_exceptions=True,
    )
    await first
    assert results[0] is None and isinstance(results[1], IsADirectoryError)
    with pytest.raises(FileNotFoundError):
        await commit.write([], moves=[(f"{tmp_path}/upload", f"{tmp_path}/blobs/absent")])
    assert everything(tmp_path) == {"a/one", "a/two", "blobs/data"}


async def test_the_last_change_is_what_is_synced(
    tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "_has_one_journal", lambda device: True)
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "link").write_bytes(LINK)
    await GroupCommit().write(
        [
            (f"{tmp_path}/a/one", b"1"),
            (f"{tmp_path}/b/two", b"2"),
            (f"{tmp_path}/a/three", b"3"),
            (f"{tmp_path}/z/link", LINK),
        ],
        unless_same=True,
    )
    assert synced == ["link", "one", "two", "three", "a"]


async def test_who_is_cancelled_waits_for_what_becomes_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, begun, go_on = os.rename, threading.Event(), threading.Event()

    def slowly(source: str, target: str) -> None:
        begun.set()
        assert go_on.wait(10)
        rename(source, target)

    monkeypatch.setattr(os, "rename", slowly)
    task = asyncio.create_task(GroupCommit().write([(f"{tmp_path}/a/one", b"1")]))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert everything(tmp_path) == {"a/one"}


async def test_names_that_another_lane_has_just_given_are_safe_when_they_are_found_right(
    tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that changes nothing has no last change to stand for what came before."""
    monkeypatch.setattr(placing, "_has_one_journal", lambda device: True)
    files = [(f"{tmp_path}/{name}/link", LINK) for name in ("a", "b", "c")]
    await GroupCommit().write(files)
    synced.clear()
    await GroupCommit().write(files, unless_same=True)
    assert synced == ["link", "link", "link", "a", "b", "c"]
