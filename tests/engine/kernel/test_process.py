"""Processes that go ahead of others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SHOW = "from engine.kernel.process import go_ahead; go_ahead(); print(open('/proc/self/autogroup').read().split()[-1])"


def share(own_session: bool) -> str:
    shown = subprocess.run(
        [sys.executable, "-c", SHOW], start_new_session=own_session, capture_output=True, text=True, check=True
    )
    return shown.stdout.strip()


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel has no autogroups")
def test_only_who_leads_its_session_goes_ahead() -> None:
    before = Path("/proc/self/autogroup").read_text().split()[-1]
    assert share(own_session=False) == before
    try:
        Path("/proc/self/autogroup").write_text(before)
    except PermissionError:
        pytest.skip("may not change the weight of a session")
    assert share(own_session=True) == "-5"
