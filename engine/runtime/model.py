"""What the shims' callers hand in and get back: specifications, records, events. Pure."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.kernel.mount import MountStep
from engine.runtime.oci import Runtime


class ShimLost(Exception):
    """The shim ended without an exit record: what its container did or does is unknown."""


@dataclass(frozen=True, slots=True)
class LogSpec:
    """Where and how the container's output is kept; `attrs` go into every entry.

    `sink` says where a remote driver delivers (an empty `path`: and nothing is kept here). With `buffer_bytes` a full
    log loses lines instead of making the container wait.
    """

    driver: str
    path: str
    options: Mapping[str, str] = field(default_factory=dict)
    attrs: Mapping[str, str] = field(default_factory=dict)
    sink: Mapping[str, Any] = field(default_factory=dict)
    buffer_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ShimSpec:
    """All that a shim must know; `console_size` is (rows, columns).

    `hold_fds` stay open in the shim until the container's end is discarded. `shared_pid` says that the container has no
    pid namespace of its own, so that its other processes must be killed when its first one has ended. `guarded` are the
    runtime's mounts (destination, source, type) that the shim must keep out of /proc, as this runtime would not.
    `end_with_host` is the signal (0: none), and the seconds until SIGKILL, with which the shim ends the container when
    the host ends and no daemon did it.
    `owner` is container root, whose the streams are.
    """

    container_id: str
    run_dir: Path
    bundle: Path
    runtime: Runtime
    mounts: tuple[MountStep, ...]
    terminal: bool
    open_stdin: bool
    stdin_once: bool
    console_size: tuple[int, int] | None
    log: LogSpec
    spill_dir: Path
    hold_fds: tuple[int, ...]
    cgroup_path: str
    program: str = ""
    shared_pid: bool = False
    guarded: tuple[tuple[str, str, str], ...] = ()
    end_with_host: tuple[int, int] = (signal.SIGTERM, 10)
    owner: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class ExecSpec:
    """A process object (OCI runtime spec, `process`) to run in a running container.

    `cgroup` names an existing sub-group in the runtime's words; without it the process gets its own where it can.
    """

    exec_id: str
    process: Mapping[str, Any]
    terminal: bool = False
    open_stdin: bool = False
    console_size: tuple[int, int] | None = None
    cgroup: str = ""


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """How a container ended; times are Unix nanoseconds, a signal's exit code is 128 + its number."""

    exit_code: int
    oom_killed: bool
    started_at: int
    finished_at: int


@dataclass(frozen=True, slots=True)
class ExecState:
    """What a shim knows of an exec; `exit_code` is None while it runs or before it starts."""

    started: bool
    pid: int | None
    exit_code: int | None
    finished_at: int


@dataclass(frozen=True, slots=True)
class Exited:
    record: ExitRecord


@dataclass(frozen=True, slots=True)
class ExecExited:
    exec_id: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """The kernel ran out of the container's memory and is killing in it; the container may live on."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The shim is gone and left no exit record."""


ShimEvent = Exited | ExecExited | OutOfMemory | Lost
