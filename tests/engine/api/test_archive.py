"""The path stat header as Go's client decodes it, and the list of changes."""

from __future__ import annotations

import base64
import json
from typing import Any, cast

import pytest
from aiohttp.test_utils import make_mocked_request

from engine.api.archive import ArchiveRoutes, encode_stat
from engine.containers.archive import Archiver, PathStat
from engine.snapshots.base import Change, ChangeKind


def test_stat_header() -> None:
    found = PathStat("link", 7, 1 << 27 | 0o777, 1_700_000_000_123_000_000, "/etc/target")
    assert json.loads(base64.b64decode(encode_stat(found))) == {
        "name": "link",
        "size": 7,
        "mode": 134218239,
        "mtime": "2023-11-14T22:13:20.123Z",
        "linkTarget": "/etc/target",
    }


class Changed:
    """A container with these changes."""

    def __init__(self, *changes: Change) -> None:
        self._changes = list(changes)

    async def changes(self, reference: str) -> list[Change]:
        assert reference == "box"
        return self._changes


@pytest.mark.parametrize(
    ("changes", "shown"),
    [((), None), ((Change("/a", ChangeKind.ADDED),), [{"Path": "/a", "Kind": 1}])],
)
async def test_no_changes_are_null(changes: tuple[Change, ...], shown: Any) -> None:
    routes = ArchiveRoutes(cast(Archiver, Changed(*changes)))
    request = make_mocked_request("GET", "/containers/box/changes", match_info={"name": "box"})
    response = await routes.changes(request)
    assert json.loads(response.body) == shown  # type: ignore[attr-defined]
