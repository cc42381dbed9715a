"""The registry's image definition: it copies what is there, starts as registry:2's image does, and asks for no root."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from registry.config import Settings
from registry.configfile import load_settings

pytestmark = pytest.mark.system
PROJECT = Path(__file__).resolve().parents[2]
DEPLOY = PROJECT / "deploy"
CONTAINERFILE = (DEPLOY / "registry.Containerfile").read_text()


def instructions(word: str) -> list[str]:
    return re.findall(rf"^{word} (.+)$", CONTAINERFILE, re.MULTILINE)


def test_what_is_copied_exists() -> None:
    for line in instructions("COPY"):
        *sources, _ = line.split()
        for source in sources:
            assert (PROJECT / source).exists(), source


def test_it_is_registry2s_shape() -> None:
    assert instructions("EXPOSE") == ["5000"]
    assert instructions("VOLUME") == ['["/var/lib/registry"]']
    assert instructions("CMD") == ['["/etc/docker/registry/config.yml"]']
    assert instructions("USER") == ["registry"]


def test_its_configuration_serves_and_gives_way_to_variables(tmp_path: Path) -> None:
    environment = dict(line.split("=", 1) for line in instructions("ENV"))
    config = DEPLOY / "registry-image.yml"
    settings = load_settings(config, environment, Settings(root=tmp_path))
    assert (settings.root, settings.address, settings.anonymous) == (Path("/var/lib/registry"), ":5000", True)
    changed = {**environment, "REGISTRY_HTTP_ADDR": ":5001", "REGISTRY_PROXY_REMOTEURL": "https://registry-1.docker.io"}
    settings = load_settings(config, changed, Settings(root=tmp_path))
    assert (settings.address, settings.upstreams[0].prefix) == (":5001", "")


@pytest.mark.parametrize(
    ("arguments", "called"),
    [
        ((), "registry serve"),
        (("/etc/docker/registry/config.yml",), "registry serve /etc/docker/registry/config.yml"),
        (("serve", "/c.yml"), "registry serve /c.yml"),
        (("garbage-collect", "-d", "/c.yml", "--delete-untagged"), "registry gc -d -c /c.yml --delete-untagged"),
        (("help",), "registry --help"),
    ],
)
def test_its_entry_point_takes_registry2s_words(tmp_path: Path, arguments: tuple[str, ...], called: str) -> None:
    fake = tmp_path / "berth"
    fake.write_text('#!/bin/sh\necho "$@"\n')
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [DEPLOY / "registry-entrypoint", *arguments], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == called


def test_its_entry_point_runs_other_programs() -> None:
    done = subprocess.run([DEPLOY / "registry-entrypoint", "echo", "a b"], capture_output=True, text=True, check=True)
    assert done.stdout == "a b\n"
