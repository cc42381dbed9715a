"""The ``/images`` routes, ``/auth`` and ``/distribution``: decode, one call, shape."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

import msgspec
from aiohttp import web

from engine.api.app import Route
from engine.api.decode import api_version, json_body, parse_platform, query_bool, query_filters, query_int, query_str
from engine.api.shapes import images as shapes
from engine.api.streams import json_lines, json_response
from engine.errors import InvalidParameter, SystemFailure
from engine.images.archive import ImageLoader
from engine.images.progress import Line, Report, status
from engine.images.pull import Puller
from engine.images.push import Pusher
from engine.images.removal import PRUNE_FILTERS, ImageRemover
from engine.images.save import ImageSaver
from engine.images.service import LIST_FILTERS, ImageService, parse_reference, require_platform
from engine.images.transfers import Transfers
from engine.tasks import Nursery
from registry.client.credentials import AuthConfig, decode_auth_header
from registry.manifest import Platform

_SEARCH_FILTERS = frozenset({"is-official", "is-automated", "stars"})
# The version of the API in which save and load can be asked for one platform.
PLATFORMS_SINCE = (1, 48)


class ImageRoutes:
    """Everything about images over HTTP.

    ``service``, ``puller`` and ``pusher`` do the work; ``nursery`` owns what outlives a client (an archive that
    was received whole, or what somebody else waits for); ``platform`` is the host's.
    """

    def __init__(
        self, service: ImageService, puller: Puller, pusher: Pusher, nursery: Nursery, platform: Platform
    ) -> None:
        self._service = service
        self._puller = puller
        self._pusher = pusher
        self._loader = ImageLoader(service, platform)
        self._saver = ImageSaver(service)
        self._remover = ImageRemover(service)
        self._transfers = Transfers(nursery)

    def table(self) -> list[Route]:
        """The routes; longer names first, as image names contain slashes."""
        return [
            Route("GET", "/images/json", self.list),
            Route("GET", "/images/search", self.search),
            Route("GET", "/images/get", self.save_several, streams=True),
            Route("POST", "/images/create", self.create, streams=True),
            Route("POST", "/images/load", self.load, streams=True),
            Route("POST", "/images/prune", self.prune),
            Route("GET", "/images/{name:.*}/json", self.inspect),
            Route("GET", "/images/{name:.*}/history", self.history),
            Route("GET", "/images/{name:.*}/get", self.save_one, streams=True),
            Route("POST", "/images/{name:.*}/push", self.push, streams=True),
            Route("POST", "/images/{name:.*}/tag", self.tag),
            Route("DELETE", "/images/{name:.*}", self.remove),
            Route("POST", "/auth", self.auth),
            Route("GET", "/distribution/{name:.*}/json", self.distribution),
        ]

    async def list(self, request: web.Request) -> web.StreamResponse:
        """``docker images``."""
        version = api_version(request)
        filters = query_filters(request, LIST_FILTERS)
        rows = self._service.list(
            filters, all_images=query_bool(request, "all"), shared_size=query_bool(request, "shared-size")
        )
        return json_response([shapes.summary(row, version) for row in rows])

    async def inspect(self, request: web.Request) -> web.StreamResponse:
        """``docker image inspect``."""
        image = self._service.get(request.match_info["name"])
        if platform := parse_platform_json(query_str(request, "platform")):
            require_platform(image, platform, request.match_info["name"])
        names = self._service.names(image.id)
        folders = self._service.content.graph_data(image)
        return json_response(shapes.inspected(image, names, api_version(request), folders))

    async def history(self, request: web.Request) -> web.StreamResponse:
        """``docker history``."""
        image = self._service.get(request.match_info["name"])
        return json_response(shapes.history_rows(self._service.history(image)))

    async def tag(self, request: web.Request) -> web.StreamResponse:
        """``docker tag``."""
        image = self._service.get(request.match_info["name"])
        await self._service.tag(image, query_str(request, "repo"), query_str(request, "tag"))
        return web.Response(status=201)

    async def remove(self, request: web.Request) -> web.StreamResponse:
        """``docker rmi``."""
        name = request.match_info["name"]
        if not name.strip():
            raise InvalidParameter("image name cannot be blank")
        records = await self._remover.remove(
            name, force=query_bool(request, "force"), prune_parents=not query_bool(request, "noprune")
        )
        return json_response(shapes.removed_rows(records))

    async def prune(self, request: web.Request) -> web.StreamResponse:
        """``docker image prune``."""
        pruned = await self._remover.prune(query_filters(request, PRUNE_FILTERS))
        records = shapes.removed_rows(pruned.removed) or None
        return json_response({"ImagesDeleted": records, "SpaceReclaimed": pruned.reclaimed})

    async def create(self, request: web.Request) -> web.StreamResponse:
        """``docker pull`` and ``docker import``."""
        if "fromImage" in request.query and query_str(request, "fromImage"):
            return await self._pull(request)
        return await self._import(request)

    async def _pull(self, request: web.Request) -> web.StreamResponse:
        name, tag = query_str(request, "fromImage"), query_str(request, "tag")
        platform = parse_platform(query_str(request, "platform"))
        auth = decode_auth_header(request.headers.get("X-Registry-Auth", ""))
        all_tags = not tag and not re.search(r"[:@][^/]*$", name)
        lines = self._puller.pull(name, tag, auth, platform, all_tags=all_tags)
        return await _stream(request, lines)

    async def _import(self, request: web.Request) -> web.StreamResponse:
        source = query_str(request, "fromSrc")
        if not source:
            raise SystemFailure('Get "http:": http: no Host in request URL')
        repository = query_str(request, "repo")
        reference = None
        if repository:
            tag = query_str(request, "tag")
            reference = parse_reference(f"{repository}:{tag}" if tag else repository)
            if reference.digest is not None:
                raise InvalidParameter("cannot import digest reference")
        platform = parse_platform(query_str(request, "platform"))
        message = query_str(request, "message") or f"Imported from {source}"
        changes = request.query.getall("changes", [])
        sent = _Sent(request)
        body = sent.chunks() if source == "-" else await self._puller.download(source)

        async def operation(report: Report) -> None:
            if source != "-":
                report(status(f"Downloading from {source}"))
            await self._loader.import_tar(
                body, report, reference=reference, changes=changes, message=message, platform=platform
            )

        lines = self._transfers.follow(f"import {uuid.uuid4().hex}", operation, goes_on=lambda: sent.complete)
        return await _stream(request, lines)

    async def load(self, request: web.Request) -> web.StreamResponse:
        """``docker load``."""
        quiet = query_bool(request, "quiet", True)
        platform = _one_platform(request)
        sent = _Sent(request)

        async def operation(report: Report) -> None:
            await self._loader.load(sent.chunks(), report, quiet=quiet, platform=platform)

        # As dockerd does: whatever becomes of a load is told in its stream, whose head comes with the first line; and
        # a client that reads the head alone has its images.
        lines = self._transfers.follow(f"load {uuid.uuid4().hex}", operation, goes_on=lambda: sent.complete)
        return await _stream(request, lines, errors_in_lines=True)

    async def save_one(self, request: web.Request) -> web.StreamResponse:
        """``docker save`` of one image."""
        return await self._save(request, [request.match_info["name"]])

    async def save_several(self, request: web.Request) -> web.StreamResponse:
        """``docker save`` of any number of images."""
        names = [name for value in request.query.getall("names", []) for name in value.split(",") if name]
        return await self._save(request, names)

    async def _save(self, request: web.Request, names: Sequence[str]) -> web.StreamResponse:
        chosen = self._saver.select(names, _one_platform(request))
        response = web.StreamResponse(headers={"Content-Type": "application/x-tar"})
        async with aclosing(self._saver.save(chosen)) as data:
            async for chunk in data:
                if not response.prepared:
                    await response.prepare(request)
                await response.write(chunk)
        await response.write_eof()
        return response

    async def push(self, request: web.Request) -> web.StreamResponse:
        """``docker push``."""
        auth = decode_auth_header(request.headers.get("X-Registry-Auth", ""))
        platform = parse_platform_json(query_str(request, "platform"))
        lines = self._pusher.push(request.match_info["name"], query_str(request, "tag"), auth, platform)
        return await _stream(request, lines)

    async def search(self, request: web.Request) -> web.StreamResponse:
        """``docker search``."""
        filters = query_filters(request, _SEARCH_FILTERS)
        term = query_str(request, "term")
        if not term:
            raise InvalidParameter('"term" is required')
        limit = query_int(request, "limit", 0) or 0
        auth = decode_auth_header(request.headers.get("X-Registry-Auth", ""))
        return json_response(await self._puller.search(term, limit, filters, auth))

    async def auth(self, request: web.Request) -> web.StreamResponse:
        """``docker login``: whether a registry takes these credentials."""
        config = await json_body(request, AuthConfig)
        token = await self._puller.login(config)
        return json_response({"IdentityToken": token, "Status": "Login Succeeded"})

    async def distribution(self, request: web.Request) -> web.StreamResponse:
        """``docker manifest inspect`` and friends: what a registry has under a name."""
        auth = decode_auth_header(request.headers.get("X-Registry-Auth", ""))
        return json_response(await self._puller.inspect_remote(request.match_info["name"], auth))


class _Sent:
    """What a client sends; ``complete`` once all of it was read."""

    def __init__(self, request: web.Request) -> None:
        self._content = request.content
        self.complete = False

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body."""
        async for chunk in self._content.iter_any():
            yield chunk
        self.complete = True


async def _stream(
    request: web.Request, lines: AsyncGenerator[Line, None], *, errors_in_lines: bool = False
) -> web.StreamResponse:
    async with json_lines(request, errors_in_lines=errors_in_lines) as out, aclosing(lines) as source:
        async for line in source:
            await out.send(line)
    return out.response


def _one_platform(request: web.Request) -> Platform | None:
    """The platform of a save or load, which older clients could not name. Raises ``InvalidParameter``."""
    given = request.query.getall("platform", []) if api_version(request) >= PLATFORMS_SINCE else []
    if len(given) > 1:
        raise InvalidParameter("multiple platform parameters not supported")
    if not given:
        return None
    platform = parse_platform_json(given[0]) or Platform()
    if not platform.os or not platform.architecture:
        raise InvalidParameter("both OS and Architecture must be provided")
    return platform


def parse_platform_json(text: str) -> Platform | None:
    """The JSON platform of a push; None for nothing. Raises ``InvalidParameter``."""
    if not text:
        return None
    try:
        return msgspec.json.decode(text, type=Platform)
    except msgspec.DecodeError as error:
        raise InvalidParameter(f"failed to parse platform: {error}") from error
