"""Which ids of the host the users of containers are: ranges of /etc/subuid and /etc/subgid, and namespaces of them.

``userns-remap`` names a user; the ranges are those of its name or its number, in the files' order, and container ids
count up through them from 0 (subuid(5), user_namespaces(7)). ``default`` is the user ``dockremap``, made where missing.
"""

from __future__ import annotations

import contextlib
import grp
import logging
import os
import pwd
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

DEFAULT_USER = "dockremap"
FIRST_ID, RANGE_LENGTH = 100_000, 65_536  # of the ranges that are made, as dockerd makes them
PROGRAM_SECONDS = 30.0
_END = 2**32 - 1  # the last number stands for no id
_SUBUID, _SUBGID = Path("/etc/subuid"), Path("/etc/subgid")


@dataclass(frozen=True, slots=True)
class IdRange:
    """``count`` ids that begin at ``inside`` in the container and at ``outside`` on the host."""

    inside: int
    outside: int
    count: int

    def __str__(self) -> str:
        return f"{self.inside} {self.outside} {self.count}"


@dataclass(frozen=True, slots=True)
class IdMap:
    """The ids of a user namespace."""

    uids: tuple[IdRange, ...]
    gids: tuple[IdRange, ...]

    @property
    def root(self) -> tuple[int, int]:
        """What container root is on the host."""
        return self.uids[0].outside, self.gids[0].outside

    @property
    def inverse(self) -> IdMap:
        """What makes the host's ids the container's; ids that it does not have become those that are left over.

        None is left out: the kernel lets nobody write to what has an owner without an id.
        """
        return IdMap(_turned(self.uids), _turned(self.gids))

    @property
    def last_gid(self) -> int:
        """The highest group a container has."""
        return self.gids[-1].inside + self.gids[-1].count - 1


def _turned(ranges: tuple[IdRange, ...]) -> tuple[IdRange, ...]:
    found = [IdRange(one.outside, one.inside, one.count) for one in ranges]
    inside, outside = _gaps((one.inside, one.count) for one in found), _gaps((one.outside, one.count) for one in found)
    while inside and outside:
        (first, many), (second, more) = inside.pop(), outside.pop()
        count = min(many, more)
        found.append(IdRange(first, second, count))
        inside += [(first + count, many - count)] if many > count else []
        outside += [(second + count, more - count)] if more > count else []
    return tuple(found)


def _gaps(taken: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ids between ranges of (first, count), last ones first."""
    gaps, free = [], 0
    for first, count in sorted([*taken, (_END, 0)]):
        if first > free:
            gaps.append((free, first - free))
        free = first + count
    return gaps[::-1]


def ranges_of(text: str, names: tuple[str, ...]) -> tuple[IdRange, ...]:
    """The ranges that a subuid(5) file gives to any of ``names``. Raises ``ValueError`` for a line that is none."""
    found: list[IdRange] = []
    inside = 0
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        parts = line.split(":")
        if len(parts) != 3 or not (parts[1].isdigit() and parts[2].isdigit()):
            raise ValueError(f"cannot parse {line!r}: it is not name:first:count")
        if parts[0] in names:
            found.append(IdRange(inside, int(parts[1]), int(parts[2])))
            inside += int(parts[2])
    return tuple(found)


def next_free(text: str) -> int:
    """The first id above all ranges of a subuid(5) file."""
    ends = [FIRST_ID]
    for line in text.splitlines():
        _, _, numbers = line.partition(":")
        first, _, count = numbers.partition(":")
        if first.isdigit() and count.isdigit():
            ends.append(int(first) + int(count))
    return max(ends)


def idmap_of_sync(setting: str) -> IdMap | None:
    """What a value of ``userns-remap`` means; None where it turns nothing on. Raises ``ValueError``, ``OSError``."""
    if not setting:
        return None
    name, group = _named(setting)
    if name == "root":
        log.warning("user namespaces: root cannot be remapped with itself; user namespaces are off")
        return None
    user = pwd.getpwnam(name)
    uids = ranges_of(_read(_SUBUID), (name, str(user.pw_uid)))
    gids = ranges_of(_read(_SUBGID), (name, str(user.pw_uid))) or ranges_of(_read(_SUBGID), (group,))
    for found, kind in ((uids, "subuid"), (gids, "subgid")):
        if not found:
            raise ValueError(f'Can\'t create ID mappings: no {kind} ranges found for user "{name}"')
    return IdMap(uids, gids)


def _named(setting: str) -> tuple[str, str]:
    """User and group that a setting names, both of which exist. Raises ``ValueError`` with dockerd's sentences."""
    name, colon, group = setting.partition(":")
    if ":" in group:
        raise ValueError(f'Invalid user/group specification in --userns-remap: "{setting}"')
    if setting == "default":
        _make_default_sync()
        return DEFAULT_USER, DEFAULT_USER
    try:
        user = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except KeyError:
        words = f'getent unable to find entry "{name}" in passwd database'
        if name.isdigit():
            raise ValueError(f"Uid {name} has no entry in /etc/passwd: {words}") from None
        raise ValueError(f'Error during uid lookup for "{name}": {words}') from None
    if not colon:
        group = user.pw_name
    try:
        return user.pw_name, (grp.getgrgid(int(group)) if group.isdigit() else grp.getgrnam(group)).gr_name
    except KeyError:
        words = f'getent unable to find entry "{group}" in group database'
        if group.isdigit():
            raise ValueError(f"Gid {group} has no entry in /etc/group: {words}") from None
        kind = "groupname" if colon else "gid"
        raise ValueError(f'Error during {kind} lookup for "{group}": {words}') from None


def _make_default_sync() -> None:
    try:
        pwd.getpwnam(DEFAULT_USER)
    except KeyError:
        _run("useradd", "--system", "--user-group", "--no-create-home", "--shell", "/bin/false", DEFAULT_USER)
    names = (DEFAULT_USER, str(pwd.getpwnam(DEFAULT_USER).pw_uid))
    for path, option in ((_SUBUID, "--add-subuids"), (_SUBGID, "--add-subgids")):
        text = _read(path)
        if not ranges_of(text, names):
            first = next_free(text)
            _run("usermod", option, f"{first}-{first + RANGE_LENGTH - 1}", DEFAULT_USER)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROGRAM_SECONDS, check=False)
    if done.returncode:
        raise OSError(f"cannot make the user {DEFAULT_USER}: {command[0]}: {(done.stderr or done.stdout).strip()}")


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return ""


@contextlib.contextmanager
def namespaces_sync(idmap: IdMap, owner_pid: int = 0) -> Iterator[int]:
    """The pid of a process in a fresh user namespace of ``idmap`` and a network namespace that belongs to it.

    With ``owner_pid`` the user namespace is that process's, which has ``idmap`` already. Both live on with whoever
    opens them. Programs make them, since a thread cannot leave its process's user namespace. Raises ``OSError``.
    """
    command = ["unshare", "--user", "--net", "--", "cat"]
    if owner_pid:
        command = ["nsenter", f"--user=/proc/{owner_pid}/ns/user", "unshare", "--net", "--", "cat"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(b"\n")
            if not process.stdout.read(1):
                raise OSError(f"no user namespace can be made: {process.stderr.read().decode().strip()}")
            for kind, ranges in () if owner_pid else (("uid", idmap.uids), ("gid", idmap.gids)):
                with open(f"/proc/{process.pid}/{kind}_map", "wb", buffering=0) as file:
                    file.write("".join(f"{one}\n" for one in ranges).encode())
            yield process.pid
        finally:
            process.kill()


def user_namespace_sync(idmap: IdMap) -> int:
    """A fresh user namespace of ``idmap``, as a descriptor. Raises ``OSError``."""
    with namespaces_sync(idmap) as pid:
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)


def same_user_namespace_sync(pids: Iterable[int]) -> bool:
    """Whether all these processes are in one. Raises ``OSError``."""
    return len({os.stat(f"/proc/{pid}/ns/user").st_ino for pid in pids}) == 1


def idmap_of_process_sync(pid: int) -> IdMap:
    """The ids of the namespace that a process is in. Raises ``OSError``."""

    def ranges(kind: str) -> tuple[IdRange, ...]:
        lines = Path(f"/proc/{pid}/{kind}_map").read_text("ascii").splitlines()
        return tuple(IdRange(*map(int, line.split())) for line in lines)

    return IdMap(ranges("uid"), ranges("gid"))
