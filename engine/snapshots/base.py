"""The vocabulary of snapshots, used word for word everywhere in this folder.

- A **diff ID** is the digest of an image layer's uncompressed tar (``sha256:<hex>``); a **chain ID** names a layer
  together with all below it, as the OCI image specification computes it.
- A **layer** is the unpacked content of one image layer: ``<data root>/layers/<key>/fs``. It appears by rename, whole
  and with its diff ID verified, or not at all, and is never written again.
- A layer is **shared** when its content can be unpacked without knowing its parents. Its key is the hex of its diff ID,
  so it exists once whatever images hold it. Deletions are overlay whiteouts: a character device 0/0 hides the name
  below, the attribute ``trusted.overlay.opaque=y`` hides a folder's lower content.
- A layer is **bound** when an entry lies in a folder, or is hard-linked to a file, that only a lower layer has:
  unpacked alone it would show an owner and mode that we made up. It is unpacked over its parents (overlayfs in a
  worker's own mount namespace) and its key is the hex of its chain ID.
- A layer is **implied** when it is shared yet does hold made-up folders: allowed at the bottom of an image only, where
  nothing lies below. Over parents the same diff ID becomes a bound layer.
- A **link** is the short name of a layer in ``<data root>/layers/l``: 127 of them fit one page of mount options.
- The **init layer** of a stack of layers holds the mount points and placeholder files every container gets
  (``/etc/hosts``, ``/proc``, ``/.dockerenv`` …), so that they never show up as a container's own changes.
- A **snapshot** is the writable top of one container, ``<data root>/snapshots/<key>``. Its **upper** folder holds what
  the container changed. It is mounted by **mount steps** that the shim performs in its own mount namespace; this folder
  never mounts anything in the daemon's namespace.
- A **change** is a path that a snapshot modified, added or deleted; a **diff** is the tar of all changes.
- A **view** is a root file system that a worker may enter, of a running or a stopped container.
- A **worker** is a short-lived child process that does one job: it enters a view or a folder by chroot before it
  touches a byte that an image or a container controls.
- **Trash** is where removed trees go by rename, so that removal is instant and never refused as busy; its content is
  deleted in the background and at start.

Lists of layers are bottom first, as in an image's ``rootfs.diff_ids``.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NewType, Protocol

from engine.kernel.mount import MountStep

LayerKey = NewType("LayerKey", str)
"""The folder name of a layer: hex of a diff ID (shared) or of a chain ID (bound)."""

Progress = Callable[[int], None]
"""Called on the loop with the number of source bytes consumed so far."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What is known of an unpacked layer.

    ``size_bytes`` counts the content of files and the targets of symbolic links, as docker does for a layer.
    """

    key: LayerKey
    diff_id: str
    link: str
    size_bytes: int
    implied: bool
    root_explicit: bool
    parents: tuple[LayerKey, ...] = ()


class ChangeKind(IntEnum):
    """The numbers of ``GET /containers/{id}/changes``."""

    MODIFIED = 0
    ADDED = 1
    DELETED = 2


@dataclass(frozen=True, slots=True)
class Change:
    """One path of a snapshot that differs from its layers."""

    path: str
    kind: ChangeKind


@dataclass(frozen=True, slots=True)
class DiffInfo:
    """A written diff: the digest and length of its uncompressed tar, and the content bytes in it."""

    diff_id: str
    tar_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Disk used by a tree, hard links counted once."""

    size_bytes: int
    inodes: int


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """What layers and snapshots hold, by key; init layers are not counted."""

    layers: Mapping[LayerKey, int]
    snapshots: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class BindMount:
    """A folder or file of the host that a stopped container's view shows at ``target``.

    With a user namespace as ``mapping`` its files have the ids that this gives theirs; where they cannot, it is only
    read.
    """

    source: str
    target: str
    read_only: bool = False
    mapping: str = ""


@dataclass(frozen=True, slots=True)
class Running:
    """The view of a running container: the mount namespace and root of its first process.

    ``binds`` and ``read_only`` say what may not be written; their sources are not mounted again. ``bare``: without
    all that is mounted on the root.
    """

    init_pid: int
    read_only: bool = False
    binds: tuple[BindMount, ...] = ()
    bare: bool = False


@dataclass(frozen=True, slots=True)
class Stopped:
    """The view of a container that does not run: its snapshot's mount steps, then its volumes and bind mounts.

    All steps' targets lie at or below ``target``, an existing folder; they are mounted in the worker's own namespace.
    """

    target: str
    steps: tuple[MountStep, ...]
    binds: tuple[BindMount, ...] = ()
    read_only: bool = False


RootView = Running | Stopped


def chain_id(diff_ids: Sequence[str]) -> str:
    """The chain ID of a stack of diff IDs (OCI image specification, "Layer ChainID")."""
    chain = ""
    for diff_id in diff_ids:
        chain = f"sha256:{hashlib.sha256(f'{chain} {diff_id}'.encode()).hexdigest()}" if chain else diff_id
    return chain


def hex_of(digest: str) -> str:
    """The hex part of a digest, checked, as it becomes a folder name."""
    algorithm, _, value = digest.partition(":")
    if algorithm != "sha256" or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise ValueError(f"invalid layer digest {digest!r}")
    return value


class Snapshotter(Protocol):
    """How snapshots are made; one implementation per way of stacking layers. Every method may raise ``OSError``."""

    name: str
    root: Path
    """The folder of all snapshots. Whoever makes one has its name brought to disk (``kernel.durable``)."""
    upper: str
    """The folder of a snapshot that holds what the container changed (or everything)."""

    async def prepare(self, key: str, layers: Sequence[LayerKey], size_limit: str | None = None) -> None:
        """Make the writable snapshot ``key`` over ``layers``; one that exists already is an error.

        ``size_limit`` as written (``--storage-opt size``) raises ``ValueError`` where the file system has no quota,
        and where it is no size.
        """

    async def require(self, layers: Sequence[LayerKey]) -> None:
        """Have what a snapshot over ``layers`` stands on there, unpacked again where it was lost."""

    async def exists(self, key: str) -> bool:
        """Whether the snapshot was prepared."""

    async def mount_steps(
        self,
        key: str,
        layers: Sequence[LayerKey],
        target: str,
        read_only: bool = False,
        *,
        transient: bool = False,
    ) -> tuple[MountStep, ...]:
        """The steps that show the snapshot at the existing folder ``target``.

        With ``read_only`` the steps never write to the snapshot, so that they may be used beside a writing mount.
        ``transient`` is for what is removed with its container (``--rm``): ending the mount need not wait for the disk.
        """

    async def image_steps(self, layers: Sequence[LayerKey], target: str) -> tuple[MountStep, ...]:
        """The steps that show ``layers`` alone, read-only, at ``target`` (image mounts, build stages)."""

    async def remove(self, key: str) -> None:
        """Remove the snapshot at once (its folder goes to the trash); a missing one is no error."""

    async def changes(self, key: str, layers: Sequence[LayerKey]) -> list[Change]:
        """What the snapshot changed, sorted by path."""

    async def write_diff(self, key: str, layers: Sequence[LayerKey], out: Path) -> DiffInfo:
        """Write the snapshot's changes as an image layer's tar to ``out`` (created, not compressed)."""

    async def usage(self, key: str) -> Usage:
        """Disk used by what the snapshot changed; nothing for one that is not there."""

    async def usages(self, *keys: str) -> list[Usage]:
        """The same for many, in one job."""

    def view(self, key: str, layers: Sequence[LayerKey], *, writable: bool) -> AbstractAsyncContextManager[Stopped]:
        """A view of the snapshot for the worker jobs of ``Archiver``; valid inside the context."""

    async def keys(self) -> list[str]:
        """The keys of all snapshots."""


class ByteSource(Protocol):
    """A body that arrives in pieces."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...
