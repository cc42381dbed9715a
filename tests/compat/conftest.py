"""One berth and one dockerd for all comparisons, both with the same busybox image."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.support.daemons import Berth, Dockerd, running


@pytest.fixture(scope="session")
def berth() -> Iterator[Berth]:
    """A running berth with the image busybox."""
    if shutil.which("docker") is None:
        pytest.skip("needs the docker command line")
    with running(Berth()) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def dockerd() -> Iterator[Dockerd]:
    """A running dockerd with the image busybox."""
    if shutil.which("dockerd") is None:
        pytest.skip("needs dockerd (docker.io) to compare with")
    with running(Dockerd(relays=False)) as daemon:
        yield daemon
