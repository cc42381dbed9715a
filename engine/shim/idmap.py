"""Mounts through which the ids of files are those of a user namespace, whatever they are on disk (mount_setattr(2)).

A folder is bound with the ids mapped. An overlay takes the folders of such a bind for its own; it makes files there, in
the name of whoever mounted it, and id 0 is nobody there: so it is mounted by somebody who is root of the namespace to
the file system, and keeps all capabilities. That is for the rest of the process's life, so this runs in one of its own.
"""

import ctypes
import os
import struct
from typing import Any

from engine.shim import mounts
from engine.shim.mounts import check

SYS_OPEN_TREE = 428
OPEN_TREE_CLONE = 1
AT_EMPTY_PATH = 0x1000
MOUNT_ATTR_IDMAP = 0x00100000
PR_SET_SECUREBITS = 28
SECBIT_NO_SETUID_FIXUP = 1 << 2

_libc = ctypes.CDLL(None, use_errno=True)


def perform(step: dict[str, Any]) -> None:
    """One mount step that names a user namespace."""
    if step["fstype"] == "overlay":
        options = dict(option.partition("=")[::2] for option in step["options"])
        become_owner(options["workdir"])
        mounts.apply({**step, "mapping": ""})
    else:
        _bind(step["source"], step["target"], step["mapping"])


def _bind(source: str, target: str, mapping: str) -> None:
    """What is mounted in the source stays out of it: it may be of a file system whose ids cannot be mapped."""
    namespace = os.open(mapping, os.O_RDONLY | os.O_CLOEXEC)
    try:
        flags = OPEN_TREE_CLONE | os.O_CLOEXEC
        tree = check(_libc.syscall(SYS_OPEN_TREE, mounts.AT_FDCWD, source.encode(), flags), f"clone {source}")
        try:
            attributes = struct.pack("=QQQQ", MOUNT_ATTR_IDMAP, 0, mounts.PROPAGATION["private"], namespace)
            call = (mounts.SYS_MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH, attributes, len(attributes))
            check(_libc.syscall(*call), f"map the ids of {source}")
            place = (mounts.AT_FDCWD, target.encode(), mounts.MOVE_MOUNT_F_EMPTY_PATH)
            check(_libc.syscall(mounts.SYS_MOVE_MOUNT, tree, b"", *place), f"mount {source} on {target}")
        finally:
            os.close(tree)
    finally:
        os.close(namespace)


def become_owner(folder: str) -> None:
    """Be the owner of `folder`, where files are concerned, with all capabilities."""
    owner = os.stat(folder)
    check(_libc.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0), "keep capabilities")
    _libc.setfsgid(owner.st_gid)
    _libc.setfsuid(owner.st_uid)


def probe(folder: str, mapping: str, kind: str) -> None:
    """Mount below `folder` as for a container; OSError where it cannot be done. In a process of its own."""
    mounts.own_namespace()
    for name in ("lower", "diff", "work"):
        os.makedirs(f"{folder}/disk/{name}")
    nothing = {"options": (), "cwd": None, "subpath": "", "mapping": mapping}
    perform({"source": f"{folder}/disk", "target": _made(f"{folder}/shown"), "fstype": "", **nothing})
    written = f"{folder}/shown/diff"
    if kind == "overlay2":
        names = {"lowerdir": "lower", "upperdir": "diff", "workdir": "work"}
        options = [f"{option}={folder}/shown/{name}" for option, name in names.items()]
        written = _made(f"{folder}/merged")
        perform({**nothing, "source": "overlay", "target": written, "fstype": "overlay", "options": options})
    become_owner(f"{folder}/shown/work")
    _made(f"{written}/folder")
    if os.stat(f"{folder}/disk/diff/folder").st_uid != 0:
        raise OSError("the owners of files are not kept")


def _made(folder: str) -> str:
    os.mkdir(folder)
    return folder
