"""The path stat header as Go's client decodes it."""

from __future__ import annotations

import base64
import json

from engine.api.archive import encode_stat
from engine.containers.archive import PathStat


def test_stat_header() -> None:
    found = PathStat("link", 7, 1 << 27 | 0o777, 1_700_000_000_123_000_000, "/etc/target")
    assert json.loads(base64.b64decode(encode_stat(found))) == {
        "name": "link",
        "size": 7,
        "mode": 134218239,
        "mtime": "2023-11-14T22:13:20.123Z",
        "linkTarget": "/etc/target",
    }
