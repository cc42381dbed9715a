"""The containers resource over a real socket: decoding, statuses, streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio
from aiohttp.test_utils import make_mocked_request

from engine.api.containers import ContainerRoutes, log_query, size_of, stream_type
from engine.api.views import ContainerViews
from engine.clock import SECOND
from engine.containers.logs import LogQuery
from engine.containers.model import Status
from engine.containers.settings import EndpointSettings
from engine.errors import InvalidParameter, no_such_image
from engine.images.store import ImageStore
from engine.networks.service import NetworkService
from tests.engine.api.conftest import Serve
from tests.support.containers import container, ended, running
from tests.support.runs import FakeImages, FakeShim, until
from tests.support.served import Served
from tests.support.services import ServiceBench

NEW = container(1, name="new")
BOX = running(
    2, name="box", config={"tty": True, "open_stdin": True, "hostname": "host"}, networks={"front": EndpointSettings()}
)
OLD = ended(3, name="old", exit_code=4)
PIPE = running(4, name="pipe", config={"open_stdin": True})
TTY_TYPE = "application/vnd.docker.raw-stream"
FRAMES_TYPE = "application/vnd.docker.multiplexed-stream"


class SizedImages(FakeImages):
    """An image store knows images by id."""

    def get(self, name: str) -> Any:
        return self.by_name["busybox"] if name.startswith("sha256:e") else None


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[ServiceBench]:
    made = ServiceBench(tmp_path, NEW, BOX, OLD, PIPE)
    yield made
    await made.aclose()


@pytest_asyncio.fixture
async def api(bench: ServiceBench, short_root: Path, serve: Serve) -> Served:
    views = ContainerViews(
        bench.service,
        cast(NetworkService, bench.networks),
        cast(ImageStore, SizedImages(bench.images.by_name)),
        short_root,
    )
    return await serve(ContainerRoutes(bench.service, views).table())


async def ask(api: Served, method: str, path: str, body: object = None, **params: str) -> tuple[int, Any]:
    async with api.session.request(method, path, params=params, json=body) as response:
        text = await response.text()
        return response.status, json.loads(text) if text else None


async def upgraded(api: Served, path: str) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await api.raw()
    writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n".encode())
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    return head, reader, writer


async def test_lists(api: Served) -> None:
    _, rows = await ask(api, "GET", "/containers/json")
    assert [row["Names"] for row in rows] == [["/pipe"], ["/box"]]
    assert "SizeRw" not in rows[0]
    _, rows = await ask(api, "GET", "/containers/json", all="1", size="1", filters='{"name":["old"]}')
    assert [(row["State"], row["SizeRootFs"]) for row in rows] == [("exited", 1000)]
    assert (await ask(api, "GET", "/containers/json", limit="x"))[0] == 400
    assert (await ask(api, "GET", "/containers/json", filters='{"colour":["red"]}'))[0] == 400
    _, rows = await ask(api, "GET", "/containers/json", limit="-1")
    assert len(rows) == 2


async def test_create(api: Served, bench: ServiceBench) -> None:
    body = {"Image": "busybox", "HostConfig": {"Memory": 2**23}, "NetworkingConfig": {"EndpointsConfig": {"front": {}}}}
    status, answer = await ask(api, "POST", "/v1.51/containers/create", body, name="web")
    assert (status, answer) == (201, {"Id": container(99).id, "Warnings": ["mind the gap"]})
    (request,) = bench.creator.asked
    assert (request.name, request.config.image, request.host_config.memory) == ("web", "busybox", 2**23)
    assert list(request.networking.endpoints_config or {}) == ["front"]
    assert (request.flat_read_only, request.shared_cgroups) == (False, False)
    await ask(api, "POST", "/v1.40/containers/create", body, platform="linux/arm64")
    older = bench.creator.asked[-1]
    assert (older.flat_read_only, older.shared_cgroups, older.platform) == (True, True, None)
    bench.creator.failure = no_such_image("busybox")
    assert await ask(api, "POST", "/containers/create", body) == (404, {"message": "No such image: busybox"})
    async with api.session.post("/containers/create", data=b"{}", headers={"Content-Type": "text/plain"}) as response:
        assert response.status == 400
    headers = {"Content-Type": "application/json"}
    async with api.session.post("/containers/create", data=b'{"Image": "\xff"}', headers=headers) as response:
        assert response.status == 400


async def test_inspect(api: Served) -> None:
    status, view = await ask(api, "GET", "/containers/box/json", size="true")
    assert (status, view["Name"], view["SizeRootFs"]) == (200, "/box", 1000)
    assert "SizeRw" not in (await ask(api, "GET", "/containers/box/json"))[1]
    for version, shown in (("1.44", [BOX.id[:12], BOX.config.hostname]), ("1.45", None)):
        view = (await ask(api, "GET", f"/v{version}/containers/box/json"))[1]
        assert view["NetworkSettings"]["Networks"]["front"]["Aliases"] == shown
    assert await ask(api, "GET", "/containers/nobody/json") == (404, {"message": "No such container: nobody"})


async def test_the_life_of_a_container(api: Served, bench: ServiceBench) -> None:
    assert await ask(api, "POST", "/containers/new/start") == (204, None)
    assert await ask(api, "POST", "/containers/new/start") == (304, None)
    assert await ask(api, "POST", "/containers/new/pause") == (204, None)
    assert (await ask(api, "POST", "/containers/new/pause"))[0] == 409
    assert await ask(api, "POST", "/containers/new/unpause") == (204, None)
    assert await ask(api, "POST", "/containers/new/restart", t="0", signal="INT") == (204, None)
    assert bench.assembly.shims[0].signals == [2, 9]
    assert await ask(api, "POST", "/containers/new/kill", signal="HUP") == (204, None)
    assert (await ask(api, "POST", "/containers/new/kill", signal="NOPE"))[0] == 400
    assert await ask(api, "POST", "/containers/new/stop", t="0") == (204, None)
    assert await ask(api, "POST", "/containers/new/stop", t="x") == (
        400,
        {"message": 'strconv.ParseInt: parsing "x": invalid syntax'},
    )
    await until(lambda: bench.now(NEW.id).state.status is Status.EXITED)
    assert await ask(api, "POST", "/containers/new/stop") == (304, None)
    assert await ask(api, "POST", "/containers/new/rename", name="renamed") == (204, None)
    assert await ask(api, "DELETE", "/containers/renamed") == (204, None)
    assert (await ask(api, "DELETE", "/containers/renamed"))[0] == 404


async def test_detach_keys_of_a_start_are_checked(api: Served) -> None:
    assert await ask(api, "POST", "/containers/new/start", detachKeys="foo") == (
        400,
        {"message": "Invalid detach keys (foo) provided"},
    )


async def test_removal_needs_force_for_what_runs(api: Served, bench: ServiceBench) -> None:
    bench.adopt(BOX)
    assert (await ask(api, "DELETE", "/containers/box"))[0] == 409
    assert await ask(api, "DELETE", "/containers/box", force="1", v="1") == (204, None)


async def test_prune(api: Served) -> None:
    assert await ask(api, "POST", "/containers/prune", filters='{"until":["1970-01-01T00:00:01Z"]}') == (
        200,
        {"ContainersDeleted": [NEW.id], "SpaceReclaimed": 0},
    )
    assert await ask(api, "POST", "/containers/prune", filters='{"label":["none"]}') == (
        200,
        {"ContainersDeleted": None, "SpaceReclaimed": 0},
    )
    assert (await ask(api, "POST", "/containers/prune", filters='{"until":["1h","2h"]}'))[0] == 400


async def test_wait_sends_its_head_at_once(api: Served, bench: ServiceBench) -> None:
    shim = bench.adopt(BOX)
    async with api.session.post("/containers/box/wait", params={"condition": "next-exit"}) as response:
        assert response.status == 200
        shim.end(7)
        assert json.loads(await response.text()) == {"StatusCode": 7}
    assert await ask(api, "POST", "/containers/old/wait") == (200, {"StatusCode": 4})
    assert (await ask(api, "POST", "/containers/old/wait", condition="never"))[0] == 400


async def test_waiting_tells_why_it_could_not_run(api: Served, bench: ServiceBench) -> None:
    await bench.records.save(ended(3, name="old", exit_code=127, state={"error": "no such program"}))
    assert await ask(api, "POST", "/containers/old/wait") == (
        200,
        {"StatusCode": 127, "Error": {"Message": "no such program"}},
    )


async def test_who_stops_waiting_is_forgotten(api: Served, bench: ServiceBench) -> None:
    response = await api.session.post("/containers/box/wait")
    assert len(bench.live[BOX.id].waiters._exit) == 1
    response.close()
    await until(lambda: not bench.live[BOX.id].waiters._exit)


def write_log(bench: ServiceBench, record: Any) -> None:
    path = bench.assembly.log_path(record)
    assert path is not None
    path.parent.mkdir(parents=True)
    lines = [
        {"log": f"{text}\n", "stream": stream, "time": f"1970-01-01T00:00:0{at}Z"}
        for at, (text, stream) in enumerate([("one", "stdout"), ("two", "stderr")], 1)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


async def test_logs(api: Served, bench: ServiceBench) -> None:
    write_log(bench, OLD)

    async def read(path: str = "/containers/old/logs", **params: str) -> tuple[str, bytes]:
        async with api.session.get(path, params=params) as response:
            assert response.status == 200
            return response.headers["Content-Type"], await response.read()

    one, two = b"\x01\x00\x00\x00\x00\x00\x00\x04one\n", b"\x02\x00\x00\x00\x00\x00\x00\x04two\n"
    assert await read(stdout="1", stderr="1") == (FRAMES_TYPE, one + two)
    assert await read("/v1.41/containers/old/logs", stdout="1", stderr="1") == (TTY_TYPE, one + two)
    assert await read(stderr="1", tail="5") == (FRAMES_TYPE, two)
    assert await read(stdout="1", stderr="1", since="2") == (FRAMES_TYPE, two)
    assert await read(stdout="1", stderr="1", until="1.5") == (FRAMES_TYPE, one)
    assert await read(stdout="1", follow="1", timestamps="1") == (
        FRAMES_TYPE,
        b"\x01\x00\x00\x00\x00\x00\x00\x231970-01-01T00:00:01.000000000Z one\n",
    )
    assert await ask(api, "GET", "/containers/old/logs") == (
        400,
        {"message": "Bad parameters: you must choose at least one stream"},
    )
    assert (await ask(api, "GET", "/containers/old/logs", stdout="1", since="soon"))[0] == 400


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [("nosuch/attach?stream=1", 404, "No such container: nosuch"), ("box/attach?detachKeys=ctrl-foo", 400, "detach")],
)
async def test_a_refused_attach_is_no_json(api: Served, query: str, status: int, words: str) -> None:
    async with api.session.post(f"/containers/{query}") as response:
        assert (response.status, response.content_type) == (status, "application/vnd.docker.raw-stream")
        text = await response.text()
        assert words in text and text.endswith("\r\n") and "{" not in text


async def test_attach_carries_a_terminal_and_detaches(api: Served, bench: ServiceBench) -> None:
    shim = bench.adopt(BOX)
    head, reader, writer = await upgraded(api, "/containers/box/attach?stream=1&stdin=1&stdout=1&stderr=1")
    assert head.startswith(b"HTTP/1.1 101 UPGRADED")
    assert TTY_TYPE.encode() in head
    await speak(shim, reader, writer)
    writer.write(b"\x10\x11")
    assert await asyncio.wait_for(reader.read(), 5) == b""
    await until(lambda: bench.actions() == ["attach", "detach"])


async def speak(shim: FakeShim, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Both directions work."""
    loop, peer = asyncio.get_running_loop(), shim.peers[-1]
    peer.setblocking(False)
    writer.write(b"ls\n")
    assert await asyncio.wait_for(loop.sock_recv(peer, 100), 5) == b"ls\n"
    peer.sendall(b"file\n")
    assert await asyncio.wait_for(reader.readexactly(5), 5) == b"file\n"


async def test_what_is_piped_cannot_detach(api: Served, bench: ServiceBench) -> None:
    shim = bench.adopt(PIPE)
    head, reader, writer = await upgraded(api, "/containers/pipe/attach?stream=1&stdin=1&stdout=1")
    assert FRAMES_TYPE.encode() in head
    await speak(shim, reader, writer)
    writer.write(b"a\x10\x11b")
    received = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(shim.peers[0], 100), 5)
    assert received == b"a\x10\x11b"


async def test_attach_before_the_start_gets_the_first_byte(api: Served, bench: ServiceBench) -> None:
    _, reader, _ = await upgraded(api, "/containers/new/attach?stream=1&stdout=1")
    assert (await ask(api, "POST", "/containers/new/start"))[0] == 204
    bench.assembly.shims[0].peers[0].sendall(b"first")
    assert await asyncio.wait_for(reader.readexactly(5), 5) == b"first"


async def test_attach_to_a_start_that_fails_ends(api: Served, bench: ServiceBench) -> None:
    _, reader, _ = await upgraded(api, "/containers/new/attach?stream=1&stdout=1")
    bench.assembly.failure = InvalidParameter("no such program")
    assert (await ask(api, "POST", "/containers/new/start"))[0] == 400
    assert await asyncio.wait_for(reader.read(), 5) == b""


async def test_attach_can_begin_with_the_log(api: Served, bench: ServiceBench) -> None:
    write_log(bench, OLD)
    _, reader, _ = await upgraded(api, "/containers/old/attach?logs=1&stderr=1")
    assert await asyncio.wait_for(reader.read(), 5) == b"\x02\x00\x00\x00\x00\x00\x00\x04two\n"


async def test_attach_is_refused_before_it_takes_over(api: Served) -> None:
    for path, status in (("/containers/nobody/attach", 404), ("/containers/box/attach?detachKeys=foo", 400)):
        head, _, _ = await upgraded(api, path)
        assert head.startswith(f"HTTP/1.1 {status} ".encode())


async def test_resize(api: Served, bench: ServiceBench) -> None:
    shim = bench.adopt(BOX)
    assert await ask(api, "POST", "/containers/box/resize", h="24", w="80") == (200, None)
    assert shim.sizes == [(24, 80, None)]
    assert (await ask(api, "POST", "/containers/old/resize", h="1", w="1"))[0] == 409


@pytest.mark.parametrize(("query", "words"), [("h=x&w=1", "height"), ("h=1&w=", "width"), ("w=1", "height")])
def test_sizes_must_be_numbers(query: str, words: str) -> None:
    with pytest.raises(InvalidParameter, match=f"invalid resize {words}"):
        size_of(make_mocked_request("POST", f"/x?{query}"))


@pytest.mark.parametrize("size", ["-100", "4294967296"])
def test_sizes_have_bounds(size: str) -> None:
    with pytest.raises(InvalidParameter, match=f'invalid resize width "{size}": value out of range'):
        size_of(make_mocked_request("POST", f"/x?h=1&w={size}"))
    assert size_of(make_mocked_request("POST", "/x?h=4294967295&w=0")) == (4294967295, 0)


@pytest.mark.parametrize(
    ("name", "words"), [("../outside", 'invalid checkpoint ID "../outside"'), ("c1", "experimental mode")]
)
async def test_there_are_no_checkpoints(api: Served, name: str, words: str) -> None:
    status, answer = await ask(api, "POST", "/containers/missing/start", checkpoint=name)
    assert status == 400
    assert words in answer["message"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("stdout=1", LogQuery(stderr=False)),
        ("stdout=1&stderr=true&tail=all", LogQuery()),
        ("stdout=1&stderr=1&tail=-1", LogQuery()),
        ("stdout=1&stderr=1&tail=0", LogQuery(tail=0)),
        ("stdout=1&stderr=1&until=0&since=0", LogQuery(since_ns=0)),
        (
            "stderr=1&tail=10&since=5&until=6.5&timestamps=1&details=1&follow=1",
            LogQuery(
                stdout=False,
                timestamps=True,
                details=True,
                since_ns=5 * SECOND,
                until_ns=13 * SECOND // 2,
                tail=10,
                follow=True,
            ),
        ),
    ],
)
def test_log_parameters(query: str, expected: LogQuery) -> None:
    assert log_query(make_mocked_request("GET", f"/x?{query}")) == expected


def test_stream_types_depend_on_terminal_and_version() -> None:
    request = make_mocked_request("GET", "/x")
    assert stream_type(request, tty=True) == TTY_TYPE
    assert stream_type(request, tty=False) == FRAMES_TYPE


async def test_a_followed_log_that_nobody_reads_any_more_is_let_go(api: Served, bench: ServiceBench) -> None:
    write_log(bench, BOX)
    async with api.session.get("/containers/box/logs", params={"stdout": "1", "follow": "1"}) as response:
        assert await asyncio.wait_for(response.content.readline(), 5) == b"one\n"
        response.close()
    await until(lambda: not [t for t in asyncio.all_tasks() if "wait_any" in repr(t.get_coro())])


async def test_a_link_names_a_container_in_every_call(api: Served, bench: ServiceBench) -> None:
    await bench.records.save(container(6, name="parent", host={"links": ("old:alias",)}))
    for method, rest, expected in (
        ("GET", "/json", 200),
        ("POST", "/stop", 304),
        ("POST", "/wait", 200),
        ("DELETE", "?link=1", 204),
        ("GET", "/json", 404),
    ):
        assert (await ask(api, method, f"/containers/parent/alias{rest}"))[0] == expected
