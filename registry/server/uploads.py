"""Uploads over HTTP: open, append, ask, finish, cancel, mount (OCI distribution spec 1.1, "Pushing blobs").

Chunks must come in order; one that does not is refused with 416 and the place to go on from. What arrived before a
connection broke stays, so a client can ask where to resume, also after the server was restarted.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from registry import errors
from registry.digest import Digest, InvalidDigest
from registry.errors import RegistryError
from registry.server.auth import Access
from registry.server.blobs import parse_digest
from registry.server.bodies import Body
from registry.server.direct import DirectBody
from registry.server.notices import Notices
from registry.server.pushrules import PushRules
from registry.server.replies import Reply
from registry.server.requests import Call
from registry.store.repositories import Repositories
from registry.store.uploads import Upload, Uploads
from registry.tasks import begin, carry_through

# What all uploads together may hold in memory, twice (one part arrives while the other is written), and each one's
# share.
_BATCH_BUDGET = 12 * 1024 * 1024
_BATCH_LEAST = 128 * 1024
_BATCH_MOST = 2 * 1024 * 1024
# Up to this many bodies at once are each received, hashed and written at the same time; of more, each goes through one
# thread.
_CROWD = max(2, os.cpu_count() or 1)
_CONTENT_RANGE = re.compile(r"(?:bytes[ =])?(\d{1,19})-(\d{1,19})(?:/(?:\d+|\*))?")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UploadHandlers:
    """Answers under `/v2/<name>/blobs/uploads/`."""

    def __init__(
        self,
        repositories: Repositories,
        uploads: Uploads,
        access: Access,
        notices: Notices,
        rules: PushRules,
    ) -> None:
        self._rules = rules
        self._repositories = repositories
        self._uploads = uploads
        self._access = access
        self._notices = notices
        self._receiving = 0

    async def start(self, call: Call) -> Reply:
        """POST: mount a blob, take a whole one, or open a session."""
        mount = call.argument("mount")
        if mount is not None:
            mounted = await self._mount(call, parse_digest(mount))
            if mounted is not None:
                return mounted
        digest = call.argument("digest")
        expected = parse_digest(digest) if digest is not None else None
        algorithm = expected.algorithm if expected is not None else call.argument("digest-algorithm") or "sha256"
        try:
            upload_id = await self._uploads.start(call.repository, algorithm)
        except InvalidDigest as error:
            raise RegistryError(errors.DIGEST_INVALID, str(error)) from error
        if expected is not None:
            call.reference = upload_id
            return await self._finish(call, expected)
        return self._progress(call, 202, upload_id, 0)

    async def _mount(self, call: Call, digest: Digest) -> Reply | None:
        source = call.argument("from")
        found = await self._repositories.blob(call.repository, digest) if source is None else None
        if found is None:
            # Without a source any repository will do that had the blob lately. Only one that the caller may pull from:
            # all else would tell, and hand out, what the caller may not read.
            source = source or self._repositories.home(digest)
            if source is None or not self._access.authorize(call.identity, source, "pull"):
                return None
            if self._rules.has_quota(call.repository):
                there = await self._repositories.blob(source, digest)
                await self._rules.check_quota(call.repository, there[1] if there is not None else 0, digest)
            found = await self._repositories.mount(source, call.repository, digest)
            if found is None:
                return None
            self._rules.note_blob(call.repository, digest, found[1])
        self._notices.blob("mount", call, digest, found[1], from_repository=source or "")
        return self._created(call, digest)

    async def status(self, call: Call) -> Reply:
        """GET and HEAD: how much has arrived."""
        return self._progress(call, 204, call.reference, await self._uploads.offset(call.repository, call.reference))

    async def append(self, call: Call) -> Reply:
        """PATCH: the next chunk."""
        content_type = call.header("Content-Type")
        if content_type and content_type.partition(";")[0].strip() != "application/octet-stream":
            raise RegistryError(errors.BLOB_UPLOAD_INVALID, f"bad Content-Type {content_type[:100]}")
        async with self._body(call) as body, self._uploads.held(call.repository, call.reference) as upload:
            self._check_position(call, upload)
            await self._receive(call, body, upload)
            return self._progress(call, 202, call.reference, upload.offset)

    async def finish(self, call: Call) -> Reply:
        """PUT: an optional last chunk, then the digest it all must have."""
        text = call.argument("digest")
        if text is None:
            raise RegistryError(errors.DIGEST_INVALID, "digest missing")
        return await self._finish(call, parse_digest(text))

    async def _finish(self, call: Call, expected: Digest) -> Reply:
        has_body = call.content_length != 0
        held = self._uploads.held(call.repository, call.reference, to_append=has_body)
        async with self._body(call) as body, held as upload:
            if has_body:
                self._check_position(call, upload)
                await self._receive(call, body, upload)
            try:
                await self._rules.check_quota(call.repository, upload.offset, expected)
            except RegistryError:
                await upload.close()
                await self._uploads.forget(call.repository, upload.upload_id)
                raise
            # A client that leaves now must not tear the commit in two.
            await carry_through(self._uploads.commit(upload, expected))
        self._rules.note_blob(call.repository, expected, upload.offset)
        self._notices.blob("push", call, expected, upload.offset)
        return self._created(call, expected)

    async def cancel(self, call: Call) -> Reply:
        """DELETE: forget the upload."""
        await self._uploads.cancel(call.repository, call.reference)
        return Reply(204, {"Docker-Upload-UUID": call.reference})

    def _check_position(self, call: Call, upload: Upload) -> None:
        header = call.header("Content-Range")
        if header is None:
            return
        matched = _CONTENT_RANGE.fullmatch(header.strip())
        here = self._position_headers(call, upload.upload_id, upload.offset)
        if matched is None:
            raise RegistryError(errors.RANGE_INVALID, header[:100], headers=here)
        first, last = int(matched[1]), int(matched[2])
        if first != upload.offset:
            raise RegistryError(errors.RANGE_INVALID, f"the upload is at {upload.offset}, not {first}", headers=here)
        if call.content_length is not None and last - first + 1 != call.content_length:
            raise RegistryError(errors.SIZE_INVALID, "Content-Range and Content-Length disagree", headers=here)

    @asynccontextmanager
    async def _body(self, call: Call) -> AsyncIterator[Body | DirectBody]:
        """The request's body; of a large one no more than is here arrives on the loop."""
        direct = DirectBody.of(call.request)
        if direct is None:
            yield Body(call.request)
            return
        direct.stop()
        try:
            yield direct
        finally:
            await direct.close()

    async def _receive(self, call: Call, body: Body | DirectBody, upload: Upload) -> None:
        """Take the body."""
        self._receiving += 1
        direct = call.direct = body if isinstance(body, DirectBody) else None
        try:
            sink = upload.sink if direct is not None and self._receiving > _CROWD else None
            if direct is not None and sink is not None:
                await direct.pour(sink)
            else:
                await self._overlap(body, upload)
        except OSError as error:
            if error.errno in _FULL:
                await upload.close()
                await self._uploads.forget(call.repository, upload.upload_id)
                raise RegistryError(errors.STORAGE_FULL) from error
            raise
        finally:
            self._receiving -= 1
            if direct is not None:
                await direct.close()

    async def _overlap(self, body: Body | DirectBody, upload: Upload) -> None:
        """One batch is written and hashed in threads while the next arrives."""
        writing: asyncio.Future[None] | None = None
        try:
            while batch := await body.next(max(_BATCH_LEAST, min(_BATCH_MOST, _BATCH_BUDGET // self._receiving))):
                if writing is not None:
                    await writing
                writing = begin(upload.write(batch))
            if writing is not None:
                await writing
        finally:
            if writing is not None and not writing.done():
                await asyncio.wait([writing])

    def _progress(self, call: Call, status: int, upload_id: str, offset: int) -> Reply:
        return Reply(status, self._position_headers(call, upload_id, offset))

    def _position_headers(self, call: Call, upload_id: str, offset: int) -> dict[str, str]:
        return {
            "Location": call.upload_url(upload_id),
            "Docker-Upload-UUID": upload_id,
            "Range": f"0-{max(offset - 1, 0)}",
        }

    def _created(self, call: Call, digest: Digest) -> Reply:
        return Reply(201, {"Location": call.blob_url(digest), "Docker-Content-Digest": str(digest)})
