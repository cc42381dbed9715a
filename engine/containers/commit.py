"""docker commit: a container's changes as a new layer on its image, with a configuration made from the container's.

The container is frozen only while its files are read; packing and registering the layer happen after it runs again.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from engine.clock import now_ns, rfc3339
from engine.containers.host import HostFacts
from engine.containers.journalist import Journalist
from engine.containers.lifecycle import Lifecycle
from engine.containers.merge import image_settings, merge_image
from engine.containers.model import Container, Status
from engine.containers.settings import ContainerConfig
from engine.errors import Conflict, InvalidParameter, SystemFailure, no_such_image, os_words
from engine.images.changes import apply_changes
from engine.images.model import HistoryEntry, Image, ImageDocument, RuntimeConfig
from engine.images.service import ImageService, new_reference
from engine.snapshots.base import DiffInfo, LayerKey, Snapshotter
from engine.tasks import run_blocking

EMPTY_TAR_BYTES = 1024
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRequest:
    """What a client asks for; an empty ``repository`` leaves the image without a name."""

    container: str
    repository: str = ""
    tag: str = ""
    comment: str = ""
    author: str = ""
    pause: bool = True
    changes: Sequence[str] = ()
    config: ContainerConfig = field(default_factory=ContainerConfig)


class Committer:
    """Makes images of containers."""

    def __init__(
        self,
        journalist: Journalist,
        lifecycle: Lifecycle,
        snapshotter: Snapshotter,
        images: ImageService,
        facts: HostFacts,
    ) -> None:
        self._records = journalist
        self._lifecycle = lifecycle
        self._snapshotter = snapshotter
        self._images = images
        self._facts = facts

    async def commit(self, request: CommitRequest) -> str:
        """The new image's ID. Raises ``NotFound``, ``InvalidParameter``, ``Conflict``."""
        if not request.container:
            raise InvalidParameter("No container name or ID supplied")
        if request.repository:
            new_reference(request.repository, request.tag)  # a bad name is refused before any work
        container = self._records.store.find(request.container)
        _check_committable(container)
        config = image_config(request.config, request.changes, container.config)
        parent = self._parent(container)
        diff = self._images.content.blobs.temp_dir() / f"commit-{uuid.uuid4().hex}"
        try:
            with self._records.measures.container_action("commit"):
                info = await self._write_diff(container, diff, pause=request.pause)
                image = await self._register(request, container, config, parent, diff, info)
        except OSError as error:
            raise SystemFailure(f"Cannot commit container {container.id}: {os_words(error)}") from error
        except ValueError as error:
            raise SystemFailure(str(error)) from error
        finally:
            await run_blocking(diff.unlink, missing_ok=True)
        name = ""
        if request.repository:
            name = await self._images.tag(image, request.repository, request.tag)
        told = {"comment": request.comment, "imageID": str(image.id), "imageRef": name}
        self._records.event(container, "commit", told)
        return str(image.id)

    def _parent(self, container: Container) -> Image | None:
        if not container.image_id:
            return None
        parent = self._images.store.get(container.image_id)
        if parent is None:
            raise no_such_image(container.image_id)
        return parent

    async def _write_diff(self, container: Container, out: Path, *, pause: bool) -> DiffInfo:
        layers = tuple(LayerKey(key) for key in container.layers)
        async with self._lifecycle.frozen(container) if pause else contextlib.nullcontext():
            return await self._snapshotter.write_diff(container.id, layers, out)

    async def _register(
        self,
        request: CommitRequest,
        container: Container,
        config: RuntimeConfig,
        parent: Image | None,
        diff: Path,
        info: DiffInfo,
    ) -> Image:
        created = rfc3339(now_ns())
        machine = _ARCHITECTURES.get(self._facts.arch, self._facts.arch)
        document = ImageDocument(
            architecture=parent.document.architecture if parent is not None else machine,
            variant=parent.document.variant if parent is not None else "",
            os=(parent.document.os if parent is not None else "") or container.platform,
            os_version=parent.document.os_version if parent is not None else "",
            author=request.author,
            comment=request.comment,
            config=config,
            container=container.id,
            container_config=to_image(container.config),
            created=created,
        )
        entry = HistoryEntry(
            created=created,
            created_by=" ".join(container.config.cmd or ()),
            author=request.author,
            comment=request.comment,
        )
        changed = info.tar_bytes > EMPTY_TAR_BYTES
        if not changed:
            return await self._images.create_from_diff(parent, document, None, entry)
        return await self._images.create_from_diff(parent, document, diff, entry, info.diff_id, info.size_bytes)


def _check_committable(container: Container) -> None:
    if container.state.status is Status.DEAD:
        raise Conflict(f"You cannot commit container {container.id} which is Dead")
    if container.state.status is Status.REMOVING:
        raise Conflict(f"You cannot commit container {container.id} which is being removed")


def image_config(wish: ContainerConfig, changes: Sequence[str], container: ContainerConfig) -> RuntimeConfig:
    """The new image's settings: the client's, changed, with gaps filled from the container's.

    Raises ``InvalidParameter``.
    """
    # What a client that names no settings changes are the container's own.
    changed = apply_changes(to_image(container if wish == ContainerConfig() else wish), changes)
    try:
        return to_image(merge_image(image_settings(msgspec.to_builtins(changed)), container))
    except ValueError as error:
        raise InvalidParameter(str(error)) from error


def to_image(config: ContainerConfig) -> RuntimeConfig:
    """The part of a container's settings that images have."""
    return msgspec.convert(msgspec.to_builtins(config), RuntimeConfig)
