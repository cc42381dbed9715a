"""Container root must reach its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.kernel.idmap import IdMap, IdRange
from engine.runtime.idmapping import _check_way_sync


def test_a_folder_on_the_way_that_is_closed_is_named(tmp_path: Path) -> None:
    ids = IdMap((IdRange(0, 100000, 10),), (IdRange(0, 100000, 10),))
    closed = tmp_path / "closed"
    (closed / "run").mkdir(parents=True)
    closed.chmod(0o700)
    with pytest.raises(PermissionError, match="restricts access to the remapped root uid/gid; please fix by allowing"):
        _check_way_sync(closed / "run", ids)
