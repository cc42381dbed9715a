"""Containers looked into and changed as they are: top, stats, update, diff, cp, export, commit, websockets."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import aiohttp
import pytest

from engine.runtime.cgroups import Cgroups
from tests.support.daemons import Berth

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

Docker = Callable[..., CompletedProcess[str]]
MIB = 1 << 20


def api(berth: Berth, method: str, path: str, body: str | None = None) -> tuple[int, Any]:
    """One request over the socket; the status and the JSON answer."""
    command = [
        "curl",
        "-sS",
        "-X",
        method,
        "--unix-socket",
        str(berth.socket),
        "-w",
        "\n%{http_code}",
        f"http://d{path}",
    ]
    if body is not None:
        command += ["-H", "Content-Type: application/json", "-d", body]
    text = subprocess.run(command, capture_output=True, check=True, timeout=30).stdout.decode()
    answer, _, status = text.rpartition("\n")
    return int(status), json.loads(answer) if answer.strip() else None


def inspect(docker: Docker, name: str, form: str) -> str:
    return docker("inspect", "-f", form, name, check=True).stdout.strip()


@pytest.fixture
def running(docker: Docker, busybox: str) -> Iterator[str]:
    """The name of a container that runs and has written a file."""
    script = "echo hi >/new && rm /etc/group && exec sleep 1000"
    docker("run", "-d", "--name", "more", "--label", "a=b", busybox, "sh", "-c", script, check=True)
    for _ in range(100):
        if docker("exec", "more", "test", "!", "-e", "/etc/group").returncode == 0:
            break
        time.sleep(0.02)
    yield "more"
    docker("rm", "-f", "more", check=True)


def test_top_lists_the_processes_as_the_host_sees_them(docker: Docker, running: str) -> None:
    docker("exec", "-d", running, "sleep", "777", check=True)
    lines = docker("top", running, check=True).stdout.splitlines()
    assert lines[0].split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    commands = {" ".join(line.split()[7:]): int(line.split()[1]) for line in lines[1:]}
    assert set(commands) == {"sleep 1000", "sleep 777"}
    assert commands["sleep 1000"] == int(inspect(docker, running, "{{.State.Pid}}"))
    assert docker("top", running, "-o", "pid,comm", check=True).stdout.split()[:2] == ["PID", "COMMAND"]
    assert "Couldn't find PID field in ps output" in docker("top", running, "-o", "comm").stderr


def test_top_of_a_container_that_does_not_run(docker: Docker, berth: Berth, busybox: str) -> None:
    docker("create", "--name", "idle", busybox, check=True)
    status, answer = api(berth, "GET", "/containers/idle/top")
    identifier = inspect(docker, "idle", "{{.Id}}")
    assert (status, answer["message"]) == (409, f"container {identifier} is not running")
    docker("rm", "idle", check=True)


def test_stats_count_what_the_container_does(docker: Docker, berth: Berth, running: str) -> None:
    docker("exec", "-d", running, "sh", "-c", "timeout 6 yes >/dev/null", check=True)
    _, shown = api(berth, "GET", f"/v1.51/containers/{running}/stats?stream=0")
    used = shown["cpu_stats"]["cpu_usage"]["total_usage"] - shown["precpu_stats"]["cpu_usage"]["total_usage"]
    machine = shown["cpu_stats"]["system_cpu_usage"] - shown["precpu_stats"]["system_cpu_usage"]
    assert machine > 0 and used > 0.05e9
    assert shown["pids_stats"]["current"] >= 2
    assert 0 < shown["memory_stats"]["usage"] < shown["memory_stats"]["limit"]
    assert set(shown["networks"]) == {"eth0"}
    row = docker("stats", "--no-stream", "--format", "{{.Name}} {{.CPUPerc}} {{.MemUsage}}", running, check=True).stdout
    assert row.split()[0] == running and float(row.split()[1].rstrip("%")) > 1.0


def test_stats_of_a_stopped_container_are_zeros(docker: Docker, berth: Berth, busybox: str) -> None:
    docker("create", "--name", "idle", busybox, check=True)
    _, shown = api(berth, "GET", "/containers/idle/stats?stream=0")
    assert (shown["read"], shown["memory_stats"], shown["pids_stats"]) == ("0001-01-01T00:00:00Z", {}, {})
    row = docker("stats", "--no-stream", "--format", "{{.Name}} {{.CPUPerc}} {{.PIDs}}", "idle", check=True).stdout
    assert row.split() == ["idle", "0.00%", "0"]
    docker("rm", "idle", check=True)
    assert api(berth, "GET", "/containers/idle/stats?stream=1&one-shot=1")[0] == 400


def test_a_stream_of_stats_ends_with_the_container(docker: Docker, berth: Berth, busybox: str) -> None:
    docker("run", "-d", "--name", "short", busybox, "sleep", "1000", check=True)
    command = ["curl", "-sSN", "--unix-socket", str(berth.socket), "http://d/containers/short/stats"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as stream:
        assert stream.stdout is not None
        first = json.loads(stream.stdout.readline())
        second = json.loads(stream.stdout.readline())
        docker("rm", "-f", "short", check=True)
        rest = stream.communicate(timeout=5)[0]
    assert second["preread"] == first["read"] < second["read"]
    assert stream.returncode == 0 and len(rest.splitlines()) <= 2


def kernel_limits(docker: Docker, name: str) -> Any:
    cgroups = Cgroups.detect_sync()
    return cgroups.read_limits_sync(cgroups.container_path(inspect(docker, name, "{{.Id}}")))


def test_update_changes_a_running_container(docker: Docker, berth: Berth, running: str) -> None:
    cgroups = Cgroups.detect_sync()
    processors = ("--cpuset-cpus", "0") if "cpuset" in cgroups.controllers else ()
    limits = ("-m", "50m", "--memory-swap", "100m", "--cpus", "0.5", "--pids-limit", "33", *processors)
    docker("update", *limits, "--cpu-shares", "300", "--restart", "unless-stopped", running, check=True)
    now = kernel_limits(docker, running)
    assert (now.memory, now.cpu_quota, now.cpu_period, now.pids) == (50 * MIB, 50_000, 100_000, 33)
    assert now.cpuset_cpus == ("0" if processors else "")
    assert (now.cpu_shares, now.cpu_weight) == ((300, 0) if cgroups.version == 1 else (0, 12))
    shown = "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.RestartPolicy.Name}}"
    assert inspect(docker, running, shown) == f"{50 * MIB} 500000000 unless-stopped"
    docker("update", "--pids-limit", "-1", running, check=True)
    after = kernel_limits(docker, running)
    assert (after.pids, after.memory) == (0, 50 * MIB)


def test_updates_that_are_refused_change_nothing(docker: Docker, berth: Berth, running: str) -> None:
    refused = docker("update", "-m", "64m", "--cpu-shares", "55", running)
    assert "Memory limit should be smaller than already set memoryswap limit" in refused.stderr
    assert api(berth, "POST", f"/containers/{running}/update", '{"Memory": 64000000}')[0] == 409
    assert "unknown policy 'sometimes'" in docker("update", "--restart", "sometimes", running).stderr
    assert inspect(docker, running, "{{.HostConfig.Memory}} {{.HostConfig.CpuShares}}") == "0 0"


def test_an_update_before_the_start_is_there_after_it(docker: Docker, busybox: str) -> None:
    docker("create", "--name", "late", busybox, "sleep", "1000", check=True)
    docker("update", "-m", "40m", "--memory-swap", "80m", "--cpu-quota", "20000", "late", check=True)
    docker("start", "late", check=True)
    now = kernel_limits(docker, "late")
    assert (now.memory, now.cpu_quota) == (40 * MIB, 20_000)
    docker("rm", "-f", "late", check=True)


def test_diff_cp_and_export(docker: Docker, running: str, folder: Path) -> None:
    assert docker("diff", running, check=True).stdout.splitlines() == ["C /etc", "D /etc/group", "A /new"]
    (folder / "tree" / "sub").mkdir(parents=True)
    (folder / "tree" / "sub" / "file").write_text("content")
    docker("cp", str(folder / "tree"), f"{running}:/tmp/", check=True)
    assert docker("exec", running, "cat", "/tmp/tree/sub/file", check=True).stdout == "content"
    docker("cp", f"{running}:/tmp/tree/.", str(folder / "back"), check=True)
    assert (folder / "back" / "sub" / "file").read_text() == "content"
    docker("export", "-o", str(folder / "all.tar"), running, check=True)
    with tarfile.open(folder / "all.tar") as archive:
        names = set(archive.getnames())
    assert "new" in names and "etc/group" not in names and "tmp/tree/sub/file" in names
    assert "Could not find the file /nope in container more" in docker("cp", f"{running}:/nope", "-").stderr


def test_cp_does_not_touch_the_devices_of_a_running_container(docker: Docker, busybox: str, folder: Path) -> None:
    (folder / "file").write_text("v")
    (folder / "bound").mkdir()
    docker("run", "-d", "--name", "devices", "-v", f"{folder}/bound:/dev/bound", busybox, "sleep", "1000", check=True)
    for place in ("null", "other", "shm/file", "bound/file"):
        docker("cp", str(folder / "file"), f"devices:/dev/{place}", check=True)
    script = "test -c /dev/null && test ! -e /dev/other && cat /dev/shm/file /dev/bound/file"
    assert docker("exec", "devices", "sh", "-c", script, check=True).stdout == "vv"
    docker("cp", "devices:/dev/null", str(folder / "copy"), check=True)
    assert (folder / "copy").read_text() == "v"
    docker("rm", "-f", "-v", "devices", check=True)


def test_cp_sees_volumes_of_a_container_that_does_not_run(docker: Docker, busybox: str, folder: Path) -> None:
    (folder / "bound").mkdir()
    (folder / "file").write_text("v")
    docker("create", "--name", "still", "-v", "/vol", "-v", f"{folder}/bound:/bound", busybox, check=True)
    docker("cp", str(folder / "file"), "still:/vol/", check=True)
    docker("cp", str(folder / "file"), "still:/bound/renamed", check=True)
    assert (folder / "bound" / "renamed").read_text() == "v"
    docker("cp", "still:/vol/file", str(folder / "copy"), check=True)
    assert (folder / "copy").read_text() == "v"
    assert docker("diff", "still", check=True).stdout.strip() in ("", "A /bound\nA /vol")
    docker("rm", "-v", "still", check=True)


def test_commit_keeps_files_and_settings(docker: Docker, running: str) -> None:
    changes = ("-c", "ENV X=1 Y=2", "-c", "LABEL x=y", "-c", "EXPOSE 80", "-c", 'CMD ["cat", "/new"]')
    identifier = docker("commit", "-m", "why", "-a", "who", *changes, running, "made:1", check=True).stdout.strip()
    assert identifier.startswith("sha256:")
    shown = json.loads(docker("image", "inspect", "made:1", check=True).stdout)[0]
    assert (shown["Id"], shown["Author"], shown["Comment"]) == (identifier, "who", "why")
    assert shown["Config"]["Labels"] == {"a": "b", "x": "y"}
    assert shown["Config"]["Env"][-2:] == ["X=1", "Y=2"]
    assert list(shown["Config"]["ExposedPorts"]) == ["80/tcp"]
    assert docker("run", "--rm", "made:1", check=True).stdout == "hi\n"
    gone = docker("run", "--rm", "made:1", "test", "-e", "/etc/group")
    assert gone.returncode == 1
    top = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}|{{.Comment}}", "made:1", check=True).stdout
    assert top.splitlines()[0] == "sh -c echo hi >/new && rm /etc/group && exec sleep 1000|why"
    assert inspect(docker, running, "{{.State.Status}}") == "running"
    docker("rmi", "made:1", check=True)


def test_commit_of_an_unchanged_container_adds_no_layer(docker: Docker, busybox: str) -> None:
    docker("create", "--name", "same", busybox, check=True)
    docker("commit", "same", "same:1", check=True)
    layers = "{{json .RootFS.Layers}}"
    before, after = (docker("image", "inspect", "-f", layers, name, check=True).stdout for name in (busybox, "same:1"))
    assert before == after
    docker("rm", "same", check=True)
    docker("rmi", "same:1", check=True)


def test_commits_that_are_refused(docker: Docker, berth: Berth, running: str) -> None:
    assert "must be lowercase" in docker("commit", running, "UPPER").stderr
    assert api(berth, "POST", "/commit?container=nope") == (404, {"message": "No such container: nope"})
    status, answer = api(berth, "POST", f"/commit?container={running}&changes=RUN%20x")
    assert (status, answer["message"]) == (400, "run is not a valid change command")


def test_events_have_dockers_attributes(docker: Docker, running: str, folder: Path) -> None:
    since = time.time()
    (folder / "f").write_text("x")
    docker("top", running, check=True)
    docker("update", "--cpu-shares", "200", running, check=True)
    docker("cp", str(folder / "f"), f"{running}:/f", check=True)
    docker("cp", f"{running}:/f", str(folder / "g"), check=True)
    docker("export", "-o", str(folder / "e.tar"), running, check=True)
    image = docker("commit", "-m", "note", "-p=false", running, "ev:1", check=True).stdout.strip()
    window = ("--since", f"{since:.6f}", "--until", f"{time.time() + 0.01:.6f}")
    lines = docker("events", *window, "--filter", "type=container", "--format", "{{json .}}", check=True).stdout
    events = [json.loads(line) for line in lines.splitlines()]
    actions = [event["Action"] for event in events]
    assert [a for a in actions if not a.startswith("exec")] == [
        "top", "update", "extract-to-dir", "archive-path", "export", "commit",
    ]  # fmt: skip
    attributes = events[-1]["Actor"]["Attributes"]
    assert attributes["a"] == "b" and attributes["name"] == running
    assert (attributes["comment"], attributes["imageID"], attributes["imageRef"]) == ("note", image, "ev:1")
    docker("rmi", "ev:1", check=True)


async def talk(berth: Berth, path: str, typed: bytes, until: bytes) -> bytes:
    """What a websocket client receives after typing, up to ``until`` or the end."""
    received = io.BytesIO()
    connector = aiohttp.UnixConnector(str(berth.socket))
    async with aiohttp.ClientSession(connector=connector) as session, session.ws_connect(f"http://d{path}") as ws:
        if typed:
            await ws.send_bytes(typed)
        async with asyncio.timeout(10):
            async for message in ws:
                received.write(message.data if isinstance(message.data, bytes) else message.data.encode())
                if until and until in received.getvalue():
                    break
    return received.getvalue()


async def test_attach_over_a_websocket(docker: Docker, berth: Berth, busybox: str) -> None:
    script = "echo ready; while read line; do echo out $line; echo err $line >&2; done"
    await asyncio.to_thread(docker, "run", "-di", "--name", "ws", busybox, "sh", "-c", script, check=True)
    both = "/containers/ws/attach/ws?stream=1&stdin=1&stdout=1&stderr=1"
    assert await talk(berth, f"{both}&logs=1", b"one\n", b"err one\n") == b"ready\nout one\nerr one\n"
    only_errors = "/containers/ws/attach/ws?stream=1&stdin=1&stderr=1"
    assert await talk(berth, only_errors, b"two\n", b"err two\n") == b"err two\n"
    assert await talk(berth, "/containers/ws/attach/ws?logs=1&stdout=1", b"", b"") == b"ready\nout one\nout two\n"
    await asyncio.to_thread(docker, "rm", "-f", "ws", check=True)


async def test_a_websocket_attached_before_the_start_gets_everything(
    docker: Docker, berth: Berth, busybox: str
) -> None:
    await asyncio.to_thread(docker, "create", "--name", "early", busybox, "echo", "first", check=True)
    path = "/v1.51/containers/early/attach/ws?stream=1&stdout=1"
    async with asyncio.TaskGroup() as group:
        heard = group.create_task(talk(berth, path, b"", b""))
        await _attached(berth, "early")
        await asyncio.to_thread(docker, "start", "early", check=True)
    assert heard.result() == b"first\n"
    await asyncio.to_thread(docker, "rm", "early", check=True)


async def _attached(berth: Berth, name: str) -> None:
    """Wait for the attach event: the daemon knows of the client."""
    only = f'{{"event":["attach"],"container":["{name}"]}}'.replace('"', "%22")
    for _ in range(200):
        url = f"http://d/events?since=1&until={time.time():.3f}&filters={only}"
        command = ["curl", "-sSg", "--unix-socket", str(berth.socket), url]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True)
        if b"attach" in done.stdout:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("nobody attached")


def test_a_plain_request_is_no_websocket(berth: Berth, running: str) -> None:
    assert api(berth, "GET", f"/containers/{running}/attach/ws?stream=1&stdout=1")[0] == 400
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(berth.socket))
        connection.sendall(b"GET /containers/nope/attach/ws HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
        assert b" 404 " in connection.recv(4096)


def test_a_read_only_bind_is_read_only_below_its_submounts(docker: Docker, busybox: str, folder: Path) -> None:
    below = folder / "tree" / "below"
    below.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(below)], check=True)
    try:
        for runtime in ("crun", "runc"):
            bind = ["--runtime", runtime, "--mount", f"type=bind,source={below.parent},target=/x,readonly"]
            refused = docker("run", "--rm", *bind, busybox, "touch", "/x/below/new")
            assert (refused.returncode, "Read-only file system" in refused.stderr) == (1, True), refused.stderr
            top = docker("run", "--rm", *bind, busybox, "touch", "/x/new")
            assert (top.returncode, "Read-only file system" in top.stderr) == (1, True), top.stderr
            flat = [*bind[:-1], f"{bind[-1]},bind-recursive=writable"]
            docker("run", "--rm", *flat, busybox, "touch", "/x/below/new", check=True)
    finally:
        subprocess.run(["umount", str(below)], check=True)


def test_a_bind_keeps_the_restrictions_of_what_it_shows(docker: Docker, busybox: str, folder: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,nosuid,nodev,noexec", "tmpfs", str(folder)], check=True)
    try:
        for runtime in ("crun", "runc"):
            show = [
                "run",
                "--rm",
                "--runtime",
                runtime,
                "-v",
                f"{folder}:/x",
                busybox,
                "grep",
                " /x ",
                "/proc/self/mountinfo",
            ]
            options = docker(*show, check=True).stdout.split()[5].split(",")
            assert {"ro", "nosuid", "nodev", "noexec"} <= set(options), (runtime, options)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_home_is_the_users(docker: Docker, busybox: str) -> None:
    for runtime in ("crun", "runc"):
        for user, home in (("root", "/root"), ("12345", "/"), ("daemon", None)):
            run = ["run", "--rm", "--runtime", runtime, "-u", user, busybox]
            expected = (
                home or docker(*run, "sh", "-c", "grep ^daemon: /etc/passwd | cut -d: -f6", check=True).stdout.strip()
            )
            assert docker(*run, "sh", "-c", "echo $HOME", check=True).stdout.strip() == expected, (runtime, user)
        docker("run", "-d", "--name", "home", "--runtime", runtime, busybox, "sleep", "1000", check=True)
        assert docker("exec", "-u", "12345", "home", "sh", "-c", "echo $HOME", check=True).stdout == "/\n"
        assert docker("exec", "-e", "HOME=/h", "home", "sh", "-c", "echo $HOME", check=True).stdout == "/h\n"
        docker("rm", "-f", "home", check=True)


def test_limits_that_are_none(docker: Docker, busybox: str) -> None:
    docker(
        "run", "-d", "--name", "none", "--cpu-quota", "-1", "--pids-limit", "-1", busybox, "sleep", "1000", check=True
    )
    docker("update", "--cpu-quota", "50000", "none", check=True)
    docker("update", "--cpu-quota", "-1", "none", check=True)
    read = "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cat /sys/fs/cgroup/cpu.max"
    assert docker("exec", "none", "sh", "-c", read, check=True).stdout.split()[0] in ("-1", "max")
    rules = ["--device-cgroup-rule", "c 10:* r", "--device-cgroup-rule", "b *:* rw", "--device-cgroup-rule", "a *:* m"]
    docker("run", "--rm", *rules, busybox, "true", check=True)
    docker("rm", "-f", "none", check=True)


def test_a_tmpfs_has_the_mode_of_what_it_covers(docker: Docker, busybox: str) -> None:
    docker("create", "--name", "closed", busybox, check=True)
    docker("run", "--name", "mode", busybox, "sh", "-c", "mkdir -m 700 /closed", check=True)
    docker("commit", "mode", "closed:1", check=True)
    docker("rm", "mode", "closed", check=True)
    for runtime in ("crun", "runc"):
        for options, mode in (("/closed", "700"), ("/closed:mode=1770", "1770"), ("/fresh", "1777")):
            command = ["run", "--rm", "--runtime", runtime, "--tmpfs", options, "closed:1"]
            shown = docker(*command, "stat", "-c", "%a", options.partition(":")[0], check=True).stdout.strip()
            if (runtime, options) != ("runc", "/closed:mode=1770"):  # runc 1.1 prefers the folder's even then
                assert shown == mode, (runtime, options)
    docker("rmi", "closed:1", check=True)
