"""Pushing: layers in parallel (known, mounted or sent), then the configuration, then the manifest.

A manifest that came with the image is pushed byte for byte, so its digest stays what it was. To the embedded registry
the same steps only write links.
"""

from __future__ import annotations

import asyncio
import hashlib
from asyncio import TaskGroup
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace

import msgspec

from engine.errors import InvalidParameter, SystemFailure
from engine.images.content import PLAIN_TYPES, one_error
from engine.images.manifests import describe
from engine.images.model import Image, LayerBlob
from engine.images.progress import Line, Paced, Report, status, step
from engine.images.remote import Remotes, Target, push_error
from engine.images.service import ImageService
from engine.images.store import merge_blobs
from engine.images.transfers import Transfers
from engine.names import short
from registry.client.credentials import AuthConfig
from registry.client.failures import ConnectionFailed, NoCredentials, RemoteError
from registry.digest import Digest
from registry.manifest import Descriptor, Platform
from registry.reference import InvalidReference, Reference

_FAILURES = (RemoteError, ConnectionFailed, NoCredentials, ValueError, LookupError, OSError)
_MOUNT_CANDIDATES = 3


@dataclass(frozen=True, slots=True)
class _Push:
    """One image on its way to one repository."""

    target: Target
    reference: Reference
    image: Image
    forms: Sequence[LayerBlob | None]
    report: Report


class Pusher:
    """``push``: ``remotes`` opens the repository, ``transfers`` shares running pushes.

    At most ``max_uploads`` layers are sent at a time for one push.
    """

    def __init__(self, service: ImageService, remotes: Remotes, transfers: Transfers, max_uploads: int = 5) -> None:
        self._service = service
        self._content = service.content
        self._remotes = remotes
        self._transfers = transfers
        self.max_uploads = max_uploads

    async def push(
        self, name: str, tag: str, auth: AuthConfig, platform: Platform | None = None
    ) -> AsyncGenerator[Line, None]:
        """The progress of a push of one tag, or of all tags when there is none. Raises ``EngineError``."""
        reference = push_reference(name, tag)
        who = hashlib.sha256(msgspec.json.encode(auth)).hexdigest()

        async def operation(report: Report) -> None:
            await self._push(reference, auth, platform, report)

        async with aclosing(self._transfers.follow(f"push {reference} {who}", operation)) as lines:
            async for line in lines:
                yield line

    async def _push(self, reference: Reference, auth: AuthConfig, platform: Platform | None, report: Report) -> None:
        report(status(f"The push refers to repository [{reference.name}]"))
        chosen = self._chosen(reference)
        try:
            target = await self._remotes.target(reference, auth)
            for tagged, image in chosen:
                _check_platform(image, platform, tagged)
                await self._push_image(target, tagged, image, report)
        except _FAILURES as error:
            raise push_error(error) from error
        self._service.publish("push", reference.familiar, reference.familiar_name)

    def _chosen(self, reference: Reference) -> list[tuple[Reference, Image]]:
        names = [Reference.parse(name, default_tag=False) for name in sorted(self._service.store.tagged())]
        ours = [name for name in names if name.name == reference.name]
        if not ours:
            raise SystemFailure(f"An image does not exist locally with the tag: {reference.familiar_name}")
        if reference.tag is not None:
            ours = [name for name in ours if name.tag == reference.tag and name.digest is None]
            if not ours:
                raise SystemFailure(f"tag does not exist: {reference.familiar}")
        return [(name, self._service.get(str(name))) for name in ours if name.digest is None]

    async def _push_image(self, target: Target, reference: Reference, image: Image, report: Report) -> None:
        kept = await self._content.kept_manifest(image)
        if kept is not None and any(form.media_type in PLAIN_TYPES for form in kept[1]):
            kept = None
        forms: Sequence[LayerBlob | None] = kept[1] if kept is not None else [None] * len(image.diff_ids)
        async with self._content.hold(
            image.diff_ids, (image.digest, *(form.digest for form in forms if form is not None))
        ):
            push = _Push(target, reference, image, forms, report)
            sent = await self._layers(push)
            if kept is not None:
                data, media_type = kept[0].data, kept[0].media_type
            else:
                data, media_type = describe(image, sent)
            if not await target.has(image.digest):
                path = self._content.blobs.local_path(image.digest)
                await target.upload(image.digest, path, image.config_size, lambda _: None)
            digest = await target.put_manifest(reference.tag or "latest", data, media_type)
            await self._remember(
                push, sent, digest, Descriptor(media_type=media_type, digest=str(digest), size=len(data)), data
            )
        report(status(f"{reference.tag}: digest: {digest} size: {len(data)}"))
        report({"progressDetail": {}, "aux": {"Tag": reference.tag, "Digest": str(digest), "Size": len(data)}})

    async def _layers(self, push: _Push) -> list[LayerBlob]:
        """Have every layer in the repository; the forms it has them in, bottom first."""
        slots = asyncio.Semaphore(self.max_uploads)
        first: dict[str, int] = {}
        for index, diff_id in enumerate(push.image.diff_ids):
            first.setdefault(diff_id, index)
        for diff_id in reversed(first):
            push.report(step(short(diff_id), "Preparing"))
        async with one_error(), TaskGroup() as group:
            tasks = {
                d: group.create_task(self._layer(push, d, push.forms[i], slots)) for d, i in reversed(first.items())
            }
        return [tasks[diff_id].result() for diff_id in push.image.diff_ids]

    async def _layer(self, push: _Push, diff_id: str, form: LayerBlob | None, slots: asyncio.Semaphore) -> LayerBlob:
        name, report = short(diff_id), push.report
        if slots.locked():
            report(step(name, "Waiting"))
        async with slots, self._held(diff_id, form) as held:
            if await push.target.has(held.digest):
                report(step(name, "Layer already exists"))
                return held
            mounted, location = await self._mount(push, held)
            if mounted:
                report(step(name, f"Mounted from {mounted}"))
                return held
            told = Paced(report, name, "Pushing", held.size)
            told(0)
            path = self._content.blobs.local_path(held.digest)
            await push.target.upload(held.digest, path, held.size, told, location)
        report(step(name, "Pushed"))
        return held

    @asynccontextmanager
    async def _held(self, diff_id: str, form: LayerBlob | None) -> AsyncIterator[LayerBlob]:
        """The form to be sent, which stays while it is: the one given, else a compressed one."""
        if form is None:
            async with self._content.packed(diff_id) as packed:
                yield packed
        else:
            async with self._content.leases.hold(form.digest):
                yield form

    async def _mount(self, push: _Push, form: LayerBlob) -> tuple[str, str]:
        """The repository the layer was taken over from, else the upload that a registry began instead."""
        here = f"{push.reference.domain}/"
        paths = [s.removeprefix(here) for s in form.sources if s.startswith(here) and s != push.reference.name]
        for path in paths[:_MOUNT_CANDIDATES]:
            location = await push.target.mount(form.digest, path)
            if location is None:
                return path, ""
            if location:
                return "", location
        return "", ""

    async def _remember(
        self, push: _Push, sent: Sequence[LayerBlob], digest: Digest, descriptor: Descriptor, data: bytes
    ) -> None:
        """Keep the manifest, its digest as a name, and where the layers are now."""
        async with self._content.hold((), (digest,)):  # the image may be gone, and then nobody needs the manifest
            await self._content.blobs.put(data, digest)
            image = self._service.store.get(push.image.id)
            if image is None:
                return
            if all(m.digest != descriptor.digest for m in image.manifests):
                await self._service.store.replace_image(replace(image, manifests=(descriptor, *image.manifests)))
            for diff_id, form in dict(zip(image.diff_ids, sent, strict=True)).items():
                known = self._service.store.forms(diff_id)
                sources = tuple(dict.fromkeys((push.reference.name, *form.sources)))
                merged = merge_blobs(known, replace(form, sources=sources))
                if merged != known:
                    await self._service.store.set_forms(diff_id, merged)
            await self._service.name(image, push.reference.with_digest(digest))


def push_reference(name: str, tag: str) -> Reference:
    """What a push request means; without a tag all tags of the repository. Raises ``InvalidParameter``."""
    try:
        reference = Reference.parse(name, default_tag=False)
        if reference.digest is not None:
            raise InvalidParameter("cannot push a digest reference")
        return reference.with_tag(tag) if tag else reference
    except InvalidReference as error:
        raise InvalidParameter(str(error)) from error


def _check_platform(image: Image, wanted: Platform | None, reference: Reference) -> None:
    if wanted is None:
        return
    ours = image.platform
    if (wanted.os, wanted.architecture) != (ours.os, ours.architecture):
        raise SystemFailure(
            f"image with reference {reference.familiar} was found but its platform ({ours.os}/{ours.architecture}) "
            f"does not match the specified platform ({wanted.os}/{wanted.architecture})"
        )
