"""The Engine API as one handler: version prefix, route lookup, errors to JSON, common headers, request log.

Routes are matched by our own small table instead of aiohttp's dispatcher: every path exists with and without a version
prefix, image names contain slashes, and dispatch must cost microseconds. ``POST``, ``PUT`` and ``DELETE`` run in the
nursery, so that a client that hangs up leaves no half-made change; routes marked ``streams`` are cancelled with their
client instead.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from engine import API_VERSION, MIN_API_VERSION
from engine.api.decode import VERSION
from engine.errors import EngineError, InvalidParameter, NotModified, os_words
from engine.tasks import Nursery

log = logging.getLogger(__name__)

ENGINE_VERSION = "28.3.0"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. ``path`` has ``{name}`` (one segment) and ``{name:.*}`` (any) placeholders."""

    method: str
    path: str
    handler: Handler
    streams: bool = False


class EngineRequest(web.Request):
    """A request whose placeholders were filled by our own table."""

    params: dict[str, str]

    ATTRS = web.Request.ATTRS | frozenset(["params"])

    @property
    def match_info(self) -> Any:
        """The placeholders of the matched route."""
        return self.params


_VERSION_PREFIX = re.compile(r"/v(\d+)\.(\d+)(?=/)")
_PLACEHOLDER = re.compile(r"\{(\w+)(?::([^}]*))?\}")


def _compile(path: str) -> re.Pattern[str]:
    pattern, position = "", 0
    for match in _PLACEHOLDER.finditer(path):
        pattern += re.escape(path[position : match.start()])
        pattern += f"(?P<{match[1]}>{'.+' if match[2] else '[^/]+'})"
        position = match.end()
    return re.compile(pattern + re.escape(path[position:]))


class RouteTable:
    """Routes by method and first path segment, then by pattern in order of registration."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._exact: dict[tuple[str, str], Route] = {}
        self._patterns: dict[tuple[str, str], list[tuple[re.Pattern[str], Route]]] = {}
        for route in routes:
            if "{" not in route.path:
                self._exact[route.method, route.path] = route
            else:
                key = (route.method, route.path.split("/", 2)[1])
                self._patterns.setdefault(key, []).append((_compile(route.path), route))

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]] | None:
        """The route of a path without version prefix, and its placeholders."""
        exact = self._exact.get((method, path))
        if exact is not None:
            return exact, {}
        _, _, rest = path.partition("/")
        for pattern, route in self._patterns.get((method, rest.partition("/")[0]), ()):
            match = pattern.fullmatch(path)
            if match is not None:
                return route, match.groupdict()
        return None


def error_response(status: int, message: str) -> web.Response:
    """Docker's error document."""
    if status == 304:
        return web.Response(status=304)
    body = msgspec.json.encode({"message": message}) + b"\n"
    return web.Response(status=status, body=body, content_type="application/json")


class Api:
    """The handler that listeners call for each request."""

    def __init__(self, routes: Iterable[Route], nursery: Nursery) -> None:
        self._table = RouteTable(routes)
        self._nursery = nursery
        self._headers = {
            "Api-Version": f"{API_VERSION[0]}.{API_VERSION[1]}",
            "Docker-Experimental": "false",
            "Ostype": "linux",
            "Server": f"Docker/{ENGINE_VERSION} (linux)",
        }

    async def __call__(self, base: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; raises only when the client left (``CancelledError``) or what it is told cannot be said
        any more."""
        assert isinstance(base, EngineRequest)
        started = time.perf_counter()
        try:
            response = await self._dispatch(base)
        except NotModified:
            response = error_response(304, "")
        except EngineError as error:
            response = error_response(error.status, error.message)
        except web.HTTPException as error:
            response = error_response(error.status, error.text or error.reason)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if isinstance(error, ConnectionError) and _has_left(base):
                raise asyncio.CancelledError("the client has left") from error
            log.exception("%s %s failed", base.method, base.path)
            response = error_response(500, os_words(error))
        if not response.prepared:
            if base.writer.output_size > 0:
                # A second head would be read as part of the first answer's body: end the connection instead.
                log.warning("%s %s failed after its answer had begun", base.method, base.path)
                raise ConnectionAbortedError("the answer had begun")
            response.headers.update(self._headers)
            if "Upgrade" in base.headers:
                response.force_close()  # declined: what the client sent after its request is not HTTP
        if log.isEnabledFor(logging.DEBUG):
            elapsed = (time.perf_counter() - started) * 1000
            log.debug("%s %s %d %.1fms", base.method, base.path_qs, response.status, elapsed)
        return response

    async def _dispatch(self, request: EngineRequest) -> web.StreamResponse:
        path = request.path
        prefix = _VERSION_PREFIX.match(path)
        if prefix is not None:
            version = (int(prefix[1]), int(prefix[2]))
            if version < MIN_API_VERSION:
                return _too_old(version)
            _check_version(version)
            request[VERSION] = version
            path = path[prefix.end() :]
        if request.method == "OPTIONS":
            return web.Response(status=200)
        found = self._table.find(request.method, path)
        if found is None:
            return error_response(404, "page not found")
        route, request.params = found
        if route.streams or request.method in ("GET", "HEAD"):
            return await route.handler(request)
        return await self._nursery.shielded(_run(route.handler, request), name=f"{request.method} {route.path}")


def _has_left(request: web.BaseRequest) -> bool:
    return request.transport is None or request.transport.is_closing()


async def _run(handler: Handler, request: web.Request) -> web.StreamResponse:
    return await handler(request)


def _check_version(version: tuple[int, int]) -> None:
    shown = f"{version[0]}.{version[1]}"
    if version > API_VERSION:
        newest = f"{API_VERSION[0]}.{API_VERSION[1]}"
        raise InvalidParameter(f"client version {shown} is too new. Maximum supported API version is {newest}")


def _too_old(version: tuple[int, int]) -> web.Response:
    """What clients are told whose version knew no errors in JSON."""
    oldest = f"{MIN_API_VERSION[0]}.{MIN_API_VERSION[1]}"
    words = (
        f"client version {version[0]}.{version[1]} is too old. Minimum supported API version is {oldest}, "
        "please upgrade your client to a newer version\n"
    )
    return web.Response(status=400, text=words, headers={"X-Content-Type-Options": "nosniff"})
