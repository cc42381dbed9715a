"""/exec: create, start (with its streams), inspect, resize; and what docker has no calls for: top and kill."""

from __future__ import annotations

import socket

import msgspec
from aiohttp import web

from engine.api.app import Route
from engine.api.containers import size_of, stream_type
from engine.api.decode import loose_body, query_bool, query_str
from engine.api.relay import DetachScanner, parse_detach_keys, relay, stdout_frame
from engine.api.stats import process_list
from engine.api.streams import Takeover, json_response, no_content
from engine.containers.exec import Exec
from engine.containers.live import StreamChoice
from engine.containers.processes import check_arguments, processes_table
from engine.containers.service import ContainerService
from engine.containers.settings import ExecSettings
from engine.errors import EngineError


class ExecStart(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """The body of ``POST /exec/{id}/start``."""

    detach: bool = False
    tty: bool = False
    console_size: tuple[int, int] | None = None


class ExecRoutes:
    """Handlers of exec instances."""

    def __init__(self, service: ContainerService) -> None:
        self._service = service
        self._execs = service.execs

    def table(self) -> list[Route]:
        """All routes of this resource."""
        return [
            Route("POST", "/containers/{name:.*}/exec", self.create),
            Route("POST", "/exec/{id}/start", self.start, streams=True),
            Route("POST", "/exec/{id}/resize", self.resize),
            Route("POST", "/exec/{id}/kill", self.kill),
            Route("GET", "/exec/{id}/top", self.top),
            Route("GET", "/exec/{id}/json", self.inspect),
        ]

    async def create(self, request: web.Request) -> web.StreamResponse:
        """Make an instance."""
        settings = await loose_body(request, ExecSettings)
        if settings.detach_keys:
            parse_detach_keys(settings.detach_keys)
        instance = self._execs.create(request.match_info["name"], settings)
        return json_response({"Id": instance.id}, 201)

    async def start(self, request: web.Request) -> web.StreamResponse:
        """Run it, attached (the connection is taken over) or not."""
        wish = await loose_body(request, ExecStart, optional=True)
        instance = self._execs.claim(request.match_info["id"])
        if wish.detach:
            await self._execs.prepare(instance, None, wish.console_size)
            await self._execs.start(instance)
            return web.Response(status=200)
        return await self._start_attached(request, instance, wish)

    async def _start_attached(self, request: web.Request, instance: Exec, wish: ExecStart) -> web.StreamResponse:
        settings = instance.settings
        choice = StreamChoice(settings.attach_stdin, settings.attach_stdout, settings.attach_stderr)
        stream: socket.socket | None = None
        client = Takeover(request)
        client.begin(request, stream_type(request, wish.tty), {})
        try:
            stream = await self._execs.prepare(instance, choice, wish.console_size)
            await self._execs.start(instance)
        except EngineError as error:
            # The head has gone out: docker says it on the stream, and inspect has the exit code.
            words = f"{error.message}\r\n".encode()
            client.write(words if wish.tty else stdout_frame(words))
        else:
            typed = settings.attach_stdin and settings.tty
            scanner = DetachScanner(parse_detach_keys(settings.detach_keys)) if typed else None
            assert stream is not None
            try:
                if await relay(client, stream, scanner, frame_output=settings.tty and not wish.tty):
                    self._service.detached(self._service.find(instance.container_id))
                elif not client.lost.is_set():
                    await self._execs.settle(instance)  # whoever sees the end may ask for the exit code at once
            except ConnectionError:
                pass
        finally:
            if stream is not None:
                stream.close()
            client.close_write()
        return client.finished()

    async def inspect(self, request: web.Request) -> web.StreamResponse:
        """What it is and how it ended."""
        instance = self._execs.find(request.match_info["id"])
        self._service.find(instance.container_id)
        return json_response(exec_view(instance))

    async def resize(self, request: web.Request) -> web.StreamResponse:
        """Change the size of its terminal."""
        rows, columns = size_of(request)
        await self._execs.resize(request.match_info["id"], rows, columns)
        return web.Response(status=200)

    async def kill(self, request: web.Request) -> web.StreamResponse:
        """Signal its process (SIGKILL by default), or with ``all`` everything of it and what it left behind."""
        signal, everything = query_str(request, "signal"), query_bool(request, "all")
        await self._execs.kill(request.match_info["id"], signal, everything=everything)
        return no_content()

    async def top(self, request: web.Request) -> web.StreamResponse:
        """What runs of it and of what it left behind, as ``docker top`` shows a container's processes."""
        arguments = query_str(request, "ps_args")
        check_arguments(arguments)
        pids = await self._execs.pids(request.match_info["id"])
        return process_list(await processes_table(pids, arguments))


def exec_view(instance: Exec) -> dict[str, object]:
    """The inspect document of an instance."""
    settings = instance.settings
    command = settings.cmd or ()
    return {
        "ID": instance.id,
        "Running": instance.running,
        "ExitCode": instance.exit_code,
        "ProcessConfig": {
            "tty": settings.tty,
            "entrypoint": command[0],
            "arguments": list(command[1:]),
            "privileged": settings.privileged,
            **({"user": settings.user} if settings.user else {}),
        },
        "OpenStdin": settings.attach_stdin,
        "OpenStderr": settings.attach_stderr,
        "OpenStdout": settings.attach_stdout,
        "CanRemove": instance.exit_code is not None,
        "ContainerID": instance.container_id,
        "DetachKeys": "",
        "Pid": instance.pid,
    }
