"""An engine inside of a container: what `--privileged` is for."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

import pytest

from tests.support.daemons import Berth

pytestmark = [
    pytest.mark.skipif(shutil.which("dockerd") is None, reason="needs dockerd"),
    pytest.mark.timeout(120),
]

FROM_HOST = ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc/alternatives")
INNER = ("docker", "-H", "unix:///run/inner.sock")


@pytest.fixture
def nested(berth: Berth) -> Iterator[str]:
    """A container in which dockerd runs, with the host's programs and a volume for its data."""
    binds = [word for folder in FROM_HOST for word in ("-v", f"{folder}:{folder}:ro")]
    daemon = "exec dockerd -H unix:///run/inner.sock --data-root /inner >/inner/log 2>&1"
    command = ["run", "-d", "--name", "nested", "--privileged", *binds, "-v", "/inner", "--tmpfs", "/run"]
    berth.docker(*command, "busybox", "sh", "-c", daemon, check=True)
    try:
        end = time.monotonic() + 60
        while berth.docker("exec", "nested", *INNER, "version").returncode:
            words = berth.docker("exec", "nested", "tail", "-n", "5", "/inner/log").stdout
            assert time.monotonic() < end, f"the inner engine does not answer: {words}"
            time.sleep(0.2)
        yield "nested"
    finally:
        berth.docker("rm", "-fv", "nested")


def test_a_nested_engine_runs_containers(berth: Berth, nested: str) -> None:
    image = (
        "mkdir -p /tmp/root/bin && cp /bin/busybox /tmp/root/bin && tar -C /tmp/root -c . | "
        + " ".join(INNER)
        + " import - inner"
    )
    berth.docker("exec", nested, "sh", "-c", image, check=True)
    inner_run = [*INNER, "run", "--rm", "-m", "64m", "inner", "/bin/busybox", "echo", "from the inside"]
    assert berth.docker("exec", nested, *inner_run, check=True).stdout == "from the inside\n"
