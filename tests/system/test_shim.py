"""A container under its shim, for real: runtime, mounts, streams, exits, and what survives whom."""

import asyncio
import contextlib
import json
import os
import pickle
import shutil
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from engine.kernel.mount import MountStep
from engine.names import new_id
from engine.runtime import shims as shims_module
from engine.runtime.cgroups import Cgroups
from engine.runtime.oci import (
    PREFERENCE,
    ExecGroups,
    Runtime,
    RuntimeFailure,
    kill_leftover,
    probe_runtimes,
    trouble_running,
)
from engine.runtime.shims import (
    ExecExited,
    ExecSpec,
    Exited,
    LogSpec,
    Lost,
    OutOfMemory,
    Shim,
    ShimEvent,
    ShimLost,
    Shims,
    ShimSpec,
    read_exit_record,
)
from engine.tasks import Nursery, run_blocking
from tests.support.leaks import processes
from tests.support.slow_runtime import write_slow_runtime

pytestmark = pytest.mark.system

APPLETS = "sh true false sleep cat echo dd seq yes head mount tty stty kill id od printf ps touch ls wc".split()


def config(args: list[str], root: str, cgroup: str, terminal: bool = False) -> dict[str, Any]:
    capabilities = ["CAP_KILL", "CAP_SETUID", "CAP_SETGID"]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": terminal,
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "cwd": "/",
            "env": ["PATH=/bin", "TERM=xterm"],
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
        },
        "root": {"path": root},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666"],
            },
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
            "cgroupsPath": cgroup,
            "resources": {},
        },
    }


@dataclass
class Bench:
    """A folder with a layer, and what makes containers from it."""

    root: Path
    shims: Shims
    nursery: Nursery
    runtime: Runtime
    cgroups: Cgroups
    made: list[tuple[str, Path, str]]

    async def spec(self, *args: str, stdin: bool = False, terminal: bool = False, **changes: Any) -> ShimSpec:
        container_id = new_id()
        run_dir = self.root / container_id[:12]
        for name in ("rootfs", "upper", "work", "spill"):
            (run_dir / name).mkdir(parents=True)
        cgroup = self.cgroups.container_path(container_id, "/berth-test")
        (run_dir / "config.json").write_text(json.dumps(config(list(args), str(run_dir / "rootfs"), cgroup, terminal)))
        self.made.append((container_id, run_dir, cgroup))
        options = (f"lowerdir={self.root / 'layer'}", f"upperdir={run_dir / 'upper'}", f"workdir={run_dir / 'work'}")
        spec = ShimSpec(
            container_id=container_id,
            run_dir=run_dir,
            bundle=run_dir,
            runtime=self.runtime,
            mounts=(MountStep("overlay", str(run_dir / "rootfs"), "overlay", options),),
            terminal=terminal,
            open_stdin=stdin,
            stdin_once=stdin,
            console_size=None,
            log=LogSpec("json-file", str(run_dir / "log.json")),
            spill_dir=run_dir / "spill",
            hold_fds=(),
            cgroup_path=cgroup,
            program=args[0],
        )
        return replace(spec, **changes)

    async def start(self, *args: str, **changes: Any) -> Shim:
        shim = await self.shims.spawn(await self.spec(*args, **changes))
        await shim.run()
        return shim

    def edit(self, spec: ShimSpec, **linux: Any) -> None:
        document = json.loads((spec.bundle / "config.json").read_text())
        document["linux"].update(linux)
        (spec.bundle / "config.json").write_text(json.dumps(document))


@pytest.fixture(scope="session")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shims") / "layer"
    for name in ("bin", "proc", "dev", "tmp", "etc"):
        (folder / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", folder / "bin" / "busybox")
    for applet in APPLETS:
        (folder / "bin" / applet).symlink_to("busybox")
    (folder / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\n")
    return folder


@pytest.fixture(params=PREFERENCE)
async def bench(layer: Path, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    """Once with each runtime that works here; the default one always does."""
    root = layer.parent
    nursery = Nursery("shim-tests")
    shims = Shims(root / "exec", nursery)
    await shims.start()
    runtime = (await probe_runtimes({}, None, root)).known.get(request.param)
    trouble = "is not installed" if runtime is None else await trouble_running(runtime)
    if runtime is None or trouble:
        pytest.skip(f"{request.param} {trouble}")
    # Whatever the host: what a daemon makes of systemd's scopes is tests/system/test_systemd.py's to see.
    cgroups = await run_blocking(Cgroups.detect_sync, "cgroupfs")
    made: list[tuple[str, Path, str]] = []
    yield Bench(root, shims, nursery, runtime, cgroups, made)
    for container_id, run_dir, cgroup in made:
        shim = await shims.find(container_id, run_dir)
        if shim is not None:
            if shim.init_pid and shim.exit_record is None:
                await run_blocking(cgroups.kill_sync, cgroup)
                await shim.wait_exit()
            await shim.discard()
    await shims.aclose()
    await nursery.aclose()
    await run_blocking(cgroups.remove_sync, "/berth-test")
    for _container_id, run_dir, _cgroup in made:
        shutil.rmtree(run_dir)


def need(bench: Bench, *controllers: str) -> None:
    missing = set(controllers) - bench.cgroups.controllers
    if missing:
        pytest.skip(f"this host has no {', '.join(sorted(missing))} controller")


def choose_groups(bench: Bench, grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether execs have groups of their own, or marks."""
    if not grouped:
        monkeypatch.setattr(shims_module, "exec_groups", lambda _runtime, _version: ExecGroups.NO)
    elif bench.cgroups.version == 2:
        pytest.skip("execs have groups of their own on v1 only")


async def read_all(sock: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    parts = []
    with sock:
        while data := await loop.sock_recv(sock, 1 << 20):
            parts.append(data)
    return b"".join(parts)


def unframe(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while data:
        stream, length = struct.unpack(">BxxxL", data[:8])
        found[stream] = found.get(stream, b"") + data[8 : 8 + length]
        data = data[8 + length :]
    return found


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def output(bench: Bench, *args: str, **changes: Any) -> tuple[int, dict[int, bytes]]:
    shim = await bench.shims.spawn(await bench.spec(*args, **changes))
    sock = await shim.attach(stdin=False, stdout=True, stderr=True)
    await shim.run()
    data = await read_all(sock)
    record = await shim.wait_exit()
    await shim.discard()
    return record.exit_code, unframe(data)


async def gone(shim: Shim, seconds: float = 10) -> None:
    """The shim's process has ended, within so long."""
    async with asyncio.timeout(seconds):
        while Path(f"/proc/{shim.pid}").exists():
            await asyncio.sleep(0.005)


async def test_both_streams_reach_the_client_and_the_log(bench: Bench) -> None:
    spec = await bench.spec("sh", "-c", "echo out; echo err >&2; printf tail; exit 3")
    shim = await bench.shims.spawn(spec)
    sock = await shim.attach(stdin=False, stdout=True, stderr=True)
    events: list[ShimEvent] = []
    shim.subscribe(events.append)
    assert await shim.run() == shim.init_pid
    assert unframe(await read_all(sock)) == {1: b"out\ntail", 2: b"err\n"}
    record = await shim.wait_exit()
    assert record.exit_code == 3
    assert not record.oom_killed
    assert record.started_at <= record.finished_at
    assert events == [Exited(record)]
    assert await read_exit_record(spec.run_dir) == record
    logged = [(entry["stream"], entry["log"]) for entry in entries(spec.run_dir / "log.json")]
    assert sorted(logged) == [("stderr", "err\n"), ("stdout", "out\n"), ("stdout", "tail")]
    await shim.discard()


async def test_discard_leaves_neither_mount_nor_process_nor_group(bench: Bench) -> None:
    spec = await bench.spec("true")
    shim = await bench.shims.spawn(spec)
    assert str(spec.run_dir) not in Path("/proc/self/mountinfo").read_text()
    assert str(spec.run_dir / "rootfs") in Path(f"/proc/{shim.pid}/mountinfo").read_text()
    await shim.run()
    await shim.wait_exit()
    await shim.discard()
    await gone(shim, seconds=5)
    assert sorted(path.name for path in spec.run_dir.iterdir()) == [
        "config.json", "exit.json", "log.json", "rootfs", "spill", "upper", "work",
    ]  # fmt: skip
    assert not any(os.path.exists(folder) for folder in bench.cgroups.folders(spec.cgroup_path))
    assert await bench.shims.find(shim.container_id, spec.run_dir) is None


def slow(bench: Bench, seconds: float) -> Runtime:
    """The runtime under test, but it takes its time before it runs anything."""
    script = bench.root / f"slow-{bench.runtime.program}-{seconds}"
    return replace(bench.runtime, path=str(write_slow_runtime(script, bench.runtime.path, seconds)))


async def test_discard_ends_what_runs(bench: Bench) -> None:
    spec = await bench.spec("sleep", "1000")
    shim = await bench.shims.spawn(spec)
    await shim.run()
    await shim.discard()
    assert (await shim.wait_exit()).exit_code == 137
    await gone(shim)
    assert not any(os.path.exists(folder) for folder in bench.cgroups.folders(spec.cgroup_path))


@pytest.mark.parametrize("seconds", [0.543, 1234.5])
async def test_discard_ends_a_start_that_is_under_way(bench: Bench, seconds: float) -> None:
    """However that comes to its end: by itself, or because it takes too long."""
    spec = await bench.spec("sleep", "1000", runtime=slow(bench, seconds))
    shim = await bench.shims.spawn(spec)
    starting = asyncio.create_task(shim.run())
    await asyncio.sleep(0.1)
    await shim.discard()
    with contextlib.suppress(RuntimeFailure, ShimLost):
        await starting
    await gone(shim)
    assert not any(os.path.exists(folder) for folder in bench.cgroups.folders(spec.cgroup_path))
    assert not processes(f"sleep {seconds}")


async def test_a_shim_that_was_never_told_to_run_ends_with_its_daemon(bench: Bench) -> None:
    shim = await bench.shims.spawn(await bench.spec("true"))
    shim.close()
    await gone(shim)


async def test_a_shim_that_nobody_can_find_ends_its_container(bench: Bench) -> None:
    shim = await bench.start("sleep", "1000")
    init = shim.init_pid
    shim.close()
    await asyncio.sleep(3)
    assert Path(f"/proc/{init}").exists(), "another daemon may come"
    shim.run_dir.rename(shim.run_dir.with_suffix(".away"))
    await gone(shim)
    assert not Path(f"/proc/{init}").exists()
    shim.run_dir.with_suffix(".away").rename(shim.run_dir)


async def test_a_shim_that_does_not_answer_is_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    shim = await bench.start("sleep", "1000")
    shim.close()
    os.kill(shim.pid, signal.SIGSTOP)
    monkeypatch.setattr(shims_module, "HELLO_SECONDS", 0.2)
    assert await bench.shims.find(shim.container_id, shim.run_dir) is None
    await gone(shim)
    _container_id, _run_dir, cgroup = bench.made[-1]
    await kill_leftover(bench.runtime, shim.container_id, bench.cgroups, cgroup)


@pytest.mark.parametrize(
    ("args", "exit_hint", "words"),
    [
        (["nosuch"], 127, 'exec: "nosuch": executable file not found in $PATH'),
        (["/nosuch"], 127, 'exec: "/nosuch": stat /nosuch: no such file or directory'),
        (["/etc/passwd"], 126, 'exec: "/etc/passwd": permission denied'),
    ],
)
async def test_what_cannot_be_started_is_said_as_dockerd_says_it(
    bench: Bench, args: list[str], exit_hint: int, words: str
) -> None:
    shim = await bench.shims.spawn(await bench.spec(*args))
    sock = await shim.attach(stdin=False, stdout=True, stderr=True)
    with pytest.raises(RuntimeFailure) as failure:
        await shim.run()
    start = (
        "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: "
    )
    assert failure.value.message == f"{start}{words}: unknown"
    assert failure.value.exit_hint == exit_hint
    assert await read_all(sock) == b""
    await shim.discard()


async def test_a_mount_that_fails_is_an_error_at_spawn(bench: Bench) -> None:
    spec = await bench.spec("true")
    step = MountStep("overlay", str(spec.run_dir / "rootfs"), "overlay", ("lowerdir=/nowhere",))
    with pytest.raises(OSError, match="mount overlay on .*rootfs"):
        await bench.shims.spawn(replace(spec, mounts=(step,)))


async def test_many_short_relative_layers(bench: Bench) -> None:
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 5):
        pytest.skip("layers whose names fill more than a page need Linux 6.5")
    spec = await bench.spec("sh", "-c", "ls /marks | wc -l")
    layers = spec.run_dir / "layers-with-a-name-that-is-long-enough-to-need-the-new-mount-calls-when-repeated"
    names = [f"{'n' * 40}{number}" for number in range(126)]
    for number, name in enumerate(names):
        (layers / name / "marks").mkdir(parents=True)
        (layers / name / "marks" / str(number)).touch()
    shutil.copytree(bench.root / "layer", layers / "base", symlinks=True)
    options = (
        "lowerdir=" + ":".join([*names, "base"]),
        f"upperdir={spec.run_dir / 'upper'}",
        f"workdir={spec.run_dir / 'work'}",
    )
    step = MountStep("overlay", str(spec.run_dir / "rootfs"), "overlay", options, cwd=str(layers))
    shim = await bench.shims.spawn(replace(spec, mounts=(step,)))
    sock = await shim.attach(stdin=False, stdout=True, stderr=True)
    await shim.run()
    assert unframe(await read_all(sock)) == {1: b"126\n"}


async def test_input_flows_until_the_client_half_closes(bench: Bench) -> None:
    shim = await bench.shims.spawn(await bench.spec("cat", stdin=True))
    sock = await shim.attach(stdin=True, stdout=True, stderr=True, close_stdin_on_eof=True)
    await shim.run()
    loop = asyncio.get_running_loop()
    payload = os.urandom(3 << 20)

    async def feed() -> None:
        await loop.sock_sendall(sock, payload)
        sock.shutdown(socket.SHUT_WR)

    async with asyncio.TaskGroup() as group:
        feeding = group.create_task(feed())
        reading = group.create_task(read_all(sock))
    assert feeding.result() is None
    assert unframe(reading.result()) == {1: payload}
    assert (await shim.wait_exit()).exit_code == 0


async def test_a_client_that_does_not_read_delays_nobody_and_loses_nothing(bench: Bench) -> None:
    shim = await bench.shims.spawn(await bench.spec("sh", "-c", "seq 1 900000; echo end >&2"))
    slow = await shim.attach(stdin=False, stdout=True, stderr=False)
    await shim.run()
    assert (await shim.wait_exit()).exit_code == 0
    logged = entries(shim.run_dir / "log.json")
    assert len(logged) == 900_001
    await shim.discard()
    expected = b"".join(b"%d\n" % number for number in range(1, 900_001))
    assert unframe(await read_all(slow)) == {1: expected}


async def test_a_terminal_has_its_size_from_the_first_byte_and_can_be_resized(bench: Bench) -> None:
    script = "stty size; read line; stty size; tty"
    spec = await bench.spec("sh", "-c", script, stdin=True, terminal=True, console_size=(33, 99))
    document = json.loads((spec.bundle / "config.json").read_text())
    document["process"]["consoleSize"] = {"height": 33, "width": 99}  # crun starts the program before we can set it
    (spec.bundle / "config.json").write_text(json.dumps(document))
    shim = await bench.shims.spawn(spec)
    sock = await shim.attach(stdin=True, stdout=True, stderr=True)
    await shim.run()
    loop = asyncio.get_running_loop()
    seen = b""
    while b"33 99\r\n" not in seen:
        part = await loop.sock_recv(sock, 4096)
        assert part, seen
        seen += part
    await shim.resize(44, 111)
    await loop.sock_sendall(sock, b"go\n")
    rest = await read_all(sock)
    assert b"44 111\r\n/dev/pts/0\r\n" in rest
    assert (await shim.wait_exit()).exit_code == 0


async def test_signals_end_as_128_and_their_number(bench: Bench) -> None:
    shim = await bench.start("sleep", "100")
    await shim.kill(signal.SIGKILL)
    assert (await shim.wait_exit()).exit_code == 137
    with pytest.raises(ProcessLookupError):
        await shim.kill(signal.SIGTERM)


async def test_the_end_of_init_is_the_end_even_if_it_left_children_with_its_output(bench: Bench) -> None:
    code, streams = await asyncio.wait_for(output(bench, "sh", "-c", "(sleep 100; echo late) & echo now"), 10)
    assert (code, streams) == (0, {1: b"now\n"})


async def test_execs_have_streams_codes_and_a_memory(bench: Bench) -> None:
    shim = await bench.start("sleep", "100")
    events: list[ShimEvent] = []
    shim.subscribe(events.append)
    process = config(["sh", "-c", "cat; echo err >&2; exit 7"], "/", "")["process"]
    await shim.prepare_exec(ExecSpec("e1", process, open_stdin=True))
    sock = await shim.attach(stdin=True, stdout=True, stderr=True, exec_id="e1", close_stdin_on_eof=True)
    pid = await shim.start_exec("e1")
    assert Path(f"/proc/{pid}").exists()
    with pytest.raises(FileExistsError):
        await shim.start_exec("e1")
    await asyncio.get_running_loop().sock_sendall(sock, b"typed")
    sock.shutdown(socket.SHUT_WR)
    assert unframe(await read_all(sock)) == {1: b"typed", 2: b"err\n"}
    assert await shim.wait_exec("e1") == 7
    assert events == [ExecExited("e1", 7)]
    again = await bench.shims.find(shim.container_id, shim.run_dir)
    assert again is not None
    assert await again.wait_exec("e1") == 7
    again.close()


async def test_execs_fail_in_docker_words_and_can_be_killed(bench: Bench) -> None:
    shim = await bench.start("sleep", "100")
    with pytest.raises(RuntimeFailure) as failure:
        await shim.exec(ExecSpec("bad", config(["nosuch"], "/", "")["process"]))
    assert failure.value.message == (
        "OCI runtime exec failed: exec failed: unable to start container process: "
        'exec: "nosuch": executable file not found in $PATH: unknown'
    )
    assert failure.value.exit_hint == 127
    await shim.exec(ExecSpec("long", config(["sleep", "100"], "/", "")["process"]))
    await shim.kill_exec("long", signal.SIGTERM)
    assert await shim.wait_exec("long") == 143


async def test_no_signal_is_ignored_and_no_descriptor_open_in_a_container(bench: Bench) -> None:
    _code, streams = await output(bench, "cat", "/proc/self/status")
    ignored = next(line for line in streams[1].decode().splitlines() if line.startswith("SigIgn:"))
    assert int(ignored.split()[1], 16) & 0x7FFFFFFF == 0  # what lies above belongs to the C library
    _code, streams = await output(bench, "ls", "/proc/self/fd")
    assert streams == {1: b"0\n1\n2\n3\n"}  # 3 is the listing itself


@pytest.mark.parametrize("grouped", [True, False])
async def test_what_an_exec_leaves_behind_can_be_listed_and_killed(
    bench: Bench, grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_groups(bench, grouped, monkeypatch)
    shim = await bench.start("sleep", "100")
    assert shim.init_pid is not None
    script = "sleep 50 >/dev/null 2>&1 & setsid sleep 51 >/dev/null 2>&1 & true"
    await shim.exec(ExecSpec("left", config(["sh", "-c", script], "/", "")["process"]))
    assert await shim.wait_exec("left") == 0
    left = {b"sleep\x0050\x00", b"sleep\x0051\x00"}
    async with asyncio.timeout(5):
        while {Path(f"/proc/{pid}/cmdline").read_bytes() for pid in await shim.exec_pids("left")} != left:
            await asyncio.sleep(0.005)  # what was forked has not become another program yet
    await shim.kill_exec("left", signal.SIGKILL, everything=True)
    async with asyncio.timeout(5):
        while await shim.exec_pids("left"):
            await asyncio.sleep(0.005)
    with pytest.raises(ProcessLookupError):
        await shim.kill_exec("left", signal.SIGKILL, everything=True)
    assert shim.exit_record is None


@pytest.mark.parametrize("grouped", [True, False])
async def test_execs_started_at_once_are_told_apart(
    bench: Bench, grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_groups(bench, grouped, monkeypatch)
    shim = await bench.start("sleep", "60")
    names = [f"e{number}" for number in range(6)]
    started = await asyncio.gather(
        *(shim.exec(ExecSpec(name, config(["sh", "-c", "sleep 60 & wait"], "/", "")["process"])) for name in names)
    )
    groups = [await shim.exec_pids(name) for name in names]
    for pid, pids in zip(started, groups, strict=True):
        while len(pids) < 2:  # the shell has not forked yet
            await asyncio.sleep(0.01)
            pids[:] = await shim.exec_pids(names[started.index(pid)])
        assert pid in pids
    assert len({pid for pids in groups for pid in pids}) == 12
    for name in names:
        await shim.kill_exec(name, signal.SIGKILL, everything=True)
        assert await shim.wait_exec(name) == 137


async def test_a_container_in_the_hosts_pid_namespace_ends_as_a_whole(bench: Bench) -> None:
    spec = await bench.spec("sh", "-c", "sleep 123 & echo started", shared_pid=True)
    kinds = [{"type": kind} for kind in ("ipc", "uts", "mount", "network")]
    bench.edit(spec, namespaces=kinds)
    shim = await bench.shims.spawn(spec)
    sock = await shim.attach(stdin=False, stdout=True, stderr=True)
    await shim.run()
    assert unframe(await asyncio.wait_for(read_all(sock), 5)) == {1: b"started\n"}
    assert (await shim.wait_exit()).exit_code == 0
    async with asyncio.timeout(5):
        while await run_blocking(bench.cgroups.pids_sync, spec.cgroup_path):
            await asyncio.sleep(0.005)


async def test_a_log_that_cannot_be_written_does_not_stop_the_container(bench: Bench) -> None:
    code, streams = await output(bench, "sh", "-c", "seq 1 50000", log=LogSpec("json-file", "/dev/full"))
    assert code == 0
    assert streams[1].endswith(b"\n50000\n")


async def test_a_killed_daemon_costs_neither_output_nor_exit(bench: Bench) -> None:
    spec = await bench.spec("sh", "-c", "seq 1 200000; read x; echo $x; exit 5", stdin=True)
    (spec.run_dir / "spec.pickle").write_bytes(pickle.dumps(spec))
    program = f"""
import asyncio, os, pathlib, pickle, signal
from engine.runtime.shims import Shims
from engine.tasks import Nursery
async def main():
    shims = Shims(pathlib.Path({str(bench.root / "other")!r}), Nursery("n"))
    await shims.start()
    shim = await shims.spawn(pickle.loads(pathlib.Path({str(spec.run_dir / "spec.pickle")!r}).read_bytes()))
    await shim.attach(stdin=True, stdout=True, stderr=True)
    await shim.run()
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    daemon = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    assert await daemon.wait() == -signal.SIGKILL
    shim = await bench.shims.find(spec.container_id, spec.run_dir)
    assert shim is not None
    sock = await shim.attach(stdin=True, stdout=True, stderr=True)
    await asyncio.get_running_loop().sock_sendall(sock, b"go\n")
    assert unframe(await read_all(sock))[1].endswith(b"go\n")
    assert (await shim.wait_exit()).exit_code == 5
    assert [entry["log"] for entry in entries(spec.run_dir / "log.json")][199_998:] == ["199999\n", "200000\n", "go\n"]


async def test_the_end_of_the_host_ends_a_container_without_a_daemon_in_its_own_way(bench: Bench) -> None:
    """What process 1 is called then makes the difference: a SIGTERM at any other time is not heeded."""
    script = "trap 'echo asked; exit 6' INT; trap '' TERM; echo ready; while :; do sleep 0.01; done"
    asked = await bench.spec("sh", "-c", script, end_with_host=(signal.SIGINT, 60))
    deaf = await bench.spec("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.01; done", end_with_host=(0, 1))
    specs = (asked, deaf)
    (asked.run_dir / "specs.pickle").write_bytes(pickle.dumps(specs))
    program = f"""
import asyncio, os, pathlib, pickle, signal
from engine.runtime.shims import Shims
from engine.tasks import Nursery
def call_me(name):
    pathlib.Path("/proc/self/comm").write_text(name)
async def main():
    call_me("init")
    shims = Shims(pathlib.Path({str(bench.root / "ending")!r}), Nursery("n"))
    await shims.start()
    running = []
    for spec in pickle.loads(pathlib.Path({str(asked.run_dir / "specs.pickle")!r}).read_bytes()):
        shim = await shims.spawn(spec)
        await shim.run()
        running.append(shim)
        while not pathlib.Path(spec.log.path).read_bytes():
            await asyncio.sleep(0.01)
    for shim in running:
        os.kill(shim.pid, signal.SIGTERM)
    await asyncio.sleep(1)
    print(sum(shim.exit_record is None for shim in running), flush=True)
    await shims.aclose()
    call_me("systemd-shutdown")
    for shim in running:
        os.kill(shim.pid, signal.SIGTERM)
    while any(pathlib.Path(f"/proc/{{shim.pid}}/ns").exists() for shim in running):
        await asyncio.sleep(0.01)
asyncio.run(main())
"""
    command = ("unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", program)
    host = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(60):
        output, _ = await host.communicate()
    assert (host.returncode, output) == (0, b"2\n")
    records = [await read_exit_record(spec.run_dir) for spec in specs]
    assert [record and record.exit_code for record in records] == [6, 137]
    assert [entry["log"] for entry in entries(asked.run_dir / "log.json")] == ["ready\n", "asked\n"]


async def test_an_exec_with_a_terminal(bench: Bench) -> None:
    shim = await bench.start("sleep", "100")
    process = config(["sh", "-c", "stty size; read x; echo got $x"], "/", "", terminal=True)["process"]
    await shim.prepare_exec(ExecSpec("t", process, terminal=True, open_stdin=True, console_size=(20, 70)))
    sock = await shim.attach(stdin=True, stdout=True, stderr=True, exec_id="t")
    await shim.start_exec("t")
    await asyncio.get_running_loop().sock_sendall(sock, b"hey\n")
    seen = await read_all(sock)
    assert b"20 70\r\n" in seen
    assert b"got hey\r\n" in seen
    assert await shim.wait_exec("t") == 0


async def test_a_terminal_of_an_exec_has_its_size_on_a_busy_machine(bench: Bench) -> None:
    shim = await bench.start("sleep", "100")
    busy = [await asyncio.create_subprocess_exec(sys.executable, "-c", "while True: pass") for _ in range(4)]
    try:
        for number in range(25):
            process = config(["stty", "size"], "/", "", terminal=True)["process"]
            await shim.prepare_exec(ExecSpec(f"t{number}", process, terminal=True, console_size=(20, 70)))
            sock = await shim.attach(stdin=False, stdout=True, stderr=True, exec_id=f"t{number}")
            await shim.start_exec(f"t{number}")
            assert await read_all(sock) == b"20 70\r\n"
    finally:
        for hog in busy:
            hog.kill()
            await hog.wait()


async def test_the_kernel_killing_for_memory_is_noticed(bench: Bench) -> None:
    need(bench, "memory")
    spec = await bench.spec(
        "sh", "-c", "cat /dev/zero | head -c 200000000 | sort >/dev/null; x=$(yes | head -c 90000000)"
    )
    bench.edit(spec, resources={"memory": {"limit": 20 << 20, "swap": 20 << 20}})
    shim = await bench.shims.spawn(spec)
    events: list[ShimEvent] = []
    shim.subscribe(events.append)
    await shim.run()
    record = await shim.wait_exit()
    assert record.oom_killed
    assert record.exit_code == 137
    assert OutOfMemory() in events


async def test_another_daemon_finds_the_shim_and_its_exit(bench: Bench) -> None:
    shim = await bench.start("sh", "-c", "read x; echo $x; exit 4", stdin=True)
    await bench.shims.aclose()
    nursery = Nursery("second")
    second = Shims(bench.root / "exec", nursery)
    await second.start()
    found = await second.find(shim.container_id, shim.run_dir)
    assert found is not None
    assert (found.pid, found.init_pid) == (shim.pid, shim.init_pid)
    sock = await found.attach(stdin=True, stdout=True, stderr=True)
    await asyncio.get_running_loop().sock_sendall(sock, b"hello\n")
    assert unframe(await read_all(sock)) == {1: b"hello\n"}
    assert (await found.wait_exit()).exit_code == 4
    third = await second.find(shim.container_id, shim.run_dir)
    assert third is not None
    assert third.exit_record == await found.wait_exit()
    await found.discard()
    await second.aclose()
    await nursery.aclose()


async def test_a_killed_shim_is_reported_and_its_container_can_be_ended(bench: Bench) -> None:
    shim = await bench.start("sleep", "100")
    events: list[ShimEvent] = []
    shim.subscribe(events.append)
    os.kill(shim.pid, signal.SIGKILL)
    with pytest.raises(ShimLost):
        await shim.wait_exit()
    assert events == [Lost()]
    _container_id, run_dir, cgroup = bench.made[-1]
    assert await bench.shims.find(shim.container_id, run_dir) is None
    assert await run_blocking(bench.cgroups.pids_sync, cgroup) == [shim.init_pid]
    await kill_leftover(bench.runtime, shim.container_id, bench.cgroups, cgroup)
    assert await run_blocking(bench.cgroups.pids_sync, cgroup) == []
    assert not any(os.path.exists(folder) for folder in bench.cgroups.folders(cgroup))


async def test_held_descriptors_stay_open_until_the_discard(bench: Bench) -> None:
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        address = port.getsockname()
        shim = await bench.start("true", hold_fds=(port.fileno(),))
    await shim.wait_exit()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(address)
    await shim.discard()
    with socket.socket() as other:
        other.bind(address)


async def test_groups_are_frozen_counted_and_listed(bench: Bench) -> None:
    need(bench, "memory", "pids")
    spec = await bench.spec("sh", "-c", "sleep 100 & sleep 100; true")
    bench.edit(spec, resources={"memory": {"limit": 64 << 20}, "pids": {"limit": 50}})
    shim = await bench.shims.spawn(spec)
    await shim.run()
    async with asyncio.timeout(5):
        while len(pids := await run_blocking(bench.cgroups.pids_sync, spec.cgroup_path)) < 3:
            await asyncio.sleep(0.005)
    assert shim.init_pid in pids
    stats = await run_blocking(bench.cgroups.stats_sync, spec.cgroup_path)
    assert stats.memory_limit == 64 << 20
    assert 0 < stats.memory_usage < 64 << 20
    assert (stats.pids, stats.pids_limit) == (3, 50)
    assert stats.cpu_total > 0
    assert (await run_blocking(bench.cgroups.read_limits_sync, spec.cgroup_path)).pids == 50
    await run_blocking(bench.cgroups.freeze_sync, spec.cgroup_path)
    await run_blocking(bench.cgroups.thaw_sync, spec.cgroup_path)
    assert await run_blocking(bench.cgroups.kill_sync, spec.cgroup_path)
    assert (await shim.wait_exit()).exit_code == 137


async def test_a_shim_is_small(bench: Bench) -> None:
    shim = await bench.start("sleep", "100")
    private = sum(
        int(line.split()[1])
        for line in Path(f"/proc/{shim.pid}/smaps_rollup").read_text().splitlines()
        if line.startswith(("Private_Clean:", "Private_Dirty:"))
    )
    assert private <= 1650  # 1.85 MiB without a rehearsal in the zygote
