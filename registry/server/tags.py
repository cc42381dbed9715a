"""Lists over HTTP: the tags of a repository and the catalog, page by page."""

from __future__ import annotations

import asyncio
import bisect
import time
from urllib.parse import quote

from registry import errors
from registry.errors import RegistryError
from registry.proxy import PullThrough
from registry.server.auth import Access
from registry.server.notices import Notice
from registry.server.replies import Reply, json_reply
from registry.server.requests import Call
from registry.store.repositories import Repositories, catalog_key
from registry.tasks import Background

_CATALOG_DEFAULT_PAGE = 100
_CATALOG_FRESH_SECONDS = 2.0
_CATALOG_PATIENCE_SECONDS = 0.005


class ListHandlers:
    """Answers `/v2/<name>/tags/list` and `/v2/_catalog`."""

    def __init__(self, repositories: Repositories, access: Access, proxy: PullThrough) -> None:
        self._proxy = proxy
        self._repositories = repositories
        self._access = access
        self._catalog: list[str] = []
        self._catalog_read = -1e9
        self._pushed: set[str] = set()
        self._walk: asyncio.Task[None] | None = None
        self._background = Background()

    async def tags(self, call: Call) -> Reply:
        """GET: all tags, or `n` of them after `last`."""
        route = self._proxy.route(call.repository)
        if route is not None:
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
        more = page and start + len(page) < len(names)
        headers = next_page(call, f"/v2/{call.repository}/tags/list", page[-1], wanted) if more else {}
        return json_reply(200, {"name": call.repository, "tags": page}, headers)

    async def catalog(self, call: Call) -> Reply:
        """GET: the repositories the caller may pull from. Looked at again when it is two seconds old."""
        wanted = page_size(call)
        limit = call.settings.catalog_max_entries
        if wanted is not None and wanted > limit:
            raise RegistryError(errors.PAGINATION_NUMBER_INVALID, {"n": wanted})
        size = _CATALOG_DEFAULT_PAGE if wanted is None else wanted
        await self._refresh_catalog()
        last = call.argument("last")
        start = bisect.bisect_right(self._catalog, catalog_key(last), key=catalog_key) if last else 0
        page: list[str] = []
        position = start
        while position < len(self._catalog) and len(page) < size:
            name = self._catalog[position]
            if self._access.lists(call.identity, name):
                page.append(name)
            position += 1
        more = page and position < len(self._catalog)
        headers = next_page(call, "/v2/_catalog", page[-1], size) if more else {}
        return json_reply(200, {"repositories": page}, headers)

    async def _refresh_catalog(self) -> None:
        """A small tree is walked before the answer; a large one behind it, and this answer is from the last walk.

        What is pushed through this process is in the list at once (`note`).
        """
        if time.monotonic() - self._catalog_read < _CATALOG_FRESH_SECONDS:
            return
        if self._walk is None or self._walk.done():
            self._walk = self._background.start(self._walk_catalog(), "catalog")
        first = self._catalog_read < 0
        await asyncio.wait([self._walk], timeout=None if first else _CATALOG_PATIENCE_SECONDS)
        if first and self._walk.done():
            self._walk.result()

    async def _walk_catalog(self) -> None:
        began = time.monotonic()
        pushed_before = self._pushed.copy()
        names = await self._repositories.names()
        missed = self._pushed - pushed_before
        self._pushed.clear()
        self._catalog = names
        for name in missed:
            self._insert(name)
        self._catalog_read = began

    def note(self, notice: Notice) -> None:
        """A manifest was pushed: its repository is listed from now on, whenever the tree is walked next."""
        if notice.action == "push" and notice.is_manifest and self._catalog_read >= 0:
            self._pushed.add(notice.repository)
            self._insert(notice.repository)

    def _insert(self, name: str) -> None:
        position = bisect.bisect_left(self._catalog, catalog_key(name), key=catalog_key)
        if position == len(self._catalog) or self._catalog[position] != name:
            self._catalog.insert(position, name)

    async def aclose(self) -> None:
        """End a walk in progress."""
        await self._background.aclose()


def page_size(call: Call) -> int | None:
    """The `n` of the query; 400 when it is no natural number."""
    text = call.argument("n")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise RegistryError(errors.PAGINATION_NUMBER_INVALID, {"n": text[:100]})
    return int(text)


def next_page(call: Call, path: str, last: str, size: int | None, **others: str) -> dict[str, str]:
    """The `Link` header to what comes after `last`."""
    query = {"last": last, **({"n": str(size)} if size is not None else {}), **others}
    prefix = call.settings.prefix.rstrip("/")
    text = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
    return {"Link": f'<{prefix}{path}?{text}>; rel="next"'}
