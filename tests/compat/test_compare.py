"""Every case of the command list behaves on berth as on dockerd."""

from __future__ import annotations

import pytest

from tests.compat.compare import Case, compare, load_cases
from tests.support.daemons import Berth, Dockerd


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", load_cases(), ids=lambda case: case.name)
def test_behaves_as_dockerd(case: Case, berth: Berth, dockerd: Dockerd) -> None:
    found = compare(case, berth, dockerd)
    assert not found, "\n".join(found)
