"""Whose ids of the host a container's users are: subuid(5) as dockerd reads it."""

from __future__ import annotations

import grp
import pwd
from pathlib import Path

import pytest

from engine.kernel import idmap
from engine.kernel.idmap import IdMap, IdRange, idmap_of_sync, next_free, ranges_of

TEXT = """# comment

alice:100000:65536
bob:165536:1000
1001:300000:10
alice:400000:5
"""


def test_a_users_ranges_are_counted_up_in_the_files_order() -> None:
    assert ranges_of(TEXT, ("alice", "1000")) == (IdRange(0, 100000, 65536), IdRange(65536, 400000, 5))
    assert ranges_of(TEXT, ("carol", "1001")) == (IdRange(0, 300000, 10),)
    assert ranges_of(TEXT, ("nobody",)) == ()


@pytest.mark.parametrize("line", ["alice", "alice:1", "alice:x:1", "alice:1:2:3"])
def test_a_line_that_is_no_range_is_told(line: str) -> None:
    with pytest.raises(ValueError, match=f"cannot parse '{line}'"):
        ranges_of(line, ("bob",))


def test_new_ranges_lie_above_all_others() -> None:
    assert next_free("") == 100000
    assert next_free(TEXT) == 400005
    assert next_free("low:1:2\nbroken\n") == 100000


def test_root_and_the_last_group() -> None:
    ids = IdMap((IdRange(0, 100, 10),), (IdRange(0, 200, 10), IdRange(10, 500, 5)))
    assert ids.root == (100, 200)
    assert ids.last_gid == 14
    assert str(ids.gids[1]) == "10 500 5"


def test_the_inverse_leaves_no_id_out() -> None:
    ids = IdMap((IdRange(0, 100, 10),), (IdRange(0, 5, 10), IdRange(10, 2**32 - 4, 3)))
    last = 2**32 - 1
    assert ids.inverse.uids == (
        IdRange(100, 0, 10), IdRange(0, 10, 100), IdRange(110, 110, last - 110),
    )  # fmt: skip
    assert ids.inverse.gids == (
        IdRange(5, 0, 10), IdRange(2**32 - 4, 10, 3), IdRange(0, 13, 5), IdRange(15, 18, last - 18),
    )  # fmt: skip


class Files:
    """The two files, and a user and a group that exist."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[tuple[str, ...]] = []
        self.subuid, self.subgid = folder / "subuid", folder / "subgid"
        self.users = {"alice": 1000}
        self.groups = {"alice": 1000, "staff": 50}
        monkeypatch.setattr(idmap, "_SUBUID", self.subuid)
        monkeypatch.setattr(idmap, "_SUBGID", self.subgid)
        monkeypatch.setattr(pwd, "getpwnam", self.getpwnam)
        monkeypatch.setattr(pwd, "getpwuid", lambda uid: self.getpwnam({v: k for k, v in self.users.items()}[uid]))
        monkeypatch.setattr(grp, "getgrnam", self.getgrnam)
        monkeypatch.setattr(grp, "getgrgid", lambda gid: self.getgrnam({v: k for k, v in self.groups.items()}[gid]))
        monkeypatch.setattr(idmap, "_run", self.run)

    def getpwnam(self, name: str) -> pwd.struct_passwd:
        return pwd.struct_passwd((name, "x", self.users[name], 0, "", "/", "/bin/false"))

    def getgrnam(self, name: str) -> grp.struct_group:
        return grp.struct_group((name, "x", self.groups[name], []))

    def run(self, *command: str) -> None:
        self.ran.append(command)
        if command[0] == "useradd":
            self.users["dockremap"] = self.groups["dockremap"] = 999
        else:
            first, _, last = command[2].partition("-")
            file = self.subuid if command[1] == "--add-subuids" else self.subgid
            with file.open("a") as out:
                out.write(f"{command[3]}:{first}:{int(last) - int(first) + 1}\n")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    return Files(tmp_path, monkeypatch)


@pytest.mark.parametrize("setting", ["alice", "1000", "alice:alice", "1000:1000", "alice:staff"])
def test_a_user_by_name_or_number(files: Files, setting: str) -> None:
    files.subuid.write_text(TEXT)
    files.subgid.write_text("alice:700000:65536\n")
    found = idmap_of_sync(setting)
    assert found is not None and found.root == (100000, 700000)


def test_groups_may_be_the_groups(files: Files) -> None:
    files.subuid.write_text(TEXT)
    files.subgid.write_text("staff:800000:65536\n")
    found = idmap_of_sync("alice:staff")
    assert found is not None and found.gids == (IdRange(0, 800000, 65536),)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("a:b:c", 'Invalid user/group specification in --userns-remap: "a:b:c"'),
        ("bob", 'Error during uid lookup for "bob": getent unable to find entry "bob" in passwd database'),
        ("77", 'Uid 77 has no entry in /etc/passwd: getent unable to find entry "77" in passwd database'),
        ("alice:x", 'Error during groupname lookup for "x": getent unable to find entry "x" in group database'),
        ("alice:77", 'Gid 77 has no entry in /etc/group: getent unable to find entry "77" in group database'),
        ("alice", 'Can\'t create ID mappings: no subuid ranges found for user "alice"'),
    ],
)
def test_what_cannot_be_is_told_as_dockerd_does(files: Files, setting: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        idmap_of_sync(setting)
    assert str(caught.value) == words


def test_a_user_without_a_group_of_its_name(files: Files) -> None:
    del files.groups["alice"]
    with pytest.raises(ValueError, match='^Error during gid lookup for "alice"'):
        idmap_of_sync("alice")


def test_nothing_and_root_turn_nothing_on(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    assert idmap_of_sync("") is None
    files.users["root"] = files.groups["root"] = 0
    assert idmap_of_sync("root") is None
    assert "root cannot be remapped with itself" in caplog.text


def test_the_default_user_is_made_with_ranges_once(files: Files) -> None:
    files.subuid.write_text(TEXT)
    found = idmap_of_sync("default")
    assert found is not None and found.root == (400005, 100000)
    assert [command[0] for command in files.ran] == ["useradd", "usermod", "usermod"]
    assert idmap_of_sync("default") == found
    assert len(files.ran) == 3


def test_a_program_that_fails_is_told() -> None:
    with pytest.raises(OSError, match="^cannot make the user dockremap: sh: no$"):
        idmap._run("sh", "-c", "echo no >&2; exit 3")
