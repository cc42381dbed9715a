"""HTTP with one registry: connections, proxies, TLS, and logging in when the registry asks for it.

Credentials are sent only to the host they were given for, after it asked. Tokens are kept for as long as they live.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import time
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import aiohttp
import msgspec

from registry.client.credentials import ANONYMOUS, AuthConfig
from registry.client.failures import NoCredentials, RemoteError, connection_failed
from registry.client.hosts import Endpoint, HostPolicy
from registry.client.proxies import Proxies

USER_AGENT = "berth"
CONNECT_SECONDS = 15.0
IDLE_SECONDS = 60.0
# A registry's error document; more is not read.
_MAX_ERROR_BYTES = 64 * 1024
_TOKEN_MINIMUM_SECONDS = 60.0
_ANY_STATUS = range(200, 600)


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    refresh_token: str = ""
    expires_in: int = 60


@dataclass(frozen=True, slots=True)
class Challenge:
    """One `WWW-Authenticate` header."""

    scheme: str
    parameters: Mapping[str, str]


_PARAMETER = re.compile(r'([a-zA-Z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


def parse_challenges(headers: list[str]) -> list[Challenge]:
    """Every challenge of an answer, in order (RFC 7235)."""
    found: list[Challenge] = []
    for header in headers:
        scheme, _, rest = header.strip().partition(" ")
        parameters = {m[1].lower(): (m[2] if m[2] is not None else m[3]) for m in _PARAMETER.finditer(rest)}
        found.append(Challenge(scheme.lower(), parameters))
    return found


class Transport:
    """The connections of this process to registries; opened on first use, closed by `aclose`.

    `proxies` may be replaced; without any given, the environment's are used.
    """

    def __init__(self, policy: HostPolicy, proxies: Proxies | None = None) -> None:
        self.policy = policy
        self.proxies = proxies or Proxies.given()
        self._session: aiohttp.ClientSession | None = None

    def session(self) -> aiohttp.ClientSession:
        """The one client session."""
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=IDLE_SECONDS),
                headers={"User-Agent": USER_AGENT},
                read_bufsize=256 * 1024,
            )
        return self._session

    async def tls(self, endpoint: Endpoint) -> Any:
        """What aiohttp takes as `ssl` for this endpoint."""
        if not endpoint.is_tls:
            return True
        return await asyncio.get_running_loop().run_in_executor(None, self.policy.tls_sync, endpoint)

    async def aclose(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def download(self, url: str) -> AsyncIterator[bytes]:
        """The body behind any URL, for `docker import URL`. `RemoteError`, `ConnectionFailed`."""
        try:
            async with self.session().get(url, proxy=self.proxies.of_url(url)) as response:
                if response.status >= 400:
                    raise RemoteError("GET", url, response.status)
                async for chunk in response.content.iter_any():
                    yield chunk
        except (aiohttp.ClientError, TimeoutError) as error:
            raise connection_failed("GET", url, error) from error


@dataclass(slots=True)
class RegistrySession:
    """One user's conversation with one endpoint about one repository."""

    transport: Transport
    endpoint: Endpoint
    auth: AuthConfig = ANONYMOUS
    _header: str | None = None
    _header_until: float = 0.0
    _scopes: frozenset[str] = frozenset()
    _login: asyncio.Lock = field(default_factory=asyncio.Lock)
    identity_token: str = ""

    def url(self, path: str) -> str:
        """An absolute URL below `/v2/`, or of a `Location` header."""
        return path if "://" in path else urljoin(f"{self.endpoint.base}/v2/", path)

    @contextlib.asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        scope: str = "",
        headers: Mapping[str, str] | None = None,
        data: Any = None,
        accept: Collection[int] = (200,),
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request, logging in if asked to. `RemoteError` unless the status is one of `accept`.

        `data` that can be sent once only (an iterator) needs a login made before.
        """
        url = self.url(path)
        response = await self._send(method, url, scope, headers, data)
        if response.status == 401 and 401 not in accept:
            challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
            body = await _error_body(response)
            if not await self._answer(challenges, scope, url):
                raise RemoteError.of(method, url, 401, body)
            response = await self._send(method, url, scope, headers, data)
        try:
            if response.status not in accept:
                raise RemoteError.of(method, url, response.status, await _error_body(response))
            yield response
        except (aiohttp.ClientError, TimeoutError) as error:
            raise connection_failed(method, url, error) from error
        finally:
            response.release() if response.content.at_eof() else response.close()

    async def _send(
        self, method: str, url: str, scope: str, headers: Mapping[str, str] | None, data: Any
    ) -> aiohttp.ClientResponse:
        sent = dict(headers or {})
        if self._same_host(url):
            if self.auth.registrytoken:
                sent["Authorization"] = f"Bearer {self.auth.registrytoken}"
            elif self._header is not None and (not scope or not self._scopes or self._covers(scope)):
                sent["Authorization"] = self._header
        try:
            tls = await self.transport.tls(self.endpoint) if self._same_host(url) else True
            return await self.transport.session().request(
                method, url, headers=sent, data=data, ssl=tls, proxy=self.transport.proxies.of_url(url)
            )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise connection_failed(method, url, error) from error

    def _same_host(self, url: str) -> bool:
        ours, theirs = urlsplit(self.endpoint.base), urlsplit(url)
        return (ours.scheme, ours.netloc) == (theirs.scheme, theirs.netloc)

    def _covers(self, scope: str) -> bool:
        return set(scope.split()) <= self._scopes and time.monotonic() < self._header_until

    async def _answer(self, challenges: list[Challenge], scope: str, url: str) -> bool:
        """Log in as asked; False when there is nothing more to try."""
        before = self._header
        async with self._login:
            if self._header != before:
                return True
            for challenge in challenges:
                if challenge.scheme == "bearer" and "realm" in challenge.parameters and not self.auth.registrytoken:
                    if self._scopes and scope and self._covers(scope):
                        return False
                    await self._fetch_token(challenge, scope)
                    return True
                if challenge.scheme == "basic":
                    pair = self.auth.basic()
                    if pair is None:
                        raise NoCredentials(url)
                    header = _basic(*pair)
                    tried, self._header, self._scopes = self._header == header, header, frozenset()
                    return not tried
        return False

    async def _fetch_token(self, challenge: Challenge, scope: str) -> None:
        realm = challenge.parameters["realm"]
        service = challenge.parameters.get("service", "")
        scopes = frozenset((scope or challenge.parameters.get("scope", "")).split()) | self._scopes
        query = [("service", service)] if service else []
        query += [("scope", one) for one in sorted(scopes)]
        pair = self.auth.basic()
        if self.auth.identitytoken:
            form = {
                "grant_type": "refresh_token",
                "service": service,
                "client_id": USER_AGENT,
                "scope": " ".join(sorted(scopes)),
                "refresh_token": self.auth.identitytoken,
            }
            token = await self._ask_for_token("POST", realm, {}, urlencode(form))
        else:
            headers = {"Authorization": _basic(*pair)} if pair is not None else {}
            if pair is not None:
                query += [("account", pair[0]), ("client_id", USER_AGENT), ("offline_token", "true")]
            separator = "&" if "?" in realm else "?"
            token = await self._ask_for_token("GET", realm + separator + urlencode(query), headers, None)
        text = token.token or token.access_token
        if not text:
            raise RemoteError("GET", realm, 401, "UNAUTHORIZED", "the authorization server sent no token")
        self.identity_token = token.refresh_token
        self._header = f"Bearer {text}"
        self._header_until = time.monotonic() + max(token.expires_in, _TOKEN_MINIMUM_SECONDS) - 5
        self._scopes = scopes

    async def _ask_for_token(self, method: str, url: str, headers: dict[str, str], form: str | None) -> _Token:
        if form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        try:
            tls = await self.transport.tls(self.endpoint) if url.startswith("https:") else True
            async with self.transport.session().request(
                method, url, headers=headers, data=form, ssl=tls, proxy=self.transport.proxies.of_url(url)
            ) as response:
                body = await response.content.read(1 << 20)
                if response.status != 200:
                    raise RemoteError.of(method, url, response.status, body)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise connection_failed(method, url, error) from error
        try:
            return msgspec.json.decode(body, type=_Token)
        except msgspec.DecodeError as error:
            raise RemoteError(method, url, 401, "UNAUTHORIZED", f"bad token answer: {error}") from error

    async def ping(self) -> None:
        """Find out whether this is a registry that can be talked to at all; `ConnectionFailed` when not."""
        async with self.request("GET", f"{self.endpoint.base}/v2/", accept=_ANY_STATUS):
            return

    async def login(self) -> str:
        """Check the credentials against `/v2/`; an identity token where the registry gives one.

        Raises `RemoteError`, `ConnectionFailed` or `NoCredentials`.
        """
        async with self.request("GET", f"{self.endpoint.base}/v2/"):
            return self.identity_token


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


async def _error_body(response: aiohttp.ClientResponse) -> bytes:
    try:
        return await response.content.read(_MAX_ERROR_BYTES)
    except (aiohttp.ClientError, TimeoutError):
        return b""
    finally:
        response.close()
