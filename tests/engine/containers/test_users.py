"""A user text and the image's account files to numbers."""

from __future__ import annotations

import pytest

from engine.containers.users import ResolvedUser, resolve_user

PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\n# a comment\n\nwww:x:33:33:www:/srv:/bin/sh\nnohome:x:40:41\n1000:x:5:5::/odd:\n"
)
GROUP = "root:x:0:\nwww:x:33:\nstaff:x:50:www,root\n"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", ResolvedUser(0, 0, (0, 50), "/root")),
        ("root", ResolvedUser(0, 0, (0, 50), "/root")),
        ("www", ResolvedUser(33, 33, (33, 50), "/srv")),
        ("33", ResolvedUser(33, 33, (33, 50), "/srv")),
        ("www:staff", ResolvedUser(33, 50, (50,), "/srv")),
        ("www:77", ResolvedUser(33, 77, (77,), "/srv")),
        ("nohome", ResolvedUser(40, 41, (41,), "/")),
        ("1000", ResolvedUser(1000, 0, (0,), "/")),
        ("1000:50", ResolvedUser(1000, 50, (50,), "/")),
    ],
)
def test_users(user: str, expected: ResolvedUser) -> None:
    assert resolve_user(user, PASSWD, GROUP) == expected


def test_groups_are_added_by_name_and_number_once() -> None:
    assert resolve_user("1000", PASSWD, GROUP, ("staff", "50", "20")).additional_gids == (0, 50, 20)


def test_an_image_without_accounts_runs_as_root() -> None:
    assert resolve_user("", "", "") == ResolvedUser(0, 0, (0,), "/")


@pytest.mark.parametrize(
    ("user", "groups", "words"),
    [
        ("nobody", (), "unable to find user nobody: no matching entries in passwd file"),
        ("www:none", (), "unable to find group none: no matching entries in group file"),
        ("www", ("none",), "unable to find group none: no matching entries in group file"),
        ("-5", (), "uids and gids must be in range 0-2147483647"),
        ("2147483648", (), "uids and gids must be in range"),
    ],
)
def test_errors_in_dockers_words(user: str, groups: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        resolve_user(user, PASSWD, GROUP, groups)
