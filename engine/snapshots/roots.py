"""Entering the root file system that a job works on; worker side, before any untrusted byte is touched.

After ``confine`` this process sees nothing but that root, and can import nothing any more: a library or module that an
image ships under a name we would load stays data.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import Any

from engine.kernel import mount
from engine.snapshots import stacking


def confine(folder: int | str) -> None:
    """chroot into ``folder`` (a path or an open directory) and close the import system."""
    os.chdir(folder)
    os.chroot(".")
    os.chdir("/")
    sys.path[:] = []
    sys.meta_path[:] = []


def mount_steps(steps: list[list[Any]]) -> None:
    """Perform mount steps, in a private namespace; folders that they name and an earlier step hid are made."""
    for source, target, fstype, options, cwd in steps:
        named = {name: value for name, _, value in (option.partition("=") for option in options)}
        for folder in (target, named.get("upperdir"), named.get("workdir")):
            if folder is not None:
                os.makedirs(folder, exist_ok=True)
        if "volatile" in named:  # the mark of an unsynced mount before would refuse this one
            stacking.remove(os.fsencode(named["workdir"]) + b"/work/incompat")
        mount.mount_sync(source, target, fstype, options, cwd)


def enter(view: dict[str, Any], own_only: bool = False) -> frozenset[int]:
    """Enter a view. ``own_only`` leaves out everything mounted on top of the container's root file system.

    Returns the devices (``st_dev``) of the kernel's own trees in it: what lies below is no file of the container.
    """
    if "init_pid" in view:
        return _enter_running(view["init_pid"], own_only or view["bare"])
    _enter_stopped(view, own_only)
    return frozenset()


def kernel_trees(mountinfo: str) -> frozenset[int]:
    """The devices of all that is mounted at or below /proc, /sys and /dev but shared memory (proc_pid_mountinfo(5))."""
    found = set()
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        top = fields[4].split("/")[1]
        if top in ("proc", "sys", "dev") and fields[4] != "/dev/shm":
            major, _, minor = fields[2].partition(":")
            found.add(os.makedev(int(major), int(minor)))
    return frozenset(found)


def _enter_running(pid: int, own_only: bool) -> frozenset[int]:
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        kernels = kernel_trees(file.read())
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    _become_its_root(pid)
    mount.enter_namespace_sync(namespace)
    os.close(namespace)
    if own_only:
        os.fchdir(root)
        os.close(root)
        root = mount.clone_tree_sync(".", recursive=False)
    confine(root)
    os.close(root)
    # Binds of single files (a masked path, a device) would make their whole file system the kernel's.
    return kernels - {os.lstat("/").st_dev}


def _become_its_root(pid: int) -> None:
    """Where a process has other ids than the host's, see and make files as its root does."""
    theirs = f"/proc/{pid}/ns/user"
    if os.stat(theirs).st_ino != os.stat("/proc/self/ns/user").st_ino:
        namespace = os.open(theirs, os.O_RDONLY | os.O_CLOEXEC)
        mount.enter_user_namespace_sync(namespace)
        os.close(namespace)


def _enter_stopped(view: dict[str, Any], own_only: bool) -> None:
    mount.private_namespace_sync()
    binds = [] if own_only else view["binds"]
    trees = [_cloned(source, read_only, mapping) for source, _, read_only, mapping in binds]
    mount_steps(view["steps"])
    confine(view["target"])
    for (_, target, _, _), (tree, is_folder) in zip(binds, trees, strict=True):
        place = os.path.realpath(target)
        if _have_place(place, is_folder):
            mount.attach_tree_sync(tree, place)
        os.close(tree)


def _cloned(source: str, read_only: bool, mapping: str) -> tuple[int, bool]:
    tree = mount.clone_tree_sync(source)
    if mapping:
        namespace = os.open(mapping, os.O_RDONLY | os.O_CLOEXEC)
        try:
            mount.map_ids_sync(tree, namespace)
        except OSError:  # not with this file system: no file of the host's root shall be made there
            read_only = True
        os.close(namespace)
    if read_only:
        mount.make_read_only_sync(tree)
    return tree, stat.S_ISDIR(os.fstat(tree).st_mode)


def make_folders(path: str) -> None:
    """A folder and those on the way to it, where missing, with mode 0755 each; workers have no umask to do it."""
    made = ""
    for part in path.strip("/").split("/"):
        made += "/" + part
        try:
            os.mkdir(made, 0o755)
        except FileExistsError:
            if not os.path.isdir(made):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), made) from None


def _have_place(place: str, is_folder: bool) -> bool:
    """Have something to mount on; False where the view may not be written and has none."""
    if os.path.lexists(place):
        return True
    try:
        make_folders(place if is_folder else os.path.dirname(place))
        if not is_folder:
            os.close(os.open(place, os.O_CREAT | os.O_CLOEXEC, 0o644))
    except OSError:
        return False
    return True
