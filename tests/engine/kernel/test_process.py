"""Processes that go ahead of others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

AUTOGROUP = Path("/proc/self/autogroup")
SHOW = f"from engine.kernel.process import go_ahead; go_ahead(); print(open('{AUTOGROUP}').read())"
WRITE = f"open('{AUTOGROUP}', 'w').write('-5')"


def share(own_session: bool) -> str:
    return weight(python(SHOW, own_session).stdout)


def python(program: str, own_session: bool) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], start_new_session=own_session, capture_output=True, text=True, check=False
    )


def weight(group: str) -> str:
    """The nice value of an autogroup. The kernel shows nothing for the session that the machine was booted with."""
    return group.split()[-1] if group.strip() else "0"


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel has no autogroups")
def test_only_who_leads_its_session_goes_ahead() -> None:
    before = weight(AUTOGROUP.read_text())
    assert share(own_session=False) == before
    if python(WRITE, own_session=True).returncode:
        pytest.skip("may not change the weight of a session")
    assert share(own_session=True) == "-5"
