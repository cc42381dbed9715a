"""Fetching: verified manifests, pages of tags, blobs that go on after a broken connection."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web

from registry.client import fetch
from registry.client.failures import ConnectionFailed, RemoteError
from registry.client.fetch import RemoteSource
from registry.digest import Digest
from registry.errors import DigestMismatch
from registry.manifest import OCI_MANIFEST, Descriptor
from registry.store.blobs import BlobStore
from registry.store.filesystem import FilesystemDriver

from .conftest import Stage

DATA = bytes(range(256)) * 2000


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_BACKOFF_SECONDS", 0.0)


def cutting(after: int, times: int, ranges: bool = True) -> Callable[[web.Request], object]:
    """Serves DATA, but breaks the connection ``after`` bytes, ``times`` times."""
    left = times

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal left
        wanted = request.headers.get("Range", "bytes=0-")
        start = int(wanted[6:-1]) if ranges else 0
        response = web.StreamResponse(status=206 if start else 200)
        response.content_length = len(DATA) - start
        await response.prepare(request)
        if left:
            left -= 1
            await response.write(DATA[start : start + after])
            assert request.transport is not None
            request.transport.abort() if not after else request.transport.close()
            return response
        await response.write(DATA[start:])
        return response

    return handler


async def fetched(stage: Stage, folder: Path, attempts: int = 3) -> tuple[bytes, list[int]]:
    store = BlobStore(FilesystemDriver(folder))
    digest = Digest.of(DATA)
    descriptor = Descriptor(digest=str(digest), size=len(DATA))
    told: list[int] = []
    async with await store.writer() as writer:
        await RemoteSource(stage.session(), "x", attempts).fetch(descriptor, writer, told.append)
        await writer.commit(digest)
    return await store.read(digest), told


@pytest.mark.parametrize("ranges", [True, False])
async def test_a_broken_download_goes_on(stage: Stage, tmp_path: Path, ranges: bool) -> None:
    stage.handler = cutting(100_000, 3, ranges)  # type: ignore[assignment]
    data, told = await fetched(stage, tmp_path)
    assert data == DATA
    assert told == sorted(told) and told[-1] == len(DATA)
    assert "Range" not in stage.headers[0] and stage.headers[1]["Range"].startswith("bytes=")


async def test_gives_up_without_progress(stage: Stage, tmp_path: Path) -> None:
    stage.handler = cutting(0, 99)  # type: ignore[assignment]
    with pytest.raises(ConnectionFailed):
        await fetched(stage, tmp_path, attempts=3)
    assert len(stage.requests) == 3


async def test_does_not_insist_on_what_is_not_there(stage: Stage, tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"errors": [{"code": "BLOB_UNKNOWN", "message": "blob unknown"}]}, status=404)

    stage.handler = handler
    with pytest.raises(RemoteError, match="blob unknown: blob unknown"):
        await fetched(stage, tmp_path)
    assert len(stage.requests) == 1


async def test_more_bytes_than_promised(stage: Stage, tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=DATA + b"more")

    stage.handler = handler
    with pytest.raises(ValueError, match="larger than"):
        await fetched(stage, tmp_path)


async def test_manifests_are_verified(stage: Stage) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=b"{}", content_type=OCI_MANIFEST)

    stage.handler = handler
    source = RemoteSource(stage.session(), "team/app")
    manifest = await source.manifest("1.0")
    assert (manifest.media_type, manifest.digest) == (OCI_MANIFEST, Digest.of(b"{}"))
    assert await source.manifest(str(Digest.of(b"{}"))) == manifest
    with pytest.raises(DigestMismatch):
        await source.manifest(str(Digest.of(b"other")))
    assert stage.requests[0] == "GET /v2/team/app/manifests/1.0"
    assert OCI_MANIFEST in stage.headers[0]["Accept"]


async def test_tags_come_in_pages(stage: Stage) -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.query.get("last"):
            return web.json_response({"name": "x", "tags": ["b"]})
        headers = {"Link": '</v2/x/tags/list?last=a&n=1>; rel="next"'}
        return web.json_response({"name": "x", "tags": ["a"]}, headers=headers)

    stage.handler = handler
    assert await RemoteSource(stage.session(), "x").tags() == ["a", "b"]


async def test_small_blobs_are_verified(stage: Stage) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=b"config")

    stage.handler = handler
    source = RemoteSource(stage.session(), "x")
    assert await source.read(Descriptor(digest=str(Digest.of(b"config")), size=6)) == b"config"
    with pytest.raises(DigestMismatch):
        await source.read(Descriptor(digest=str(Digest.of(b"x")), size=6))
    with pytest.raises(ValueError, match="too large"):
        await source.read(Descriptor(digest=str(Digest.of(b"x")), size=1 << 30))


async def test_documents_that_do_not_end_are_not_read_to_the_end(stage: Stage) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for _ in range(10_000):
                await response.write(bytes(1 << 20))
        return response

    stage.handler = handler
    source = RemoteSource(stage.session(), "x")
    with pytest.raises(ValueError, match="larger than"):
        await source.read(Descriptor(digest=str(Digest.of(b"x")), size=6))
    with pytest.raises(ValueError, match="larger than"):
        await source.manifest("latest")
    with pytest.raises(ValueError, match="larger than"):
        await source.tags()
