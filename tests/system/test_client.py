"""berth's own command line on a real daemon: what people without docker use."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

from tests.support.daemons import Berth


def _out(berth: Berth, *arguments: str, stdin: bytes = b"") -> str:
    done = berth.client(*arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


def test_run_keeps_streams_and_the_exit_code_apart(berth: Berth) -> None:
    done = berth.client("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")


def test_stdin_reaches_the_container_and_ends(berth: Berth) -> None:
    data = os.urandom(300_000)
    done = berth.client("run", "-i", "--rm", "busybox", "sh", "-c", "cat; echo the end >&2", stdin=data)
    assert (done.returncode, done.stdout, done.stderr) == (0, data, b"the end\n")


def test_exit_codes_of_what_cannot_start(berth: Berth) -> None:
    assert berth.client("run", "--rm", "busybox", "nosuch").returncode == 127
    assert berth.client("run", "--rm", "busybox", "/etc/passwd").returncode == 126
    assert berth.client("run", "--rm", "--pull", "never", "nosuch").returncode == 125
    assert _out(berth, "ps", "-aq") == ""


def test_life_of_a_container(berth: Berth) -> None:
    identifier = _out(berth, "run", "-d", "--name", "life", "-e", "A=1", "busybox", "sh", "-c", "echo $A; sleep 100")
    assert _out(berth, "exec", "life", "hostname") == identifier[:12]
    assert berth.client("exec", "life", "sh", "-c", "exit 9").returncode == 9
    assert _out(berth, "logs", "life") == "1"
    listed = _out(berth, "ps")
    assert identifier[:12] in listed
    assert listed.endswith("life")
    assert _out(berth, "stop", "-t", "0", "life") == "life"
    assert _out(berth, "wait", "life") == "137"
    assert '"Status": "exited"' in _out(berth, "inspect", "life")
    assert _out(berth, "rm", "life") == "life"
    gone = berth.client("inspect", "life")
    assert (gone.returncode, gone.stderr) == (1, b"Error: No such object: life\n")


def test_a_real_terminal(berth: Berth) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "cli", "-H", berth.host, "run", "-it", "--rm", "busybox", "sh"]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=berth.environment(), close_fds=True
    )
    os.close(theirs)
    seen = _until(ours, b"# ")
    os.write(ours, b"tty; echo $((6 * 7)); exit 5\n")
    seen += _until(ours, b"42\r\n")
    assert b"/dev/pts/0" in seen
    assert process.wait(20) == 5
    os.close(ours)


def test_detach_keys_leave_the_container_running(berth: Berth) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "cli", "-H", berth.host, "run", "-it", "--name", "stays", "busybox", "sh"]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=berth.environment(), close_fds=True
    )
    os.close(theirs)
    _until(ours, b"# ")
    os.write(ours, b"\x10\x11")
    assert process.wait(20) == 0
    os.close(ours)
    assert '"Running": true' in _out(berth, "inspect", "stays")
    _out(berth, "rm", "-f", "stays")


def _until(descriptor: int, wanted: bytes, seconds: float = 20) -> bytes:
    seen = b""
    end = time.monotonic() + seconds
    while wanted not in seen:
        ready, _, _ = select.select([descriptor], [], [], max(0, end - time.monotonic()))
        assert ready, f"{wanted!r} did not come; seen: {seen!r}"
        seen += os.read(descriptor, 4096)
    return seen


def test_push_needs_no_login_on_loopback_and_pull_brings_it_back(berth: Berth) -> None:
    name = f"localhost:{berth.registry.rpartition(':')[2]}/team/busybox:1"
    _out(berth, "tag", "busybox", name)
    assert "digest: sha256:" in _out(berth, "push", name)
    assert f"Untagged: {name}" in _out(berth, "rmi", name)
    assert "Status: Downloaded newer image" in _out(berth, "pull", name)
    assert _out(berth, "run", "--rm", name, "echo", "back") == "back"
    _out(berth, "rmi", name)


def test_save_and_load(berth: Berth, tmp_path: Path) -> None:
    archive = str(tmp_path / "image.tar")
    _out(berth, "tag", "busybox", "saved:1")
    _out(berth, "save", "-o", archive, "saved:1")
    _out(berth, "rmi", "saved:1")
    assert _out(berth, "load", "-i", archive) == "Loaded image: saved:1"
    _out(berth, "rmi", "saved:1")


def test_a_wrong_login_is_refused_and_a_right_one_is_kept(berth: Berth) -> None:
    server = f"localhost:{berth.registry.rpartition(':')[2]}"
    command = [sys.executable, "-m", "cli", "registry", "user", "add", "me", "--password-stdin"]
    root = str(berth.data_root / "registry")
    subprocess.run([*command, "--root", root], input=b"right", check=True, capture_output=True, env=berth.environment())
    wrong = berth.client("login", "-u", "me", "--password-stdin", server, stdin=b"wrong")
    assert wrong.returncode == 1
    assert b"Login Succeeded" in berth.client("login", "-u", "me", "--password-stdin", server, stdin=b"right").stdout
    assert server in (berth.root / "docker-config" / "config.json").read_text()
    assert b"Removing" in berth.client("logout", server).stdout
