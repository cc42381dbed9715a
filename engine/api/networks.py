"""``/networks``: list, inspect, create, remove, connect, disconnect, prune.

Connecting changes a container, so those two go to whoever owns containers; this file only says which network is meant.
"""

from __future__ import annotations

from typing import Protocol

from aiohttp import web

from engine.api.app import Route
from engine.api.decode import api_version, json_body, query_filters
from engine.api.shapes.networks import ConnectBody, DisconnectBody, NetworkCreateBody, network_shape
from engine.api.streams import json_response, no_content
from engine.clock import now_ns
from engine.containers.settings import EndpointSettings
from engine.errors import InvalidParameter
from engine.networks.service import NetworkService

_LIST_FILTERS = frozenset(("dangling", "driver", "id", "label", "name", "scope", "type"))
_PRUNE_FILTERS = frozenset(("label", "label!", "until"))


class ContainerConnector(Protocol):
    """Who connects containers, running or not, to networks and records it."""

    async def connect_network(self, container: str, network: str, settings: EndpointSettings) -> None:
        """Join ``container`` to ``network`` (names or ids). Raises an ``EngineError``."""

    async def disconnect_network(self, container: str, network: str, *, force: bool) -> None:
        """Take ``container`` off ``network`` (name or id). Raises an ``EngineError``."""


class NetworkRoutes:
    """The routes of networks."""

    def __init__(self, service: NetworkService, connector: ContainerConnector) -> None:
        self._service = service
        self._connector = connector

    def table(self) -> list[Route]:
        """Every operation under ``/networks``."""
        return [
            Route("GET", "/networks", self.list),
            Route("GET", "/networks/", self.list),
            Route("POST", "/networks/create", self.create),
            Route("POST", "/networks/prune", self.prune),
            Route("GET", "/networks/{id}", self.inspect),
            Route("DELETE", "/networks/{id}", self.remove),
            Route("POST", "/networks/{id}/connect", self.connect),
            Route("POST", "/networks/{id}/disconnect", self.disconnect),
        ]

    async def list(self, request: web.Request) -> web.StreamResponse:
        """``GET /networks``: without the attached containers, as dockerd."""
        found = self._service.networks(query_filters(request, _LIST_FILTERS))
        return json_response([network_shape(network, {}) for network in found])

    async def inspect(self, request: web.Request) -> web.StreamResponse:
        """``GET /networks/{id}``."""
        network = self._service.find(request.match_info["id"])
        endpoints = self._service.endpoints(network)
        return json_response(network_shape(network, {i: (s.name, e) for i, (s, e) in endpoints.items()}))

    async def create(self, request: web.Request) -> web.StreamResponse:
        """``POST /networks/create``."""
        body = await json_body(request, NetworkCreateBody)
        network, warning = await self._service.create(body.request(api_version(request)))
        return json_response({"Id": network.id, "Warning": warning}, status=201)

    async def remove(self, request: web.Request) -> web.StreamResponse:
        """``DELETE /networks/{id}``."""
        await self._service.remove(request.match_info["id"])
        return no_content()

    async def prune(self, request: web.Request) -> web.StreamResponse:
        """``POST /networks/prune``."""
        filters = query_filters(request, _PRUNE_FILTERS)
        removed = await self._service.prune(filters, filters.until(now_ns()))
        return json_response({"NetworksDeleted": removed or None})

    async def connect(self, request: web.Request) -> web.StreamResponse:
        """``POST /networks/{id}/connect``."""
        body = await json_body(request, ConnectBody)
        network = request.match_info["id"]
        settings = body.endpoint_config or EndpointSettings()
        await self._connector.connect_network(_container(body.container), network, settings)
        return web.Response()

    async def disconnect(self, request: web.Request) -> web.StreamResponse:
        """``POST /networks/{id}/disconnect``."""
        body = await json_body(request, DisconnectBody)
        network = request.match_info["id"]
        await self._connector.disconnect_network(_container(body.container), network, force=bool(body.force))
        return web.Response()


def _container(name: str | None) -> str:
    if not name:
        raise InvalidParameter("container name or ID is required")
    return name
