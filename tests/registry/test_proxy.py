import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry.client.fetch import RemoteSource
from registry.config import Upstream
from registry.digest import Digest
from registry.store import blobs
from registry.store.blobs import BlobStore
from registry.store.filesystem import FilesystemDriver

from .server.conftest import ANN, Client, Start, start, users  # noqa: F401


@pytest.fixture
async def upstream(start: Start, tmp_path: Any) -> Client:  # noqa: F811
    client = await start(root=tmp_path / "upstream")
    await client.push_image("lib/app", "v1", b"layer" * 100_000)
    return client


@pytest.fixture
async def cache(start: Start, upstream: Client) -> AsyncIterator[Client]:  # noqa: F811
    yield await start(upstreams=(Upstream(upstream.base, "up", ("example.com",)),))


async def layer_of(client: Client, repository: str, tag: str = "v1") -> str:
    document = (await client.call("GET", f"/v2/{repository}/manifests/{tag}")).json
    return str(document["layers"][0]["digest"])


async def test_content_comes_through_and_stays(upstream: Client, cache: Client) -> None:
    layer = await layer_of(cache, "up/lib/app")
    assert (await cache.call("HEAD", f"/v2/up/lib/app/blobs/{layer}")).headers["Content-Length"] == "500000"
    assert (await cache.call("GET", f"/v2/up/lib/app/blobs/{layer}")).body == b"layer" * 100_000
    assert (await cache.call("GET", "/v2/up/lib/app/tags/list")).json["tags"] == ["v1"]
    answer_before = await cache.call("GET", "/v2/up/lib/app/manifests/v1")
    await upstream.server.stop()
    cache.server.proxy._checked.clear()  # type: ignore[union-attr]
    assert "Warning" not in answer_before.headers
    assert await layer_of(cache, "up/lib/app") == layer
    answer = await cache.call("GET", "/v2/up/lib/app/manifests/v1")
    assert answer.headers["Warning"].startswith('299 - "the upstream cannot be asked')
    answer = await cache.call("GET", f"/v2/up/lib/app/blobs/{layer}", headers={"Range": "bytes=0-4"})
    assert (answer.status, answer.body) == (206, b"layer")
    assert (await cache.call("GET", "/v2/up/lib/app/tags/list")).json["tags"] == ["v1"]
    assert (await cache.call("GET", "/v2/up/lib/app/manifests/v2")).code == "UNAVAILABLE"


async def test_a_moved_tag_is_noticed(upstream: Client, cache: Client) -> None:
    before = await layer_of(cache, "up/lib/app")
    await upstream.push_image("lib/app", "v1", b"new")
    assert await layer_of(cache, "up/lib/app") == before, "asked a moment ago"
    cache.server.proxy._checked.clear()  # type: ignore[union-attr]
    assert await layer_of(cache, "up/lib/app") != before


async def test_concurrent_first_pulls_fetch_once(
    upstream: Client, cache: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = await layer_of(cache, "up/lib/app")
    begun = []
    original = BlobStore.writer

    async def writer(self: BlobStore, algorithm: str = "sha256") -> Any:
        begun.append(1)
        return await original(self, algorithm)

    monkeypatch.setattr(BlobStore, "writer", writer)
    answers = await asyncio.gather(*(cache.call("GET", f"/v2/up/lib/app/blobs/{layer}") for _ in range(8)))
    assert {answer.body for answer in answers} == {b"layer" * 100_000}
    assert begun == [1]


@pytest.mark.parametrize("is_local", [True, False])
async def test_the_first_pull_streams_while_it_is_stored(
    cache: Client, monkeypatch: pytest.MonkeyPatch, is_local: bool
) -> None:
    layer = await layer_of(cache, "up/lib/app")
    half_read = asyncio.Event()
    original = RemoteSource.fetch

    class Halting:
        """Lets half of the blob by, and the rest when a client has read that half."""

        def __init__(self, sink: Any) -> None:
            self.sink = sink

        @property
        def size(self) -> int:
            return int(self.sink.size)

        async def write(self, data: bytes) -> None:
            if self.size + len(data) > 262_144 and not half_read.is_set():
                rest = 262_144 - self.size
                await self.sink.write(data[:rest])
                data = data[rest:]
                await half_read.wait()
            await self.sink.write(data)

    async def fetch(self: RemoteSource, descriptor: Any, writer: Any, progress: Any) -> None:
        await original(self, descriptor, Halting(writer), progress)

    monkeypatch.setattr(RemoteSource, "fetch", fetch)
    monkeypatch.setattr(blobs, "_BATCH_BYTES", 4096)
    if not is_local:
        monkeypatch.setattr(FilesystemDriver, "local_path", lambda self, path: None)
    async with asyncio.timeout(10):
        async with cache.session.get(f"{cache.base}/v2/up/lib/app/blobs/{layer}") as answer:
            first = await answer.content.readexactly(100_000)
            assert not half_read.is_set()
            half_read.set()
            assert first + await answer.read() == b"layer" * 100_000
    assert (await cache.call("GET", f"/v2/up/lib/app/blobs/{layer}")).body == b"layer" * 100_000


async def test_mirror_requests_name_the_upstream_by_ns(cache: Client) -> None:
    answer = await cache.call("GET", "/v2/lib/app/manifests/v1?ns=example.com")
    assert answer.status == 200
    assert (await cache.call("GET", "/v2/lib/app/manifests/v1")).status == 404
    assert (await cache.call("GET", "/v2/up/lib/app/manifests/v1?ns=example.com")).status == 200


async def test_caches_take_no_pushes_and_their_neighbours_do(cache: Client) -> None:
    answer = await cache.call("POST", "/v2/up/lib/app/blobs/uploads/")
    assert (answer.status, answer.code) == (405, "UNSUPPORTED")
    await cache.push_image("own/app", "v1")
    assert (await cache.call("GET", "/v2/own/app/manifests/v1")).status == 200


async def test_what_upstream_does_not_have(cache: Client) -> None:
    assert (await cache.call("GET", "/v2/up/none/manifests/v1")).code == "MANIFEST_UNKNOWN"
    assert (await cache.call("GET", f"/v2/up/lib/app/blobs/sha256:{'0' * 64}")).code == "BLOB_UNKNOWN"


async def test_a_blob_in_the_store_is_not_handed_out_without_the_upstreams_word(cache: Client) -> None:
    digest = await cache.push_blob("private", b"secret")
    assert (await cache.call("GET", f"/v2/up/lib/app/blobs/{digest}")).status == 404


async def test_upstreams_come_and_go_with_a_reload(start: Start, upstream: Client) -> None:  # noqa: F811
    client = await start()
    plain = client.server.settings
    assert (await client.call("GET", "/v2/up/lib/app/manifests/v1")).status == 404
    client.server.reload(replace(plain, upstreams=(Upstream(upstream.base, "up"),)))
    assert (await client.call("GET", "/v2/up/lib/app/manifests/v1")).status == 200
    assert (await client.call("POST", "/v2/up/lib/app/blobs/uploads/")).status == 405
    assert [rule.repositories for rule in client.server.collector.retention] == [("up/**",)]
    client.server.reload(plain)
    assert (await client.call("GET", "/v2/up/lib/app/manifests/v1")).status == 200, "what is cached stays"
    assert (await client.call("GET", "/v2/up/lib/app/manifests/v2")).status == 404
    assert (await client.call("POST", "/v2/up/lib/app/blobs/uploads/")).status == 202


async def test_names_that_nobody_pushed_come_from_the_default_upstream_and_stay_fresh(
    start: Start,  # noqa: F811
    upstream: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("registry.proxy._FRESH_SECONDS", 0.0)
    client = await start(upstreams=(Upstream(upstream.base, "hub", is_default=True),))
    first = await client.call("GET", "/v2/lib/app/manifests/v1")
    assert first.status == 200
    assert (await client.call("GET", f"/v2/lib/app/blobs/{first.json['layers'][0]['digest']}")).status == 200
    assert (await client.call("GET", "/v2/lib/app/tags/list")).json["tags"] == ["v1"]
    moved = await upstream.push_image("lib/app", "v1", b"another layer")
    assert (await client.call("HEAD", "/v2/lib/app/manifests/v1")).headers["Docker-Content-Digest"] == moved
    assert (await client.call("GET", "/v2/_catalog")).json == {"repositories": ["hub/lib/app"]}
    # A push asks first whether the blob is there; what the upstream has does not count.
    layer = Digest.of(b"another layer")
    assert (await client.call("HEAD", f"/v2/lib/app/blobs/{layer}")).status == 404
    ours = await client.push_image("lib/app", "v1", b"ours")
    assert (await client.call("HEAD", "/v2/lib/app/manifests/v1")).headers["Docker-Content-Digest"] == ours
    assert (await client.call("HEAD", "/v2/hub/lib/app/manifests/v1")).headers["Docker-Content-Digest"] == moved


async def test_upstreams_at_one_address_use_their_own_credentials(
    start: Start,  # noqa: F811
    users: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    private = await start(root=tmp_path / "private", htpasswd=users)
    await private.push_image("lib/app", "v1", auth=ANN)
    client = await start(
        upstreams=(
            Upstream(private.base, "right", username="ann", password="secret"),
            Upstream(private.base, "wrong", username="ann", password="guess"),
            Upstream(private.base, "nobody"),
        )
    )
    statuses = {}
    for prefix in ("right", "wrong", "nobody"):
        statuses[prefix] = (await client.call("GET", f"/v2/{prefix}/lib/app/manifests/v1")).status
    assert statuses == {"right": 200, "wrong": 404, "nobody": 503}


async def test_what_was_here_and_what_was_not_is_counted(cache: Client) -> None:
    for _ in range(2):
        layer = await layer_of(cache, "up/lib/app")
        await cache.call("GET", f"/v2/up/lib/app/blobs/{layer}")
        async with asyncio.timeout(10):
            while cache.server.proxy._downloads:
                await asyncio.sleep(0.01)
    text = cache.server.metrics.text().decode()
    for kind, size in (("blob", 500_000), ("manifest", None)):
        assert f'registry_proxy_requests_total{{type="{kind}"}} 2' in text
        assert f'registry_proxy_hits_total{{type="{kind}"}} 1' in text
        assert f'registry_proxy_misses_total{{type="{kind}"}} 1' in text
        assert size is None or f'registry_proxy_pulled_bytes_total{{type="{kind}"}} {size}' in text
