"""Proportional memory of everything an engine runs: daemon, helpers, shims; not the containers' own processes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def _host_processes() -> dict[int, tuple[int, str]]:
    """Processes in our own pid namespace: parent and command line. Containers have namespaces of their own."""
    ours = os.readlink("/proc/self/ns/pid")
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{name}/ns/pid") != ours:
                continue
            stat = Path(f"/proc/{name}/stat").read_text(errors="replace")
            command = Path(f"/proc/{name}/cmdline").read_bytes().decode(errors="replace")
            found[int(name)] = (int(stat.rpartition(")")[2].split()[1]), command)
    return found


def processes_of(root: Path, daemon: int) -> list[int]:
    """The daemon, its descendants, and every process that names one of its folders (and its descendants)."""
    known = _host_processes()
    mine = {pid for pid, (_, command) in known.items() if str(root) in command and pid != os.getpid()} | {daemon}
    while True:
        more = {pid for pid, (parent, _) in known.items() if parent in mine} - mine
        if not more:
            return sorted(mine & known.keys())
        mine |= more


def pss_kib(pids: list[int]) -> int:
    """The sum of their proportional set sizes, in KiB."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total
