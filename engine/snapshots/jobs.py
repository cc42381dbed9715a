"""What workers do: one function per job, each in a child process of its own that ends with it.

A job gets its channel, the descriptors that were passed, and JSON arguments; what it returns must be JSON. The order
inside a job is always: open what lies outside, enter the root, then touch content.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from typing import Any, Protocol

from engine.kernel import durable, mount, process
from engine.snapshots import compare, pack, paths, roots, stacking
from engine.snapshots.extract import OPAQUE_XATTR, Extractor, NeedsParents
from engine.snapshots.feed import Feed


class Channel(Protocol):
    """What a job says while it runs."""

    def progress(self, count: int) -> None: ...
    def part(self, value: Any) -> None: ...


def unpack(
    channel: Channel, fds: list[int], *, source: str | None, offset: int, length: int | None, diff_id: str,
    target: str, mode: str, steps: list[list[Any]], copies: list[str],
) -> dict[str, Any]:  # fmt: skip
    """Unpack a layer into ``target``.

    Modes: ``bottom`` (nothing below), ``alone`` (reports an entry that needs a parent, having stopped there), ``over``
    (through ``steps``, which mount target over its parents; or over ``copies`` of the parents' folders, which makes a
    layer that hides all below).
    """
    fd = fds[0] if source is None else os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    if offset:
        os.lseek(fd, offset, os.SEEK_SET)
    if steps:
        mount.private_namespace_sync()
        roots.mount_steps(steps)
    for folder in copies:
        stacking.Stacker(os.fsencode(folder), os.fsencode(target)).run(keep_root=False)
    feed = Feed(fd, length=length)
    roots.confine(target)
    extractor = Extractor(
        whiteouts="apply" if mode == "over" else "overlay", alone=mode == "alone", progress=channel.progress
    )
    try:
        extractor.apply(feed)
    except NeedsParents as needed:
        return {"needs_parents": str(needed)}
    if feed.hex_digest() != diff_id:
        found = feed.hex_digest()
        raise ValueError(f"layer content does not match its diff ID: wanted sha256:{diff_id}, got sha256:{found}")
    if copies:
        os.setxattr("/", OPAQUE_XATTR, b"y")
    return {
        "size_bytes": extractor.size_bytes,
        "implied": extractor.implied and mode == "bottom",
        "root_explicit": extractor.root_explicit,
    }


# What dockerd puts below every container's own layer, so that mounts have a place and are no changes.
_INIT_TREE = (
    ("/dev/pts", "folder"),
    ("/dev/shm", "folder"),
    ("/proc", "folder"),
    ("/sys", "folder"),
    ("/.dockerenv", "file"),
    ("/etc/resolv.conf", "file"),
    ("/etc/hosts", "file"),
    ("/etc/hostname", "file"),
    ("/dev/console", "file"),
    ("/etc/mtab", "/proc/mounts"),
)


def init_layer(
    _channel: Channel, _fds: list[int], *, steps: list[list[Any]], target: str, like_root: str
) -> dict[str, Any]:
    """Fill the init layer, mounted over an image's layers by ``steps``; its root looks like ``like_root``."""
    root = os.stat(like_root)
    mount.private_namespace_sync()
    roots.mount_steps(steps)
    roots.confine(target)
    _init_tree(root)
    return {}


def _init_tree(like: os.stat_result) -> None:
    os.chown("/", like.st_uid, like.st_gid)
    os.chmod("/", stat.S_IMODE(like.st_mode))
    for path, kind in _INIT_TREE:
        _init_entry(path, kind)


def _init_entry(path: str, kind: str) -> None:
    folder = ""
    for part in path.strip("/").split("/"):
        folder = f"{folder}/{part}"
        try:
            os.unlink(folder)
        except (FileNotFoundError, IsADirectoryError):
            continue
    if os.path.lexists(path):
        return
    roots.make_folders(path if kind == "folder" else os.path.dirname(path))
    if kind == "file":
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o755))
    elif kind != "folder":
        os.symlink(kind, path)


def changes(channel: Channel, _fds: list[int], *, upper: str, steps: list[list[Any]], lower: str) -> None:
    """The changes of an upper folder against the layers that ``steps`` mount at ``lower``."""
    mount.private_namespace_sync()
    roots.mount_steps(steps)
    _tell_changes(channel, compare.against_lower(os.fsencode(upper), os.fsencode(lower)))


def _tell_changes(channel: Channel, found: list[compare.Found]) -> None:
    """In parts, so that none passes what one message holds."""
    for place in range(0, len(found) or 1, 40):
        channel.part([[path.decode("utf-8", "replace"), kind] for path, kind in found[place : place + 40]])


def write_diff(_channel: Channel, _fds: list[int], *, upper: str, out: str) -> dict[str, Any]:
    """An overlay upper folder as an image layer's tar."""
    fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    roots.confine(upper)
    sink = pack.Sink(fd, digest=True)
    packer = pack.Packer(sink, diff=True)
    packer.content(b"/", b"")
    packer.finish()
    return {"diff_id": sink.hex_digest(), "tar_bytes": sink.total, "size_bytes": packer.size_bytes}


def stack(
    _channel: Channel, _fds: list[int], *, layers: list[str], dest: str, like_root: str, init: bool, facts: str
) -> dict[str, Any]:
    """Copy layers on top of each other into ``dest`` and write down the facts of every entry."""
    like = os.stat(like_root or dest)
    out = os.open(facts, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    for folder in layers:
        stacking.Stacker(os.fsencode(folder), os.fsencode(dest)).run(keep_root=True)
    roots.confine(dest)
    if init:
        _init_tree(like)
    found = {os.fsdecode(path): stacking.facts_of(info) for path, info in stacking.walk(b"/")}
    with os.fdopen(out, "w", encoding="utf-8", errors="surrogateescape") as file:
        json.dump(found, file)
    return {}


def _read_facts(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        found: dict[str, Any] = json.load(file)
    return found


def stack_changes(channel: Channel, _fds: list[int], *, folder: str, facts: str) -> None:
    """The changes of a copied snapshot since its facts were taken."""
    known = _read_facts(facts)
    roots.confine(folder)
    _tell_changes(channel, stacking.against_facts(b"/", known))


def stack_diff(_channel: Channel, _fds: list[int], *, folder: str, facts: str, out: str) -> dict[str, Any]:
    """The changes of a copied snapshot as an image layer's tar."""
    known = _read_facts(facts)
    fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    roots.confine(folder)
    sink = pack.Sink(fd, digest=True)
    packer = pack.Packer(sink, diff=True)
    for path, kind in stacking.against_facts(b"/", known):
        if kind == compare.DELETED:
            packer.whiteout(path[1:])
        else:
            packer.entry(path, path[1:], os.lstat(path))
    packer.finish()
    return {"diff_id": sink.hex_digest(), "tar_bytes": sink.total, "size_bytes": packer.size_bytes}


def probe_overlay(_channel: Channel, _fds: list[int], *, folder: str) -> str:
    """Mount an overlay below ``folder``, delete and write through it; what went wrong, or nothing."""
    for name in ("lower", "upper", "work", "merged"):
        os.mkdir(f"{folder}/{name}")
    os.close(os.open(f"{folder}/lower/file", os.O_CREAT | os.O_CLOEXEC))
    options = [f"lowerdir={folder}/lower", f"upperdir={folder}/upper", f"workdir={folder}/work"]
    try:
        mount.private_namespace_sync()
        mount.mount_sync("overlay", f"{folder}/merged", "overlay", options)
        os.unlink(f"{folder}/merged/file")
        os.mkdir(f"{folder}/merged/folder")
        os.setxattr(f"{folder}/lower", OPAQUE_XATTR, b"y")
    except OSError as error:
        return f"{error.strerror}: {error.filename}"
    return "" if pack.is_whiteout(os.lstat(f"{folder}/upper/file")) else "deletions leave no whiteout"


def usage(channel: Channel, _fds: list[int], *, folders: list[str]) -> None:
    """[bytes, inodes] of each tree."""
    for folder in folders:
        channel.part(list(compare.usage(os.fsencode(folder))))


def remove_tree(_channel: Channel, _fds: list[int], *, folder: str) -> None:
    """Delete everything below ``folder`` and the folder, whatever its modes; links are not followed.

    Nobody waits for it, so everybody else goes first.
    """
    process.stand_back()
    roots.confine(os.path.dirname(folder))
    _remove(b"/" + os.fsencode(os.path.basename(folder)))


def _remove(path: bytes) -> None:
    try:
        names = os.listdir(path)
    except NotADirectoryError:
        os.unlink(path)
        return
    except FileNotFoundError:
        return
    for name in names:
        child = path + b"/" + name
        try:
            os.unlink(child)
        except IsADirectoryError:
            _remove(child)
    os.rmdir(path)


def path_stat(_channel: Channel, _fds: list[int], *, view: dict[str, Any], path: str) -> dict[str, Any]:
    """The path stat of ``path`` in a view."""
    kernels = roots.enter(view)
    return paths.Place(path, kernels).stat()


def path_get(channel: Channel, fds: list[int], *, view: dict[str, Any], path: str) -> None:
    """Tell the path stat, then write the path's archive to the passed descriptor."""
    kernels = roots.enter(view)
    place = paths.Place(path, kernels)
    channel.part(place.stat())
    packer = pack.Packer(pack.Sink(fds[0]), closed=kernels)
    place.pack(packer)
    packer.finish()


def path_put(
    _channel: Channel, fds: list[int], *, view: dict[str, Any], path: str, keep_kinds: bool, owner: list[int] | None
) -> None:
    """Extract the archive (any compression) from the passed descriptor into the folder ``path``."""
    roots.enter(view)
    binds = [[target, read_only] for _, target, read_only, _ in view["binds"]]
    dest = paths.extraction_point(path, view["read_only"], binds)
    ids = (owner[0], owner[1]) if owner else None
    Extractor(dest, keep_kinds=keep_kinds, owner=ids).apply(Feed(fds[0], digest=False))


def export(_channel: Channel, fds: list[int], *, view: dict[str, Any]) -> None:
    """The whole root file system as a tar, without what is mounted on it."""
    roots.enter(view, own_only=True)
    packer = pack.Packer(pack.Sink(fds[0]))
    packer.content(b"/", b"")
    packer.finish()


def folder_out(_channel: Channel, fds: list[int], *, view: dict[str, Any], path: str) -> bool:
    """Write a folder of a view, its own attributes first, to the passed descriptor; False where there is none."""
    roots.enter(view, own_only=True)
    place = os.fsencode(os.path.realpath("/" + path))
    if not os.path.isdir(place):
        return False
    packer = pack.Packer(pack.Sink(fds[0]), every_xattr=True)
    packer.tree(place, b"./")
    packer.finish()
    return True


def make_folder(_channel: Channel, _fds: list[int], *, view: dict[str, Any], path: str) -> None:
    """Make the folder ``path`` of a view, links followed, where it is missing."""
    roots.enter(view)
    roots.make_folders(os.path.realpath(path))


def folder_in(_channel: Channel, fds: list[int], *, folder: str) -> None:
    """Fill ``folder`` from the archive of ``folder_out``, and bring it to disk: what is half full is not filled
    again."""
    roots.confine(folder)
    Extractor(root_attributes=True).apply(Feed(fds[0], digest=False))
    if os.listdir("/"):
        durable.sync_tree_sync("/")


TABLE: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        unpack, init_layer, changes, write_diff, stack, stack_changes, stack_diff, probe_overlay, usage, remove_tree,
        path_stat, path_get, path_put, export, folder_out, make_folder, folder_in,
    )
}  # fmt: skip
