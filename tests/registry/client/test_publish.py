"""Publishing: uploads that go on where the registry says, mounts, manifests."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp import web

from registry.client import publish
from registry.client.failures import RemoteError
from registry.client.publish import RemoteTarget
from registry.digest import Digest
from registry.manifest import OCI_MANIFEST

from .conftest import Stage

DATA = b"layer" * 200_000


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "_BACKOFF_SECONDS", 0.0)


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    path = tmp_path / "layer"
    path.write_bytes(DATA)
    return path


class Uploads:
    """One upload session; ``cut`` breaks the first PATCH after so many bytes."""

    def __init__(self, cut: int | None = None) -> None:
        self.cut = cut
        self.received = b""
        self.finished = ""

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        place = {"Location": "/v2/x/blobs/uploads/u1?_state=s"}
        match request.method:
            case "POST":
                self.received = b""
                return web.Response(status=202, headers=place)
            case "PATCH":
                if self.cut is not None:
                    self.received += await request.content.readexactly(self.cut)
                    self.cut = None
                    assert request.transport is not None
                    request.transport.close()
                    return web.Response(status=202)
                self.received += await request.read()
                return web.Response(status=202, headers=place)
            case "GET":
                return web.Response(status=204, headers={**place, "Range": f"0-{len(self.received) - 1}"})
            case _:
                self.finished = request.query["digest"]
                return web.Response(status=201)


@pytest.mark.parametrize("cut", [None, 100_000])
async def test_upload(stage: Stage, layer: Path, cut: int | None) -> None:
    stage.handler = server = Uploads(cut)
    told: list[int] = []
    digest = Digest.of(DATA)
    await RemoteTarget(stage.session(), "x").upload(digest, layer, len(DATA), told.append)
    assert server.received == DATA
    assert server.finished == digest
    assert told[-1] == len(DATA)
    assert stage.requests[0] == "POST /v2/x/blobs/uploads/"


async def test_an_upload_begun_by_a_refused_mount_is_used(stage: Stage, layer: Path) -> None:
    stage.handler = server = Uploads()
    target = RemoteTarget(stage.session(), "x")
    digest = Digest.of(DATA)
    location = await target.mount(digest, "team/base")
    assert stage.requests == [f"POST /v2/x/blobs/uploads/?mount={digest}&from=team/base"]
    assert location
    await target.upload(digest, layer, len(DATA), lambda _: None, location)
    assert server.received == DATA
    assert [r.partition(" ")[0] for r in stage.requests] == ["POST", "PATCH", "PUT"]


async def test_mount_that_works(stage: Stage) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=201)

    stage.handler = handler
    assert await RemoteTarget(stage.session(), "x").mount(Digest.of(DATA), "y") is None


async def test_refusals_are_final(stage: Stage, layer: Path) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"errors": [{"code": "DENIED", "message": "no"}]}, status=403)

    stage.handler = handler
    target = RemoteTarget(stage.session(), "x")
    with pytest.raises(RemoteError, match="denied: no"):
        await target.upload(Digest.of(DATA), layer, len(DATA), lambda _: None)
    assert len(stage.requests) == 1
    assert await target.mount(Digest.of(DATA), "y") == ""


async def test_manifest(stage: Stage) -> None:
    seen: list[tuple[str, bytes]] = []

    async def handler(request: web.Request) -> web.Response:
        if request.method == "PUT":
            seen.append((request.headers["Content-Type"], await request.read()))
            return web.Response(status=201)
        return web.Response(status=404 if request.path.endswith("0") else 200)

    stage.handler = handler
    target = RemoteTarget(stage.session(), "x")
    assert await target.put_manifest("latest", b"{}", OCI_MANIFEST) == Digest.of(b"{}")
    assert seen == [(OCI_MANIFEST, b"{}")]
    assert await target.has(Digest("sha256:" + "1" * 64)) and not await target.has(Digest("sha256:" + "0" * 64))
