"""Other people's tools against a running berth: skopeo on the embedded registry and on saved archives."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.daemons import Berth

pytestmark = pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo")


def _skopeo(*arguments: str) -> str:
    command = ["skopeo", "--insecure-policy", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def pushed(berth: Berth) -> str:
    """The name of an image in the embedded registry, pushed by docker."""
    name = f"localhost:{berth.registry.rpartition(':')[2]}/tools/busybox:1"
    berth.docker("tag", "busybox", name, check=True)
    berth.docker("push", "-q", name, check=True)
    return name


def test_skopeo_reads_what_docker_pushed(berth: Berth, pushed: str, tmp_path: Path) -> None:
    document = json.loads(_skopeo("inspect", "--tls-verify=false", f"docker://{pushed}"))
    assert document["RepoTags"] == ["1"]
    assert len(document["Layers"]) == 1
    _skopeo("copy", "--src-tls-verify=false", f"docker://{pushed}", f"oci:{tmp_path}/layout:1")
    assert (tmp_path / "layout" / "index.json").exists()


def test_docker_runs_what_skopeo_pushed(berth: Berth, pushed: str, tmp_path: Path) -> None:
    name = pushed.replace("busybox:1", "copied:2")
    _skopeo("copy", "--src-tls-verify=false", f"docker://{pushed}", f"oci:{tmp_path}/layout:2")
    _skopeo("copy", "--dest-tls-verify=false", f"oci:{tmp_path}/layout:2", f"docker://{name}")
    done = berth.docker("run", "--rm", "--pull", "always", "-q", name, "echo", "came back", check=True)
    assert done.stdout == "came back\n"
    berth.docker("rmi", name, check=True)


def test_saved_archives_are_read_in_both_formats(berth: Berth, tmp_path: Path) -> None:
    archive = tmp_path / "saved.tar"
    berth.docker("save", "-o", str(archive), "busybox", check=True)
    for kind in ("docker-archive", "oci-archive"):
        document = json.loads(_skopeo("inspect", f"{kind}:{archive}"))
        assert len(document["Layers"]) == 1


def test_archives_of_skopeo_are_loaded(berth: Berth, pushed: str, tmp_path: Path) -> None:
    for kind in ("docker-archive", "oci-archive"):
        archive = tmp_path / f"{kind}.tar"
        _skopeo("copy", "--src-tls-verify=false", f"docker://{pushed}", f"{kind}:{archive}:made/by:{kind}")
        assert f"Loaded image: made/by:{kind}" in berth.docker("load", "-i", str(archive), check=True).stdout
        assert berth.docker("run", "--rm", f"made/by:{kind}", "echo", "runs", check=True).stdout == "runs\n"
        berth.docker("rmi", f"made/by:{kind}", check=True)
