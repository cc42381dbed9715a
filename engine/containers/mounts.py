"""What is mounted into a container: the texts and objects that clients send, checked and made one list of mount points.

Pure. The caller creates volumes and looks at the disk; errors here carry dockerd's words. Order of precedence as in
dockerd: volumes of other containers, binds, mounts, then the image's volumes where nothing else is mounted.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from engine.containers.settings import BindOptions, ContainerConfig, HostConfig, Mount, TmpfsOptions, VolumeOptions

PROPAGATIONS = ("private", "rprivate", "slave", "rslave", "shared", "rshared")
_MODE_GROUPS: tuple[frozenset[str], ...] = (
    frozenset({"rw", "ro"}),
    frozenset({"z", "Z"}),
    frozenset({"consistent", "cached", "delegated"}),
    frozenset({"nocopy"}),
    frozenset(PROPAGATIONS),
)
_SIZE_UNITS = ((1 << 30, "g"), (1 << 20, "m"), (1 << 10, "k"))
_TMPFS_FLAGS = frozenset(
    {"ro", "rw", "sync", "async", "dirsync", "remount", "strictatime", "nostrictatime", "relatime", "norelatime"}
    | {f"{no}{word}" for word in ("suid", "dev", "exec", "mand", "atime", "diratime") for no in ("", "no")}
    | {"bind", "rbind", "unbindable", "runbindable", "defaults", *PROPAGATIONS}
)
_TMPFS_VALUES = frozenset({"mode", "uid", "gid", "nr_inodes", "nr_blocks", "size", "mpol"})


class MountPoint(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """One mount of a container: the eight members that inspect shows, then what is needed to make it."""

    type: str
    destination: str
    source: str = ""
    """Host path of a bind or of a volume's data (empty until the volume exists)."""
    name: str = ""
    """The volume's name, empty until an anonymous volume exists; the reference of an image."""
    driver: str = ""
    mode: str = ""
    rw: bool = msgspec.field(default=True, name="RW")
    propagation: str = ""
    copy_data: bool = False
    """Fill an empty volume with what the image has there."""
    create_source: bool = False
    """A bind of the short form: a missing host folder is made."""
    wish: Mount | None = None
    """The long form, when the client used it."""
    image_id: str = ""
    layers: tuple[str, ...] = ()
    """Of an image mount: what is mounted, also when the image's name has moved on."""


def plan_mounts(
    config: ContainerConfig, host: HostConfig, inherited: Mapping[str, Sequence[MountPoint]] | None = None
) -> tuple[MountPoint, ...]:
    """All mount points of binds, mounts, other containers' volumes and the (merged) configuration's volumes.

    ``inherited`` holds, for each entry of ``volumes_from``, the other container's mount points. The ``--tmpfs`` ones
    are not among the results, as in inspect; see ``tmpfs_options``. Raises ``ValueError`` with dockerd's sentence.
    """
    points: dict[str, MountPoint] = {}
    for text in host.volumes_from or ():
        _, mode = parse_volumes_from(text)
        for point in (inherited or {}).get(text, ()):
            points[point.destination] = inherit(point, mode)
    mine: set[str] = set()
    for text in host.binds or ():
        point = parse_bind(text, host.volume_driver)
        _claim(point.destination, mine, host.tmpfs)
        points[point.destination] = point
    for mount in host.mounts or ():
        point = parse_mount(mount)
        _claim(point.destination, mine, {})  # a --tmpfs at the same place hides it
        points[point.destination] = point
    for path in config.volumes or ():
        destination = clean(path)
        if destination not in points and destination not in (host.tmpfs or {}):
            points[destination] = MountPoint(
                type="volume", destination=destination, driver=host.volume_driver, copy_data=True
            )
    return tuple(points.values())


def _claim(destination: str, mine: set[str], tmpfs: Mapping[str, str] | None) -> None:
    if destination in mine or destination in (tmpfs or {}):
        raise ValueError(f"Duplicate mount point: {destination}")
    mine.add(destination)


def inherit(point: MountPoint, mode: str) -> MountPoint:
    """Another container's mount point, taken over by ``--volumes-from``: never copied into, and at most as writable."""
    return msgspec.structs.replace(point, rw=point.rw and is_writable(mode), mode="", copy_data=False)


def parse_volumes_from(text: str) -> tuple[str, str]:
    """``container[:mode]`` to its two parts; the mode is ``rw`` when absent."""
    if not text:
        raise ValueError(f"volumes-from specification cannot be empty: '{text}'")
    container, found, mode = text.partition(":")
    if not found:
        return container, "rw"
    if not is_valid_mode(mode) or any(o in PROPAGATIONS or o == "nocopy" for o in mode.split(",")):
        raise ValueError(f"invalid mode: {mode}")
    return container, mode


def is_valid_mode(mode: str) -> bool:
    """Whether every option of a ``src:dst:mode`` is known and none is given twice or against another of its group."""
    if not mode:
        return True
    seen: set[int] = set()
    for option in mode.split(","):
        group = next((n for n, names in enumerate(_MODE_GROUPS) if option in names), None)
        if group is None or group in seen:
            return False
        seen.add(group)
    return True


def is_writable(mode: str) -> bool:
    """Whether a mode leaves the mount writable."""
    return is_valid_mode(mode) and "ro" not in mode.split(",")


def parse_bind(text: str, volume_driver: str = "") -> MountPoint:
    """``[source:]destination[:mode]``: an absolute source is a host path, any other a volume's name."""
    parts = text.split(":")
    if len(parts) > 3 or not parts[0]:
        raise ValueError(_bad_spec(text))
    source, target, mode = "", parts[0], ""
    if len(parts) == 2:
        if is_valid_mode(parts[1]):
            # A destination with a mode and no source is not a volume, and an empty destination is none either.
            raise ValueError(_bad_spec(text))
        source, target = parts
    elif len(parts) == 3:
        source, target, mode = parts
    if not is_valid_mode(mode):
        raise ValueError(f"invalid mode: {mode}")
    options = mode.split(",")
    propagation = next((o for o in options if o in PROPAGATIONS), "")
    bind = source.startswith("/")
    mount = Mount(
        type="bind" if bind else "volume",
        source=source,
        target=target,
        read_only=not is_writable(mode),
        bind_options=BindOptions(propagation=propagation) if propagation else None,
        volume_options=VolumeOptions(no_copy=True) if "nocopy" in options else None,
    )
    try:
        point = parse_mount(mount)
    except ValueError as error:
        raise ValueError(f"{_bad_spec(text)}: {error}") from error
    return msgspec.structs.replace(
        point, mode=mode, create_source=bind, wish=None, driver="" if bind else volume_driver
    )


def _bad_spec(text: str) -> str:
    return f"invalid volume specification: '{text}'"


def parse_mount(mount: Mount) -> MountPoint:
    """The long form, checked. Whether a bind's source exists is for the caller (``missing_source``)."""
    try:
        _check_mount(mount)
    except ValueError as error:
        raise ValueError(f'invalid mount config for type "{mount.type}": {error}') from error
    source, name, driver, propagation, copy_data = "", "", "", "", False
    if mount.type == "bind":
        source = clean(mount.source)
        propagation = (mount.bind_options.propagation if mount.bind_options else "") or "rprivate"
    elif mount.type == "volume":
        options = mount.volume_options or VolumeOptions()
        name, copy_data = mount.source, not options.no_copy
        driver = options.driver_config.name if options.driver_config else ""
    elif mount.type == "image":
        name = mount.source
    return MountPoint(
        type=mount.type,
        destination=clean(mount.target),
        source=source,
        name=name,
        driver=driver,
        rw=not mount.read_only and mount.type != "image",
        propagation=propagation,
        copy_data=copy_data,
        wish=mount,
    )


def near_root(point: MountPoint, root: str, *, flat_read_only: bool = False) -> MountPoint:
    """A bind of, or around, the daemon's own folder follows what is unmounted there, or it would keep it busy.

    ``flat_read_only`` leaves the mounts below a read-only bind as they are. Raises ``ValueError``.
    """
    if point.type != "bind":
        return point
    options = (point.wish.bind_options if point.wish else None) or BindOptions()
    if flat_read_only and not point.rw and not options.non_recursive:
        options = msgspec.structs.replace(options, read_only_non_recursive=True)
        wish = point.wish or Mount(type="bind", source=point.source, target=point.destination, read_only=True)
        point = msgspec.structs.replace(point, wish=msgspec.structs.replace(wish, bind_options=options))
    if not (point.source.startswith(root) or root.startswith(point.source)):
        return point
    asked = asked_propagation(point)
    if not asked:
        return msgspec.structs.replace(point, propagation="rslave")
    if asked in ("rslave", "rshared"):
        return point
    raise ValueError(
        'invalid mount config: must use either propagation mode "rslave" or "rshared" when mount source is within the '
        f'daemon root, daemon root: "{root}", bind mount source: "{point.source}", propagation: "{asked}"'
    )


def asked_propagation(point: MountPoint) -> str:
    """What the client said of it, in either form; empty when it did not."""
    options = point.wish.bind_options if point.wish else None
    said = options.propagation if options else ""
    return said or next((o for o in point.mode.split(",") if o in PROPAGATIONS), "")


def with_volume(point: MountPoint, name: str, driver: str, path: str) -> MountPoint:
    """The point of a volume that exists now; local ones that were asked for (not the image's, not a bare ``-v /path``)
    get the label mode ``z``, as dockerd records it."""
    asked = point.name or point.wish is not None
    mode = point.mode or ("z" if asked and driver == "local" else "")
    return msgspec.structs.replace(point, name=name, driver=driver, source=path, mode=mode)


def missing_source(point: MountPoint) -> ValueError:
    """The sentence for a bind of the long form whose host path is not there."""
    return ValueError(f'invalid mount config for type "bind": bind source path does not exist: {point.source}')


def needs_source(point: MountPoint) -> bool:
    """Whether a bind's host path must exist when the container is created (it is made for all others)."""
    options = point.wish.bind_options if point.wish else None
    return point.type == "bind" and not point.create_source and not (options and options.create_mountpoint)


def _check_mount(mount: Mount) -> None:
    if mount.type not in ("bind", "volume", "tmpfs", "image"):
        raise ValueError("mount type unknown")
    if not mount.target:
        raise ValueError("field Target must not be empty")
    check_destination(mount.target)
    allowed = {"bind": "bind_options", "volume": "volume_options", "tmpfs": "tmpfs_options", "image": "image_options"}
    for kind, member in allowed.items():
        if kind != mount.type and getattr(mount, member) is not None:
            raise ValueError(f"field {kind.capitalize()}Options must not be specified")
    if mount.type == "bind":
        _check_bind(mount)
    elif mount.type == "volume":
        _check_volume(mount)
    elif mount.type == "tmpfs":
        if mount.source:
            raise ValueError("field Source must not be specified")
        tmpfs_data(mount.tmpfs_options, read_only=mount.read_only)
    elif not mount.source:
        raise ValueError("field Source must not be empty")
    elif mount.image_options and not is_local(mount.image_options.subpath):
        raise ValueError("subpath must be a relative path within the image")


def check_destination(target: str) -> None:
    """A mount goes to an absolute path that is not the root. Raises ``ValueError``."""
    if clean(target) == "/":
        raise ValueError("invalid specification: destination can't be '/'")
    if not target.startswith("/"):
        raise ValueError(f"invalid mount path: '{target}' mount path must be absolute")


def _check_bind(mount: Mount) -> None:
    if not mount.source:
        raise ValueError("field Source must not be empty")
    options = mount.bind_options or BindOptions()
    if options.propagation and options.propagation not in PROPAGATIONS:
        raise ValueError(f"invalid propagation mode: {options.propagation}")
    if not mount.source.startswith("/"):
        raise ValueError(f"invalid mount path: '{mount.source}' mount path must be absolute")
    if not mount.read_only and options.read_only_non_recursive:
        raise ValueError("mount options conflict: !ReadOnly && BindOptions.ReadOnlyNonRecursive")
    if not mount.read_only and options.read_only_force_recursive:
        raise ValueError("mount options conflict: !ReadOnly && BindOptions.ReadOnlyForceRecursive")
    if options.read_only_non_recursive and options.read_only_force_recursive:
        raise ValueError("mount options conflict: ReadOnlyNonRecursive && BindOptions.ReadOnlyForceRecursive")


def _check_volume(mount: Mount) -> None:
    if not mount.source and mount.read_only:
        raise ValueError("must not set ReadOnly mode when using anonymous volumes")
    subpath = mount.volume_options.subpath if mount.volume_options else ""
    if subpath and not mount.source:
        raise ValueError("must not set Subpath when using anonymous volumes")
    if not is_local(subpath):
        raise ValueError("subpath must be a relative path within the volume")


def is_local(path: str) -> bool:
    """Whether a relative path cannot lead out of its folder by its own text."""
    return not path.startswith("/") and not posixpath.normpath(path or ".").startswith("..")


def tmpfs_data(options: TmpfsOptions | None, *, read_only: bool = False) -> str:
    """The mount data of a ``tmpfs`` mount of the long form. Raises ``ValueError`` for options tmpfs does not know."""
    words = ["ro"] if read_only else []
    if options is None:
        return ",".join(words)
    if options.mode:
        words.append(f"mode={options.mode:o}")
    if options.size_bytes:
        unit = next(((n, suffix) for n, suffix in _SIZE_UNITS if options.size_bytes % n == 0), (1, ""))
        words.append(f"size={options.size_bytes // unit[0]}{unit[1]}")
    for option in options.options or ():
        if len(option) not in (1, 2):
            raise ValueError("invalid option array length")
        word = "=".join(option)
        if not _is_tmpfs_option(word):
            raise ValueError(f"invalid option: {word}")
        words.append(word)
    return ",".join(words)


def tmpfs_options(data: str) -> list[str]:
    """``--tmpfs`` data laid over docker's defaults: later words win over earlier ones and their opposites.

    Raises ``ValueError`` for a word that tmpfs does not know.
    """
    chosen: dict[str, str] = {}
    for word in ["noexec", "nosuid", "nodev", "rprivate", *(w for w in data.split(",") if w)]:
        if not _is_tmpfs_option(word):
            quoted = " ".join(f'"{part}"' for part in word.split("=", 1))  # as Go prints a list
            raise ValueError(f"invalid tmpfs option [{quoted}]")
        chosen.pop(_tmpfs_slot(word), None)
        chosen[_tmpfs_slot(word)] = word
    return [word for word in chosen.values() if word != "defaults"]


def is_shared_tmpfs(data: str) -> bool:
    """Whether a ``--tmpfs`` is to have a propagation of its own, which not every runtime leaves it."""
    return not {"shared", "rshared", "unbindable", "runbindable"}.isdisjoint(tmpfs_options(data))


def _is_tmpfs_option(word: str) -> bool:
    key, valued, _ = word.partition("=")
    return key in (_TMPFS_VALUES if valued else _TMPFS_FLAGS)


def _tmpfs_slot(word: str) -> str:
    """What a word decides: two words of one slot exclude each other."""
    key, valued, _ = word.partition("=")
    if valued:
        return key
    if key in ("ro", "rw"):
        return "rw"
    if key in PROPAGATIONS:
        return "propagation"
    return key.removeprefix("no")


def clean(path: str) -> str:
    """The path without repeated slashes, dots and a trailing slash."""
    cleaned = posixpath.normpath(path)
    return cleaned[1:] if cleaned.startswith("//") else cleaned


def by_depth(points: Iterable[MountPoint]) -> list[MountPoint]:
    """Shallow destinations first, so that none hides another."""
    return sorted(points, key=lambda point: point.destination.rstrip("/").count("/"))
