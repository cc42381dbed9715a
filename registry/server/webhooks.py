"""Webhooks: registry:2's event documents, posted to whoever is configured, kept on disk until they were taken.

Each endpoint has a queue of its own, so a dead one delays nobody. Events are written down in batches, whether or not
somebody takes them, before the first attempt; delivered in order; and given up after many tries or when too many wait.
What a process leaves behind another one on the same storage delivers, at once when it was stopped, some minutes later
when it was killed (`spool.py`). An event can arrive twice: its `id` tells.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import platform
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
from aiohttp import ClientError

from registry.client.session import Transport
from registry.config import Webhook
from registry.server import spool
from registry.server.notices import Notice
from registry.server.spool import Spool
from registry.store import paths
from registry.store.driver import StorageDriver
from registry.tasks import Background

log = logging.getLogger("berth.registry.webhooks")

CONTENT_TYPE = "application/vnd.docker.distribution.events.v1+json"
_MAX_WAITING = 10_000
_MAX_ATTEMPTS = 50
_MAX_BACKOFF_SECONDS = 300.0
_GATHER_SECONDS = 0.2
# How long to leave a disk or a bucket alone that failed.
_STORAGE_PAUSE_SECONDS = 5.0


class WebhookQueue:
    """Everything one endpoint has not taken yet."""

    def __init__(self, hook: Webhook, driver: StorageDriver, transport: Transport, source: dict[str, str]) -> None:
        self.hook = hook
        self._transport = transport
        self._source = source
        self._spool = Spool(driver, paths.state(f"notices/{hashlib.sha256(hook.url.encode()).hexdigest()[:16]}"))
        self._fresh: list[dict[str, Any]] = []
        self._wake = asyncio.Event()
        self._written = asyncio.Event()
        self._writing = asyncio.Lock()
        self.delivered = self.failed = self.dropped = 0

    def note(self, notice: Notice) -> None:
        """Take a notice; called on the loop, returns at once."""
        hook = self.hook
        if notice.action in hook.ignored_actions or notice.media_type in hook.ignored_media_types:
            return
        if self.waiting >= _MAX_WAITING:
            self.dropped += 1
            return
        self._fresh.append(event_of(notice, self._source))
        self._wake.set()

    @property
    def waiting(self) -> int:
        """How many events have been neither taken nor given up."""
        return len(self._fresh) + self._spool.waiting

    async def run(self) -> None:
        """Write down and deliver for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_written())
            group.create_task(self._keep_delivered())
            group.create_task(self._keep_held())

    async def _keep_held(self) -> None:
        """Show that we live while something waits, and look for what others left."""
        while True:
            try:
                if self._spool.waiting:
                    await self._spool.show_life()
                if await self._spool.take_over():
                    log.info("webhook %s: going on where another process ended", self.hook.name)
                    self._written.set()
            except OSError as error:
                log.error("webhook %s: cannot look after events: %s", self.hook.name, error)
            await asyncio.sleep(spool.ROUND_SECONDS)

    async def _keep_written(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(_GATHER_SECONDS)
            try:
                await self.write_down()
            except OSError as error:
                log.error("webhook %s: cannot write events down: %s", self.hook.name, error)
                await asyncio.sleep(_STORAGE_PAUSE_SECONDS)
                self._wake.set()

    async def write_down(self) -> None:
        """Put what is only in memory on disk, once, whoever asks meanwhile."""
        async with self._writing:
            if self._fresh:
                events = self._fresh[:]
                await self._spool.write(events)
                del self._fresh[: len(events)]
                self._written.set()

    async def close(self) -> None:
        """Lose nothing, and let others deliver it. Once `run` has ended."""
        await self.write_down()
        await self._spool.release()

    async def _keep_delivered(self) -> None:
        while True:
            self._written.clear()
            for name in sorted(self._spool.files):
                try:
                    await self._deliver_file(name)
                except OSError as error:
                    log.error("webhook %s: cannot read events: %s", self.hook.name, error)
                    await asyncio.sleep(_STORAGE_PAUSE_SECONDS)
                    self._written.set()
                    break
            await self._written.wait()

    async def _deliver_file(self, name: str) -> None:
        for event in await self._spool.read(name):
            if name not in self._spool.files:
                return  # somebody else has taken it over
            await self._deliver(event)
        await self._spool.done(name)

    async def _deliver(self, event: dict[str, Any]) -> None:
        body = msgspec.json.encode({"events": [event]})
        pause = max(self.hook.backoff_seconds, 0.01)
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            if await self._post(body):
                self.delivered += 1
                return
            self.failed += 1
            # The first `threshold` tries come quickly, later ones ever more slowly.
            if attempt >= self.hook.threshold:
                pause = min(pause * 2, _MAX_BACKOFF_SECONDS)
            await asyncio.sleep(pause if attempt >= self.hook.threshold else min(pause, 1.0))
        self.dropped += 1
        log.error("webhook %s: giving up on an event after %d attempts", self.hook.name, _MAX_ATTEMPTS)

    async def _post(self, body: bytes) -> bool:
        headers = {"Content-Type": CONTENT_TYPE, **self.hook.headers}
        try:
            async with asyncio.timeout(self.hook.timeout_seconds):
                async with self._transport.session().post(
                    self.hook.url, data=body, headers=headers, allow_redirects=False
                ) as answer:
                    return 200 <= answer.status < 400
        except (ClientError, OSError, TimeoutError, ValueError) as error:
            log.info("webhook %s: %s", self.hook.name, error or type(error).__name__)
            return False


class Webhooks:
    """All endpoints. `note` listens to notices."""

    def __init__(self, hooks: tuple[Webhook, ...], driver: StorageDriver, transport: Transport, address: str) -> None:
        source = {"addr": f"{platform.node()}:{address.rpartition(':')[2]}", "instanceID": str(uuid.uuid4())}
        self._make: Callable[[Webhook], WebhookQueue] = lambda hook: WebhookQueue(hook, driver, transport, source)
        self.queues = [self._make(hook) for hook in hooks]
        self._running: dict[WebhookQueue, asyncio.Task[None]] = {}

    def note(self, notice: Notice) -> None:
        """Hand a notice to every queue."""
        for queue in self.queues:
            queue.note(notice)

    def start(self, background: Background) -> None:
        """Begin to deliver."""
        for queue in self.queues:
            if queue not in self._running:
                self._running[queue] = background.start(queue.run(), f"webhook {queue.hook.name}")

    async def reload(self, hooks: tuple[Webhook, ...], background: Background) -> None:
        """Serve these endpoints from now on. What waits for one that is named no more stays on disk for its return."""
        current = {queue.hook.url: queue for queue in self.queues}
        kept = [current[hook.url] for hook in hooks if hook.url in current and current[hook.url].hook == hook]
        gone = [queue for queue in self.queues if queue not in kept]
        known = [queue.hook for queue in kept]
        self.queues = kept + [self._make(hook) for hook in hooks if hook not in known]
        for queue in gone:
            if (task := self._running.pop(queue, None)) is not None:
                task.cancel()
                await asyncio.wait([task])
            await queue.close()
        self.start(background)

    async def save(self) -> None:
        """Lose nothing at shutdown."""
        for queue in self.queues:
            await queue.close()


def event_of(notice: Notice, source: dict[str, str]) -> dict[str, Any]:
    """registry:2's event."""
    target: dict[str, Any] = {"repository": notice.repository}
    if notice.media_type:
        target["mediaType"] = notice.media_type
    if notice.digest:
        target["digest"] = notice.digest
    if notice.size:
        target["size"] = target["length"] = notice.size
    if notice.from_repository:
        target["fromRepository"] = notice.from_repository
    if notice.digest and notice.action != "delete":
        kind = "manifests" if notice.is_manifest else "blobs"
        target["url"] = f"{notice.origin.base_url}/v2/{notice.repository}/{kind}/{notice.digest}"
    if notice.tag:
        target["tag"] = notice.tag
    if notice.references:
        target["references"] = notice.references
    origin = notice.origin
    return {
        "id": str(uuid.uuid4()),
        "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "action": notice.action,
        "target": target,
        "request": {
            "id": origin.request_id,
            "addr": origin.address,
            "host": origin.host,
            "method": origin.method,
            "useragent": origin.user_agent,
        },
        "actor": {"name": notice.actor} if notice.actor else {},
        "source": source,
    }
