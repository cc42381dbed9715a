"""A host whose mounts are shared, as systemd makes them: containers come and go, and its mounts stay as they were.

The daemon gets a mount namespace of its own that is made shared, so that nothing here can touch the machine's mounts.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemons import Berth, running

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


class SharedBerth(Berth):
    """A berth on a host with shared mounts."""

    def command(self) -> list[str]:
        script = 'mount --make-rshared / && exec "$@"'
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *super().command()]

    def on_host(self, *command: str) -> None:
        """Run a program as the host of this daemon."""
        subprocess.run(["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", *command], check=True)

    def mounts(self) -> list[str]:
        """The host's mounts: place, file system and propagation."""
        lines = Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines()
        return sorted(" ".join(line.split()[3:]) for line in lines)


@pytest.fixture(scope="module")
def host() -> Iterator[SharedBerth]:
    with running(SharedBerth(registry=False)) as berth:
        (berth.root / "tree" / "below").mkdir(parents=True)
        berth.on_host("mount", "-t", "tmpfs", "tmpfs", str(berth.root / "tree" / "below"))
        berth.on_host("touch", str(berth.root / "tree" / "below" / "file"))
        yield berth


@pytest.mark.parametrize("runtime", ["crun", "runc"])
@pytest.mark.parametrize(
    "mount",
    [
        ["-v", "TREE:/x:ro"],
        ["-v", "TREE:/x:ro,rslave"],
        ["-v", "TREE:/x:ro,rshared"],
        ["-v", "TREE:/x"],
        ["-v", "/dev:/dev:ro"],
        ["-v", "/:/host:ro"],
        ["--mount", "type=image,source=busybox,target=/x,image-subpath=bin"],
        ["--mount", "type=bind,source=TREE,target=/x,readonly,bind-recursive=disabled"],
    ],
    ids=lambda mount: mount[1],
)
def test_the_hosts_mounts_stay(host: SharedBerth, runtime: str, mount: list[str]) -> None:
    before = host.mounts()
    options = [word.replace("TREE", str(host.root / "tree")) for word in mount]
    run = ["run", "--runtime", runtime, "-d", "--name", "guest", *options, "busybox", "sleep", "1000"]
    host.docker(*run, check=True)
    host.docker("exec", "guest", "true", check=True)
    during = host.mounts()
    host.docker("rm", "-f", "guest", check=True)
    assert (during, host.mounts()) == (before, before)


def test_what_is_mounted_later_is_seen_where_asked_for(host: SharedBerth) -> None:
    tree = host.root / "tree"
    (tree / "late").mkdir(exist_ok=True)
    for runtime in ("crun", "runc"):
        bind = f"{tree}:/x:ro,rslave"
        host.docker(
            "run", "--runtime", runtime, "-d", "--name", "late", "-v", bind, "busybox", "sleep", "1000", check=True
        )
        host.on_host("mount", "-t", "tmpfs", "tmpfs", str(tree / "late"))
        host.on_host("touch", str(tree / "late" / "news"))
        assert host.docker("exec", "late", "ls", "/x/late", check=True).stdout == "news\n"
        host.docker("rm", "-f", "late", check=True)
        host.on_host("umount", str(tree / "late"))


@pytest.mark.parametrize("runtime", ["crun", "runc"])
@pytest.mark.parametrize("mode", ["", ",readonly", ",bind-propagation=rslave"])
def test_a_bind_that_is_not_recursive_leaves_out_what_is_mounted_below(
    host: SharedBerth, runtime: str, mode: str
) -> None:
    run = ["run", "--rm", "--runtime", runtime, "--mount"]
    bind = f"type=bind,source={host.root / 'tree'},target=/x{mode}"
    assert host.docker(*run, bind, "busybox", "ls", "/x/below", check=True).stdout == "file\n"
    assert host.docker(*run, f"{bind},bind-recursive=disabled", "busybox", "ls", "/x/below", check=True).stdout == ""
