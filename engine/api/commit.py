"""/commit: an image of a container."""

from __future__ import annotations

from aiohttp import web

from engine.api.app import Route
from engine.api.decode import loose_body, query_bool, query_str
from engine.api.streams import json_response
from engine.containers.commit import CommitRequest, Committer
from engine.containers.settings import ContainerConfig


class CommitRoutes:
    """The handler of docker commit."""

    def __init__(self, committer: Committer) -> None:
        self._committer = committer

    def table(self) -> list[Route]:
        """All routes of this resource."""
        return [Route("POST", "/commit", self.commit)]

    async def commit(self, request: web.Request) -> web.StreamResponse:
        """``docker commit``; pausing is the default, an empty body asks for no other settings."""
        wish = CommitRequest(
            container=query_str(request, "container"),
            repository=query_str(request, "repo"),
            tag=query_str(request, "tag"),
            comment=query_str(request, "comment"),
            author=query_str(request, "author"),
            pause=query_bool(request, "pause", True) or not query_str(request, "pause"),
            changes=request.query.getall("changes", []),
            config=await loose_body(request, ContainerConfig, optional=True),
        )
        return json_response({"Id": await self._committer.commit(wish)}, 201)
