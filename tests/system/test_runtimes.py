"""The same from each runtime: nothing takes the place of /proc, and what cannot run is told to people."""

from __future__ import annotations

import io
import json
import os
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.support.daemons import Berth

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

Docker = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def linked(berth: Berth) -> str:
    """An image with links to /proc and a volume in its place."""
    docker: Docker = berth.docker
    container = docker("create", "busybox", check=True).stdout.strip()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, target in (("p", "/proc"), ("s", "/proc/sys")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
    docker("cp", "-", f"{container}:/", stdin=archive.getvalue(), check=True)
    docker("commit", container, "linked", check=True)
    docker("commit", "-c", "VOLUME /proc", container, "proc-volume", check=True)
    docker("rm", container, check=True)
    return "linked"


@pytest.mark.parametrize("runtime", ["crun", "runc"])
@pytest.mark.parametrize(
    ("image", "mount", "words"),
    [
        ("linked", ["-v", "FOLDER:/proc"], '/rootfs/proc" cannot be mounted because it is not of type proc'),
        ("linked", ["-v", "FOLDER:/p"], '/rootfs/proc" cannot be mounted because it is not of type proc'),
        ("proc-volume", [], '/rootfs/proc" cannot be mounted because it is not of type proc'),
        ("linked", ["-v", "FOLDER:/proc//sys"], '/rootfs/proc/sys" cannot be mounted because it is inside /proc'),
        ("linked", ["-v", "FOLDER:/s"], '/rootfs/proc/sys" cannot be mounted because it is inside /proc'),
        ("linked", ["-v", "FILE:/p/version"], '/rootfs/proc/version" cannot be mounted because it is inside /proc'),
    ],
)
def test_refused(
    docker: Docker, linked: str, folder: Path, runtime: str, image: str, mount: list[str], words: str
) -> None:
    assert linked
    (folder / "file").touch()
    where = [part.replace("FOLDER", str(folder)).replace("FILE", str(folder / "file")) for part in mount]
    done = docker("run", "--name", "refused", "--runtime", runtime, *where, image, "true")
    state = docker("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "refused").stdout.strip()
    docker("rm", "-fv", "refused", check=True)
    assert done.returncode == 125 and words in done.stderr, done.stderr
    assert "unable to start container process: error during container init: error mounting" in done.stderr
    assert state == "created 128"


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_an_empty_proc_is_refused(docker: Docker, runtime: str) -> None:
    assert docker("run", "--rm", "--runtime", runtime, "--tmpfs", "/proc", "busybox", "true").returncode != 0


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_allowed(docker: Docker, folder: Path, runtime: str) -> None:
    (folder / "uptime").write_text("1.00 2.00\n")
    mounts = ["-v", f"{folder / 'uptime'}:/proc/uptime"]
    if Path("/proc/acpi").exists():  # machines without ACPI lack it
        mounts += ["--mount", "type=tmpfs,dst=/proc/acpi"]
    done = docker("run", "--rm", "--runtime", runtime, *mounts, "busybox", "cat", "/proc/uptime", check=True)
    assert done.stdout == "1.00 2.00\n"
    hosts = docker("run", "--rm", "--runtime", runtime, "-v", "/proc:/proc", "busybox", "cat", "/proc/version")
    assert hosts.stdout == Path("/proc/version").read_text()


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_program_of_no_known_format_says_so_to_people(docker: Docker, folder: Path, runtime: str) -> None:
    (folder / "script").write_text("no interpreter\n")
    (folder / "script").chmod(0o755)
    done = docker("run", "--rm", "--runtime", runtime, "-v", f"{folder}:/x", "busybox", "/x/script")
    assert done.returncode != 0 and "exec format error" in done.stderr.lower()
    assert "{" not in done.stderr


def _reload(berth: Berth, settings: dict[str, object]) -> None:
    """SIGHUP, and wait until the names of runtimes are those of the file."""
    (berth.root / "daemon.json").write_text(json.dumps(settings))
    os.kill(berth.pid, signal.SIGHUP)
    wanted = set(settings.get("runtimes", {}))  # type: ignore[call-overload]
    for _ in range(100):
        known = set(json.loads(berth.docker("info", "-f", "{{json .Runtimes}}").stdout))
        if known - {"crun", "runc", "io.containerd.runc.v2"} == wanted:
            return
        time.sleep(0.1)
    raise AssertionError(f"the runtimes are {known}")


def test_configured_runtimes_come_and_go_and_a_missing_program_is_told_at_the_start(berth: Berth) -> None:
    _reload(berth, {"runtimes": {"oci": {"path": "runc"}, "vm": {"path": "/no/vm-manager"}}})
    try:
        assert berth.docker("run", "--name", "kept", "--runtime", "oci", "busybox", "true").returncode == 0
        made = berth.docker("create", "--name", "unmade", "--runtime", "vm", "busybox", "true")
        assert made.returncode == 0, made.stderr
        started = berth.docker("start", "unmade")
        assert "fork/exec /no/vm-manager: no such file or directory" in started.stderr
        state = berth.docker("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "unmade").stdout.strip()
        assert state == "created 127"
        _reload(berth, {"runtimes": {}})
        assert "unknown or invalid runtime name: oci" in berth.docker("start", "kept").stderr
        assert "unknown or invalid runtime name: oci" in berth.docker("create", "--runtime", "oci", "busybox").stderr
    finally:
        _reload(berth, {"runtimes": {}})
        berth.docker("rm", "-f", "kept", "unmade")
