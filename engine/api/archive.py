"""/containers/{id}/archive, /export and /changes: docker cp, docker export, docker diff."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
from collections.abc import AsyncIterator

import msgspec
from aiohttp import web

from engine.api.app import Route
from engine.api.decode import query_bool, query_str
from engine.api.streams import json_response
from engine.clock import rfc3339
from engine.containers.archive import Archiver, PathStat
from engine.errors import EngineError, InvalidParameter

log = logging.getLogger(__name__)

SMALL_BODY = 1 << 20
REST_SECONDS = 2.0
STAT_HEADER = "X-Docker-Container-Path-Stat"


class ArchiveRoutes:
    """Handlers of a container's files."""

    def __init__(self, archiver: Archiver) -> None:
        self._archiver = archiver

    def table(self) -> list[Route]:
        """All routes of this resource."""
        one = "/containers/{name:.*}"
        return [
            Route("HEAD", f"{one}/archive", self.stat),
            Route("GET", f"{one}/archive", self.get),
            Route("PUT", f"{one}/archive", self.put),
            Route("GET", f"{one}/export", self.export),
            Route("GET", f"{one}/changes", self.changes),
        ]

    async def stat(self, request: web.Request) -> web.StreamResponse:
        """What is at a path."""
        found = await self._archiver.stat(request.match_info["name"], _path(request))
        return web.Response(headers={STAT_HEADER: encode_stat(found)})

    async def get(self, request: web.Request) -> web.StreamResponse:
        """A path as a tar."""
        async with self._archiver.get(request.match_info["name"], _path(request)) as (found, chunks):
            headers = {STAT_HEADER: encode_stat(found), "Content-Type": "application/x-tar"}
            return await _send(request, chunks, headers)

    async def put(self, request: web.Request) -> web.StreamResponse:
        """Extract a tar into a folder."""
        try:
            await self._archiver.put(
                request.match_info["name"],
                _path(request),
                request.content.iter_any(),
                keep_kinds=query_bool(request, "noOverwriteDirNonDir"),
                take_owner=query_bool(request, "copyUIDGID"),
            )
        except EngineError:
            await _take_rest(request)
            raise
        return web.Response()

    async def export(self, request: web.Request) -> web.StreamResponse:
        """All files as a tar."""
        async with self._archiver.export(request.match_info["name"]) as chunks:
            return await _send(request, chunks, {"Content-Type": "application/octet-stream"})

    async def changes(self, request: web.Request) -> web.StreamResponse:
        """What differs from the image."""
        found = await self._archiver.changes(request.match_info["name"])
        # dockerd's nil list: clients see null, not an empty list
        return json_response([{"Path": change.path, "Kind": int(change.kind)} for change in found] or None)


def encode_stat(found: PathStat) -> str:
    """The path stat as its header has it: base64 of a JSON document."""
    document = {
        "name": found.name,
        "size": found.size,
        "mode": found.mode,
        "mtime": rfc3339(found.mtime_ns),
        "linkTarget": found.link_target,
    }
    return base64.b64encode(msgspec.json.encode(document)).decode()


def _path(request: web.Request) -> str:
    path = query_str(request, "path")
    if not path:
        raise InvalidParameter("bad parameter: pathcannot be empty")  # dockerd's own words
    return path


async def _take_rest(request: web.Request) -> None:
    """Read what is left of a small body: a client that is cut off in its writing tells of that, not of our answer."""
    left = SMALL_BODY
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(REST_SECONDS):
            while left > 0 and (chunk := await request.content.readany()):
                left -= len(chunk)


async def _send(request: web.Request, chunks: AsyncIterator[bytes], headers: dict[str, str]) -> web.StreamResponse:
    """Stream a tar. An error after the head cuts the connection: a tar that ends well must be whole."""
    response = web.StreamResponse(headers=headers)
    response.enable_chunked_encoding()
    await response.prepare(request)
    try:
        async for chunk in chunks:
            await response.write(chunk)
    except EngineError as error:
        log.warning("%s %s was cut: %s", request.method, request.path, error.message)
        if request.transport is not None:
            request.transport.abort()
        return response
    with contextlib.suppress(ConnectionError):  # the client has all it wants and is gone
        await response.write_eof()
    return response
