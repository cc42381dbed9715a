"""``docker search``: the index protocol of Docker Hub, which registries of one's own rarely speak."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.errors import InvalidParameter, SystemFailure
from engine.filters import Filters
from registry.client.credentials import AuthConfig
from registry.client.failures import ConnectionFailed, NoCredentials, RemoteError
from registry.client.search import SearchResult, search_index
from registry.client.session import Transport

_DEFAULT_LIMIT = 25
_MAX_LIMIT = 100


async def search(
    transport: Transport, term: str, limit: int, filters: Filters, auth: AuthConfig
) -> list[dict[str, Any]]:
    """The rows of ``GET /images/search``. Raises ``InvalidParameter``, ``SystemFailure``."""
    limit = limit or _DEFAULT_LIMIT
    if not 1 <= limit <= _MAX_LIMIT:
        raise InvalidParameter(f"Limit {limit} is outside the range of [1, {_MAX_LIMIT}]")
    official = filters.boolean("is-official") if "is-official" in filters else None
    automated = filters.boolean("is-automated") if "is-automated" in filters else None
    stars = max((_stars(value) for value in filters.get("stars")), default=0)
    try:
        found = await search_index(transport, term, limit, auth)
    except (RemoteError, ConnectionFailed, NoCredentials, ValueError) as error:
        raise SystemFailure(str(error)) from error
    return [msgspec.to_builtins(row) for row in found if _wanted(row, official, automated, stars)]


def _wanted(row: SearchResult, official: bool | None, automated: bool | None, stars: int) -> bool:
    return (
        (official is None or row.is_official is official)
        and (automated is None or row.is_automated is automated)
        and row.star_count >= stars
    )


def _stars(value: str) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise InvalidParameter(f"invalid filter 'stars=[{value}]'") from error
