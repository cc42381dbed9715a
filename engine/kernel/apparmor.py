"""AppArmor: whether this host confines by it, and docker's default profile in the kernel.

The profile has dockerd's name and forbids what dockerd's forbids; where dockerd has loaded its own, that serves. It is
kept nowhere on disk, and services that reload all profiles drop it: whoever is about to start a process under it asks
for it here each time. See apparmor.d(5).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

PARSER_SECONDS = 30.0
_SECURITY = Path("/sys/kernel/security/apparmor")
_TUNABLES = Path("/etc/apparmor.d/tunables/global")
_BASE = Path("/etc/apparmor.d/abstractions/base")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def is_supported_sync() -> bool:
    """Whether containers are confined here, as dockerd sees it: not inside of a container, nor without the parser."""
    return is_enabled_sync() and _SECURITY.exists() and not os.environb.get(b"container") and bool(parser_sync())


def is_enabled_sync() -> bool:
    """Whether the kernel has it turned on."""
    with contextlib.suppress(OSError):
        return Path("/sys/module/apparmor/parameters/enabled").read_text("ascii").startswith("Y")
    return False


def parser_sync() -> str:
    """The program that loads profiles, or ""."""
    return shutil.which("apparmor_parser", path=_PATH) or ""


def ensure_sync(name: str) -> None:
    """Load docker's default profile as ``name`` unless the kernel has it. OSError with dockerd's sentence."""
    if name in _loaded_sync():
        return
    daemon = "unconfined"
    with contextlib.suppress(OSError):
        daemon = Path("/proc/self/attr/current").read_text("utf-8").rstrip("\0\n").rpartition(" (")[0] or daemon
    text = profile_text(name, daemon, tunables=_TUNABLES.exists(), base=_BASE.exists())
    try:
        done = subprocess.run(
            [parser_sync(), "-Kr"], input=text, text=True, capture_output=True, timeout=PARSER_SECONDS, check=False
        )
        words = "" if done.returncode == 0 else (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        words = str(error)
    if words:
        raise OSError(
            f"AppArmor enabled on system but the {name} profile could not be loaded: "
            f"running `apparmor_parser -Kr` failed with output: {words}"
        )


def profile_text(name: str, daemon: str, *, tunables: bool, base: bool) -> str:
    """The profile; ``daemon`` is the one under which the daemon itself runs, the rest what /etc/apparmor.d has.

    Everything is allowed but mounting, signals from outside that are not the engine's, and writing below /proc and /sys
    where that reaches the host: a container writes to its own processes, to shared memory's limits and to its cgroups.
    """
    rules = [
        *(["#include <abstractions/base>"] if base else []),
        *("network,", "capability,", "file,", "umount,", "deny mount,"),
        *(f"signal (receive) peer={peer}," for peer in dict.fromkeys(("unconfined", "runc", "crun", daemon))),
        f"signal (send, receive) peer={name},",
        f"ptrace (trace, read, tracedby, readby) peer={name},",
        "deny @{PROC}/* w,",
        f"deny @{{PROC}}/{_others('sys', also='0-9')}*/** w,",
        f"deny @{{PROC}}/sys/{_others('kernel')}** w,",
        f"deny @{{PROC}}/sys/kernel/{_others('shm')}** w,",
        *(f"deny @{{PROC}}/{file} rwklx," for file in ("sysrq-trigger", "kcore")),
        f"deny /sys/{_others('fs')}*/** wklx,",
        f"deny /sys/fs/{_others('cgroup')}*/** wklx,",
        *(f"deny /sys/{folder}/** rwklx," for folder in ("firmware", "devices/virtual/powercap", "kernel/security")),
    ]
    head = "#include <tunables/global>" if tunables else "@{PROC}=/proc/"
    body = "".join(f"  {rule}\n" for rule in rules)
    return f"{head}\nprofile {name} flags=(attach_disconnected,mediate_deleted) {{\n{body}}}\n"


def _others(word: str, also: str = "") -> str:
    """A pattern for the beginning of every name that does not begin with ``word`` (nor with one of ``also``)."""
    return "{" + ",".join(f"{word[:n]}[^{letter}{'' if n else also}]" for n, letter in enumerate(word)) + "}"


def _loaded_sync() -> set[str]:
    """The names of all profiles in the kernel: lines of `NAME (MODE)`."""
    return {line.rpartition(" (")[0] for line in (_SECURITY / "profiles").read_text("utf-8").splitlines()}
