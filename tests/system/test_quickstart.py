"""The first command of README, from nothing to a pulled image, everything its own; run twice, then taken down."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemons import free_port, free_subnet
from tests.support.leaks import leftovers
from tests.support.source_tree import PROJECT


@pytest.fixture
def places(short_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Options that keep a quickstart apart from everything else, and a virtual environment that is already there."""
    monkeypatch.setenv("DOCKER_CONFIG", str(short_root / "docker"))
    bridge = f"qs{os.getpid()}"[:15]
    # The environment that runs the tests stands in for a fresh one: installing is pip's work, not ours.
    program = short_root / "venv" / "bin" / "berth"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec env PYTHONPATH={PROJECT} {sys.executable} -m cli "$@"\n')
    program.chmod(0o755)
    (short_root / "venv" / ".berth-stamp").write_text(_stamp())
    options = [
        *("--venv", str(short_root / "venv"), "--data-root", str(short_root / "data")),
        *("--exec-root", str(short_root / "run"), "--socket", str(short_root / "d.sock")),
        *("--bridge", bridge, "--bip", free_subnet(), "--registry-addr", f"127.0.0.1:{free_port()}", "--no-packages"),
    ]
    yield options
    _quickstart(*options, "--down")
    assert leftovers(str(short_root), bridge) == set()


def _stamp() -> str:
    script = (PROJECT / "deploy" / "install").read_text(encoding="utf-8")
    function = script[script.index("source_stamp()") : script.index("install_program()")]
    command = f"here={PROJECT}\n{function}\nsource_stamp"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout


def _quickstart(*options: str) -> subprocess.CompletedProcess[str]:
    command = [str(PROJECT / "deploy" / "quickstart"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.timeout(240)
def test_quickstart_runs_again_and_goes_down(places: list[str]) -> None:
    first = _quickstart(*places)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "hello from a container" in first.stdout
    assert "Login Succeeded" in first.stdout
    assert "Status: Downloaded newer image for localhost:" in first.stdout
    assert "hello again" in first.stdout
    second = _quickstart(*places)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "already running" in second.stdout
    down = _quickstart(*places, "--down")
    assert down.returncode == 0, down.stdout + down.stderr
    assert "Stopping the daemon" in down.stdout
    again = _quickstart(*places, "--down")
    assert again.returncode == 1
    assert "nothing to stop" in again.stderr


def test_a_host_that_lacks_something_is_told_what(short_root: Path) -> None:
    done = subprocess.run(
        [str(PROJECT / "deploy" / "quickstart"), "--nonsense"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "unknown option --nonsense" in done.stderr
