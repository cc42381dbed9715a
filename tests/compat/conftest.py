"""One berth and one dockerd for all comparisons, both with the same busybox image."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.support.daemons import Berth, Dockerd


@pytest.fixture(scope="session")
def berth() -> Iterator[Berth]:
    """A running berth with the image busybox."""
    if shutil.which("docker") is None:
        pytest.skip("needs the docker command line")
    daemon = Berth()
    try:
        daemon.start()
        daemon.make_busybox()
        yield daemon
    finally:
        daemon.stop()
        daemon.remove()


@pytest.fixture(scope="session")
def dockerd() -> Iterator[Dockerd]:
    """A running dockerd with the image busybox."""
    if shutil.which("dockerd") is None:
        pytest.skip("needs dockerd (docker.io) to compare with")
    daemon = Dockerd(relays=False)
    try:
        daemon.start()
        daemon.make_busybox()
        yield daemon
    finally:
        daemon.stop()
        daemon.remove()
