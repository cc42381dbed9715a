"""Every request passes here: taken apart, authorised, answered, logged; and every error is written here, nowhere
else."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import itertools
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import unquote

from aiohttp import web
from aiohttp.web_request import BaseRequest

from registry import errors
from registry.config import Settings
from registry.digest import InvalidDigest
from registry.errors import (
    BlobsMissing,
    BlobUnknown,
    DigestMismatch,
    ManifestInvalid,
    ManifestUnknown,
    RegistryError,
    SeveralErrors,
)
from registry.proxy import PullThrough, UpstreamFailed
from registry.reference import is_repository_path
from registry.server.auth import Access, Unauthorized, audit
from registry.server.direct import DirectBody
from registry.server.health import Health
from registry.server.manifests import is_manifest_reference
from registry.server.pushrules import Refused
from registry.server.replies import GoneReply, Reply, as_response, json_reply
from registry.server.requests import Call, base_url
from registry.store.uploads import UploadBusy, UploadUnknown

log = logging.getLogger("berth.registry")

Handler = Callable[[Call], Awaitable[Reply]]
Observer = Callable[[BaseRequest, Reply, str, str, float], None]

API_VERSION = {"Docker-Distribution-Api-Version": "registry/2.0"}
_ACTIONS = {
    "GET": ("pull",),
    "HEAD": ("pull",),
    "POST": ("pull", "push"),
    "PUT": ("pull", "push"),
    "PATCH": ("pull", "push"),
    "DELETE": ("delete",),
}
# Answered even while a health check fails: a page for those who look after us.
_ALWAYS = frozenset({"/healthz", "/readyz"})
_PAGE_METHODS = "GET, HEAD, POST, OPTIONS"
_ALLOWED = "Authorization, Accept, Cache-Control, Content-Range, Content-Type, If-Match, If-None-Match, If-Range, Range"
_EXPOSED = (
    "Accept-Ranges, Content-Range, Docker-Content-Digest, Docker-Upload-UUID, ETag, Link, Location, "
    "OCI-Filters-Applied, OCI-Subject, OCI-Tag, Range, Warning, WWW-Authenticate"
)
_WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
# Request ids tell requests of one process apart and mark the process; nothing secret hangs on them.
_REQUESTS = secrets.token_hex(10)
_numbers = itertools.count(1)
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Dispatcher:
    """`routes` maps a kind (manifest, blob, upload, uploads, tags, referrers, catalog, base) to handlers by method.

    `pages` are exact paths outside `/v2/`; they decide about access themselves. `observers` see every answer.
    """

    def __init__(
        self,
        settings: Settings,
        access: Access,
        routes: Mapping[str, Mapping[str, Handler]],
        pages: Mapping[str, Callable[[BaseRequest], Awaitable[Reply]]],
        proxy: PullThrough,
        health: Health | None = None,
    ) -> None:
        self._proxy = proxy
        self._failing: Mapping[str, str] = health.failing if health is not None else {}
        self._settings = settings
        self._access = access
        self._routes = routes
        self._pages = pages
        self._prefix = settings.prefix.rstrip("/")
        self._standing = _standing(settings)
        self.observers: list[Observer] = []
        # What makes a protocol for a connection; the server's own, set before it listens.
        self.successor: Callable[[], asyncio.Protocol] = asyncio.Protocol
        self._in_flight = 0
        self._idle: asyncio.Event | None = None

    def reload(self, settings: Settings) -> None:
        """Go by other settings from the next request on."""
        self._settings = settings
        self._standing = _standing(settings)

    async def handle(self, request: BaseRequest) -> web.StreamResponse:
        """The one entry point, for aiohttp's low-level server."""
        started = time.perf_counter()
        self._in_flight += 1
        try:
            kind, reply = await self._answer(request)
        finally:
            self._in_flight -= 1
            if self._idle is not None and not self._in_flight:
                self._idle.set()
        if self._idle is not None:
            reply.keep_alive = False
        for observer in self.observers:
            observer(request, reply, kind, reply.user, started)
        return as_response(reply)

    async def drain(self, seconds: float) -> None:
        """From now on every answer is its connection's last; wait until requests in progress are answered."""
        self._idle = asyncio.Event()
        if self._in_flight:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._idle.wait()

    async def _answer(self, request: BaseRequest) -> tuple[str, Reply]:
        kind = "base"
        try:
            path, query = self._path(request)
            if self._failing and path not in _ALWAYS:
                raise RegistryError(errors.UNAVAILABLE, dict(self._failing))
            page = self._pages.get(path)
            if page is not None:
                # A browser's preflight comes here too: whoever is to log in is sent to the token service.
                asks_before = request.method == "OPTIONS"
                reply = self._preflight(request, _PAGE_METHODS) if asks_before else await page(request)
            elif (route := split_path(path)) is None:
                reply = _not_found(path)
            else:
                kind, repository, reference = route
                reply = await self._api(request, kind, repository, reference, query)
        except ConnectionError:
            reply = GoneReply()
        except Exception as error:  # noqa: BLE001 - the one place where everything unexpected becomes a 500
            reply = self._error_reply(error, request)
        reply.headers.update(self._standing)
        return kind, reply

    def _path(self, request: BaseRequest) -> tuple[str, str]:
        path, _, query = request._message.path.partition("?")
        if "%" in path:
            path = unquote(path, errors="replace")
        if self._prefix and path.startswith(self._prefix + "/"):
            path = path[len(self._prefix) :]
        return path, query

    async def _api(self, request: BaseRequest, kind: str, repository: str, reference: str, query: str) -> Reply:
        handlers = self._routes[kind]
        method = request.method
        if method == "OPTIONS":
            return self._preflight(request, ", ".join((*handlers, "OPTIONS")))
        handler = handlers.get(method)
        if handler is None:
            raise RegistryError(errors.UNSUPPORTED, headers={"Allow": ", ".join(handlers)})
        try:
            identity = await self._access.identify(request.headers.get("Authorization"))
        except Unauthorized as error:
            # Clients whose token is refused ask for the next one with the scope that they are told here.
            error.scope = _scope(kind, method, repository)
            raise
        call = Call(
            request,
            self._settings,
            method,
            kind,
            repository,
            reference,
            query,
            identity,
            f"{_REQUESTS}{next(_numbers):012x}",
        )
        try:
            if repository and self._proxy.is_active:
                # Rights are asked for the name content has here, also when the client used the upstream's name. A HEAD
                # of a blob comes before a push: what is about to be pushed is nobody else's business.
                reads = method == "GET" or (method == "HEAD" and kind != "blob")
                call.repository = await self._proxy.local_name(repository, call.argument("ns") or "", reads)
            self._authorize(call)
            reply = await handler(call)
        except ConnectionError:
            reply = GoneReply()
        except Exception as error:  # noqa: BLE001 - written down like any other, with the caller's name
            reply = self._error_reply(error, request)
            if isinstance(error, Refused):
                audit.warning("refused user=%r repository=%s: %s", identity.name, call.repository, error)
        reply.user = identity.name
        if call.direct is not None:
            self._end_body(call.direct, reply)
        return reply

    def _authorize(self, call: Call) -> None:
        identity = call.identity
        if call.repository:
            try:
                self._access.require(identity, call.repository, _ACTIONS[call.method])
            except Unauthorized as error:
                if call.kind == "uploads" and is_repository_path(source := call.argument("from") or ""):
                    # A mount needs to read where it takes from.
                    error.scope += f" repository:{source}:pull"
                raise
        elif call.kind == "catalog":
            self._access.require_catalog(identity)
        elif identity.is_anonymous and not self._access.is_open:
            raise Unauthorized()
        if call.method in _WRITES:
            self._check_writable(call.method, call.repository)

    def _end_body(self, body: DirectBody, reply: Reply) -> None:
        """A body that went around the protocol leaves a parser behind that still waits for it."""
        if body.is_complete:
            reply.after = functools.partial(body.hand_over, self.successor)
        else:
            reply.keep_alive = False

    def _preflight(self, request: BaseRequest, methods: str) -> Reply:
        """OPTIONS needs no credentials: browsers ask it before they may send any. Configured headers win."""
        headers = {"Allow": methods}
        if _configures(self._settings, "access-control-allow-origin") and "Origin" in request.headers:
            headers["Access-Control-Allow-Methods"] = methods
            headers["Access-Control-Allow-Headers"] = _ALLOWED
        return Reply(200, headers)

    def _check_writable(self, method: str, repository: str) -> None:
        if method != "DELETE" and self._proxy.is_read_only(repository):
            raise RegistryError(errors.UNSUPPORTED, "this repository is a cache of another registry's")
        if self._settings.read_only:
            raise RegistryError(errors.UNSUPPORTED, "the registry is read-only")
        if method == "DELETE" and not self._settings.delete_enabled:
            raise RegistryError(errors.UNSUPPORTED, "deletion is not enabled")

    def _error_reply(self, error: Exception, request: BaseRequest) -> Reply:
        known = translate(error)
        if known is None:
            log.exception("unexpected error in %s %s", request.method, request._message.path[:500], exc_info=error)
            known = RegistryError(errors.UNKNOWN)
        if isinstance(known, Unauthorized):
            base = base_url(request, self._settings)
            known.headers["WWW-Authenticate"] = self._access.challenge(base, known)
        reply = json_reply(known.status, {"errors": known.entries()}, known.headers)
        if known.status in (413, 507):
            reply.keep_alive = False
        return reply


def _configures(settings: Settings, header: str) -> bool:
    return any(name.lower() == header for name in settings.headers)


def _standing(settings: Settings) -> dict[str, str]:
    """The headers of every answer. Browsers show a page only what the answer itself exposes."""
    standing = {**API_VERSION, **settings.headers}
    opens = _configures(settings, "access-control-allow-origin")
    if opens and not _configures(settings, "access-control-expose-headers"):
        standing["Access-Control-Expose-Headers"] = _EXPOSED
    return standing


def _scope(kind: str, method: str, repository: str) -> str:
    if repository:
        return f"repository:{repository}:{','.join(_ACTIONS[method])}"
    return "registry:catalog:*" if kind == "catalog" else ""


def translate(error: Exception) -> RegistryError | None:
    """The answer a domain error stands for; None for what nobody foresaw."""
    match error:
        case RegistryError():
            return error
        case DigestMismatch():
            return RegistryError(errors.DIGEST_INVALID, str(error))
        case InvalidDigest():
            return RegistryError(errors.DIGEST_INVALID, str(error), message="provided digest is not valid")
        case ManifestUnknown():
            return RegistryError(errors.MANIFEST_UNKNOWN, {"name": error.repository, "reference": error.reference})
        case BlobUnknown():
            return RegistryError(errors.BLOB_UNKNOWN, error.digest)
        case ManifestInvalid():
            return RegistryError(errors.MANIFEST_INVALID, str(error))
        case UpstreamFailed():
            return RegistryError(errors.UNAVAILABLE, str(error))
        case BlobsMissing():
            return SeveralErrors([RegistryError(errors.MANIFEST_BLOB_UNKNOWN, digest) for digest in error.digests])
        case UploadUnknown():
            return RegistryError(errors.BLOB_UPLOAD_UNKNOWN)
        case UploadBusy():
            return RegistryError(errors.TOOMANYREQUESTS, "another request is writing to this upload")
        case OSError() if error.errno in _FULL:
            return RegistryError(errors.STORAGE_FULL)
    return None


def split_path(path: str) -> tuple[str, str, str] | None:
    """Kind, repository and reference of a path below `/v2/`; None for what is no route.

    The last keyword decides, so repositories may themselves be called `blobs` or `manifests`. Only names that fit the
    grammar get through: no dots-only parts, no upper case, no empty parts.
    """
    if path in ("/v2/", "/v2"):
        return "base", "", ""
    if not path.startswith("/v2/"):
        return None
    if path == "/v2/_catalog":
        return "catalog", "", ""
    rest = path[4:]
    head, _, last = rest.rpartition("/")
    repository, _, keyword = head.rpartition("/")
    kind = ""
    if keyword == "manifests" and is_manifest_reference(last):
        kind = "manifest"
    elif keyword == "tags" and last == "list":
        kind = "tags"
    elif keyword == "referrers":
        kind = "referrers"
    elif keyword == "uploads" and repository.endswith("/blobs"):
        repository = repository[: -len("/blobs")]
        kind = "upload" if last else "uploads"
        if last and not _is_upload_id(last):
            return None
    elif keyword == "blobs":
        kind = "uploads" if last == "uploads" else "blob"
    if not kind or not is_repository_path(repository):
        return None
    return kind, repository, last


def _is_upload_id(text: str) -> bool:
    return len(text) <= 64 and text.isascii() and text.replace("-", "").isalnum()


def _not_found(path: str) -> Reply:
    """Names outside the grammar: 404 with a document, where registry:2's router answers in plain text."""
    error = RegistryError(errors.NAME_UNKNOWN if path.startswith("/v2/") else errors.NAME_INVALID)
    return json_reply(404, {"errors": error.entries()})
