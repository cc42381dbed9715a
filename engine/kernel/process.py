"""Starting helper interpreters, and the few per-process switches that they and the daemon need.

A helper is a fresh, isolated interpreter (no site, no environment, no user folders) that sees only the import folders
it is given: it starts in tens of milliseconds and holds little memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_IOPRIO_LOWEST = 2 << 13 | 7
"""Best effort, last of eight levels: unlike the idle class it makes progress on a busy disk."""
_AHEAD = -5
"""As a nice value: three times the share of another session. The daemon needs little, and many wait for it."""


def start_interpreter_sync(
    module: str, args: Sequence[str], *, folders: Sequence[str], pass_fds: Sequence[int]
) -> subprocess.Popen[bytes]:
    """Start ``module``'s ``main()`` in an isolated interpreter with ``folders`` as its only extra import path."""
    program = f"import sys; sys.path += {list(folders)!r}; from {module} import main; main()"
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program, *args],
        stdin=subprocess.DEVNULL,
        pass_fds=tuple(pass_fds),
        cwd="/",
        start_new_session=True,
    )


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent thread ends (prctl(2), PR_SET_PDEATHSIG)."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the switch was on
        os._exit(1)


def set_name(name: str) -> None:
    """The name ps shows for this process (at most 15 bytes)."""
    _libc.prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()), 0, 0, 0)


def go_ahead() -> None:
    """Have this process, if it leads its session, wait less for a processor than containers that keep all of them busy
    (sched(7), "The autogroup feature"). What it starts in sessions of their own is not meant by this.

    A session that was begun by somebody else holds other work of theirs, and is left as it is; under systemd the unit's
    CPUWeight says the same.
    """
    if os.getsid(0) == os.getpid():
        # A kernel without autogroups has no such file; it or a missing capability costs us the advantage only.
        with contextlib.suppress(OSError), open("/proc/self/autogroup", "w", encoding="ascii") as group:
            group.write(str(_AHEAD))


def stand_back() -> None:
    """Let everybody else have the processor and the disk first (nice(2), ioprio_set(2))."""
    os.nice(10)
    number = _IOPRIO_SET.get(os.uname().machine)
    if number is not None:
        _libc.syscall(number, 1, 0, _IOPRIO_LOWEST)  # a kernel without it deletes at the usual pace
