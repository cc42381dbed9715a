import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from registry.config import Webhook
from registry.digest import Digest
from registry.server import spool, webhooks
from registry.server.spool import Spool
from tests.support.daemons import free_port

from .conftest import Start


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No wait for replicas that might claim the same."""
    monkeypatch.setattr(spool, "SETTLE_SECONDS", 0.0)


class Listener:
    """A receiver of events that refuses the first few."""

    def __init__(self, refuse: int = 0) -> None:
        self.refuse = refuse
        self.events: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.arrived = asyncio.Event()

    async def take(self, request: web.BaseRequest) -> web.Response:
        body = await request.read()
        if self.refuse:
            self.refuse -= 1
            return web.Response(status=500)
        self.headers.append(request.headers)
        self.events += json.loads(body)["events"]
        self.arrived.set()
        return web.Response()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.events) < count:
                self.arrived.clear()
                await self.arrived.wait()


def address(port: int) -> str:
    return f"http://127.0.0.1:{port}/hook"


@asynccontextmanager
async def listening(listener: Listener, port: int = 0) -> AsyncIterator[str]:
    server = web.Server(listener.take)
    runner = web.ServerRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    try:
        yield address(runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def test_events_look_like_registry2s_and_are_tried_again(start: Start) -> None:
    listener = Listener(refuse=2)
    async with listening(listener) as url:
        hook = Webhook("h", url, {"Authorization": "Bearer t"}, backoff_seconds=0.01, ignored_actions=("mount",))
        client = await start(webhooks=(hook,))
        digest = await client.push_image("a/b", "v1")
        await client.call("GET", "/v2/a/b/manifests/v1")
        await client.call("DELETE", "/v2/a/b/manifests/v1")
        await listener.until(5)
    assert [event["action"] for event in listener.events] == ["push", "push", "push", "pull", "delete"]
    event = listener.events[2]
    assert event["target"]["digest"] == digest and event["target"]["tag"] == "v1"
    assert event["target"]["repository"] == "a/b"
    assert event["target"]["url"] == f"{client.base}/v2/a/b/manifests/{digest}"
    assert event["request"]["method"] == "PUT"
    assert listener.headers[0]["Authorization"] == "Bearer t"
    assert listener.headers[0]["Content-Type"] == "application/vnd.docker.distribution.events.v1+json"
    assert b'registry_notifications_status_total{code="Failures"} 2' in client.server.metrics.text()


async def test_events_wait_on_disk_for_a_listener_that_is_away(start: Start) -> None:
    listener, port = Listener(), free_port()
    url = address(port)
    hook = Webhook("h", url, backoff_seconds=0.01, threshold=1000)
    client = await start(webhooks=(hook,))
    await client.push_blob("a", b"x")
    await client.server.stop()
    async with listening(listener, port):
        await start(webhooks=(hook,))
        await listener.until(1)
    assert listener.events[0]["target"]["repository"] == "a"


async def test_every_kind_of_event_is_registry2s(start: Start) -> None:
    """The order and the targets are what docker-registry 2.8 posts for the same requests."""
    listener = Listener()
    async with listening(listener) as url:
        client = await start(webhooks=(Webhook("h", url, backoff_seconds=0.01),), event_references=True)
        digest = await client.push_image("a", "v1", b"layer")
        layer = Digest.of(b"layer")
        await client.call("POST", f"/v2/b/blobs/uploads/?mount={layer}&from=a")
        await client.call("HEAD", "/v2/a/manifests/v1")
        await client.call("HEAD", f"/v2/b/blobs/{layer}")
        await client.call("DELETE", f"/v2/b/blobs/{layer}")
        await client.call("DELETE", f"/v2/a/manifests/{digest}")
        await listener.until(9)
    manifest, mount, look, blob_look, blob_gone, manifest_gone, tag_gone = listener.events[2:]
    assert [item["digest"] for item in manifest["target"]["references"]] == [Digest.of(b"{}"), layer]
    assert (mount["action"], mount["target"]["size"], mount["target"]["fromRepository"]) == ("mount", 5, "a")
    assert (look["action"], look["request"]["method"], look["target"]["tag"]) == ("pull", "HEAD", "v1")
    assert (blob_look["action"], blob_look["request"]["method"]) == ("pull", "HEAD")
    assert look["request"]["addr"].startswith("127.0.0.1:")
    assert (blob_gone["action"], blob_gone["target"]) == ("delete", {"digest": layer, "repository": "b"})
    assert (manifest_gone["action"], manifest_gone["target"]) == ("delete", {"digest": digest, "repository": "a"})
    assert (tag_gone["action"], tag_gone["target"]) == ("delete", {"tag": "v1", "repository": "a"})
    # A look is no pull: neither counted nor a reason to keep the tag.
    assert b'events_total{action="pull"}' not in client.server.metrics.text()
    assert client.server.pulls.last("a", "v1") == 0.0


async def test_events_stay_in_order_when_the_clock_is_set_back(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    listener, port = Listener(), free_port()
    url = address(port)
    client = await start(webhooks=(Webhook("h", url, backoff_seconds=0.01, threshold=1000),))
    queue = client.server.webhooks.queues[0]
    for number, moment in enumerate((2_000, 1_000, 1_000)):
        monkeypatch.setattr(spool.time, "time_ns", lambda moment=moment: moment)
        await client.push_blob(f"r{number}", b"x")
        await queue.write_down()
    async with listening(listener, port):
        await listener.until(3)
    assert [event["target"]["repository"] for event in listener.events] == ["r0", "r1", "r2"]


async def test_events_are_written_down_once_whoever_asks(start: Start) -> None:
    listener = Listener()
    async with listening(listener) as url:
        client = await start(webhooks=(Webhook("h", url, backoff_seconds=0.01),))
        queue = client.server.webhooks.queues[0]
        await client.push_blob("a", b"x")
        at_once = asyncio.gather(queue.write_down(), queue.write_down())
        await client.push_blob("b", b"x")
        await at_once
        await listener.until(2)
        await asyncio.sleep(0.02)
    assert [event["target"]["repository"] for event in listener.events] == ["a", "b"]


async def test_a_reload_brings_and_takes_endpoints(start: Start) -> None:
    one, two = Listener(), Listener()
    async with listening(one) as first, listening(two) as second:
        client = await start()
        server = client.server
        settings = server.settings
        server.reload(replace(settings, webhooks=(Webhook("one", first),)))
        await asyncio.sleep(0)
        await client.push_blob("a", b"x")
        await one.until(1)
        server.reload(replace(settings, webhooks=(Webhook("one", first), Webhook("two", second, {"X-Key": "k"}))))
        await asyncio.sleep(0)
        await client.push_blob("a", b"y")
        await one.until(2)
        await two.until(1)
        assert two.headers[0]["X-Key"] == "k"
        server.reload(replace(settings, webhooks=(Webhook("two", second, {"X-Key": "new"}),)))
        await asyncio.sleep(0.1)
        await client.push_blob("a", b"z")
        await two.until(2)
        assert two.headers[1]["X-Key"] == "new" and len(one.events) == 2


async def test_what_happens_while_an_endpoint_is_away_is_written_down_at_once_and_delivered_without_more(
    start: Start,
) -> None:
    listener, port = Listener(), free_port()
    url = address(port)
    client = await start(webhooks=(Webhook("h", url, backoff_seconds=2.0, threshold=1),))
    queue = client.server.webhooks.queues[0]
    await client.push_blob("a", b"x")
    async with asyncio.timeout(10):
        while not queue.failed:
            await asyncio.sleep(0.01)
        await client.push_blob("b", b"y")
        while queue._fresh:
            await asyncio.sleep(0.01)
    assert queue._spool.waiting == 2, "a killed server would have lost one"
    assert b"registry_notifications_pending_total 2" in client.server.metrics.text()
    async with listening(listener, port):
        await listener.until(2)
    assert [event["target"]["repository"] for event in listener.events] == ["a", "b"]


async def test_the_queue_on_disk_is_bounded(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "_MAX_WAITING", 3)
    listener, port = Listener(), free_port()
    url = address(port)
    hook = Webhook("h", url, backoff_seconds=60, threshold=1)
    client = await start(webhooks=(hook,))
    queue = client.server.webhooks.queues[0]
    for number in range(5):
        await client.push_blob(f"r{number}", b"x")
        await queue.write_down()
    assert (queue.waiting, queue.dropped) == (3, 2)
    await client.server.stop()
    again = await start(webhooks=(replace(hook, backoff_seconds=0.01, threshold=1000),))
    async with listening(listener, port):
        await listener.until(3)
    assert [event["target"]["repository"] for event in listener.events] == ["r0", "r1", "r2"]
    assert again.server.webhooks.queues[0].dropped == 0


async def test_a_full_disk_does_not_end_the_queue(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "_STORAGE_PAUSE_SECONDS", 0.01)
    listener = Listener()
    async with listening(listener) as url:
        client = await start(webhooks=(Webhook("h", url, backoff_seconds=0.01),))
        driver, failures = client.server.driver, [OSError(28, "no space left"), OSError(5, "bad")]
        write = driver.write

        async def fail(path: str, data: bytes) -> None:
            if "notices" in path and failures:
                raise failures.pop()
            await write(path, data)

        monkeypatch.setattr(driver, "write", fail)
        await client.push_blob("a", b"x")
        await listener.until(1)
    assert not failures


async def test_a_replica_that_starts_leaves_alone_what_a_living_one_will_deliver(start: Start) -> None:
    listener, port = Listener(), free_port()
    url = address(port)
    hook = Webhook("h", url, backoff_seconds=0.05, threshold=1000)
    one = await start(webhooks=(hook,))
    await one.push_blob("a", b"x")
    await one.server.webhooks.queues[0].write_down()
    two = await start(webhooks=(hook,))
    await two.push_blob("b", b"y")
    async with listening(listener, port):
        await listener.until(2)
        await asyncio.sleep(0.2)
    assert sorted(event["target"]["repository"] for event in listener.events) == ["a", "b"]


async def test_a_replica_delivers_what_a_killed_one_wrote_down(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "ROUND_SECONDS", 0.05)
    listener = Listener()
    async with listening(listener) as url:
        client = await start(webhooks=(Webhook("h", url, backoff_seconds=0.01),))
        folder = client.server.webhooks.queues[0]._spool._folder
        killed = Spool(client.server.driver, folder)
        await killed.write([{"id": "1"}, {"id": "2"}])
        await asyncio.sleep(0.2)
        assert not listener.events, "it may live"
        for name in await client.server.driver.names(folder):
            place = client.server.driver.local_path(f"{folder}/{name}")
            assert place is not None
            os.utime(place, (1000, 1000))
        await listener.until(2)
        assert [event["id"] for event in listener.events] == ["1", "2"]
        async with asyncio.timeout(10):
            while await client.server.driver.names(folder) != ["now"]:
                await asyncio.sleep(0.01)
