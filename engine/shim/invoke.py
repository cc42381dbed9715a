"""How a shim runs the OCI runtime: one program per step, its words collected from its log file.

The daemon's side of the same programs is `engine/runtime/oci.py`; the shim has these few lines because it must be the
parent of what the runtime leaves running.
"""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

from engine.shim import wire

# What becomes of systemd when nothing is left to do for the host but to end all processes.
_END_OF_HOST = b"systemd-shutdow\n"  # the kernel keeps fifteen bytes of a name
# What the zygote, or Python by itself, ignores must not stay ignored in a container.
DEFAULTS = (
    signal.SIGPIPE,
    signal.SIGXFSZ,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGCHLD,
)


# runc would hand the daemon's own sockets on to the container.
_DAEMONS_OWN = (b"LISTEN_", b"NOTIFY_SOCKET", b"WATCHDOG_")
_ENVIRONMENT = {name: value for name, value in os.environb.items() if not name.startswith(_DAEMONS_OWN)}
# A runtime written in Go lives for a few hundredths of a second: collecting its garbage costs a tenth of that.
_ENVIRONMENT.setdefault(b"GOGC", b"off")


class Runtime:
    """Starts the runtime and remembers whom to tell when it has ended."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._path = settings["path"]
        self._globals = [self._path, *settings["args"], "--root", settings["root"]]
        # What crun says after the start goes to the container's output too: that is for people to read.
        self._log_format = "text" if settings["program"] == "crun" else "json"
        self._waiting: dict[int, Callable[[int], None]] = {}
        self._strays: dict[int, int] = {}

    def start(
        self,
        arguments: Sequence[str],
        stdio: Sequence[int],
        log: str,
        done: Callable[[int], None],
        *,
        ahead: bool = False,
    ) -> None:
        """Run `runtime arguments...`; done(exit_code) is called later. OSError when the program cannot be started.

        `ahead` of what it starts: crun sizes the terminal of an exec when its process is already on its way.
        """
        with contextlib.suppress(FileNotFoundError):
            os.unlink(log)
        argv = [*self._globals, "--log", log, "--log-format", self._log_format, *arguments]
        actions = [(os.POSIX_SPAWN_DUP2, descriptor, number) for number, descriptor in enumerate(stdio)]
        try:
            pid = os.posix_spawnp(self._path, argv, _ENVIRONMENT, file_actions=actions, setsid=True, setsigdef=DEFAULTS)
        except OSError as error:
            raise OSError(f"fork/exec {self._path}: {os.strerror(error.errno or 0).lower()}") from error
        self._waiting[pid] = done
        if ahead:
            with contextlib.suppress(OSError):  # where real time is rationed, the odds are crun's own
                os.sched_setscheduler(pid, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))

    def reaped(self, pid: int, code: int) -> bool:
        """Whether the ended child was a runtime program; tells who waits for it."""
        done = self._waiting.pop(pid, None)
        if done is None:
            return False
        done(code)
        if not self._waiting:
            self._strays.clear()
        return True

    def stray(self, pid: int, code: int) -> None:
        """A child nobody knows has ended.

        While a program is under way it may be the process that this has just started.
        """
        if self._waiting:
            self._strays[pid] = code

    def kill(self) -> None:
        """End the programs that are under way, and what they started; who waits for them is told as ever."""
        for pid in self._waiting:
            os.killpg(pid, signal.SIGKILL)

    def claim(self, pid: int) -> int | None:
        """The exit code of a process that ended before its pid was known."""
        return self._strays.pop(pid, None)


def last_words(log: str, code: int) -> str:
    """The runtime's own explanation of its failure: the last error in its log."""
    words = ""
    with contextlib.suppress(OSError), open(log, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                words = line.strip() or words
                continue
            if entry.get("level") in ("error", "fatal") or not words:
                words = entry.get("msg") or words
    return words or f"runtime ended with code {code}"


def read_whole(path: str) -> bytes:
    """A file's bytes, by system calls alone: the io module's classes would cost a shim another 100 KiB."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(descriptor, 4096):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def host_ends() -> bool:
    """Whether systemd has stopped all units and now ends what still runs; other hosts do not wait for that."""
    with contextlib.suppress(OSError):
        return read_whole("/proc/1/comm") == _END_OF_HOST
    return False


def read_pid(path: str) -> int:
    """The pid that the runtime has written. OSError or ValueError when it has not."""
    return int(read_whole(path))


def write_whole(path: str, data: bytes) -> None:
    """All that a file is to hold, by system calls alone."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def write_atomically(path: str, content: dict[str, Any]) -> None:
    temporary = f"{path}.new"
    write_whole(temporary, wire.encode(content))
    os.rename(temporary, path)


def close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def load_settings(run_dir: str) -> dict[str, Any]:
    settings = json.loads(read_whole(f"{run_dir}/{wire.SETTINGS_FILE}").decode())
    assert isinstance(settings, dict)
    return settings
