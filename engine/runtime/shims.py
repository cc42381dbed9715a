"""The daemon's side of the shims: the zygote that forks one per container run, and finding them again after a restart.

Callers import everything about shims from here.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import weakref
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.kernel.mount import MountStep
from engine.runtime.cgroups import Cgroups
from engine.runtime.channel import Channel, connect_sync
from engine.runtime.model import (
    ExecExited,
    ExecSpec,
    ExecState,
    Exited,
    ExitRecord,
    LogSpec,
    Lost,
    OutOfMemory,
    ShimEvent,
    ShimLost,
    ShimSpec,
)
from engine.runtime.oci import exec_groups, leaves_only_groups
from engine.runtime.shim import Shim, read_exit_record, write_json_sync
from engine.shim import wire
from engine.tasks import Nursery, run_blocking

__all__ = [
    "ExecExited",
    "ExecSpec",
    "ExecState",
    "ExitRecord",
    "Exited",
    "LogSpec",
    "Lost",
    "MountStep",
    "OutOfMemory",
    "Shim",
    "ShimEvent",
    "ShimLost",
    "ShimSpec",
    "Shims",
    "read_exit_record",
]

log = logging.getLogger(__name__)

SPAWN_SECONDS = 10.0  # mounts may touch slow disks; nothing else of a spawn takes longer than a millisecond
ZYGOTE_SECONDS = 60.0  # it has to be loaded and to rehearse, perhaps while a whole machine boots
LEAVE_SECONDS = 2.0
HELLO_SECONDS = 30.0  # a shim answers in a millisecond, but a machine may be busy with other things
_CREDENTIALS = struct.Struct("3i")


def build_id() -> str:
    """Identifies the shim's code, so that an updated daemon does not fork shims from an old zygote."""
    digest = hashlib.sha256(sys.version.encode())
    for source in sorted(Path(wire.__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:8]


class Shims:
    """Owns the connection to the zygote."""

    def __init__(self, exec_root: Path, nursery: Nursery) -> None:
        self._exec_root = exec_root
        self._nursery = nursery
        self._cgroups: Cgroups | None = None
        self._zygote: Channel | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = asyncio.Lock()
        self._living: weakref.WeakSet[Shim] = weakref.WeakSet()

    async def start(self) -> None:
        """Connect to the zygote that lives, or start one."""
        self._cgroups = await run_blocking(Cgroups.detect_sync)
        await self._connected()

    async def aclose(self) -> None:
        """Leave; containers run on. The zygote ends too if it has no shims."""
        for shim in tuple(self._living):
            shim.close()
        if self._zygote is None:
            return
        leaving = False
        with contextlib.suppress(OSError):
            leaving = (await self._zygote.ask("leave"))["leaving"]
        self._zygote.close()
        if self._process is None:
            return
        if leaving:
            await run_blocking(_reap_sync, self._process)
        elif self._process.poll() is None:
            self._process.returncode = 0  # it is meant to outlive us: no ResourceWarning
        self._process = None

    async def spawn(self, spec: ShimSpec) -> Shim:
        """Fork a shim, mount, make the streams; nothing of the container runs yet.

        OSError says what could not be made.
        """
        zygote = await self._connected()
        assert self._cgroups is not None
        settings = _settings(spec, self._cgroups)
        await run_blocking(write_json_sync, spec.run_dir / wire.SETTINGS_FILE, settings)
        shim = Shim(spec.container_id, spec.run_dir, self._nursery, spec.program)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        first, rest = spec.hold_fds[: wire.MAX_DESCRIPTORS - 1], spec.hold_fds[wire.MAX_DESCRIPTORS - 1 :]
        shim.connect(ours)
        try:
            with theirs:
                shim.pid = (await zygote.ask("spawn", (theirs.fileno(), *first), run_dir=str(spec.run_dir)))["pid"]
            async with asyncio.timeout(SPAWN_SECONDS):
                await shim.ready()
            if rest:
                await shim.hold(rest)
        except BaseException:
            shim.abandon()
            raise
        self._living.add(shim)
        return shim

    async def find(self, container_id: str, run_dir: Path) -> Shim | None:
        """The living shim of a container from before; None when there is none (`read_exit_record` may know more)."""
        sock = connect_sync(str(run_dir / wire.SOCKET_FILE))
        if sock is None:
            return None
        shim = Shim(container_id, run_dir, self._nursery)
        shim.connect(sock)
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                await shim.hello()
        except TimeoutError:  # not to be given up alive: it would hold the container's things for ever
            log.error("container %s: its shim does not answer within %s s and is killed", container_id, HELLO_SECONDS)
            _kill_peer(sock)
            shim.abandon()
            return None
        except OSError:
            shim.abandon()
            return None
        self._living.add(shim)
        return shim

    async def _connected(self) -> Channel:
        async with self._starting:
            if self._zygote is None or not self._zygote.open:
                path = str(self._exec_root / f"zygote-{await run_blocking(build_id)}.sock")
                sock = connect_sync(path)
                if sock is None:
                    sock = await run_blocking(self._start_zygote_sync, path)
                channel = Channel(sock, lambda _event: None, lambda: log.warning("the zygote has ended"))
                try:
                    async with asyncio.timeout(ZYGOTE_SECONDS):
                        await channel.ask("hello")
                except TimeoutError as error:
                    raise TimeoutError(f"the zygote does not answer within {ZYGOTE_SECONDS} seconds") from error
                self._zygote = channel
            return self._zygote

    def _start_zygote_sync(self, path: str) -> socket.socket:
        if self._process is not None:
            self._process.poll()
        self._exec_root.mkdir(mode=0o711, parents=True, exist_ok=True)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = str(Path(wire.__file__).with_name("__main__.py"))
        with theirs, open(self._exec_root / "zygote.log", "ab") as complaints:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", program, path, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        return ours


def _kill_peer(sock: socket.socket) -> None:
    """End the process that listens at the other end."""
    pid, _, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _reap_sync(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(LEAVE_SECONDS)
    except subprocess.TimeoutExpired:
        log.warning("the zygote did not end in %s s", LEAVE_SECONDS)
        process.returncode = 0


def _settings(spec: ShimSpec, cgroups: Cgroups) -> dict[str, Any]:
    leaf_way = exec_groups(spec.runtime, cgroups.version)
    leaf_folder, leaf_prefix = cgroups.leaf_place(spec.cgroup_path) if leaf_way else ("", "")
    return {
        "container_id": spec.container_id,
        "run_dir": os.path.abspath(spec.run_dir),
        "bundle": os.path.abspath(spec.bundle),
        "runtime": {
            "path": spec.runtime.path,
            "args": list(spec.runtime.args),
            "root": spec.runtime.root,
            "program": spec.runtime.program,
        },
        "covered": list(spec.runtime.covered),
        "mounts": [asdict(step) for step in spec.mounts],
        "terminal": spec.terminal,
        "open_stdin": spec.open_stdin,
        "stdin_once": spec.stdin_once,
        "console_size": spec.console_size,
        "log": {
            "driver": spec.log.driver,
            "path": spec.log.path,
            "options": dict(spec.log.options),
            "attrs": dict(spec.log.attrs),
            "sink": dict(spec.log.sink),
            "buffer": spec.log.buffer_bytes,
        },
        "spill_dir": os.path.abspath(spec.spill_dir),
        "oom_file": cgroups.oom_file(spec.cgroup_path),
        "leaf_folder": leaf_folder,
        "leaf_prefix": leaf_prefix,
        "leaf_way": leaf_way.value,
        "shared_pid": spec.shared_pid,
        "stop_signal": spec.end_with_host[0],
        "stop_seconds": spec.end_with_host[1],
        "guarded": spec.guarded,
        "owner": spec.owner,
        "groups": cgroups.folders(spec.cgroup_path) if leaves_only_groups(spec.runtime) else [],
    }
