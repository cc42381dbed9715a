"""A real berth for system stories: one process for a module's tests, and a look at what it left behind at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.support.daemons import Berth
from tests.support.leaks import cgroups, leftovers

_SETTLE_SECONDS = 5.0


def _settled(berth: Berth, identifiers: set[str]) -> set[str]:
    """What is left once processes that are ending have ended."""
    end = time.monotonic() + _SETTLE_SECONDS
    while True:
        left = leftovers(str(berth.root), berth.bridge) | cgroups(identifiers)
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.1)


@pytest.fixture(scope="module")
def berth() -> Iterator[Berth]:
    """A running daemon with everything of its own. When the module ends it must have left nothing on the machine."""
    daemon = Berth()
    identifiers: set[str] = set()
    try:
        daemon.start()
        daemon.make_busybox()
        yield daemon
        containers = daemon.data_root / "containers"
        identifiers = {path.name for path in containers.iterdir()} if containers.is_dir() else set()
    except RuntimeError:
        # It did not start: its last words are in the error, and its folder is of no further use.
        daemon.stop()
        daemon.remove()
        raise
    finally:
        daemon.stop()
    left = _settled(daemon, identifiers)
    words = daemon.last_words()
    daemon.remove()
    assert not left, "left behind:\n" + "\n".join(sorted(left)) + f"\nlast words of the daemon:\n{words}"


@pytest.fixture
def docker(berth: Berth) -> Callable[..., CompletedProcess[str]]:
    """The real docker command line on the module's berth: `docker("run", "--rm", "busybox", "true", check=True)`."""
    return berth.docker


@pytest.fixture
def busybox(berth: Berth) -> str:
    """The name of an image with a static busybox in it."""
    return "busybox"


@pytest.fixture
def folder(berth: Berth, tmp_path: Path) -> Path:
    """A folder for bind mounts."""
    return tmp_path
