"""/containers/{id}/attach/ws: attach over a websocket, for clients in browsers.

Every message from the client is input, every message to it is output as it came, without docker's frames: standard
output and standard error are one stream here, as on dockerd. A websocket has no half-close: when the client ends, all
ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from aiohttp import WSMsgType, web

from engine.api.app import Route
from engine.api.containers import stream_choice
from engine.api.decode import query_bool, query_str
from engine.api.relay import CHUNK, DetachScanner, Pending, parse_detach_keys, release
from engine.containers.live import StreamChoice
from engine.containers.logs import LogQuery
from engine.containers.model import Container
from engine.containers.service import ContainerService
from engine.tasks import wait_any

_HEADER = 8


class Unframer:
    """Takes docker's stream frames (one byte of kind, three of nothing, four of length) off a byte stream."""

    def __init__(self) -> None:
        self._held = b""
        self._left = 0

    def feed(self, data: bytes) -> bytes:
        """The content in ``data``; what is cut off in a frame's head waits for the next call."""
        data, out, at = self._held + data, bytearray(), 0
        while at < len(data):
            if self._left == 0:
                if len(data) - at < _HEADER:
                    break
                self._left = int.from_bytes(data[at + 4 : at + _HEADER], "big")
                at += _HEADER
            taken = data[at : at + self._left]
            out += taken
            self._left -= len(taken)
            at += len(taken)
        self._held = data[at:]
        return bytes(out)


class WebsocketRoutes:
    """The handler of attachments over websockets."""

    def __init__(self, service: ContainerService) -> None:
        self._service = service

    def table(self) -> list[Route]:
        """All routes of this resource."""
        return [Route("GET", "/containers/{name:.*}/attach/ws", self.attach)]

    async def attach(self, request: web.Request) -> web.StreamResponse:
        """Carry the container's streams until its output ends, or the client leaves or detaches."""
        container = self._service.find(request.match_info["name"])
        scanner = DetachScanner(parse_detach_keys(query_str(request, "detachKeys")))
        choice = stream_choice(request, container)
        client = web.WebSocketResponse(compress=False)
        live = query_bool(request, "stream")
        pending = await self._service.attach(container, choice) if live else None
        try:
            await client.prepare(request)
            if query_bool(request, "logs"):
                await self._replay(client, container, choice)
            if pending is not None:
                await _carry(client, pending, scanner, choice.stdin, None if container.config.tty else Unframer())
        except ConnectionError:
            pass  # the client has gone
        finally:
            if pending is not None:
                release(pending)
        if scanner.detached:
            self._service.detached(container)
        await client.close()
        return client

    async def _replay(self, client: web.WebSocketResponse, container: Container, choice: StreamChoice) -> None:
        query = LogQuery(stdout=choice.stdout, stderr=choice.stderr)
        unframer = Unframer()
        async for chunk in self._service.logs(container, query):
            await client.send_bytes(chunk if container.config.tty else unframer.feed(chunk))


async def _carry(
    client: web.WebSocketResponse, pending: Pending, scanner: DetachScanner, stdin: bool, unframer: Unframer | None
) -> None:
    loop = asyncio.get_running_loop()

    async def inward() -> None:
        async for message in client:
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                continue
            data = message.data.encode() if isinstance(message.data, str) else message.data
            stream = await _arrived(pending)
            if unframer is None:  # only what is typed at a terminal can detach
                data = scanner.feed(data)
            if stream is None or scanner.detached:
                return
            if stdin and data:
                # A container that takes no more input goes on talking.
                with contextlib.suppress(ConnectionError):
                    await loop.sock_sendall(stream, data)

    async def outward() -> None:
        stream = await _arrived(pending)
        with contextlib.suppress(ConnectionError):
            while stream is not None and (data := await loop.sock_recv(stream, CHUNK)):
                shown = unframer.feed(data) if unframer is not None else data
                if shown:
                    await client.send_bytes(shown)

    await wait_any(inward(), outward())


async def _arrived(pending: Pending) -> socket.socket | None:
    """The stream once the container runs; None when its start failed or it is gone."""
    if isinstance(pending, socket.socket):
        return pending
    await asyncio.wait([pending])
    return None if pending.cancelled() else pending.result()
