"""/containers: create, list, inspect, the life of a container, its logs and its streams."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from typing import Any

from aiohttp import web

from engine.api.app import Route
from engine.api.decode import (
    api_version,
    check_json,
    parse_platform,
    query_bool,
    query_filters,
    query_int,
    query_str,
    timestamp_ns,
)
from engine.api.relay import DetachScanner, Pending, parse_detach_keys, relay, release
from engine.api.shapes.containers import decode_create
from engine.api.shapes.inspect import OWN_NAMES_APART, inspect_view, with_own_names
from engine.api.shapes.older import OWN_CGROUPS, PLATFORMS, RECURSIVE_READ_ONLY, for_version, move_hardware_address
from engine.api.streams import MULTIPLEXED_STREAM, RAW_STREAM, Takeover, json_response, no_content
from engine.api.views import ContainerViews
from engine.clock import now_ns
from engine.containers.create import CreateRequest
from engine.containers.listing import ALLOWED, PRUNE_ALLOWED, ListQuery
from engine.containers.live import StreamChoice
from engine.containers.logs import LogQuery
from engine.containers.model import Container
from engine.containers.service import ContainerService
from engine.errors import EngineError, InvalidParameter
from engine.names import is_valid_name
from engine.tasks import wait_any

MAX_SIZE = 2**32 - 1
"""The most rows or columns a request may ask for; the kernel keeps the low 16 bits of them."""


class ContainerRoutes:
    """Handlers of the container resource; archives, stats and commit are in files of their own."""

    def __init__(self, service: ContainerService, views: ContainerViews) -> None:
        self._service = service
        self._views = views

    def table(self) -> list[Route]:
        """All routes of this resource."""
        one = "/containers/{name:.*}"  # also ``container/alias``, as another one knows it by its link
        return [
            Route("GET", "/containers/json", self.list),
            Route("POST", "/containers/create", self.create),
            Route("POST", "/containers/prune", self.prune),
            Route("GET", f"{one}/json", self.inspect),
            Route("POST", f"{one}/start", self.start),
            Route("POST", f"{one}/stop", self.stop),
            Route("POST", f"{one}/restart", self.restart),
            Route("POST", f"{one}/kill", self.kill),
            Route("POST", f"{one}/pause", self.pause),
            Route("POST", f"{one}/unpause", self.unpause),
            Route("POST", f"{one}/rename", self.rename),
            Route("POST", f"{one}/resize", self.resize),
            Route("POST", f"{one}/wait", self.wait, streams=True),
            Route("POST", f"{one}/attach", self.attach, streams=True),
            Route("GET", f"{one}/logs", self.logs),
            Route("POST", f"{one}/logs/truncate", self.truncate_log),
            Route("DELETE", one, self.remove),
        ]

    async def list(self, request: web.Request) -> web.StreamResponse:
        """``docker ps``."""
        limit = query_int(request, "limit", 0) or 0
        query = ListQuery(query_bool(request, "all"), max(0, limit), query_filters(request, ALLOWED))
        chosen = self._service.select(query)
        sizes = await self._views.sizes(chosen) if query_bool(request, "size") else None
        return json_response(self._views.rows(chosen, sizes, annotations=api_version(request) >= (1, 46)))

    async def create(self, request: web.Request) -> web.StreamResponse:
        """Make a container; nothing runs yet."""
        check_json(request)
        version = api_version(request)
        body, notes = move_hardware_address(for_version(decode_create(await request.read()), version), version)
        wish = CreateRequest(
            query_str(request, "name"),
            body.config,
            body.host,
            body.networking,
            parse_platform(query_str(request, "platform")) if version >= PLATFORMS else None,
            flat_read_only=version < RECURSIVE_READ_ONLY,
            shared_cgroups=version < OWN_CGROUPS,
        )
        container, warnings = await self._service.create(wish)
        return json_response({"Id": container.id, "Warnings": [*warnings, *notes]}, 201)

    async def inspect(self, request: web.Request) -> web.StreamResponse:
        """The whole truth about one container."""
        container = self._service.find(request.match_info["name"])
        facts = await self._views.inspect_facts(container, with_size=query_bool(request, "size"))
        if api_version(request) < OWN_NAMES_APART:
            facts = with_own_names(container, facts)
        return json_response(inspect_view(container, facts))

    async def start(self, request: web.Request) -> web.StreamResponse:
        """Run it."""
        if request.query.get("detachKeys"):
            parse_detach_keys(request.query["detachKeys"])
        refuse_checkpoint(query_str(request, "checkpoint"))
        await self._service.start(request.match_info["name"])
        return no_content()

    async def stop(self, request: web.Request) -> web.StreamResponse:
        """Ask it to end; kill it after ``t`` seconds."""
        await self._service.stop(
            request.match_info["name"], seconds=query_int(request, "t"), signal_name=query_str(request, "signal")
        )
        return no_content()

    async def restart(self, request: web.Request) -> web.StreamResponse:
        """Stop and start."""
        await self._service.restart(
            request.match_info["name"], seconds=query_int(request, "t"), signal_name=query_str(request, "signal")
        )
        return no_content()

    async def kill(self, request: web.Request) -> web.StreamResponse:
        """Send a signal."""
        await self._service.kill(request.match_info["name"], query_str(request, "signal"))
        return no_content()

    async def pause(self, request: web.Request) -> web.StreamResponse:
        """Freeze."""
        await self._service.pause(request.match_info["name"])
        return no_content()

    async def unpause(self, request: web.Request) -> web.StreamResponse:
        """Thaw."""
        await self._service.unpause(request.match_info["name"])
        return no_content()

    async def rename(self, request: web.Request) -> web.StreamResponse:
        """Give it another name."""
        await self._service.rename(request.match_info["name"], query_str(request, "name"))
        return no_content()

    async def resize(self, request: web.Request) -> web.StreamResponse:
        """Change the size of its terminal."""
        rows, columns = size_of(request)
        await self._service.resize(request.match_info["name"], rows, columns)
        return web.Response(status=200)

    async def remove(self, request: web.Request) -> web.StreamResponse:
        """Remove it, or with ``link`` only the link ``container/alias``."""
        name = request.match_info["name"]
        if query_bool(request, "link"):
            holder, _, alias = name.removeprefix("/").partition("/")
            await self._service.remove_link(holder, alias)
            return no_content()
        await self._service.remove(name, force=query_bool(request, "force"), volumes=query_bool(request, "v"))
        return no_content()

    async def prune(self, request: web.Request) -> web.StreamResponse:
        """Remove all that do not run."""
        filters = query_filters(request, PRUNE_ALLOWED)
        pruned = await self._service.prune(filters, filters.until(now_ns()))
        return json_response({"ContainersDeleted": pruned.ids or None, "SpaceReclaimed": pruned.reclaimed_bytes})

    async def wait(self, request: web.Request) -> web.StreamResponse:
        """Answer when the condition holds; the head goes out at once, so that a client knows it waits."""
        exit_future = self._service.wait(request.match_info["name"], query_str(request, "condition"))
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        try:
            ended = await exit_future
        finally:
            exit_future.cancel()
        body = json_response({"StatusCode": ended.code} | ({"Error": {"Message": ended.error}} if ended.error else {}))
        assert isinstance(body.body, bytes)
        await response.write(body.body)
        return response

    async def logs(self, request: web.Request) -> web.StreamResponse:
        """``docker logs``."""
        container = self._service.find(request.match_info["name"])
        query = log_query(request)
        chunks = self._service.logs(container, query)
        content_type = stream_type(request, container.config.tty)
        response = web.StreamResponse(headers={"Content-Type": content_type})
        response.enable_chunked_encoding()
        await response.prepare(request)
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                await response.write(chunk)
        return response

    async def truncate_log(self, request: web.Request) -> web.StreamResponse:
        """Empty the log; dockerd has no such call."""
        await self._service.truncate_log(self._service.find(request.match_info["name"]))
        return no_content()

    async def attach(self, request: web.Request) -> web.StreamResponse:
        """Take the connection over and carry the container's streams; a refusal is no JSON, as with dockerd."""
        try:
            container = self._service.find(request.match_info["name"])
            scanner = DetachScanner(parse_detach_keys(query_str(request, "detachKeys")))
            choice = stream_choice(request, container)
            client = Takeover(request)
            live = query_bool(request, "stream")
            pending = await self._service.attach(container, choice) if live else None
        except EngineError as error:
            return raw_refusal(error)
        client.begin(request, stream_type(request, container.config.tty), {})
        try:
            await client.head_taken()
            if query_bool(request, "logs"):
                await self._replay(client, container, choice)
            if pending is not None:
                # Only what is typed at a terminal can detach: the same bytes in a piped file are the file's.
                typed = choice.stdin and container.config.tty
                await self._carry(client, container, pending, scanner if typed else None)
        except ConnectionError:
            pass
        finally:
            if pending is not None:
                release(pending)
            client.close_write()
        return client.finished()

    async def _replay(self, client: Takeover, container: Container, choice: StreamChoice) -> None:
        query = LogQuery(stdout=choice.stdout, stderr=choice.stderr)
        async with contextlib.aclosing(self._service.logs(container, query)) as chunks:
            async for chunk in chunks:
                client.write(chunk)
                await client.drain()

    async def _carry(
        self,
        client: Takeover,
        container: Container,
        pending: Pending,
        scanner: DetachScanner | None,
    ) -> None:
        stream = await started_stream(client, pending) if isinstance(pending, asyncio.Future) else pending
        if stream is not None and await relay(client, stream, scanner):
            self._service.detached(container)


async def started_stream(client: Takeover, pending: asyncio.Future[socket.socket]) -> socket.socket | None:
    """The stream of a container that is to be started, or None when the client left or the start failed."""

    async def arrived() -> None:
        await asyncio.wait([pending])

    await wait_any(arrived(), client.lost.wait())
    if pending.done() and not pending.cancelled():
        return pending.result()
    pending.cancel()
    return None


def refuse_checkpoint(checkpoint: str) -> None:
    """Checkpoints are no part of this engine; a name that is none is told first. Raises ``InvalidParameter``."""
    if checkpoint and not is_valid_name(checkpoint):
        allowed = "[a-zA-Z0-9][a-zA-Z0-9_.-]"
        raise InvalidParameter(f'invalid checkpoint ID "{checkpoint}", only {allowed} are allowed')
    if checkpoint:
        raise InvalidParameter("checkpoint is only supported in experimental mode")


def stream_choice(request: web.Request, container: Container) -> StreamChoice:
    """The streams an attachment asks for; input only where the container takes any."""
    return StreamChoice(
        query_bool(request, "stdin") and container.config.open_stdin,
        query_bool(request, "stdout"),
        query_bool(request, "stderr"),
    )


def stream_type(request: web.Request, tty: bool) -> str:
    """The content type of a raw stream; since API 1.42 it says whether frames are in it."""
    return RAW_STREAM if tty or api_version(request) < (1, 42) else MULTIPLEXED_STREAM


def raw_refusal(error: EngineError) -> web.Response:
    """An error as a raw stream says it: its words and the end of the connection."""
    body = f"{error.message}\r\n".encode()
    response = web.Response(status=error.status, body=body, headers={"Content-Type": RAW_STREAM})
    response.force_close()
    return response


def size_of(request: web.Request) -> tuple[int, int]:
    """``h`` and ``w`` of a resize. Raises ``InvalidParameter``."""
    values: dict[str, Any] = {}
    for key in ("h", "w"):
        text = query_str(request, key)
        side = "height" if key == "h" else "width"
        if not re.fullmatch(r"-?[0-9]+", text):
            raise InvalidParameter(f'invalid resize {side} "{text}": invalid syntax')
        values[key] = int(text)
        if not 0 <= values[key] <= MAX_SIZE:
            raise InvalidParameter(f'invalid resize {side} "{text}": value out of range')
    return values["h"], values["w"]


def log_query(request: web.Request) -> LogQuery:
    """The parameters of ``/logs``. Raises ``InvalidParameter``."""
    stdout, stderr = query_bool(request, "stdout"), query_bool(request, "stderr")
    if not (stdout or stderr):
        raise InvalidParameter("Bad parameters: you must choose at least one stream")
    tail_text = query_str(request, "tail", "all")
    tail = int(tail_text) if tail_text.isascii() and tail_text.isdigit() else None
    now = now_ns()
    return LogQuery(
        stdout=stdout,
        stderr=stderr,
        timestamps=query_bool(request, "timestamps"),
        details=query_bool(request, "details"),
        since_ns=timestamp_ns(query_str(request, "since"), now),
        until_ns=timestamp_ns(query_str(request, "until"), now) or None,
        tail=tail,
        follow=query_bool(request, "follow"),
    )
