"""Dispatch, the version window, errors to JSON, and what happens when a client leaves."""

from __future__ import annotations

import asyncio
import json
import logging

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from engine.api.app import EngineRequest, Route, RouteTable
from engine.api.decode import api_version
from engine.errors import Conflict, NotModified
from tests.engine.api.conftest import Serve
from tests.support.served import Served


async def nothing(request: web.Request) -> web.StreamResponse:
    return web.Response()


def found(table: RouteTable, method: str, path: str) -> tuple[str, dict[str, str]] | None:
    match = table.find(method, path)
    return None if match is None else (match[0].path, match[1])


def test_exact_paths_go_before_patterns() -> None:
    table = RouteTable(Route("GET", path, nothing) for path in ("/c/{name}", "/c/json", "/c/{name}/json"))
    assert found(table, "GET", "/c/json") == ("/c/json", {})
    assert found(table, "GET", "/c/web") == ("/c/{name}", {"name": "web"})
    assert found(table, "GET", "/c/web/json") == ("/c/{name}/json", {"name": "web"})
    assert found(table, "POST", "/c/web") is None
    assert found(table, "GET", "/c/") is None
    assert found(table, "GET", "/d/web") is None


def test_wide_placeholders_take_slashes_and_the_first_route_wins() -> None:
    table = RouteTable(Route("GET", path, nothing) for path in ("/i/{name:.*}/json", "/i/{name:.*}", "/i/a.b"))
    assert found(table, "GET", "/i/localhost:5/a/b:1/json") == ("/i/{name:.*}/json", {"name": "localhost:5/a/b:1"})
    assert found(table, "GET", "/i/localhost:5/a") == ("/i/{name:.*}", {"name": "localhost:5/a"})
    assert found(table, "GET", "/i/axb") == ("/i/{name:.*}", {"name": "axb"})
    assert found(table, "GET", "/i/a.b") == ("/i/a.b", {})


@pytest.mark.parametrize("path", ["*", "", "/", "//", "x"])
def test_odd_paths_are_not_found(path: str) -> None:
    assert RouteTable([Route("GET", "/c/{name}", nothing)]).find("GET", path) is None


class Handlers:
    """A resource with one handler a behaviour."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.go = asyncio.Event()
        self.outcome = asyncio.Event()
        self.cancelled = False

    def table(self) -> list[Route]:
        return [
            Route("GET", "/echo/{name}", self.echo),
            Route("HEAD", "/echo/{name}", self.echo),
            Route("POST", "/change/{name}", self.change),
            Route("POST", "/stream", self.change, streams=True),
            Route("GET", "/conflict", self.conflict),
            Route("POST", "/same", self.same),
            Route("GET", "/broken", self.broken),
            Route("GET", "/refused", self.refused),
            Route("GET", "/half", self.half),
            Route("GET", "/unheard", self.unheard),
        ]

    async def echo(self, request: web.Request) -> web.StreamResponse:
        assert isinstance(request, EngineRequest)
        return web.json_response({"name": request.match_info["name"], "version": api_version(request)})

    async def change(self, request: web.Request) -> web.StreamResponse:
        self.entered.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        finally:
            self.outcome.set()
        return web.Response(text="changed")

    async def conflict(self, request: web.Request) -> web.StreamResponse:
        raise Conflict('it is "busy"')

    async def same(self, request: web.Request) -> web.StreamResponse:
        raise NotModified()

    async def broken(self, request: web.Request) -> web.StreamResponse:
        raise LookupError

    async def refused(self, request: web.Request) -> web.StreamResponse:
        raise ConnectionRefusedError("a registry is down")

    async def half(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(b"first part")
        raise Conflict("too late")


    async def unheard(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        assert request.transport is not None
        request.transport.close()
        try:
            await response.write(b"what nobody hears")
        finally:
            self.outcome.set()
        return response


@pytest.fixture
def handlers() -> Handlers:
    return Handlers()


@pytest_asyncio.fixture
async def api(handlers: Handlers, serve: Serve) -> Served:
    return await serve(handlers.table())


async def test_every_path_exists_with_and_without_a_version(api: Served) -> None:
    assert await api.get("/echo/x") == (200, '{"name": "x", "version": [1, 51]}')
    assert await api.get("/v1.40/echo/x") == (200, '{"name": "x", "version": [1, 40]}')
    assert (await api.get("/v1.40"))[0] == 404
    assert (await api.get("/v1/echo/x"))[0] == 404


async def test_a_percent_encoded_name_is_decoded(api: Served) -> None:
    assert json.loads((await api.get("/echo/a%20b"))[1])["name"] == "a b"


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("1.52", "client version 1.52 is too new. Maximum supported API version is 1.51"),
        ("2.0", "client version 2.0 is too new. Maximum supported API version is 1.51"),
    ],
)
async def test_versions_outside_the_window_are_refused(api: Served, version: str, message: str) -> None:
    status, body = await api.get(f"/v{version}/echo/x")
    assert (status, json.loads(body)) == (400, {"message": message})


async def test_a_version_that_is_too_old_is_told_in_plain_text(api: Served) -> None:
    async with api.session.get("/v1.23/echo/x") as response:
        assert (response.status, response.content_type) == (400, "text/plain")
        assert await response.text() == (
            "client version 1.23 is too old. Minimum supported API version is 1.24, "
            "please upgrade your client to a newer version\n"
        )


@pytest.mark.parametrize("path", ["/echo/x", "/v1.41/nowhere"])
async def test_options_of_any_path_are_an_empty_answer(api: Served, path: str) -> None:
    async with api.session.options(path) as response:
        assert (response.status, await response.read()) == (200, b"")
        assert response.headers["Api-Version"] == "1.51"


async def test_unknown_pages_and_methods_are_not_found(api: Served) -> None:
    assert await api.get("/nowhere") == (404, '{"message":"page not found"}\n')
    async with api.session.post("/echo/x") as response:
        assert response.status == 404


async def test_every_answer_carries_the_common_headers(api: Served) -> None:
    for path in ("/echo/x", "/nowhere", "/conflict"):
        async with api.session.get(path) as response:
            assert response.headers["Api-Version"] == "1.51"
            assert response.headers["Ostype"] == "linux"
            assert response.headers["Docker-Experimental"] == "false"
            assert response.headers["Server"].startswith("Docker/28")


async def test_head_has_no_body(api: Served) -> None:
    async with api.session.head("/echo/x") as response:
        assert (response.status, await response.read()) == (200, b"")


async def test_errors_become_dockers_document(api: Served) -> None:
    async with api.session.get("/conflict") as response:
        assert response.content_type == "application/json"
        assert (response.status, await response.text()) == (409, '{"message":"it is \\"busy\\""}\n')


async def test_not_modified_has_no_body(api: Served) -> None:
    async with api.session.post("/same") as response:
        assert (response.status, await response.read()) == (304, b"")


async def test_the_unexpected_is_500_and_logged_with_its_traceback(
    api: Served, caplog: pytest.LogCaptureFixture
) -> None:
    assert await api.get("/broken") == (500, '{"message":"LookupError"}\n')
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [(logging.ERROR, "GET /broken failed")]
    assert caplog.records[0].exc_info


async def test_a_failed_connection_elsewhere_is_not_the_clients(api: Served, caplog: pytest.LogCaptureFixture) -> None:
    assert await api.get("/refused") == (500, '{"message":"a registry is down"}\n')
    assert [r.getMessage() for r in caplog.records] == ["GET /refused failed"]


async def test_an_error_after_the_head_ends_the_connection(api: Served, caplog: pytest.LogCaptureFixture) -> None:
    """A second head inside the first answer's body would be taken for its content."""
    reader, writer = await api.raw()
    writer.write(b"GET /half HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.endswith(b"first part\r\n")
    assert "GET /half failed after its answer had begun" in [r.getMessage() for r in caplog.records]


async def leave(api: Served, path: str, handlers: Handlers) -> None:
    _, writer = await api.raw()
    writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
    await asyncio.wait_for(handlers.entered.wait(), 5)
    writer.close()
    await writer.wait_closed()
    await asyncio.sleep(0.005)


async def test_a_change_goes_on_when_its_client_leaves(api: Served, handlers: Handlers) -> None:
    await leave(api, "/change/x", handlers)
    assert not handlers.outcome.is_set()
    handlers.go.set()
    await asyncio.wait_for(handlers.outcome.wait(), 5)
    assert not handlers.cancelled


async def test_a_stream_ends_with_its_client(api: Served, handlers: Handlers) -> None:
    await leave(api, "/stream", handlers)
    await asyncio.wait_for(handlers.outcome.wait(), 5)
    assert handlers.cancelled


async def test_a_client_that_left_is_no_error(
    api: Served, handlers: Handlers, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await api.raw()
    writer.write(b"GET /unheard HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.wait_for(reader.read(), 5)
    await asyncio.wait_for(handlers.outcome.wait(), 5)
    await asyncio.sleep(0.005)
    assert caplog.records == []


async def test_one_connection_serves_request_after_request(api: Served, handlers: Handlers) -> None:
    handlers.go.set()
    reader, writer = await api.raw()
    for request in (b"GET /conflict", b"POST /change/x", b"GET /nowhere"):
        writer.write(request + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)


async def test_requests_are_logged_when_debugging(api: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "engine.api.app")
    await api.get("/v1.44/echo/x?a=b")
    assert any(r.getMessage().startswith("GET /v1.44/echo/x?a=b 200 ") for r in caplog.records)


async def test_garbage_is_a_bad_request(api: Served) -> None:
    reader, writer = await api.raw()
    writer.write(b"\x16\x03\x01 hello\r\n\r\n")
    assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.0 400 ")


async def test_a_busy_api_still_answers_others(api: Served, handlers: Handlers) -> None:
    async with asyncio.TaskGroup() as group:
        changing = group.create_task(text_of(api.session, "/change/x"))
        await asyncio.wait_for(handlers.entered.wait(), 5)
        assert (await api.get("/echo/x"))[0] == 200
        handlers.go.set()
    assert changing.result() == "changed"


async def text_of(session: aiohttp.ClientSession, path: str) -> str:
    async with session.post(path) as response:
        return await response.text()
