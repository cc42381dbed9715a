"""A container's root mounts, made in the shim's own mount namespace so that they cannot outlive it.

Propagation is left as the host has it, so that shared and slave volumes work; only the mount that holds the new root
becomes a slave, so that the root itself never shows on the host. mount(2) takes one page of options; longer overlay
stacks go through fsopen(2).
"""

import ctypes
import errno
import os
import struct
from collections.abc import Sequence
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS = 0x00020000
MNT_DETACH = 2
MS_SLAVE = 1 << 19
PAGE_LIMIT = 4000  # of the 4096 that mount(2) copies

# name -> (bits to set, bits to clear)
FLAGS: dict[str, tuple[int, int]] = {
    "ro": (1, 0),
    "rw": (0, 1),
    "nosuid": (2, 0),
    "suid": (0, 2),
    "nodev": (4, 0),
    "dev": (0, 4),
    "noexec": (8, 0),
    "exec": (0, 8),
    "sync": (16, 0),
    "remount": (32, 0),
    "dirsync": (128, 0),
    "noatime": (1024, 0),
    "nodiratime": (2048, 0),
    "bind": (4096, 0),
    "rbind": (4096 | 16384, 0),
    "relatime": (1 << 21, 0),
    "strictatime": (1 << 24, 0),
}
PROPAGATION: dict[str, int] = {
    "private": 1 << 18,
    "rprivate": (1 << 18) | 16384,
    "slave": MS_SLAVE,
    "rslave": MS_SLAVE | 16384,
    "shared": 1 << 20,
    "rshared": (1 << 20) | 16384,
    "unbindable": 1 << 17,
    "runbindable": (1 << 17) | 16384,
}
MS_BIND, MS_REMOUNT, MS_RDONLY, MS_REC = 4096, 32, 1, 16384

SYS_MOUNT_SETATTR, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, 0x8000, 1
SYS_MOVE_MOUNT, SYS_FSOPEN, SYS_FSCONFIG, SYS_FSMOUNT = 429, 430, 431, 432
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 0, 1, 6
MOVE_MOUNT_F_EMPTY_PATH = 4
AT_FDCWD = -100
# mount attributes of fsmount(2) by mount(2) flag
_ATTRIBUTES = {1: 1, 2: 2, 4: 4, 8: 8, 1024: 0x10, 2048: 0x80}


def check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def mount(source: str, target: str, fstype: str, flags: int, data: str) -> None:
    """mount(2); OSError names the step."""
    kind, options = fstype.encode() or None, data.encode() or None
    result = _libc.mount(source.encode(), target.encode(), kind, ctypes.c_ulong(flags), options)
    check(result, f"mount {fstype or source} on {target}")


def unmount(target: str) -> None:
    """Unmount at once where possible (the kernel is then done with it), else as soon as it is unused.

    A tree is cut off from all others first: what is unmounted in it must not be unmounted elsewhere.
    """
    if _libc.umount2(target.encode(), 0) < 0:
        mount("none", target, "", PROPAGATION["rprivate"], "")
        check(_libc.umount2(target.encode(), MNT_DETACH), f"unmount {target}")


def own_namespace() -> None:
    """Enter a private copy of the mount namespace."""
    check(_libc.unshare(CLONE_NEWNS), "unshare mount namespace")


def stay() -> None:
    """Leave no namespace: unshare(2) of nothing."""
    check(_libc.unshare(0), "unshare nothing")


def split_options(options: Sequence[str]) -> tuple[int, int, list[str]]:
    """mount(2) flags, propagation flags, and the options that the file system itself understands."""
    flags = propagation = 0
    data: list[str] = []
    for option in options:
        if option in FLAGS:
            sets, clears = FLAGS[option]
            flags = (flags | sets) & ~clears
        elif option in PROPAGATION:
            propagation = PROPAGATION[option]
        elif option and option != "defaults":
            data.append(option)
    return flags, propagation, data


def contain(target: str) -> None:
    """Keep mounts made at `target` from spreading to the host, whose mount namespace ours is a copy of.

    The mount that it lies on stops telling others; one that tells nobody is left as it is (mount_namespaces(7)).
    """
    point = os.path.realpath(target)
    while _libc.mount(b"none", point.encode(), None, ctypes.c_ulong(MS_SLAVE), None) < 0:
        number = ctypes.get_errno()
        if number != errno.EINVAL:  # which says: no mount point, so it lies on its parent's mount
            raise OSError(number, f"contain {target}: {os.strerror(number)}")
        if point == "/":
            return  # the mount lies outside of the root that we were given
        point = os.path.dirname(point)


def cover(path: str, by: str = "/dev/null") -> None:
    """Put another file in a file's place, for this mount namespace only."""
    contain(path)
    mount(by, path, "", MS_BIND, "")


def uncover(path: str) -> None:
    """Take away what `cover` has put there. Detached: whoever has it open keeps it, and nothing is waited for."""
    check(_libc.umount2(path.encode(), MNT_DETACH), f"unmount {path}")


def apply(step: dict[str, Any]) -> None:
    """Perform one mount step: source, target, fstype, options and the folder that relative names start from.

    A target that is missing is made, of the source's kind.
    """
    source = below(step["source"], step["subpath"]) if step["subpath"] else step["source"]
    _make_target(step["target"], is_file=step["fstype"] == "" and os.path.isfile(source))
    contain(step["target"])
    if step["mapping"]:
        _apply_mapped(step)
        return
    if step.get("cwd"):
        os.chdir(step["cwd"])
    options = [option for option in step["options"] if option != "rro"]
    flags, propagation, data = split_options(options)
    if step["fstype"] == "overlay" and len(",".join(data)) > PAGE_LIMIT:
        _mount_long_overlay(step["source"], step["target"], flags, data)
    else:
        mount(source, step["target"], step["fstype"], flags, ",".join(data))
        if flags & MS_BIND and flags & ~(MS_BIND | MS_REC | MS_REMOUNT):
            # a bind takes over its source's flags; ours need a second call
            mount("none", step["target"], "", (flags | MS_REMOUNT) & ~MS_REC, "")
    if propagation:
        mount("none", step["target"], "", propagation, "")
    if "rro" in step["options"]:
        _make_read_only(step["target"])


def _apply_mapped(step: dict[str, Any]) -> None:
    """In a child: what it imports is not for a shim to hold for good, nor whom it becomes for a shim to be."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            from engine.shim import idmap

            idmap.perform(step)
        except BaseException as error:
            os.write(writer, f"{error}"[:PAGE_LIMIT].encode() or b"?")
        finally:
            os._exit(0)
    os.close(writer)
    words = os.read(reader, PAGE_LIMIT).decode(errors="replace")
    os.close(reader)
    os.waitpid(pid, 0)
    if words:
        raise OSError(words)


def below(base: str, subpath: str) -> str:
    """The folder or file at `subpath` of `base`; OSError in docker's words where a link leads out or nothing is."""
    resolved = os.path.realpath(f"{base}/{subpath}")
    if resolved != base and not resolved.startswith(f"{base}/"):
        raise OSError(
            f'path concatenation escapes the base directory, base: "{base}", subpath: "{subpath}", '
            f'resolved: "{resolved}"'
        )
    if not os.path.exists(resolved):
        raise OSError(f"cannot access path {resolved}: lstat {resolved}: no such file or directory")
    return resolved


def _make_target(target: str, *, is_file: bool) -> None:
    if os.path.lexists(target):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if is_file:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    else:
        os.mkdir(target)


def _make_read_only(target: str) -> None:
    """A mount and all below it, by one mount_setattr(2) (Linux 5.12)."""
    attributes = struct.pack("=QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
    call = (SYS_MOUNT_SETATTR, AT_FDCWD, target.encode(), AT_RECURSIVE, attributes, len(attributes))
    check(_libc.syscall(*call), f"make {target} read-only")


def _mount_long_overlay(source: str, target: str, flags: int, data: Sequence[str]) -> None:
    """An overlay whose lower names do not fit one page: one fsconfig(2) per layer, the uppermost first (Linux 6.5)."""
    context = check(_libc.syscall(SYS_FSOPEN, b"overlay", FSOPEN_CLOEXEC), "fsopen overlay")
    try:
        _set(context, "source", source)
        for option in data:
            key, equals, value = option.partition("=")
            if key == "lowerdir":
                for layer in value.split(":"):
                    _set(context, "lowerdir+", layer)
            else:
                _set(context, key, value if equals else None)
        check(_libc.syscall(SYS_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0), "create overlay")
        attributes = sum(bit for flag, bit in _ATTRIBUTES.items() if flags & flag)
        made = check(_libc.syscall(SYS_FSMOUNT, context, FSMOUNT_CLOEXEC, attributes), "fsmount overlay")
        try:
            call = (SYS_MOVE_MOUNT, made, b"", AT_FDCWD, target.encode(), MOVE_MOUNT_F_EMPTY_PATH)
            check(_libc.syscall(*call), f"mount overlay on {target}")
        finally:
            os.close(made)
    finally:
        os.close(context)


def _set(context: int, key: str, value: str | None) -> None:
    kind = FSCONFIG_SET_FLAG if value is None else FSCONFIG_SET_STRING
    encoded = None if value is None else value.encode()
    check(_libc.syscall(SYS_FSCONFIG, context, kind, key.encode(), encoded, 0), f"overlay option {key}={value or ''}")
