"""docker-compose on berth: a project with two services that talk by name, a volume, a published port."""

from __future__ import annotations

import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemons import Berth, free_port

PROJECT = """
version: "3.3"
services:
  web:
    image: busybox
    command: ["httpd", "-f", "-h", "/data"]
    volumes: ["pages:/data"]
    ports: ["127.0.0.1:{port}:80"]
    environment: {{GREETING: hello}}
    labels: {{role: web}}
  fill:
    image: busybox
    command: ["sh", "-c", "echo served > /data/page; until wget -qO- web/page; do sleep 0.2; done"]
    volumes: ["pages:/data"]
    depends_on: [web]
volumes:
  pages: {{}}
"""


@pytest.fixture
def compose(berth: Berth, tmp_path: Path) -> Iterator[tuple[list[str], int]]:
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("needs docker-compose")
    port = free_port()
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "docker-compose.yml").write_text(PROJECT.format(port=port))
    command = [program, "-H", berth.host, "--project-directory", str(folder), "-f", str(folder / "docker-compose.yml")]
    yield command, port
    _run(command, "down", "-v", "-t", "0")


def _run(command: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.timeout(240)
def test_a_project_goes_up_talks_and_goes_down(berth: Berth, compose: tuple[list[str], int]) -> None:
    command, port = compose
    up = _run(command, "up", "-d")
    assert up.returncode == 0, up.stderr
    waited = berth.docker("wait", "project_fill_1", seconds=60)
    assert waited.stdout == "0\n", waited.stderr
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/page", timeout=5) as answer:
        assert answer.read() == b"served\n"
    logs = _run(command, "logs", "--no-color", "fill")
    assert "served" in logs.stdout
    assert _run(command, "exec", "-T", "web", "sh", "-c", "echo $GREETING").stdout == "hello\n"
    again = _run(command, "up", "-d")
    assert "up-to-date" in again.stderr
    down = _run(command, "down", "-v", "-t", "0")
    assert down.returncode == 0, down.stderr
    assert berth.docker("ps", "-aq", "--filter", "label=com.docker.compose.project").stdout == ""
    assert "project" not in berth.docker("network", "ls").stdout
    assert "project" not in berth.docker("volume", "ls").stdout
