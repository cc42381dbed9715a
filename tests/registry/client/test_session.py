"""Logging in: basic, bearer with scopes, tokens kept, credentials that stay where they belong."""

from __future__ import annotations

import base64
from urllib.parse import parse_qs, urlsplit

import pytest
from aiohttp import web

from registry.client.credentials import AuthConfig
from registry.client.failures import ConnectionFailed, NoCredentials, RemoteError
from registry.client.hosts import Endpoint, HostPolicy
from registry.client.proxies import Proxies
from registry.client.session import RegistrySession, Transport, parse_challenges

from .conftest import Stage

BASIC = "Basic " + base64.b64encode(b"joe:secret").decode()


def test_challenges() -> None:
    found = parse_challenges(
        ['Bearer realm="https://a/t",service="s",scope="repository:x:pull,push"', "Basic realm=plain"]
    )
    assert [c.scheme for c in found] == ["bearer", "basic"]
    assert found[0].parameters == {"realm": "https://a/t", "service": "s", "scope": "repository:x:pull,push"}
    assert found[1].parameters == {"realm": "plain"}


async def test_basic_is_sent_after_it_was_asked_for_and_then_always(stage: Stage, joe: AuthConfig) -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") == BASIC:
            return web.Response(text="yes")
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})

    stage.handler = handler
    session = stage.session(joe)
    for _ in range(2):
        async with session.request("GET", "x/tags/list") as response:
            assert await response.text() == "yes"
    assert ["Authorization" in headers for headers in stage.headers] == [False, True, True]


async def test_wrong_and_missing_passwords(stage: Stage, joe: AuthConfig) -> None:
    async def handler(request: web.Request) -> web.Response:
        body = '{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}'
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'}, text=body)

    stage.handler = handler
    with pytest.raises(RemoteError, match="^unauthorized: authentication required$") as refusal:
        await stage.session(joe).login()
    assert refusal.value.status == 401
    with pytest.raises(NoCredentials, match="no basic auth credentials"):
        await stage.session().login()


class TokenServer:
    """A registry that wants bearer tokens, and hands them out."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.asked: list[dict[str, list[str]]] = []
        self.granted: dict[str, set[str]] = {}
        self.refuses = False

    async def __call__(self, request: web.Request) -> web.Response:
        if request.path == "/token":
            return await self._token(request)
        wanted = "repository:x:pull,push" if request.method == "POST" else "repository:x:pull"
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if wanted in self.granted.get(bearer, ()):
            return web.Response(text="content")
        challenge = f'Bearer realm="http://{self.stage.host}/token",service="reg",scope="{wanted}"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    async def _token(self, request: web.Request) -> web.Response:
        query = parse_qs(urlsplit(str(request.rel_url)).query)
        if request.method == "POST":
            query = parse_qs((await request.read()).decode())
        self.asked.append(query)
        if self.refuses:
            return web.json_response({"details": "incorrect username or password"}, status=401)
        token = f"t{len(self.asked)}"
        self.granted[token] = set(" ".join(query.get("scope", [])).split())
        return web.json_response({"token": token, "expires_in": 300, "refresh_token": "again"})


async def test_tokens_are_fetched_for_the_scope_and_kept(stage: Stage, joe: AuthConfig) -> None:
    stage.handler = server = TokenServer(stage)
    session = stage.session(joe)
    for _ in range(2):
        async with session.request("GET", "x/manifests/1", scope="repository:x:pull"):
            pass
    assert len(server.asked) == 1
    assert server.asked[0]["service"] == ["reg"] and server.asked[0]["account"] == ["joe"]
    assert stage.headers[1]["Authorization"] == BASIC
    async with session.request("POST", "x/blobs/uploads/", scope="repository:x:pull,push"):
        pass
    assert server.asked[1]["scope"] == ["repository:x:pull", "repository:x:pull,push"]


async def test_identity_tokens_are_exchanged(stage: Stage) -> None:
    stage.handler = server = TokenServer(stage)
    session = stage.session(AuthConfig(identitytoken="idt"))
    async with session.request("GET", "x/manifests/1", scope="repository:x:pull"):
        pass
    assert server.asked[0]["grant_type"] == ["refresh_token"] and server.asked[0]["refresh_token"] == ["idt"]
    assert session.identity_token == "again"


async def test_a_token_server_that_refuses(stage: Stage, joe: AuthConfig) -> None:
    stage.handler = server = TokenServer(stage)
    server.refuses = True
    with pytest.raises(RemoteError, match="unauthorized: incorrect username or password"):
        async with stage.session(joe).request("GET", "x/manifests/1", scope="repository:x:pull"):
            pass


async def test_credentials_do_not_follow_to_another_host(stage: Stage, joe: AuthConfig) -> None:
    port = stage.host.rpartition(":")[2]

    async def handler(request: web.Request) -> web.Response:
        if request.host.startswith("localhost"):
            return web.Response(text=request.headers.get("Authorization", "none"))
        if "Authorization" not in request.headers:
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        return web.Response(status=307, headers={"Location": f"http://localhost:{port}/elsewhere"})

    stage.handler = handler
    async with stage.session(joe).request("GET", "x/blobs/y") as response:
        assert await response.text() == "none"


async def test_answers_that_are_no_registrys(stage: Stage) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=502, text="<html>")

    stage.handler = handler
    with pytest.raises(RemoteError, match="^received unexpected HTTP status: 502 Bad Gateway$") as refusal:
        async with stage.session().request("GET", "x/tags/list"):
            pass
    assert refusal.value.is_temporary
    await stage.session().ping()


async def test_nobody_there(stage: Stage, unused_tcp_port: int) -> None:
    stage.host = f"127.0.0.1:{unused_tcp_port}"
    words = f'^Get "http://{stage.host}/v2/": dial tcp {stage.host}: connect: connection refused$'
    with pytest.raises(ConnectionFailed, match=words):
        await stage.session().ping()


def test_proxies_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    proxies = Transport(HostPolicy()).proxies
    assert (proxies.https, proxies.no) == ("http://proxy:3128", "inside.example")


async def test_requests_go_through_the_proxy_with_its_password(stage: Stage) -> None:
    async def proxy(request: web.Request) -> web.Response:
        return web.Response(text="{}")

    stage.handler = proxy
    stage.transport.proxies = Proxies(http=f"http://joe:secret@{stage.host}")
    elsewhere = Endpoint("http://registry.invalid", "registry.invalid")
    await RegistrySession(stage.transport, elsewhere).ping()
    assert [chunk async for chunk in stage.transport.download("http://files.invalid/x")] == [b"{}"]
    assert [headers["Host"] for headers in stage.headers] == ["registry.invalid", "files.invalid"]
    assert {headers["Proxy-Authorization"] for headers in stage.headers} == {"Basic am9lOnNlY3JldA=="}
