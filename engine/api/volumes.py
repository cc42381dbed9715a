"""The ``/volumes`` resource: routes, then handlers that decode, call the service once, and shape the answer."""

from __future__ import annotations

from aiohttp import web

from engine.api.app import Route
from engine.api.decode import api_version, check_json, query_bool, query_filters
from engine.api.shapes.volumes import decode_volume_create, volume_json
from engine.api.streams import json_response, no_content
from engine.errors import Unavailable
from engine.volumes.service import LIST_FILTERS, PRUNE_FILTERS, VolumeService

# From here on a prune without filters leaves named volumes alone.
_PRUNES_ANONYMOUS_ONLY = (1, 42)
_NO_SWARM = 'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" and try again.'


class VolumeRoutes:
    """Volumes over HTTP."""

    def __init__(self, service: VolumeService) -> None:
        self._volumes = service

    def table(self) -> list[Route]:
        """The routes of this resource."""
        return [
            Route("GET", "/volumes", self.list),
            Route("GET", "/volumes/{name:.*}", self.inspect),
            Route("POST", "/volumes/create", self.create),
            Route("POST", "/volumes/prune", self.prune),
            Route("PUT", "/volumes/{name:.*}", self.update),
            Route("DELETE", "/volumes/{name:.*}", self.remove),
        ]

    async def list(self, request: web.Request) -> web.StreamResponse:
        """``docker volume ls``."""
        volumes = self._volumes.list(query_filters(request, LIST_FILTERS))
        return json_response({"Volumes": [volume_json(volume) for volume in volumes], "Warnings": None})

    async def inspect(self, request: web.Request) -> web.StreamResponse:
        """``docker volume inspect``."""
        return json_response(volume_json(self._volumes.get(request.match_info["name"])))

    async def create(self, request: web.Request) -> web.StreamResponse:
        """``docker volume create``; an existing volume is the answer, too."""
        raw = await request.read()
        if raw:
            check_json(request)
        body = decode_volume_create(raw or b"{}")
        if body.cluster_volume_spec is not None:
            raise Unavailable(_NO_SWARM)
        volume = await self._volumes.create(body.name, body.driver, body.driver_opts, body.labels)
        return json_response(volume_json(volume), 201)

    async def update(self, request: web.Request) -> web.StreamResponse:
        """Only cluster volumes can be updated, and they need a swarm."""
        self._volumes.get(request.match_info["name"])
        raise Unavailable(_NO_SWARM)

    async def remove(self, request: web.Request) -> web.StreamResponse:
        """``docker volume rm``."""
        await self._volumes.remove(request.match_info["name"], force=query_bool(request, "force"))
        return no_content()

    async def prune(self, request: web.Request) -> web.StreamResponse:
        """``docker volume prune``."""
        filters = query_filters(request, PRUNE_FILTERS)
        anonymous_only = api_version(request) >= _PRUNES_ANONYMOUS_ONLY
        pruned = await self._volumes.prune(filters, anonymous_only=anonymous_only)
        return json_response({"VolumesDeleted": pruned.names, "SpaceReclaimed": pruned.reclaimed})
