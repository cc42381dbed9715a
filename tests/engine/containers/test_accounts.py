"""Account files of containers, from the layers up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.containers.accounts import Accounts
from engine.errors import SystemFailure
from tests.support.containers import container, running


def accounts_file(root: Path, text: str, name: str = "passwd") -> None:
    (root / "etc").mkdir(parents=True, exist_ok=True)
    (root / "etc" / name).write_text(text)


class Bench:
    """Layers and writable layers in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.accounts = Accounts(lambda container_id: root / "upper" / container_id, lambda key: root / str(key))

    async def uid(self, record_layers: tuple[str, ...], user: str, number: int = 1) -> int:
        record = container(number, layers=record_layers, config={"user": user})
        return (await self.accounts.resolve(record)).uid


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    accounts_file(tmp_path / "low", "www:x:33:33::/:\n")
    accounts_file(tmp_path / "high", "www:x:44:44::/:\n")
    accounts_file(tmp_path / "low", "staff:x:50:www\n", "group")
    (tmp_path / "empty").mkdir()
    return Bench(tmp_path)


async def test_the_uppermost_layer_that_has_the_file_counts(bench: Bench) -> None:
    assert await bench.uid(("low", "high"), "www") == 44
    assert await bench.uid(("high", "low"), "www") == 33
    assert await bench.uid(("low", "empty"), "www") == 33


async def test_the_writable_layer_goes_before_the_image(bench: Bench) -> None:
    accounts_file(bench.root / "upper" / container(1).id, "www:x:55:55::/:\n")
    assert await bench.uid(("low",), "www") == 55
    assert await bench.uid(("low",), "www", number=2) == 33


async def test_an_image_is_read_once(bench: Bench) -> None:
    assert await bench.uid(("low",), "www") == 33
    accounts_file(bench.root / "low", "www:x:99:99::/:\n")
    assert await bench.uid(("low",), "www") == 33


async def test_who_is_not_there_is_said_in_dockers_words(bench: Bench) -> None:
    with pytest.raises(SystemFailure, match="unable to find user ghost: no matching entries in passwd file"):
        await bench.uid(("low",), "ghost")
    assert await bench.uid(("empty",), "1234") == 1234


async def test_another_user_and_more_groups_can_be_asked_for(bench: Bench) -> None:
    record = container(1, layers=("low",), host={"group_add": ("staff",)})
    found = await bench.accounts.resolve(record, "www")
    assert (found.uid, found.gid, found.additional_gids) == (33, 33, (33, 50))
    assert (await bench.accounts.resolve(record)).uid == 0


async def test_links_do_not_lead_out(bench: Bench, tmp_path: Path) -> None:
    accounts_file(tmp_path / "host", "evil:x:0:0::/:\n")
    (tmp_path / "bad" / "etc").mkdir(parents=True)
    (tmp_path / "bad" / "etc" / "passwd").symlink_to(tmp_path / "host/etc/passwd")
    with pytest.raises(SystemFailure):
        await bench.uid(("bad",), "evil")


@pytest.mark.skipif(os.geteuid() != 0, reason="making whiteouts needs root")
async def test_hidden_files_stay_hidden(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "without" / "etc").mkdir(parents=True)
    os.mknod(tmp_path / "without/etc/passwd", 0o020000, os.makedev(0, 0))
    with pytest.raises(SystemFailure):
        await bench.uid(("low", "without"), "www")


async def test_a_running_container_is_read_through_its_process(bench: Bench) -> None:
    record = running(1, state={"pid": os.getpid()}, layers=("low",))
    assert (await bench.accounts.resolve(record, "root")).uid == 0
    with pytest.raises(SystemFailure):
        await bench.accounts.resolve(record, "no-such-user-here")
    ended_since = running(1, state={"pid": 2**22 + 1}, layers=("low",))
    assert (await bench.accounts.resolve(ended_since, "www")).uid == 33


async def test_the_uppermost_folder_has_its_mode(bench: Bench) -> None:
    for layer, mode in (("low", 0o755), ("high", 0o700)):
        (bench.root / layer / "data").mkdir()
        (bench.root / layer / "data").chmod(mode)
    (bench.root / "high" / "file").touch()
    (bench.root / "upper" / container(1).id).mkdir(parents=True)
    record = container(1, layers=("low", "high"))
    assert await bench.accounts.folder_mode(record, "/data") == 0o700
    assert await bench.accounts.folder_mode(container(1, layers=("high", "low")), "/data") == 0o755
    assert await bench.accounts.folder_mode(record, "/file") is None
    assert await bench.accounts.folder_mode(record, "/none") is None
