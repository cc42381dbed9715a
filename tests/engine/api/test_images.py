"""The images resource over a real socket: statuses, shapes per version, streams and their errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from engine.api.decode import parse_platform
from engine.api.images import ImageRoutes
from engine.config import Config
from engine.errors import InvalidParameter
from engine.images.transport import ImageTransport
from engine.journal import Journal
from engine.snapshots.base import LayerKey
from engine.tasks import run_blocking
from registry.manifest import Platform
from tests.engine.api.conftest import Serve
from tests.engine.images.conftest import FakeLayers, Shop, tar_of
from tests.support.served import Served


class Client:
    """Requests over the socket."""

    def __init__(self, served: Served, shop: Shop) -> None:
        self.served = served
        self.session = served.session
        self.shop = shop

    async def call(self, method: str, path: str, data: bytes | None = None) -> tuple[int, Any]:
        headers = {"Content-Type": "application/json"} if path == "/auth" else {}
        async with self.session.request(method, path, data=data, headers=headers) as response:
            text = await response.text()
            lines = [json.loads(line) for line in text.splitlines()]
            return response.status, lines[0] if len(lines) == 1 else lines

    async def make(self, name: str, query: str = "", content: bytes = b"hello") -> str:
        status, line = await self.call(
            "POST", f"/images/create?fromSrc=-&repo={name}{query}", tar_of({"etc/a": content})
        )
        assert status == 200
        return str(line["status"])


@pytest_asyncio.fixture
async def client(short_root: Path, serve: Serve) -> AsyncIterator[Client]:
    journal = Journal(short_root / "journal")
    await run_blocking(journal.open_sync)
    shop = Shop(short_root, journal)
    transport = ImageTransport(Config(), shop.service, None, shop.nursery, ())
    routes = ImageRoutes(shop.service, transport.puller, transport.pusher, shop.nursery, transport.platform)
    yield Client(await serve(routes.table(), shop.nursery), shop)
    await transport.aclose()
    await shop.nursery.aclose()
    await journal.aclose()


async def test_import_and_inspect(client: Client) -> None:
    image_id = await client.make("app", "&tag=1&changes=ENV+A%3D1&changes=CMD+x&message=hi")
    status, shown = await client.call("GET", "/v1.51/images/app:1/json")
    assert status == 200
    assert shown["Id"] == image_id and shown["RepoTags"] == ["app:1"] and shown["RepoDigests"] == []
    assert shown["Config"]["Env"] == ["A=1"] and shown["Config"]["Cmd"] == ["/bin/sh", "-c", "x"]
    assert "Hostname" not in shown["Config"] and "VirtualSize" not in shown and "ContainerConfig" not in shown
    assert shown["Comment"] == "hi" and shown["Os"] == "linux" and shown["Size"] == 5
    assert shown["RootFS"] == {"Type": "layers", "Layers": list(client.shop.service.get("app:1").diff_ids)}
    assert shown["Metadata"]["LastTagTime"].endswith("Z")


async def test_older_versions_show_more(client: Client) -> None:
    await client.make("app")
    _, old = await client.call("GET", "/v1.41/images/app/json")
    assert old["VirtualSize"] == 5 and old["Container"] == "" and old["ContainerConfig"]["Hostname"] == ""
    assert old["Config"]["AttachStdin"] is False
    _, middle = await client.call("GET", "/v1.49/images/app/json")
    assert middle["Config"]["Hostname"] == "" and "Container" not in middle


async def test_list_per_version(client: Client) -> None:
    await client.make("app")
    await client.make("", content=b"other")
    _, rows = await client.call("GET", "/v1.51/images/json")
    assert [row["RepoTags"] for row in rows] == [[], ["app:latest"]]
    assert set(rows[0]) == {
        "Containers", "Created", "Id", "Labels", "ParentId", "RepoDigests", "RepoTags", "SharedSize", "Size",
    }  # fmt: skip
    assert (rows[0]["SharedSize"], rows[0]["Containers"]) == (-1, -1)
    _, old = await client.call("GET", "/v1.41/images/json")
    assert old[0]["RepoTags"] == ["<none>:<none>"] and old[0]["RepoDigests"] == ["<none>@<none>"]
    assert old[1]["RepoDigests"] is None and old[1]["VirtualSize"] == 5
    _, dangling = await client.call("GET", '/images/json?filters={"dangling":["true"]}&shared-size=1')
    assert dangling["SharedSize"] == 0 if isinstance(dangling, dict) else dangling[0]["SharedSize"] == 0
    status, error = await client.call("GET", '/images/json?filters={"foo":["a"]}')
    assert (status, error) == (400, {"message": "invalid filter 'foo'"})


async def test_tag_history_remove(client: Client) -> None:
    image_id = await client.make("app")
    async with client.session.post("/images/app/tag?repo=x.io/team/app&tag=2") as response:
        assert response.status == 201
    status, rows = await client.call("GET", "/images/x.io/team/app:2/history")
    assert status == 200
    assert rows[0]["Id"] == image_id and rows[0]["Tags"] == ["app:latest", "x.io/team/app:2"] and rows[0]["Size"] == 5
    status, error = await client.call("DELETE", f"/images/{image_id[7:19]}")
    assert status == 409 and error["message"].startswith(
        f"conflict: unable to delete {image_id[7:19]} (must be forced)"
    )
    status, records = await client.call("DELETE", "/images/x.io/team/app:2")
    assert (status, records) == (200, [{"Untagged": "x.io/team/app:2"}])
    _, records = await client.call("DELETE", "/images/app")
    assert [next(iter(record)) for record in records] == ["Untagged", "Deleted", "Deleted"]
    assert await client.call("DELETE", "/images/app") == (404, {"message": "No such image: app:latest"})


async def test_prune(client: Client) -> None:
    await client.make("")
    status, shown = await client.call("POST", "/images/prune")
    assert status == 200 and shown["SpaceReclaimed"] == 5 and len(shown["ImagesDeleted"]) == 2
    assert await client.call("POST", "/images/prune") == (200, {"ImagesDeleted": None, "SpaceReclaimed": 0})


async def test_save_and_load_of_a_platform(client: Client) -> None:
    await client.make("app")
    save = "/images/get?names=app&platform="
    other, own = (f'{{"os":"linux","architecture":"{name}"}}' for name in ("riscv64", "amd64"))
    assert await client.call("GET", f"{save}{other}&platform={own}") == (
        *(400, {"message": "multiple platform parameters not supported"}),
    )
    words = "no suitable export target found for platform linux/riscv64"
    assert await client.call("GET", save + other) == (500, {"message": words})
    assert await client.call("POST", '/images/load?platform={"os":"linux"}', b"") == (
        *(400, {"message": "both OS and Architecture must be provided"}),
    )
    async with client.session.get(f"/v1.47{save}{other}") as response:
        assert response.status == 200
        assert await response.read()


async def test_save_and_load(client: Client) -> None:
    image_id = await client.make("app")
    async with client.session.get("/images/get?names=app:latest") as response:
        assert response.content_type == "application/x-tar"
        data = await response.read()
    async with client.session.get("/images/app/get") as response:
        assert await response.read() == data
    await client.call("DELETE", f"/images/{image_id}?force=1")
    status, lines = await client.call("POST", "/images/load?quiet=0", data)
    assert status == 200
    assert lines[-1] == {"stream": "Loaded image: app:latest\n"}
    assert lines[0]["status"] == "Loading layer" and "progress" in lines[0]
    status, refusal = await client.call("POST", "/images/load", b"nonsense" * 200)
    assert status == 200
    told = refusal if isinstance(refusal, dict) else refusal[-1]
    assert "invalid tar header" in told["errorDetail"]["message"]
    assert await client.call("GET", "/images/nothing/get") == (404, {"message": "No such image: nothing"})


class SlowLayers(FakeLayers):
    """Layers whose unpacking begins, and ends when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go = asyncio.Event(), asyncio.Event()

    async def unpack(self, *arguments: Any, **options: Any) -> LayerKey:
        self.begun.set()
        await self.go.wait()
        return await super().unpack(*arguments, **options)


async def test_a_quiet_load_is_told_when_it_is_done_and_needs_nobody_until_then(client: Client) -> None:
    """Go's client reads the head and closes; the head comes with the first line, and the load goes on regardless."""
    image_id = await client.make("app")
    async with client.session.get("/images/app/get") as response:
        data = await response.read()
    await client.call("DELETE", f"/images/{image_id}?force=1")
    layers = client.shop.content.folders = SlowLayers()
    reader, writer = await client.served.raw()
    writer.write(b"POST /images/load?quiet=1 HTTP/1.1\r\nHost: d\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
    head = asyncio.ensure_future(reader.readuntil(b"\r\n"))
    await layers.begun.wait()
    await client.call("GET", "/images/json")  # whatever was said before has arrived by now
    assert not head.done()
    writer.close()
    with pytest.raises(asyncio.IncompleteReadError):
        await head
    assert await client.call("GET", "/images/json") == (200, [])
    layers.go.set()
    while not client.shop.store.all():
        await asyncio.sleep(0.01)
    assert client.shop.service.get("app").id == image_id


async def test_a_load_whose_client_leaves_half_way_ends(client: Client) -> None:
    _, writer = await client.served.raw()
    writer.write(b"POST /images/load?quiet=1 HTTP/1.1\r\nHost: d\r\nContent-Length: 1000000\r\n\r\n" + bytes(100_000))
    while not list(client.shop.blobs.temp_dir().iterdir()):
        await asyncio.sleep(0.01)
    writer.close()
    while list(client.shop.blobs.temp_dir().iterdir()):
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/images/create?fromSrc=-&repo=UP", b"", 400, "must be lowercase"),
        ("POST", "/images/create?fromSrc=-&changes=FROM+x", b"", 400, "from is not a valid change command"),
        ("POST", "/images/create?fromSrc=-&platform=a/b/c/d", b"", 400, "invalid platform specifier"),
        ("POST", "/images/create?fromImage=UP&tag=1", None, 400, "must be lowercase"),
        ("POST", "/images/create?fromImage=127.0.0.1:1/x&tag=1", None, 500, "connection refused"),
        ("POST", "/images/nothing/tag?repo=a", None, 404, "No such image: nothing:latest"),
        ("GET", "/images/nothing/json", None, 404, "No such image: nothing:latest"),
        ("GET", "/images/nothing/history", None, 404, "No such image: nothing:latest"),
        ("GET", "/images/get?names=", None, 400, "invalid reference format"),
        ("POST", "/images/create", None, 500, "no Host in request URL"),
        ("POST", '/images/prune?filters={"until":["x"]}', None, 400, "failed to parse value as time or duration"),
        ("GET", "/images/search", None, 400, "is required"),
        ("GET", "/images/search?term=x&limit=1000", None, 400, "outside the range"),
        ("GET", "/distribution/127.0.0.1:1/x/json", None, 500, "connection refused"),
        ("POST", "/auth", b"{", 400, "invalid JSON"),
        ("POST", "/auth", b'{"username":"a","password":"b","serveraddress":"127.0.0.1:1"}', 500, "connection refused"),
    ],
)
async def test_refusals(client: Client, method: str, path: str, body: bytes | None, status: int, words: str) -> None:
    got, answer = await client.call(method, path, body)
    assert got == status
    assert words in answer["message"]


async def test_a_push_that_fails_says_so_in_the_stream(client: Client) -> None:
    status, lines = await client.call("POST", "/images/127.0.0.1:1/app/push?tag=1")
    assert status == 200
    words = "An image does not exist locally with the tag: 127.0.0.1:1/app"
    assert lines == [
        {"status": "The push refers to repository [127.0.0.1:1/app]"},
        {"errorDetail": {"message": words}, "error": words},
    ]


@pytest.mark.parametrize(
    ("text", "platform"),
    [
        ("", None),
        ("linux", Platform(os="linux")),
        ("linux/arm64", Platform(os="linux", architecture="arm64")),
        ("linux/aarch64", Platform(os="linux", architecture="arm64")),
        ("linux/arm/v7", Platform(os="linux", architecture="arm", variant="v7")),
        ("x86_64", Platform(os="linux", architecture="amd64")),
    ],
)
def test_platforms(text: str, platform: Platform | None) -> None:
    assert parse_platform(text) == platform


def test_bad_platforms() -> None:
    with pytest.raises(InvalidParameter):
        parse_platform("linux//")
    with pytest.raises(InvalidParameter, match="unknown operating system or architecture"):
        parse_platform("foobar")
