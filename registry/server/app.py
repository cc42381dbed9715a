"""The registry as one object: built from settings, started, stopped. Alone it is a server; in the engine it is a part.

Everything is constructed here and handed on by argument. `start` refuses to serve everybody beyond loopback unless the
settings say so.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from aiohttp import web
from aiohttp.web_request import BaseRequest

from registry.client.hosts import HostPolicy
from registry.client.session import Transport
from registry.clock import SteadyClock
from registry.config import Settings, changes, split_address, take_over
from registry.exposition import CONTENT_TYPE
from registry.proxy import PullThrough
from registry.server.auth import Access, is_loopback
from registry.server.blobs import BlobHandlers
from registry.server.dispatch import Dispatcher, Handler
from registry.server.health import Health
from registry.server.jwt import Verifier
from registry.server.logs import AccessLog
from registry.server.manifests import ManifestHandlers
from registry.server.metrics import Metrics
from registry.server.notices import Notice, Notices
from registry.server.pushrules import PushRules
from registry.server.referrers import ReferrerHandlers, ReferrerIndex
from registry.server.replies import Reply, as_response, json_reply
from registry.server.requests import Call
from registry.server.secure import Handshake
from registry.server.tags import ListHandlers
from registry.server.tls import TlsKeeper
from registry.server.tokens import TokenService
from registry.server.uploads import UploadHandlers
from registry.server.webhooks import Webhooks
from registry.store.blobs import BlobStore
from registry.store.collector import Collector
from registry.store.driver import StorageDriver
from registry.store.leases import Leases
from registry.store.opening import open_driver
from registry.store.pulls import PullTimes
from registry.store.repositories import Repositories
from registry.store.uploads import Uploads
from registry.tasks import Background, run_blocking

log = logging.getLogger("berth.registry")

_SERVICE = "berth registry"
# A connection without a request, or with half of one's head, is closed after this.
IDLE_SECONDS = 75.0
_READ_BUFFER = 64 * 1024
_ABANDONED_AFTER_SECONDS = 86400.0
_CLEAR_SECONDS = 3600.0
_UPKEEP_SECONDS = 60.0
_SEND_REST_SECONDS = 10.0
_EXPIRY_SECONDS = 6 * 3600.0
# A change of these begins upkeep anew.
_SCHEDULE = frozenset({"purge_uploads", "purge_interval_seconds", "collect_interval_seconds", "read_only", "upstreams"})


class RegistryServer:
    """`await start()` listens, `await stop()` drains and closes. The parts are public for the engine to share:

    `blobs`, `leases`, `repositories`, `uploads` (the store), `access` (`authenticate`, `authorize`), `rules` (what a
    push must keep to), `notices`, and `collector`, whose `extra_roots` the engine sets to what its images need.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        driver: StorageDriver | None = None,
        blobs: BlobStore | None = None,
        leases: Leases | None = None,
    ) -> None:
        self.settings = settings
        self.driver = driver or (blobs.driver if blobs is not None else open_driver(settings))
        self.blobs = blobs or BlobStore(self.driver)
        self.leases = leases or Leases()
        self.repositories = Repositories(self.blobs, self.leases, settings.collect_grace_seconds)
        self.clock = clock = SteadyClock()
        self.uploads = Uploads(self.blobs, self.repositories, clock)
        self.pulls = PullTimes(self.driver)
        self.proxy = PullThrough(settings, self.blobs, self.repositories)
        self.collector = Collector(
            self.blobs,
            self.repositories,
            self.leases,
            retention=(*settings.retention, *self.proxy.retention()),
            pulls=self.pulls,
            clock=clock,
        )
        self.access = Access(settings)
        self.rules = PushRules(settings, self.repositories)
        self.notices = Notices()
        self.tls = TlsKeeper(settings)
        self.transport = Transport(HostPolicy())
        self.webhooks = Webhooks(settings.webhooks, self.driver, self.transport, settings.address)
        self.metrics = Metrics(self.webhooks, self.proxy)
        self.health = Health(settings, self.driver)
        self.tokens: TokenService | None = None
        if settings.token_auth is None:
            self.tokens = TokenService(self.driver, self.access, _SERVICE)
            self.access.prepare_tokens = self.tokens.prepare
        self.dispatcher = Dispatcher(settings, self.access, self._routes(), self._pages(), self.proxy, self.health)
        self._servers: list[web.Server] = []
        self._listeners: list[asyncio.Server] = []
        self._background = Background()
        self._scheduled: list[asyncio.Task[None]] = []
        self.notices.listen(self._note_pull)
        self._is_told = False
        self._listen_for_webhooks()
        if settings.metrics:
            self.notices.listen(self.metrics.note)
            self.dispatcher.observers.append(self.metrics.observe)
        if settings.access_log:
            self.dispatcher.observers.append(AccessLog(settings.log_format))

    def _listen_for_webhooks(self) -> None:
        """Notices that tell more cost more: only where somebody wants them."""
        self.notices.tells_references = bool(self.settings.webhooks) and self.settings.event_references
        if self.settings.webhooks and not self._is_told:
            self._is_told = True
            self.notices.listen(self.webhooks.note, needs_origin=True)

    def _routes(self) -> Mapping[str, Mapping[str, Handler]]:
        manifests = ManifestHandlers(self.repositories, self.notices, self.rules, self.proxy)
        blobs = BlobHandlers(self.blobs, self.repositories, self.notices, self.proxy)
        uploads = UploadHandlers(self.repositories, self.uploads, self.access, self.notices, self.rules)
        self._lists = lists = ListHandlers(self.repositories, self.access, self.proxy)
        self.notices.listen(lists.note)
        referrers = ReferrerHandlers(ReferrerIndex(self.repositories))
        return {
            "base": {"GET": _base, "HEAD": _base},
            "manifest": {
                "GET": manifests.get,
                "HEAD": manifests.get,
                "PUT": manifests.put,
                "DELETE": manifests.delete,
            },
            "blob": {"GET": blobs.get, "HEAD": blobs.get, "DELETE": blobs.delete},
            "uploads": {"POST": uploads.start},
            "upload": {
                "GET": uploads.status,
                "HEAD": uploads.status,
                "PATCH": uploads.append,
                "PUT": uploads.finish,
                "DELETE": uploads.cancel,
            },
            "tags": {"GET": lists.tags},
            "catalog": {"GET": lists.catalog},
            "referrers": {"GET": referrers.get},
        }

    def _pages(self) -> Mapping[str, Callable[[BaseRequest], Awaitable[Reply]]]:
        pages: dict[str, Callable[[BaseRequest], Awaitable[Reply]]] = {
            "/": _alive,
            "/healthz": _alive,
            "/readyz": self._ready,
        }
        if self.tokens is not None:
            pages["/auth/token"] = self.tokens.answer
        return pages

    async def start(self) -> None:
        """Check who may come in, then listen. What was begun is ended when something fails."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        await self.access.refresh()
        await self._trust_tokens()
        self._check_access()
        await self.blobs.clear_temporary(_ABANDONED_AFTER_SECONDS)
        secure = await self.tls.load()
        # Threads hash and sync beside the loop; at the default of 5 ms each of them can hold up every answer that long.
        sys.setswitchinterval(0.0005)
        server = web.Server(
            self.dispatcher.handle,
            access_log=None,
            read_bufsize=_READ_BUFFER,
            keepalive_timeout=IDLE_SECONDS,
            lingering_time=2.0,
            auto_decompress=False,
        )
        self.dispatcher.successor = server
        await self._listen(server, self.settings.address, secure)
        await self.pulls.load()
        await self.clock.recall(self.driver)
        self._start_background()
        if self.settings.debug_address:
            await self._listen(web.Server(self._debug, access_log=None), self.settings.debug_address, False)
        how = "with TLS" if secure else "without TLS"
        if self.tls.own is not None:
            how += f", by a certificate of its own: clients must trust {self.tls.own.ca}"
        registry, *debug = (", ".join(_addresses_of(listener)) for listener in self._listeners)
        log.info("registry listening on %s %s", registry, how)
        for addresses in debug:
            log.info("health and metrics on %s", addresses)

    def _check_access(self) -> None:
        host, _ = self.settings.listen_on()
        if self.access.is_open and not self.settings.anonymous and not is_loopback(host):
            raise PermissionError(
                f"refusing to serve everybody on {self.settings.address}: add a user (berth registry user add), "
                "listen on 127.0.0.1, or allow anonymous access explicitly (--allow-anonymous, berth.anonymous)"
            )

    def _start_background(self) -> None:
        self._background.start(self._keep_up(), "upkeep")
        self._background.start(self._clear(), "clear")
        self.webhooks.start(self._background)
        if self.health.has_checks:
            self._background.start(self.health.run(), "health")
        self._schedule()

    def _schedule(self) -> None:
        if self.settings.read_only:
            return
        if self.settings.purge_uploads:
            self._scheduled.append(self._background.start(self._purge(), "purge"))
        interval = self.settings.collect_interval_seconds or (_EXPIRY_SECONDS if self.settings.upstreams else 0.0)
        if interval > 0:
            self._scheduled.append(self._background.start(self._collect(interval), "collect"))

    async def _listen(self, server: web.Server, address: str, secure: bool) -> None:
        host, port = split_address(address)
        factory: Callable[[], asyncio.Protocol] = server
        if secure:
            factory = functools.partial(Handshake, server, self.tls, self._background)
        listener = await asyncio.get_running_loop().create_server(
            factory, host or None, port, backlog=1024, reuse_address=True
        )
        self._servers.append(server)
        self._listeners.append(listener)

    async def _debug(self, request: BaseRequest) -> web.StreamResponse:
        """The second listener: health and metrics, for this machine or a private network."""
        path = request._message.path.partition("?")[0]
        if path == "/debug/health":
            return as_response(json_reply(503 if self.health.failing else 200, self.health.failing))
        if path == self.settings.metrics_path and self.settings.metrics:
            return as_response(Reply(200, {"Content-Type": CONTENT_TYPE}, self.metrics.text()))
        return as_response(Reply(404))

    async def _ready(self, request: BaseRequest) -> Reply:
        """Whether the storage answers: what a load balancer should ask before it sends anybody here."""
        problem = await self.health.probe() if not self.settings.read_only else ""
        return json_reply(503 if problem or self.health.failing else 200, {"storage": problem, **self.health.failing})

    async def _trust_tokens(self) -> None:
        foreign = self.settings.token_auth
        if foreign is not None:
            self.access.verifier = await run_blocking(
                Verifier.load_sync, foreign.jwks, foreign.root_certificates, foreign.algorithms
            )
            self.access.issuer, self.access.audience = foreign.issuer, foreign.service
            self.access.forget_tokens()

    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens, with the real port when port 0 was asked for."""
        return [socket.getsockname()[:2] for listener in self._listeners for socket in listener.sockets]

    async def stop(self) -> None:
        """Take no more connections, let requests in progress finish for the drain time, close."""
        for listener in self._listeners:
            listener.close()
        # aiohttp's own shutdown stops reading at once, which would cut uploads: requests in progress come first.
        await self.dispatcher.drain(self.settings.drain_seconds)
        for server in self._servers:
            server.pre_shutdown()
            await server.shutdown(min(self.settings.drain_seconds, _SEND_REST_SECONDS))
        self._servers.clear()
        self._listeners.clear()
        await self._background.aclose()
        await self._lists.aclose()
        await self.webhooks.save()
        await self.proxy.aclose()
        await self.transport.aclose()
        await self.pulls.save()
        await self.driver.close()

    def reload(self, wanted: Settings) -> None:
        """SIGHUP: go by other settings as far as a running server can, and take up changed certificates at once; user
        files are looked at by themselves."""
        before = self.settings
        settings, waiting = take_over(before, wanted)
        if waiting:
            log.warning("needs a restart to take effect: %s", ", ".join(waiting))
        self._go_by(settings)
        try:
            self._check_access()
        except PermissionError as error:
            self._go_by(before)
            log.error("the configuration of the registry was not reloaded: %s", error)
            return
        if self._listeners:
            self._background.start(self._reload(changes(before, settings)), "reload")

    def _go_by(self, settings: Settings) -> None:
        self.settings = settings
        self.repositories.grace_seconds = settings.collect_grace_seconds
        for part in (self.dispatcher, self.access, self.rules, self.proxy):
            part.reload(settings)
        self.collector.retention = (*settings.retention, *self.proxy.retention())

    async def _reload(self, changed: set[str]) -> None:
        if changed & {"webhooks", "event_references"}:
            self._listen_for_webhooks()
            await self.webhooks.reload(self.settings.webhooks, self._background)
        if changed & _SCHEDULE:
            scheduled, self._scheduled = self._scheduled, []
            for task in scheduled:
                task.cancel()
            if scheduled:
                await asyncio.wait(scheduled)
            self._schedule()
        if await self.tls.refresh():
            log.info("TLS certificate taken up again")
        if self.settings.token_auth is not None:
            try:
                await self._trust_tokens()
            except (OSError, ValueError) as error:
                log.error("cannot read the keys of the token server again: %s", error)
        log.info("configuration of the registry reloaded: %s", ", ".join(sorted(changed)) or "nothing has changed")

    async def _purge(self) -> None:
        while True:
            async with _surviving("purging uploads"):
                purged = await self.uploads.purge(self.settings.purge_age_seconds, dry_run=self.settings.purge_dry_run)
                if purged:
                    log.info("purged %d abandoned uploads", len(purged))
            await asyncio.sleep(self.settings.purge_interval_seconds)

    async def _collect(self, interval_seconds: float) -> None:
        while True:
            await asyncio.sleep(interval_seconds)
            async with _surviving("a collection"):
                await self.pulls.save()
                await self.collector.collect(
                    grace_seconds=self.settings.collect_grace_seconds, untagged=self.settings.collect_untagged
                )

    async def _clear(self) -> None:
        """Remove what nobody finished, as at the start, every hour."""
        while True:
            await asyncio.sleep(_CLEAR_SECONDS)
            async with _surviving("clearing unfinished files"):
                await self.blobs.clear_temporary(_ABANDONED_AFTER_SECONDS)

    async def _keep_up(self) -> None:
        """Renew certificates and write down pull times and the time, every minute."""
        while True:
            await asyncio.sleep(_UPKEEP_SECONDS)
            async with _surviving("writing the registry's state down"):
                await self.pulls.save()
                await self.clock.save(self.driver)
            async with _surviving("a look at the certificates"):
                await self.tls.refresh()

    def _note_pull(self, notice: Notice) -> None:
        if notice.action == "pull" and notice.is_manifest and not notice.is_look:
            self.pulls.note(notice.repository, notice.tag or notice.digest)


def _addresses_of(listener: asyncio.Server) -> list[str]:
    names = [socket.getsockname()[:2] for socket in listener.sockets]
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in names]


@contextlib.asynccontextmanager
async def _surviving(what: str) -> AsyncIterator[None]:
    """Upkeep goes on after a failure: a full disk or a bucket that is away for a while must not end it for good."""
    try:
        yield
    except Exception:
        log.exception("%s failed, and is tried again later", what)


async def _base(call: Call) -> Reply:
    return Reply(200, {"Content-Type": "application/json"}, b"{}")


async def _alive(request: BaseRequest) -> Reply:
    return Reply(200, {"Cache-Control": "no-cache"})
