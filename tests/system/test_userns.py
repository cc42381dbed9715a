"""A daemon with userns-remap, on a host with shared mounts: container root is nobody there, and hardly notices.

The ids are a made-up user's: the daemon gets a mount namespace in which /etc/subuid and /etc/subgid name them.
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemons import Berth, free_port, running
from tests.support.leaks import leftovers

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

FIRST = 300_000
ALONE = f"0 {FIRST} 65536"
ALL = f"0 0 {2**32 - 1}"
PLACES = ("/", "/vol/", "/host/")  # its own, a volume, a folder of the host
REMAP = ("--userns-remap", "daemon")


class RemappedBerth(Berth):
    """A berth whose host gives the user ``daemon`` subordinate ids."""

    def command(self) -> list[str]:
        self.root.chmod(0o711)
        ranges = self.root / "ranges"
        ranges.write_text(f"daemon:{FIRST}:65536\n")
        script = f'mount --make-rshared / && for f in /etc/subuid /etc/subgid; do [ -e $f ] || touch $f; \
            mount --make-private --bind {ranges} $f; done && exec "$@"'
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *super().command()]

    def run(self, *arguments: str) -> str:
        """The output of a container that is gone again, its blanks squeezed."""
        return " ".join(self.docker("run", "--rm", *arguments, check=True).stdout.split())

    def exec(self, name: str, *command: str) -> str:
        return " ".join(self.docker("exec", name, *command, check=True).stdout.split())

    def refused(self, *arguments: str) -> str:
        done = self.docker("run", "--rm", *arguments)
        assert done.returncode == 125, done.stdout
        return done.stderr

    def archived(self, *command: str) -> dict[str, tuple[int, int]]:
        """The owners in the archive that a command writes."""
        done = subprocess.run(["docker", "-H", self.host, *command], capture_output=True, check=True)
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
            return {member.name: (member.uid, member.gid) for member in tar}

    def again(self, *options: str, by_kill: bool = False) -> None:
        """Another daemon in this one's place; containers run on."""
        if by_kill:
            self.kill()
        else:
            assert self.process is not None
            self.process.terminate()
            self.process.wait(30)
        self.options = options
        self.start()


@pytest.fixture(scope="module")
def berth() -> Iterator[RemappedBerth]:
    daemon = RemappedBerth(options=REMAP, registry=False)
    try:
        daemon.start()
        daemon.make_busybox()
        yield daemon
    finally:
        daemon.stop()
        left = leftovers(str(daemon.root), daemon.bridge)
        daemon.remove()
    assert not left, "left behind:\n" + "\n".join(sorted(left))


@pytest.fixture(params=["crun", "runc"])
def runtime(request: pytest.FixtureRequest, berth: RemappedBerth) -> str:
    known = berth.docker("info", "-f", "{{json .Runtimes}}").stdout
    if f'"{request.param}"' not in known:
        pytest.skip(f"no {request.param} here")
    return f"--runtime={request.param}"


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder of the host in which everybody may write."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def owner(path: Path) -> tuple[int, int]:
    info = path.lstat()
    return info.st_uid, info.st_gid


def test_root_of_a_container_is_nobody_on_the_host(berth: RemappedBerth, runtime: str) -> None:
    assert "name=userns" in berth.docker("info", "-f", "{{.SecurityOptions}}").stdout
    assert berth.run(runtime, "busybox", "cat", "/proc/self/uid_map", "/proc/self/gid_map") == f"{ALONE} {ALONE}"
    script = "id -u; stat -c %u:%g / /bin /etc/hosts /etc/resolv.conf /etc/hostname /dev/shm /dev /t /u"
    found = berth.run(runtime, "--tmpfs=/t", "--tmpfs=/u:uid=5,gid=6", "busybox", "sh", "-c", script)
    assert found == "0 0:0 0:0 0:0 0:0 0:0 0:0 0:0 0:0 5:6"
    script = "echo 1.2.3.4 x >>/etc/hosts; mkdir /sub && touch /sub/f && chown 7:8 /sub/f && stat -c %u:%g /sub/f"
    assert berth.run(runtime, "busybox", "sh", "-c", script) == "7:8"
    assert berth.run(runtime, "-u", "33:44", "busybox", "sh", "-c", "id -u; id -g; echo x >/dev/null") == "33 44"
    assert berth.run(runtime, "-t", "busybox", "sh", "-c", "stat -c %u $(tty)") == "0"
    assert berth.run(runtime, "--device=/dev/fuse", "busybox", "sh", "-c", "[ -c /dev/fuse ] && echo there") == "there"


def test_files_in_folders_of_the_host_are_the_subordinate_users(
    berth: RemappedBerth, runtime: str, shared: Path
) -> None:
    volumes = ("-v", f"{shared}:/b", "-v", f"{shared}/made/here:/made")
    berth.run(runtime, *volumes, "busybox", "sh", "-c", "touch /b/f /made/f; touch /b/g; chown 3:4 /b/g")
    assert owner(shared / "f") == owner(shared / "made" / "here" / "f") == (FIRST, FIRST)
    assert owner(shared / "g") == (FIRST + 3, FIRST + 4)
    assert owner(shared / "made") == owner(shared / "made" / "here") == (FIRST, FIRST)
    secret = shared / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    assert "Permission denied" in berth.docker("run", "--rm", *volumes, "busybox", "cat", "/b/secret").stderr


def test_volumes_have_the_owners_that_containers_see(berth: RemappedBerth, runtime: str) -> None:
    berth.docker("rm", "-f", "maker")
    script = "mkdir /data && touch /data/f && chown 5:6 /data/f && chown 7:8 /data"
    berth.docker("run", "--name=maker", runtime, "busybox", "sh", "-c", script, check=True)
    berth.docker("commit", "maker", "with-data", check=True)
    berth.docker("rm", "maker", check=True)
    look = ("with-data", "stat", "-c", "%u:%g", "/data", "/data/f")
    assert berth.run(runtime, "-v", "filled:/data", *look) == "7:8 5:6"
    assert berth.run(runtime, "-v", "filled:/data", "--userns=host", *look) == "7:8 5:6"
    assert owner(berth.data_root / "volumes" / "filled" / "_data" / "f") == (5, 6)
    assert (berth.data_root / "volumes").stat().st_mode & 0o777 == 0o700
    size = ("--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=mode=1777,size=1m")
    berth.docker("volume", "create", *size, "memory", check=True)
    assert berth.run(runtime, "-v", "memory:/m", "busybox", "sh", "-c", "touch /m/f; stat -c %u /m/f") == "0"
    berth.docker("volume", "rm", "filled", "memory", check=True)


def test_an_image_that_is_mounted_has_its_owners(berth: RemappedBerth, runtime: str) -> None:
    for options in ("", ",image-subpath=bin"):
        mount = f"--mount=type=image,source=busybox,target=/i{options}"
        assert berth.run(runtime, mount, "busybox", "stat", "-c", "%u:%g", "/i") == "0:0"


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    """A file of 7:8."""
    file = tmp_path / "file"
    file.write_text("x")
    os.chown(file, 7, 8)
    return file


def test_what_leaves_and_enters_a_container_has_inner_ids(
    berth: RemappedBerth, runtime: str, own_file: Path, shared: Path
) -> None:
    berth.docker("rm", "-f", "box")
    script = "mkdir /own && touch /own/f && chown 5:6 /own/f && rm /etc/nsswitch.conf; echo made; exec sleep 1000"
    volumes = ("-v", "boxes:/vol", "-v", f"{shared}:/host")
    berth.docker("run", "-d", "--name=box", runtime, *volumes, "busybox", "sh", "-c", script, check=True)
    while not berth.docker("logs", "box").stdout:
        time.sleep(0.05)
    for state in ("running", "stopped"):
        for place in PLACES:
            berth.docker("cp", "-a", str(own_file), f"box:{place}{state}", check=True)
        assert berth.archived("cp", "box:/own", "-") == {"own": (0, 0), "own/f": (5, 6)}
        assert berth.archived("export", "box")["own/f"] == (5, 6)
        assert {"A /own", "A /own/f", "D /etc/nsswitch.conf"} <= set(berth.docker("diff", "box").stdout.splitlines())
        berth.docker("stop", "-t0", "box", check=True)
    berth.docker("commit", "box", "boxed", check=True)
    berth.docker("start", "box", check=True)
    entered = [f"{place}{state}" for place in PLACES for state in ("running", "stopped")]
    assert berth.exec("box", "stat", "-c", "%u:%g", *entered) == " ".join(["7:8"] * len(entered))
    assert owner(shared / "running") == owner(shared / "stopped") == (FIRST + 7, FIRST + 8)
    assert berth.run(runtime, "boxed", "stat", "-c", "%u:%g", "/own/f", "/stopped") == "5:6 7:8"
    assert {owner(path) for path in (berth.data_root / "snapshots").glob("*/diff/own/f")} == {(5, 6)}
    berth.docker("rm", "-f", "box", check=True)
    berth.docker("volume", "rm", "boxes", check=True)


def test_what_runs_beside_the_first_process(berth: RemappedBerth, runtime: str) -> None:
    berth.docker("rm", "-f", "box")
    probe = ("--health-cmd=touch /probed", "--health-interval=200ms")
    berth.docker("run", "-d", "--name=box", runtime, *probe, "busybox", "sh", "-c", "echo said; sleep 1000", check=True)
    assert berth.exec("box", "id", "-u") == "0"
    assert berth.exec("box", "sh", "-c", "echo anew >/dev/stdout; cat /proc/self/uid_map") == f"anew {ALONE}"
    assert berth.docker("exec", "-u", "33:44", "box", "id", check=True).stdout.startswith("uid=33(www-data) gid=44")
    assert berth.docker("exec", "-t", "box", "tty", check=True).stdout.strip() == "/dev/pts/0"
    assert berth.docker("logs", "box").stdout == "said\n"
    assert str(FIRST) in berth.docker("top", "box", "-o", "pid,uid,args").stdout
    end = time.monotonic() + 20
    while berth.docker("inspect", "-f", "{{.State.Health.Status}}", "box").stdout.strip() != "healthy":
        assert time.monotonic() < end
        time.sleep(0.1)
    assert berth.exec("box", "stat", "-c", "%u", "/probed") == "0"
    berth.docker("pause", "box", check=True)
    berth.docker("unpause", "box", check=True)
    berth.docker("restart", "-t0", "box", check=True)
    assert berth.exec("box", "cat", "/proc/self/uid_map") == ALONE
    berth.docker("rm", "-f", "box", check=True)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (
            "--privileged",
            "privileged mode is incompatible with user namespaces.  You must run the container in the host namespace",
        ),
        ("--network=host", "cannot share the host's network namespace when user namespaces are enabled"),
        ("--pid=host", "cannot share the host PID namespace when user namespaces are enabled"),
        ("--ipc=host", "cannot share the host IPC namespace when user namespaces are enabled"),
    ],
)
def test_the_hosts_powers_take_the_hosts_ids(berth: RemappedBerth, option: str, words: str) -> None:
    assert words in berth.refused(option, "busybox", "true")
    assert berth.run(option, "--userns=host", "busybox", "cat", "/proc/self/uid_map") == ALL


def test_containers_share_namespaces_and_users_with_them(berth: RemappedBerth, runtime: str) -> None:
    berth.docker("rm", "-f", "box", "other", "host")
    serve = "mkdir /w; echo hello >/w/index.html; echo kept >/dev/shm/f; exec httpd -f -p 80 -h /w"
    command = ("--ipc=shareable", "busybox", "sh", "-c", serve)
    port = free_port()
    berth.docker("network", "create", "together", check=True)
    published = ("--network=together", "-p", f"127.0.0.1:{port}:80")
    berth.docker("run", "-d", "--name=box", runtime, *published, *command, check=True)
    berth.docker("run", "-d", "--name=other", runtime, *command, check=True)
    berth.docker("run", "-d", "--name=host", "--userns=host", *command, check=True)
    time.sleep(0.3)
    assert berth.run(runtime, "--network=together", "busybox", "wget", "-qO-", "http://box/") == "hello"
    script = "wget -qO- 127.0.0.1; cat /proc/self/uid_map; ls /sys/class/net"
    assert berth.run(runtime, "--network=container:box", "busybox", "sh", "-c", script) == f"hello {ALONE} eth0 lo"
    script = "ps | grep -c [h]ttpd; cat /proc/1/root/w/index.html"
    assert berth.run(runtime, "--pid=container:box", "busybox", "sh", "-c", script) == "1 hello"
    assert berth.run(runtime, "--ipc=container:box", "busybox", "cat", "/dev/shm/f") == "kept"
    assert (
        berth.run(runtime, "--userns=host", "--network=container:box", "busybox", "wget", "-qO-", "127.0.0.1")
        == "hello"
    )
    assert "that are in different user namespaces" in berth.refused(
        runtime, "--network=container:box", "--pid=container:other", "busybox", "true"
    )
    for kind in ("network", "pid", "ipc"):
        assert "does not have this daemon's user namespace" in berth.refused(
            f"--{kind}=container:host", "busybox", "true"
        )
    berth.docker("rm", "-f", "box", "other", "host", check=True)
    berth.docker("network", "rm", "together", check=True)


def test_the_setting_may_change_under_containers(berth: RemappedBerth, own_file: Path) -> None:
    berth.docker("rm", "-f", "box")
    script = "mkdir -p /own && touch /own/f && chown 5:6 /own/f; exec sleep 1000"
    berth.docker("run", "-d", "--name=box", "-v", "boxes:/vol", "busybox", "sh", "-c", script, check=True)
    try:
        for options, before, after in ((REMAP, ALONE, ALONE), ((), ALONE, ALL), (REMAP, ALL, ALONE)):
            if before != after and options:
                berth.docker("create", "--name=powerful", "--privileged", "--network=host", "busybox", check=True)
            berth.again(*options, by_kill=True)
            assert berth.exec("box", "cat", "/proc/self/uid_map") == before
            berth.docker("cp", "-a", str(own_file), "box:/vol/f", check=True)
            assert berth.exec("box", "stat", "-c", "%u:%g", "/own/f", "/vol/f") == "5:6 7:8"
            joined = ("--network=container:box", "busybox", "true")
            if before != after and options:
                assert "does not have this daemon's user namespace" in berth.refused(*joined)
                assert "privileged mode is incompatible" in berth.docker("start", "powerful").stderr
            else:
                berth.run(*joined)
            berth.docker("restart", "-t0", "box", check=True)
            assert berth.exec("box", "cat", "/proc/self/uid_map") == after
            assert berth.exec("box", "stat", "-c", "%u:%g", "/own/f", "/vol/f") == "5:6 7:8"
    finally:
        berth.again(*REMAP)
    berth.docker("rm", "-f", "box", "powerful", check=True)
    berth.docker("volume", "rm", "boxes", check=True)


def test_copies_of_images_have_their_owners_too() -> None:
    with running(RemappedBerth(options=(*REMAP, "--storage-driver=vfs"), registry=False)) as daemon:
        script = "touch /f; chown 5:6 /f; stat -c %u:%g / /bin /f; cat /proc/self/uid_map"
        assert daemon.run("busybox", "sh", "-c", script) == f"0:0 0:0 5:6 {ALONE}"
        mount = "--mount=type=image,source=busybox,target=/i"
        assert daemon.run(mount, "busybox", "stat", "-c", "%u:%g", "/i") == "0:0"


def test_a_file_system_that_maps_no_ids_ends_the_start() -> None:
    class Elsewhere(RemappedBerth):
        def command(self) -> list[str]:
            command = super().command()
            self.data_root.mkdir()
            script = command.index("-c") + 1
            command[script] = f"mount -t ramfs ramfs {self.data_root} && {command[script]}"
            return command

    daemon = Elsewhere(options=REMAP, registry=False)
    try:
        with pytest.raises(RuntimeError, match="userns-remap cannot be had with .*: Invalid argument"):
            daemon.start()
    finally:
        daemon.stop()
        daemon.remove()


@pytest.mark.parametrize(
    ("setting", "mode", "words"),
    [
        ("nosuch", 0o711, 'Error during uid lookup for "nosuch": getent unable to find entry "nosuch" in passwd'),
        ("bin", 0o711, 'no subuid ranges found for user "bin"'),
        ("daemon", 0o700, "restricts access to the remapped root uid/gid; please fix by allowing 'o+x' permissions"),
    ],
)
def test_what_cannot_be_ends_the_start_with_one_sentence(setting: str, mode: int, words: str) -> None:
    class Closed(RemappedBerth):
        def command(self) -> list[str]:
            command = super().command()
            self.root.chmod(mode)
            return command

    daemon = Closed(options=("--userns-remap", setting), registry=False)
    try:
        with pytest.raises(RuntimeError, match="failed to start daemon: ") as caught:
            daemon.start()
        assert words in str(caught.value)
    finally:
        daemon.stop()
        daemon.remove()
