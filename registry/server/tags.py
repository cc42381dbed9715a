"""Lists over HTTP: the tags of a repository and the catalog, page by page."""

from __future__ import annotations

import bisect
import time
from urllib.parse import quote

from registry import errors
from registry.errors import RegistryError
from registry.proxy import PullThrough
from registry.server.auth import Access
from registry.server.replies import Reply, json_reply
from registry.server.requests import Call
from registry.store.repositories import Repositories

_CATALOG_DEFAULT_PAGE = 100
_CATALOG_FRESH_SECONDS = 2.0


class ListHandlers:
    """Answers `/v2/<name>/tags/list` and `/v2/_catalog`."""

    def __init__(self, repositories: Repositories, access: Access, proxy: PullThrough | None = None) -> None:
        self._proxy = proxy
        self._repositories = repositories
        self._access = access
        self._catalog: list[str] = []
        self._catalog_keys: list[list[str]] = []
        self._catalog_read = -1e9

    async def tags(self, call: Call) -> Reply:
        """GET: all tags, or `n` of them after `last`."""
        route = self._proxy.route(call.repository) if self._proxy is not None else None
        if self._proxy is not None and route is not None:
            names = await self._proxy.tags(call.repository, route)
        else:
            names = await self._repositories.tags(call.repository)
        if names is None:
            raise RegistryError(errors.NAME_UNKNOWN, {"name": call.repository})
        wanted = page_size(call)
        if wanted is not None:
            wanted = min(wanted, call.settings.tags_max)
        last = call.argument("last")
        start = bisect.bisect_right(names, last) if last else 0
        page = names[start:] if wanted is None else names[start : start + wanted]
        more = wanted is not None and start + len(page) < len(names)
        headers = _link(f"/v2/{call.repository}/tags/list", page, wanted) if more else {}
        return json_reply(200, {"name": call.repository, "tags": page}, headers)

    async def catalog(self, call: Call) -> Reply:
        """GET: the repositories the caller may pull from. The tree is walked again when the list is two seconds old."""
        wanted = page_size(call)
        limit = call.settings.catalog_max_entries
        if wanted is not None and wanted > limit:
            raise RegistryError(errors.PAGINATION_NUMBER_INVALID, {"n": wanted})
        size = _CATALOG_DEFAULT_PAGE if wanted is None else wanted
        await self._refresh_catalog()
        last = call.argument("last")
        start = bisect.bisect_right(self._catalog_keys, last.split("/")) if last else 0
        page: list[str] = []
        position = start
        while position < len(self._catalog) and len(page) < size:
            name = self._catalog[position]
            if self._access.authorize(call.identity, name, "pull"):
                page.append(name)
            position += 1
        headers = _link("/v2/_catalog", page, size) if position < len(self._catalog) and page else {}
        return json_reply(200, {"repositories": page}, headers)

    async def _refresh_catalog(self) -> None:
        now = time.monotonic()
        if now - self._catalog_read < _CATALOG_FRESH_SECONDS:
            return
        names = await self._repositories.names()
        if names != self._catalog:
            self._catalog = names
            self._catalog_keys = [name.split("/") for name in names]
        self._catalog_read = time.monotonic()


def page_size(call: Call) -> int | None:
    """The `n` of the query; 400 when it is no natural number."""
    text = call.argument("n")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise RegistryError(errors.PAGINATION_NUMBER_INVALID, {"n": text[:100]})
    return int(text)


def _link(path: str, page: list[str], size: int | None) -> dict[str, str]:
    if not page:
        return {}
    return {"Link": f'<{path}?last={quote(page[-1], safe="")}&n={size}>; rel="next"'}
