"""Blobs over HTTP: HEAD, GET with ranges, DELETE. A blob is served only through a repository that links it."""

from __future__ import annotations

import os
import re

from registry import errors
from registry.digest import Digest, InvalidDigest
from registry.errors import RegistryError
from registry.proxy import PullThrough, Route
from registry.server.notices import Notices
from registry.server.replies import FileReply, Reply, StreamReply
from registry.server.requests import Call
from registry.store import paths
from registry.store.blobs import BlobStore
from registry.store.repositories import Repositories

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_PRESIGNED_SECONDS = 1200


class BlobHandlers:
    """Answers under `/v2/<name>/blobs/<digest>`."""

    def __init__(self, blobs: BlobStore, repositories: Repositories, notices: Notices, proxy: PullThrough) -> None:
        self._notices = notices
        self._blobs = blobs
        self._repositories = repositories
        self._proxy = proxy

    async def get(self, call: Call) -> Reply:
        """GET and HEAD."""
        digest = parse_digest(call.reference)
        found = self._repositories.hot_blob(call.repository, digest)
        if found is None:
            found = await self._repositories.blob(call.repository, digest)
        if found is None:
            route = self._proxy.route(call.repository)
            if route is not None:
                return await self._through(call, digest, route)
            raise RegistryError(errors.BLOB_UNKNOWN, str(digest))
        if call.method == "GET" and self._proxy.is_active and self._proxy.route(call.repository) is not None:
            self._proxy.lookups["blob", True] += 1
        return await self._serve(call, digest, *found)

    async def _through(self, call: Call, digest: Digest, route: Route) -> Reply:
        """A blob that has to be brought in first: streamed while it is stored, in whole; a client may take less."""
        if call.method == "HEAD":
            return Reply(200, blob_headers(digest), content_length=await self._proxy.blob_size(digest, route))
        size, chunks = await self._proxy.blob(call.repository, digest, route)
        self._proxy.lookups["blob", chunks is None] += 1
        if chunks is None:
            return await self._serve(call, digest, digest, size)
        return StreamReply(200, blob_headers(digest), chunks, size)

    async def _serve(self, call: Call, digest: Digest, stored: Digest, size: int) -> Reply:
        headers = blob_headers(digest)
        check_match(call.header("If-Match"), digest)
        if matches_etag(call.header("If-None-Match"), digest):
            return Reply(304, headers)
        if call.method == "HEAD":
            self._notices.looked(call, digest, size)
            return Reply(200, headers, content_length=size)
        self._notices.blob("pull", call, digest, size)
        wanted = call.header("Range")
        status, offset, length = 200, 0, size
        if wanted is not None and _range_applies(call, digest):
            span = parse_range(wanted, size)
            if span is not None:
                offset, length = span
                status = 206
                headers["Content-Range"] = f"bytes {offset}-{offset + length - 1}/{size}"
        return await self._body(status, headers, stored, offset, length)

    async def _body(self, status: int, headers: dict[str, str], digest: Digest, offset: int, length: int) -> Reply:
        driver = self._blobs.driver
        path = paths.blob_data(digest)
        local = driver.local_path(path)
        if local is not None:
            return FileReply(status, headers, os.fspath(local), offset, length)
        address = await driver.presign(path, _PRESIGNED_SECONDS)
        if address is not None:
            return Reply(307, {**headers, "Location": address})
        return StreamReply(status, headers, driver.stream(path, offset, length), length)

    async def delete(self, call: Call) -> Reply:
        """DELETE: the repository stops serving the blob; the collector takes the bytes when nobody else needs them."""
        digest = parse_digest(call.reference)
        if not await self._repositories.unlink_blob(call.repository, digest):
            raise RegistryError(errors.BLOB_UNKNOWN, str(digest))
        self._notices.deleted(call, digest=digest)
        return Reply(202, {"Docker-Content-Digest": str(digest)})


def parse_digest(text: str) -> Digest:
    """The digest of a URL or query, or 400."""
    try:
        return Digest.parse(text)
    except InvalidDigest as error:
        raise RegistryError(errors.DIGEST_INVALID, str(error), message="provided digest is not valid") from error


def blob_headers(digest: Digest) -> dict[str, str]:
    """What every answer about a blob carries."""
    return {
        "Content-Type": "application/octet-stream",
        "Docker-Content-Digest": str(digest),
        "ETag": f'"{digest}"',
        "Cache-Control": "max-age=31536000",
        "Accept-Ranges": "bytes",
    }


def check_match(header: str | None, digest: Digest) -> None:
    """412 unless `If-Match`, where there is one, names this content; a weak mark never does (RFC 9110)."""
    if header is not None and not any(item.strip().strip('"') in ("*", digest) for item in header.split(",")):
        raise RegistryError(errors.PRECONDITION_FAILED, str(digest))


def matches_etag(header: str | None, digest: Digest) -> bool:
    """Whether `If-None-Match` names this content; quotes and weakness marks are optional, as clients send both."""
    if header is None:
        return False
    for item in header.split(","):
        tag = item.strip().removeprefix("W/").strip('"')
        if tag in ("*", digest):
            return True
    return False


def _range_applies(call: Call, digest: Digest) -> bool:
    condition = call.header("If-Range")
    return condition is None or condition.strip('" ') == digest


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """Offset and length of a single range; None for what may be ignored (several ranges, other units); 416
    otherwise."""
    text = header.strip()
    if not text.startswith("bytes=") or "," in text:
        return None
    matched = _RANGE.fullmatch(text)
    unsatisfiable = RegistryError(errors.RANGE_INVALID, header[:100], headers={"Content-Range": f"bytes */{size}"})
    if matched is None or matched[0] == "bytes=-" or max(len(matched[1]), len(matched[2])) > 19:
        raise unsatisfiable
    if not matched[1]:
        length = min(int(matched[2]), size)
        if length == 0:
            raise unsatisfiable
        return size - length, length
    first = int(matched[1])
    last = min(int(matched[2]), size - 1) if matched[2] else size - 1
    if first >= size or last < first:
        raise unsatisfiable
    return first, last - first + 1
