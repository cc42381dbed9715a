from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import pytest_asyncio
from pytest_aiohttp.plugin import AiohttpClient

from registry.config import Settings
from registry.digest import Digest
from registry.manifest import OCI_MANIFEST, Descriptor, ImageManifest, encode
from registry.server.app import RegistryServer
from registry.users import set_user_sync
from tests.support.running import RunningServer


@dataclass
class Answer:
    """A whole answer, read."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The first error code."""
        return str(self.json["errors"][0]["code"])


def address_of(server: RegistryServer) -> tuple[str, int]:
    """The first one, IPv4's where it listens to both."""
    return next((host, port) for host, port in server.addresses() if ":" not in host)


class Client:
    """Speaks to one server as registry clients do."""

    def __init__(self, server: RegistryServer, session: aiohttp.ClientSession, scheme: str = "http") -> None:
        self.server = server
        self.session = session
        host, port = address_of(server)
        self.host, self.port = host, port
        self.base = f"{scheme}://{host}:{port}"

    async def call(self, method: str, path: str, **options: Any) -> Answer:
        url = path if "://" in path else self.base + path
        auth = options.pop("auth", None)
        if auth is not None:
            basic = "Basic " + base64.b64encode(":".join(auth).encode()).decode()
            options["headers"] = {**options.get("headers", {}), "Authorization": basic}
        if len(options.get("data") or b"") > 1_000_000:
            options["data"] = io.BytesIO(options["data"])
        async with self.session.request(method, url, allow_redirects=False, **options) as response:
            return Answer(response.status, response.headers, await response.read())

    async def push_blob(self, repository: str, data: bytes, **options: Any) -> Digest:
        digest = Digest.of(data)
        url = f"/v2/{repository}/blobs/uploads/?digest={digest}"
        answer = await self.call("POST", url, data=data, **options)
        assert answer.status == 201, answer
        return digest

    async def push_image(self, repository: str, tag: str, layer: bytes = b"layer", **options: Any) -> Digest:
        config = await self.push_blob(repository, b"{}", **options)
        digest = await self.push_blob(repository, layer, **options)
        document = ImageManifest(
            media_type=OCI_MANIFEST,
            config=Descriptor(media_type="application/vnd.oci.image.config.v1+json", digest=str(config), size=2),
            layers=[Descriptor(digest=str(digest), size=len(layer))],
        )
        data = encode(document)
        headers = {"Content-Type": OCI_MANIFEST, **options.pop("headers", {})}
        url = f"/v2/{repository}/manifests/{tag}"
        answer = await self.call("PUT", url, data=data, headers=headers, **options)
        assert answer.status == 201, answer
        return Digest.of(data)


class Wire:
    """One connection, spoken to byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, client: Client, receive_bytes: int = 0) -> Wire:
        context: ssl.SSLContext | None = None
        if client.base.startswith("https"):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        sock = socket.socket()
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (client.host, client.port))
        named = "" if context is not None else None
        return cls(*await asyncio.open_connection(sock=sock, ssl=context, server_hostname=named))

    def send(self, method: str, path: str, body: bytes = b"", length: int | None = None, headers: str = "") -> None:
        size = len(body) if length is None else length
        head = f"{method} {path} HTTP/1.1\r\nHost: here\r\n{headers}Content-Length: {size}\r\n\r\n"
        self.writer.write(head.encode() + body)

    async def head(self) -> tuple[int, dict[str, str]]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
        return int(lines[0].split()[1]), headers

    async def whole(self) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(20):
            status, headers = await self.head()
            return status, headers, await self.reader.readexactly(int(headers.get("content-length", "0")))

    async def answer(self) -> tuple[int, dict[str, str]]:
        return (await self.whole())[:2]

    async def open_upload(self) -> str:
        self.send("POST", "/v2/a/blobs/uploads/")
        _, headers = await self.answer()
        return urlsplit(headers["location"]).path

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


ANN = ("ann", "secret")


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """A file with one user."""
    path = tmp_path / "users"
    set_user_sync(path, *ANN, cost=4)
    return path


Start = Callable[..., Awaitable[Client]]


@pytest.fixture
def start(tmp_path: Path, aiohttp_client: AiohttpClient) -> Start:
    """Starts servers on free loopback ports; stops them at the end."""

    async def begin(**changes: Any) -> Client:
        settings = replace(Settings(root=tmp_path / "root", address="127.0.0.1:0", drain_seconds=0.5), **changes)
        server = RegistryServer(settings)
        await server.start()
        host, port = address_of(server)
        scheme = "https" if settings.serves_tls else "http"
        running = RunningServer(f"{scheme}://{host}:{port}", server.stop)
        client = await aiohttp_client(running, skip_auto_headers=["Content-Type"])
        return Client(server, client.session, scheme)

    return begin


@pytest_asyncio.fixture
async def client(start: Start) -> Client:
    return await start()
