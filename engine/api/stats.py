"""/containers/{id}/stats and /top: what a container uses, and the processes in it."""

from __future__ import annotations

import msgspec
from aiohttp import web

from engine.api.app import Route
from engine.api.decode import query_bool, query_str
from engine.api.shapes.stats import stats_view
from engine.api.streams import json_response
from engine.containers.model import Container
from engine.containers.processes import Processes, ProcessTable
from engine.containers.service import ContainerService
from engine.containers.stats import NOTHING, Collectors, Sample
from engine.errors import InvalidParameter


class StatsRoutes:
    """Handlers that look into running containers."""

    def __init__(self, service: ContainerService, collectors: Collectors, processes: Processes) -> None:
        self._service = service
        self._collectors = collectors
        self._processes = processes

    def table(self) -> list[Route]:
        """All routes of this resource."""
        return [
            Route("GET", "/containers/{name:.*}/stats", self.stats),
            Route("GET", "/containers/{name:.*}/top", self.top),
        ]

    async def top(self, request: web.Request) -> web.StreamResponse:
        """``docker top``."""
        table = await self._processes.table(request.match_info["name"], query_str(request, "ps_args"))
        return process_list(table)

    async def stats(self, request: web.Request) -> web.StreamResponse:
        """``docker stats``: a stream, one document with the rates of a second, or one taken at once (one-shot)."""
        stream, one_shot = query_bool(request, "stream", True), query_bool(request, "one-shot")
        if stream and one_shot:
            raise InvalidParameter("cannot have stream=true and one-shot=true")
        container = self._service.find(request.match_info["name"])
        if stream:
            return await self._stream(request, container)
        if one_shot or not container.is_running:
            return json_response(self._shape(container, await self._collectors.sample(container), NOTHING))
        samples: list[Sample] = []
        async with self._collectors.listen(container.id) as arriving:
            async for sample in arriving:
                samples.append(sample)
                if len(samples) == 2:
                    break
        before, last = samples if len(samples) == 2 else (NOTHING, NOTHING)
        return json_response(self._shape(container, last, before))

    async def _stream(self, request: web.Request, container: Container) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        before = NOTHING
        async with self._collectors.listen(container.id) as arriving:
            async for sample in arriving:
                await response.write(msgspec.json.encode(self._shape(container, sample, before)) + b"\n")
                before = sample
        await response.write_eof()
        return response

    def _shape(self, container: Container, sample: Sample, before: Sample) -> dict[str, object]:
        return stats_view(container.id, container.name, sample, before, self._collectors.cgroup_version)


def process_list(table: ProcessTable) -> web.Response:
    """The document of ``docker top``."""
    return json_response({"Titles": table.titles, "Processes": table.rows})
