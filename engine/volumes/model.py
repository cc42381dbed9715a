"""A volume: a named folder that outlives containers; its name's grammar and the checks of its options. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from engine.sizes import parse_size

LOCAL = "local"
ANONYMOUS_LABEL = "com.docker.volume.anonymous"
"""Put on volumes that nobody named, so that prune can tell them apart (as dockerd does)."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_REQUIRES = {"device": ("type",), "type": ("device",), "o": ("device", "type"), "size": ()}


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """One volume as journalled; ``created_at`` in nanoseconds since the epoch."""

    name: str
    created_at: int
    driver: str = LOCAL
    labels: dict[str, str] | None = None
    options: dict[str, str] | None = None
    mountpoint: str = ""
    """Where its data lie on the host; set anew at each start, as the data root may have moved."""
    made_for: str = ""
    """The container whose creation makes it, until that is on record; a creation that was cut short leaves nothing."""

    @property
    def is_anonymous(self) -> bool:
        """Whether nobody named it."""
        return ANONYMOUS_LABEL in (self.labels or {})

    @property
    def needs_mount(self) -> bool:
        """Whether its data lie on a file system of its own, mounted while the volume is used."""
        return "device" in (self.options or {})


@dataclass(frozen=True, slots=True)
class Usage:
    """What ``system df`` says of a volume: bytes on disk (-1 unknown) and how many containers refer to it."""

    volume: Volume
    size: int
    references: int


@dataclass(frozen=True, slots=True)
class MountRequest:
    """The mount that makes a volume's data appear: mount(8) words in ``options``."""

    device: str
    kind: str
    options: tuple[str, ...]


def check_name(name: str) -> None:
    """Raise ``ValueError`` with dockerd's sentence for a name that the local driver refuses."""
    if len(name) == 1:
        raise ValueError("volume name is too short, names should be at least two alphanumeric characters")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f'"{name}" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are '
            "allowed. If you intended to pass a host directory, use absolute path"
        )


def check_options(options: Mapping[str, str], *, quota: bool = False) -> None:
    """Raise ``ValueError`` with dockerd's sentence for options the local driver does not know or cannot honour."""
    for option in options:
        if option not in _REQUIRES:
            raise ValueError(f'invalid option: "{option}"')
    if size_limit(options) and not quota:
        raise ValueError("quota size requested but no quota support")
    for option, required in _REQUIRES.items():
        missing = [name for name in required if option in options and name not in options]
        if missing:
            raise ValueError(f'missing required option: "{missing[0]}"')


def size_limit(options: Mapping[str, str]) -> int | None:
    """The bytes that a volume may have at most; None without a limit. Raises ``ValueError``."""
    return parse_size(options["size"]) or None if "size" in options else None


def mount_request(options: Mapping[str, str]) -> MountRequest:
    """The mount of a volume with a ``device`` option. The type ``none`` is what mount(8) writes for binds."""
    words = tuple(word for word in options.get("o", "").split(",") if word)
    return MountRequest(options["device"], options.get("type", ""), words)


def nfs_server(request: MountRequest) -> str | None:
    """The host name in an ``addr=`` word, which the kernel wants as an address; ``None`` when there is none."""
    if not request.kind.startswith(("nfs", "cifs")):
        return None
    return next((word.partition("=")[2] for word in request.options if word.startswith("addr=")), None)


def with_server_address(request: MountRequest, address: str) -> MountRequest:
    """The same mount with the server's address in place of its name."""
    words = tuple(f"addr={address}" if word.startswith("addr=") else word for word in request.options)
    return MountRequest(request.device, request.kind, words)
