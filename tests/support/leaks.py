"""What a daemon under test may leave behind on the machine, listed before and after.

Only what carries the marks of our own daemons is looked at, so that other users of the machine do not matter.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path


def _mounts(mark: str) -> set[str]:
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    return {f"mount {line.split()[4]}" for line in lines if mark in line.split()[4]}


def _links(bridge: str) -> set[str]:
    return {f"link {name}" for name in os.listdir("/sys/class/net") if name == bridge}


def _bridge_ports(bridge: str) -> set[str]:
    with contextlib.suppress(OSError):
        return {f"bridge port {name}" for name in os.listdir(f"/sys/class/net/{bridge}/brif")}
    return set()


def _tables(bridge: str) -> set[str]:
    done = subprocess.run(["nft", "-j", "list", "tables"], capture_output=True, check=False)
    if done.returncode:
        return set()
    entries = [entry["table"] for entry in json.loads(done.stdout)["nftables"] if "table" in entry]
    return {f"nft table {entry['family']} {entry['name']}" for entry in entries if bridge in entry["name"]}


def processes(mark: str) -> dict[int, str]:
    """Processes whose command line or environment-independent arguments hold `mark`, with that command line."""
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if mark in text:
                found[int(name)] = text.strip()
    return found


def cgroups(identifiers: set[str]) -> set[str]:
    """Control groups that still carry the id of a container."""
    left = set()
    for folder, folders, _ in os.walk("/sys/fs/cgroup"):
        left |= {f"cgroup {folder}/{name}" for name in folders if any(name.endswith(one) for one in identifiers)}
        if folder.count("/") > 6:
            folders.clear()
    return left


def leftovers(mark: str, bridge: str) -> set[str]:
    """Everything on this machine that carries the marks of a daemon under test."""
    found = _mounts(mark) | _links(bridge) | _bridge_ports(bridge) | _tables(bridge)
    return found | {f"process {pid}: {words}" for pid, words in processes(mark).items()}
