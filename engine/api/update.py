"""/containers/{id}/update: limits and restart policy of an existing container."""

from __future__ import annotations

import msgspec
from aiohttp import web

from engine.api.app import Route
from engine.api.decode import api_version, loose_body
from engine.api.streams import json_response
from engine.containers.update import UpdateConfig, Updater


class UpdateRoutes:
    """The handler of docker update."""

    def __init__(self, updater: Updater) -> None:
        self._updater = updater

    def table(self) -> list[Route]:
        """All routes of this resource."""
        return [Route("POST", "/containers/{name:.*}/update", self.update)]

    async def update(self, request: web.Request) -> web.StreamResponse:
        """``docker update``."""
        change = await loose_body(request, UpdateConfig)
        if api_version(request) < (1, 40):
            change = msgspec.structs.replace(change, pids_limit=None)
        warnings = await self._updater.update(request.match_info["name"], change)
        return json_response({"Warnings": warnings or None})
