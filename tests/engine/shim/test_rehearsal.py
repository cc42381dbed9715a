"""A rehearsal changes nothing but memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.source_tree import PROJECT

SCRIPT = """
import ctypes, gc, json, os, signal, sys, types
from engine.shim import monitor, rehearsal
from engine.shim.loop import wake_on
folder = sys.argv[1]
functions = [f for f in gc.get_objects() if isinstance(f, types.FunctionType)]
at_first = [id(f.__code__) for f in functions]
wake_on(signal.SIGCHLD)
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
before = os.getcwd(), sorted(os.listdir("/proc/self/fd")), os.readlink("/proc/self/ns/mnt")
rehearsal.rehearse(folder)
free = sum(size * count for size, count in rehearsal._free_places() if size > 64)
rehearsal.fill_holes()
after = os.getcwd(), sorted(os.listdir("/proc/self/fd")), os.readlink("/proc/self/ns/mnt")
try:
    while True:
        os.waitpid(-1, 0)  # the zygote's loop does that; nobody runs on
except ChildProcessError:
    pass
left = sum(size * count for size, count in rehearsal._free_places() if size > 64)
moved = [(old, id(f.__code__)) for f, old in zip(functions, at_first) if id(f.__code__) != old]
scattered, together = (len({address // 4096 for address in addresses}) for addresses in zip(*moved))
print(json.dumps([before == after, os.path.exists(folder), free, left, scattered, together]))
"""


def test_it_leaves_neither_files_nor_processes_fills_the_holes_and_moves_code_together(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "rehearsal")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=PROJECT, check=True)
    same, exists, free, left, scattered, together = json.loads(done.stdout)
    assert (same, exists) == (True, False)
    assert left < free * 2 / 3
    assert together < scattered * 2 / 3
    assert done.stderr == ""


def test_it_does_not_fail_where_it_cannot_be_done(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code = f"from engine.shim.rehearsal import rehearse; rehearse({str(tmp_path / 'file' / 'below')!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, cwd=PROJECT, check=True
    )
    assert "NotADirectoryError" in done.stderr


ALONE = """
import ctypes, os, signal, sys
from engine.shim import rehearsal
from engine.shim.loop import wake_on
wake_on(signal.SIGCHLD)
rehearsal.LONGEST_SECONDS = 1
def play(sock):
    raise BrokenPipeError("the other has given up")
rehearsal._play_daemon = play
rehearsal.rehearse(sys.argv[1])
os.write(1, b"back\\n")
try:
    while True:
        os.waitpid(-1, 0)
except ChildProcessError:
    pass
"""


def test_only_one_process_comes_back_from_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ALONE, str(tmp_path / "rehearsal")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=PROJECT, check=True)
    assert done.stdout == "back\n"


STUCK = """
import ctypes, os, signal, sys
from engine.shim import rehearsal
from engine.shim.loop import wake_on
wake_on(signal.SIGCHLD)
rehearsal.LONGEST_SECONDS = 1
rehearsal._RUNTIME = rehearsal._RUNTIME.replace("sleep 20 & echo $!", "echo $PPID")  # a pid that no child has
run = {"id": 2, "op": "run"}
rehearsal._play_daemon = lambda sock: (rehearsal.wire.send(sock, run), rehearsal._hear(sock, "id", 9))
rehearsal.rehearse(sys.argv[1])
print(os.path.exists(sys.argv[1]))
"""


def test_it_gives_up_in_time(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STUCK, str(tmp_path / "rehearsal")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=PROJECT, check=True)
    assert done.stdout == "False\n"
    assert "TimeoutError: the rehearsal took more than 1 s" in done.stderr
