"""Nothing of an image or a user may take the place of /proc, or of what lies in it.

The runtime writes a process's security labels and limits through a container's /proc; whoever could put folders of
their own there could make it write elsewhere (CVE-2019-16884). runc looks after this by itself, crun does not, so the
shim looks where each mount would land before it lets crun begin. Links of the image and of volumes are followed as the
runtime will follow them, and what is missing there is made. What another container changes in a shared volume in the
moment between is not seen here; crun still asks the kernel whether what it writes to is a real procfs.
"""

import os
from collections.abc import Sequence

from engine.shim import places

# runc's list: what tools like lxcfs put in the place of the kernel's numbers
REPLACEABLE = frozenset(
    "/proc/" + name
    for name in (
        "cpuinfo",
        "diskstats",
        "meminfo",
        "stat",
        "swaps",
        "uptime",
        "loadavg",
        "slabinfo",
        "net/dev",
        "sys/kernel/ns_last_pid",
        "sys/crypto/fips_enabled",
    )
)
_LINKS = 255  # followed in one name; path_resolution(7) allows 40

Planned = tuple[str, str, str]  # destination, source, type; in the order in which they are made


def check(rootfs: str, planned: Sequence[Planned]) -> None:
    """Make what each mount is to cover; OSError in runc's words for the first mount that may not be made."""
    for place in ("proc", "sys"):
        if os.path.islink(f"{rootfs}/{place}"):
            raise OSError(_words(f'filesystem "{place}" must be mounted on ordinary directory'))
    nothing = f"{rootfs}/nothing"
    made: dict[str, str] = {"": rootfs, "/proc": nothing, "/sys": nothing}
    for destination, source, kind in planned:
        place = _landing(destination, made)
        why = _why_not(place, source, kind)
        if why:
            raise OSError(
                _words(f'error mounting "{source}" to rootfs at "{destination}": "{rootfs}{place}" cannot be {why}')
            )
        top = _top(place, made)
        if kind != "bind" or os.path.exists(source):
            places.make(made[top], place[len(top) :], is_file=kind == "bind" and not os.path.isdir(source))
        made[place] = source if kind == "bind" else nothing


def _words(text: str) -> str:
    return f"unable to start container process: error during container init: {text}"


def _why_not(place: str, source: str, kind: str) -> str:
    if place == "/proc":
        return "" if kind == "bind" and source == "/proc" else "mounted because it is not of type proc"
    if kind == "bind" and place.startswith("/proc/") and place not in REPLACEABLE:
        return "mounted because it is inside /proc"
    return ""


def _landing(destination: str, made: dict[str, str]) -> str:
    """Where `destination` leads in a root that is made of these folders; names that are missing lead to themselves."""
    left = destination.split("/")[::-1]
    place, links = "", 0
    while left:
        name = left.pop()
        if name in ("", "."):
            continue
        if name == "..":
            place = place.rpartition("/")[0]
            continue
        link = "" if f"{place}/{name}" in made else _link(place, name, made)
        if link and links < _LINKS:
            links += 1
            place = "" if link.startswith("/") else place
            left.extend(link.split("/")[::-1])
        else:
            place = f"{place}/{name}"
    return place


def _link(place: str, name: str, made: dict[str, str]) -> str:
    top = _top(place, made)
    try:
        return os.readlink(f"{made[top]}{place[len(top) :]}/{name}")
    except OSError:
        return ""


def _top(place: str, made: dict[str, str]) -> str:
    """The mount that `place` lies on."""
    while place not in made:
        place = place.rpartition("/")[0]
    return place
