"""A ``user[:group]`` text and the image's passwd and group files to numbers, by docker's rules and with its words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

_MAX_ID = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ResolvedUser:
    """Who the container's process runs as. ``additional_gids`` begins with the primary group, as dockerd writes it."""

    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = (0,)
    home: str = "/"


@dataclass(frozen=True, slots=True)
class _Account:
    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True)
class _Group:
    name: str
    gid: int
    members: tuple[str, ...]


def resolve_user(user: str, passwd: str, group: str, group_add: Sequence[str] = ()) -> ResolvedUser:
    """Resolve ``user`` (name or uid, optionally ``:`` group name or gid; empty is root) against the two file texts.

    Raises ``ValueError`` with docker's sentence (``unable to find user X: no matching entries in passwd file``).
    """
    user_part, _, group_part = user.partition(":")
    account = _find(_accounts(passwd), _account_test(user_part))
    uid, gid, home = (account.uid, account.gid, account.home or "/") if account else (0, 0, "/")
    if account is None and user_part:
        uid = _number(user_part, f"unable to find user {user_part}: no matching entries in passwd file")
    supplementary: tuple[int, ...] = ()
    if group_part:
        gid = _group_id(group_part, group)
    elif account is not None:
        supplementary = tuple(g.gid for g in _groups(group) if account.name in g.members)
    extra = [_group_id(name, group) for name in group_add]
    return ResolvedUser(uid, gid, tuple(dict.fromkeys([gid, *supplementary, *extra])), home)


def _account_test(user_part: str) -> Callable[[_Account], bool]:
    if not user_part:
        return lambda account: account.uid == 0
    uid = _int(user_part)
    if uid is not None:
        # A numeric user is always a uid, even where an account has that name.
        return lambda account: account.uid == uid
    return lambda account: account.name == user_part


def _group_id(name: str, group: str) -> int:
    gid = _int(name)
    found = _find(_groups(group), lambda g: g.gid == gid if gid is not None else g.name == name)
    if found is not None:
        return found.gid
    return _number(name, f"unable to find group {name}: no matching entries in group file")


def _find(items: Iterable[T], test: Callable[[T], bool]) -> T | None:
    return next((item for item in items if test(item)), None)


def _number(text: str, message: str) -> int:
    number = _int(text)
    if number is None:
        raise ValueError(message)
    if not 0 <= number <= _MAX_ID:
        raise ValueError(f"uids and gids must be in range 0-{_MAX_ID}")
    return number


def _int(text: str) -> int | None:
    digits = text[1:] if text[:1] in "+-" else text
    return int(text) if digits.isascii() and digits.isdigit() else None


def _accounts(passwd: str) -> Iterator[_Account]:
    for fields in _lines(passwd):
        padded = [*fields, *[""] * 7]
        yield _Account(padded[0], _int(padded[2]) or 0, _int(padded[3]) or 0, padded[5])


def _groups(group: str) -> Iterator[_Group]:
    for fields in _lines(group):
        padded = [*fields, *[""] * 4]
        yield _Group(padded[0], _int(padded[2]) or 0, tuple(m for m in padded[3].split(",") if m))


def _lines(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.strip().split(":")
