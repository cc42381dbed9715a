import os
from pathlib import Path

import bcrypt
import pytest

from registry.users import read_users_sync, remove_user_sync, set_user_sync


def test_users_come_change_and_go(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "htpasswd"
    assert set_user_sync(path, "ann", "one", cost=4)
    assert set_user_sync(path, "bob", "two", cost=4)
    assert not set_user_sync(path, "ann", "three", cost=4)
    users = read_users_sync(path)
    assert sorted(users) == ["ann", "bob"]
    assert bcrypt.checkpw(b"three", users["ann"])
    assert path.stat().st_mode & 0o777 == 0o600
    assert remove_user_sync(path, "ann") and not remove_user_sync(path, "ann")
    assert list(read_users_sync(path)) == ["bob"]


def test_other_lines_survive_a_change(tmp_path: Path) -> None:
    path = tmp_path / "htpasswd"
    path.write_text("# ours\n\nold:{SHA}abc\n")
    set_user_sync(path, "new", "secret", cost=4)
    assert path.read_text().startswith("# ours\n\nold:{SHA}abc\nnew:$2b$")


@pytest.mark.parametrize("name", ["", "a:b", " a", "a\nb", "#a"])
def test_names_that_would_break_the_file_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="user name"):
        set_user_sync(tmp_path / "f", name, "pw")


@pytest.mark.parametrize("password", ["", "x" * 73, "a\0b"])
def test_passwords_bcrypt_would_cut_are_refused(tmp_path: Path, password: str) -> None:
    with pytest.raises(ValueError, match="password"):
        set_user_sync(tmp_path / "f", "a", password)


def test_a_line_without_colon_is_named(tmp_path: Path) -> None:
    path = tmp_path / "htpasswd"
    path.write_text("ok:x\nbroken\n")
    with pytest.raises(ValueError, match="line 2"):
        read_users_sync(path)


def test_whoever_may_read_the_file_may_read_the_next(tmp_path: Path) -> None:
    path = tmp_path / "users"
    set_user_sync(path, "ann", "secret", cost=4)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 12345, 12346)
    before = path.stat()
    set_user_sync(path, "bob", "secret", cost=4)
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_a_removed_user_stays_away_after_a_power_loss(tmp_path: Path, synced: list[str]) -> None:
    path = tmp_path / "auth" / "users"
    set_user_sync(path, "ann", "secret", cost=4)
    synced.clear()
    assert remove_user_sync(path, "ann")
    assert synced == ["users", "auth"]
