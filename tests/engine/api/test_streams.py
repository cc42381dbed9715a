"""JSON lines, and connections taken over from HTTP: each direction ends alone."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
import pytest_asyncio
from aiohttp import web

from engine.api import streams
from engine.api.app import Route
from engine.api.streams import RAW_STREAM, Takeover, json_lines, json_response, no_content
from engine.errors import Conflict
from tests.engine.api.conftest import Serve
from tests.support.served import Served

UPGRADE = b"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"


class Handlers:
    """Progress streams and taken-over connections."""

    def __init__(self) -> None:
        self.client: Takeover | None = None
        self.lost = asyncio.Event()
        self.read_all = b""

    def table(self) -> list[Route]:
        return [
            Route("GET", "/lines/{kind}", self.lines),
            Route("POST", "/echo", self.echo, streams=True),
            Route("POST", "/talk", self.talk, streams=True),
            Route("POST", "/hold", self.hold, streams=True),
            Route("POST", "/flood", self.flood, streams=True),
            Route("GET", "/json", self.document),
            Route("DELETE", "/json", self.gone),
        ]

    async def document(self, request: web.Request) -> web.StreamResponse:
        return json_response({"a": [1, None]}, 201)

    async def gone(self, request: web.Request) -> web.StreamResponse:
        return no_content()

    async def lines(self, request: web.Request) -> web.StreamResponse:
        kind = request.match_info["kind"]
        async with json_lines(request, status=202) as out:
            if kind == "early":
                raise Conflict("before the head")
            if kind == "silent":
                return out.response
            await out.send({"status": "one"})
            if kind == "engine":
                raise Conflict("in the middle")
            if kind == "other":
                raise LookupError
            if kind == "gone":
                raise ConnectionResetError
            await out.send({"status": "two"})
        return out.response

    async def echo(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        client = Takeover(request)
        client.begin(request, RAW_STREAM, {"X-Extra": "1"})
        while data := await client.read():
            client.write(data.upper())
            await client.drain()
        client.write(b"<end>")
        client.close_write()
        return client.finished()

    async def talk(self, request: web.Request) -> web.StreamResponse:
        """Our side ends first; the client may go on."""
        client = Takeover(request)
        client.begin(request, RAW_STREAM, {})
        client.write(b"done")
        client.close_write()
        while data := await client.read():
            self.read_all += data
        self.lost.set()
        return client.finished()

    async def hold(self, request: web.Request) -> web.StreamResponse:
        self.client = client = Takeover(request)
        client.begin(request, RAW_STREAM, {})
        try:
            assert await client.read() == b""
            while True:  # it is gone or done sending: only writing tells
                client.write(b"into the void")
                await client.drain()
                await asyncio.sleep(0)
        finally:
            client.write(b"nobody")
            client.close_write()
            self.lost.set()

    async def flood(self, request: web.Request) -> web.StreamResponse:
        self.client = client = Takeover(request)
        client.begin(request, RAW_STREAM, {})
        await self.lost.wait()
        total = 0
        while data := await client.read():
            total += len(data)
        client.write(str(total).encode())
        client.close_write()
        return client.finished()


@pytest.fixture
def handlers() -> Handlers:
    return Handlers()


@pytest_asyncio.fixture
async def api(handlers: Handlers, serve: Serve) -> Served:
    return await serve(handlers.table())


async def answered(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)


async def rest(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.read(), 5)


async def test_one_document_ends_with_a_newline(api: Served) -> None:
    assert await api.get("/json") == (201, '{"a":[1,null]}\n')
    async with api.session.delete("/json") as response:
        assert (response.status, await response.read()) == (204, b"")


async def test_lines_are_documents(api: Served) -> None:
    status, body = await api.get("/lines/good")
    assert status == 202
    assert body == '{"status":"one"}\r\n{"status":"two"}\r\n'


async def test_a_stream_without_lines_still_has_its_head(api: Served) -> None:
    assert await api.get("/lines/silent") == (202, "")


async def test_an_error_before_the_first_line_is_an_ordinary_one(api: Served) -> None:
    assert await api.get("/lines/early") == (409, '{"message":"before the head"}\n')


async def test_an_error_after_it_is_said_in_band(api: Served, caplog: pytest.LogCaptureFixture) -> None:
    status, body = await api.get("/lines/engine")
    assert status == 202
    assert json.loads(body.splitlines()[-1]) == {
        "errorDetail": {"message": "in the middle"},
        "error": "in the middle",
    }
    assert caplog.records == []


async def test_an_unexpected_one_is_said_and_logged(api: Served, caplog: pytest.LogCaptureFixture) -> None:
    _, body = await api.get("/lines/other")
    assert json.loads(body.splitlines()[-1])["error"] == "LookupError"
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (logging.ERROR, "GET /lines/other failed while streaming")
    ]


async def test_a_lost_connection_is_not_said(api: Served) -> None:
    reader, writer = await api.raw()
    writer.write(b"GET /lines/gone HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"errorDetail" not in await rest(reader)


async def test_an_upgrade_is_answered_101_and_bytes_flow(api: Served) -> None:
    reader, writer = await api.raw()
    writer.write(UPGRADE)
    head = await answered(reader)
    assert head.startswith(b"HTTP/1.1 101 UPGRADED\r\n")
    assert b"Connection: Upgrade\r\nUpgrade: tcp\r\n" in head
    assert b"Content-Type: application/vnd.docker.raw-stream\r\n" in head
    assert b"X-Extra: 1\r\n" in head
    writer.write(b"hello")
    assert await asyncio.wait_for(reader.readexactly(5), 5) == b"HELLO"
    writer.write_eof()
    assert await rest(reader) == b"<end>"


async def test_without_upgrade_it_is_200(api: Served) -> None:
    reader, writer = await api.raw()
    writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    head = await answered(reader)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Upgrade" not in head
    writer.write(b"raw\x00bytes")
    assert await asyncio.wait_for(reader.readexactly(9), 5) == b"RAW\x00BYTES"
    writer.write_eof()
    assert await rest(reader) == b"<end>"


async def test_bytes_sent_with_the_head_are_not_lost(api: Served) -> None:
    reader, writer = await api.raw()
    writer.write(UPGRADE + b"early ")
    await answered(reader)
    writer.write(b"late")
    writer.write_eof()
    assert await rest(reader) == b"EARLY LATE<end>"


async def test_all_input_and_its_end_sent_with_the_head_arrive(api: Served) -> None:
    reader, writer = await api.raw()
    writer.write(UPGRADE + b"everything")
    writer.write_eof()
    await answered(reader)
    assert await rest(reader) == b"EVERYTHING<end>"


async def test_a_request_with_a_body_ends_where_its_length_says(api: Served) -> None:
    reader, writer = await api.raw()
    writer.write(UPGRADE[:-2] + b"Content-Length: 4\r\n\r\n{")
    await writer.drain()
    await asyncio.sleep(0.002)
    writer.write(b"  }ahead ")
    await answered(reader)
    writer.write(b"after")
    writer.write_eof()
    assert await rest(reader) == b"AHEAD AFTER<end>"


async def test_a_declined_upgrade_ends_the_connection(api: Served) -> None:
    reader, writer = await api.raw()
    writer.write(UPGRADE.replace(b"/echo", b"/nowhere") + b"GET /json HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await rest(reader)
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (b"POST /a HTTP/1.1\r\nUPGRADE: tcp\r\n\r\nmore", 34),
        (b"GET /a HTTP/1.1\r\nUpgrade:h2c\r\nContent-Length: 7\r\n\r\n", 58),
        (b"POST /a HTTP/1.1\r\nUpgrade: websocket\r\n\r\n", None),
        (b"POST /a HTTP/1.1\r\nHost: x\r\n\r\n\r\nUpgrade: tcp\r\n\r\n", None),
        (b"POST /a HTTP/1.1\r\nUpgrade: tcp\r\n", None),
        (b"x" * 10, None),
    ],
)
def test_upgrade_requests_are_measured(data: bytes, size: int | None) -> None:
    assert streams.upgrade_request_size(data) == size


async def test_our_end_leaves_the_client_its_own(api: Served, handlers: Handlers) -> None:
    reader, writer = await api.raw()
    writer.write(UPGRADE.replace(b"/echo", b"/talk"))
    await answered(reader)
    assert await rest(reader) == b"done"
    writer.write(b"still here")
    writer.write_eof()
    await asyncio.wait_for(handlers.lost.wait(), 5)
    assert handlers.read_all == b"still here"


async def test_a_client_that_is_gone_is_noticed(api: Served, handlers: Handlers) -> None:
    reader, writer = await api.raw()
    writer.write(UPGRADE.replace(b"/echo", b"/hold"))
    await answered(reader)
    writer.transport.abort()
    await asyncio.wait_for(handlers.lost.wait(), 5)
    assert handlers.client is not None
    await asyncio.wait_for(handlers.client.lost.wait(), 5)


async def test_a_client_that_sends_too_fast_is_made_to_wait(
    api: Served, handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HIGH_WATER", 10_000)
    reader, writer = await api.raw()
    writer.write(UPGRADE.replace(b"/echo", b"/flood"))
    await answered(reader)
    writer.transport.set_write_buffer_limits(high=1000)
    sent = 0
    while True:
        writer.write(b"x" * 50_000)
        sent += 50_000
        try:
            await asyncio.wait_for(writer.drain(), 0.05)
        except TimeoutError:
            break
        assert sent < 50_000_000, "nobody made us wait"
    assert handlers.client is not None
    assert handlers.client._buffered < 1_000_000
    handlers.lost.set()
    await writer.drain()
    writer.write_eof()
    assert int(await rest(reader)) == sent


async def test_a_taken_over_connection_serves_no_second_request(api: Served) -> None:
    reader, writer = await api.raw()
    writer.write(UPGRADE)
    await answered(reader)
    writer.write(UPGRADE)
    writer.write_eof()
    assert await rest(reader) == UPGRADE.upper() + b"<end>"
    assert reader.at_eof()
