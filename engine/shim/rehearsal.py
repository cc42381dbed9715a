"""What the zygote does once so that its forks are small and quick: it lives a shim's life itself, and leaves no holes.

A fork shares memory until somebody writes to it, and CPython writes nearly everywhere where code runs for the first
times: specialised bytecode (PEP 659), caches of look-ups, what ctypes prepares. After a few lives that has happened,
and every shim shares it. What a shim then makes would go into the gaps that imports left between objects that stay, and
cost a copied page for each; filled beforehand, it goes to pages of its own. Code is counted by whoever runs it, so what
a life runs is moved together, into few pages. Together 0.45 of 1.85 MiB a shim.
"""

import contextlib
import ctypes
import gc
import json
import os
import shutil
import signal
import socket
import sys
import traceback
import types
from collections.abc import Iterator

from engine.shim import invoke, mounts, wire
from engine.shim.monitor import Monitor

LIVES = 10  # bytecode is specialised after eight calls
LONGEST_SECONDS = 5  # of all lives: a daemon waits for us
_SMALLEST, _LARGEST = 512, 1 << 16  # of what the C library gives, not CPython's own allocator
_MOST_TAKEN = 1 << 23
_MARGIN = 1 << 17  # at the heap's end is room for whatever comes
_NOWHERE = "/nonexistent/place"
# Called as the OCI runtime is: leaves a process behind and its number in the file that is asked for.
_RUNTIME = """#!/bin/sh
for word; do
    [ "$before" != --pid-file ] || file=$word
    before=$word
done
[ -z "$file" ] || { sleep 20 & echo $! >"$file"; }
"""
_held: list[list[object]] = []
_libc = ctypes.CDLL(None)


def rehearse(folder: str) -> None:
    """Live and die some times, with files below `folder` only. Never fails: without it shims are merely bigger."""
    here = os.getcwd()
    before = signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(LONGEST_SECONDS)
    try:
        os.makedirs(folder, exist_ok=True)
        _write(f"{folder}/runtime", _RUNTIME, 0o700)
        with _moving_together():
            _live(folder)
        for _ in range(LIVES):
            _live(folder)
            _touch_system_calls()
    except Exception:
        traceback.print_exc()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    os.chdir(here)
    shutil.rmtree(folder, ignore_errors=True)


def _give_up(_number: int, _frame: object) -> None:
    raise TimeoutError(f"the rehearsal took more than {LONGEST_SECONDS} s")


@contextlib.contextmanager
def _moving_together() -> Iterator[None]:
    """Afterwards the code of every function that ran meanwhile lies where no other object is."""
    ran: set[types.CodeType] = set()
    sys.setprofile(lambda frame, _event, _argument: ran.add(frame.f_code))
    try:
        yield
    finally:
        sys.setprofile(None)
    fill_holes()
    for function in gc.get_objects():
        if isinstance(function, types.FunctionType) and function.__code__ in ran:
            function.__code__ = function.__code__.replace()


def fill_holes() -> None:
    """Take every free place among the objects, small and large, for ever."""
    _fill_large_holes()
    try:
        for size, free in _free_places():
            if size > 48:
                _held.append([bytes(size - 40) for _ in range(free)])
            elif size > 32:
                _held.append([bytes(10) for _ in range(free)])
            elif size > 16:
                _held.append([float(number) for number in range(free)])
    except (AttributeError, OSError, ValueError):
        traceback.print_exc()  # another Python than CPython


def _fill_large_holes() -> None:
    """What the C library has free below its heap's end: objects are taken, largest first, until they lie beyond."""
    sbrk = _libc.sbrk
    sbrk.restype = ctypes.c_void_p
    end = sbrk(0) - _MARGIN
    taken: list[object] = []
    left = _MOST_TAKEN
    for size in range(_LARGEST, _SMALLEST, -64):
        while left > 0 and id(block := bytes(size)) < end:
            taken.append(block)
            left -= size
    _held.append(taken)


def _free_places() -> list[tuple[int, int]]:
    """(size class, free places in pools that are in use), from the allocator's own report on standard error."""
    report = os.memfd_create("allocator")
    stderr = os.dup(2)
    try:
        os.dup2(report, 2)
        sys._debugmallocstats()
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
    os.lseek(report, 0, os.SEEK_SET)
    lines = os.read(report, 1 << 20).split(b"\n")
    os.close(report)
    # class, size, pools, blocks in use, blocks available
    rows = [line.split() for line in lines]
    return [(int(row[1]), int(row[4])) for row in rows if len(row) == 5 and all(word.isdigit() for word in row)]


def _settings(folder: str) -> dict[str, object]:
    log = {"driver": "json-file", "path": f"{folder}/log", "options": {"max-size": "100m", "max-file": "3"}}
    return {
        "container_id": "rehearsal",
        "run_dir": folder,
        "bundle": folder,
        "runtime": {"path": f"{folder}/runtime", "args": [], "root": folder, "program": "crun"},
        "covered": [],
        "mounts": [],
        "terminal": False,
        "open_stdin": False,
        "stdin_once": False,
        "console_size": None,
        "log": {**log, "attrs": {}, "sink": {}, "buffer": None},
        "spill_dir": folder,
        "oom_file": "",
        "leaf_folder": "",
        "leaf_prefix": "",
        "leaf_way": "",
        "shared_pid": False,
        "stop_signal": signal.SIGTERM,
        "stop_seconds": 10,
        "guarded": [("/etc/hosts", folder, "bind")],
        "owner": (0, 0),
        "groups": [],
    }


def _live(folder: str) -> None:
    _write(f"{folder}/{wire.SETTINGS_FILE}", json.dumps(_settings(folder)), 0o600)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    daemon = os.fork()
    if not daemon:
        try:
            theirs.close()
            _play_daemon(ours)
        finally:  # whatever happens: it would return as a second zygote, on the first one's sockets
            os._exit(0)
    ours.close()
    monitor = Monitor(invoke.load_settings(folder), [])
    try:
        monitor.prepare()
        monitor.serve(theirs)
    finally:
        monitor.close()


def _play_daemon(sock: socket.socket) -> None:
    wire.send(sock, {"id": 1, "op": "hello"})
    wire.send(sock, {"id": 2, "op": "run"})
    _hear(sock, "id", 2)
    wire.send(sock, {"id": 3, "op": "kill", "signal": signal.SIGKILL})
    _hear(sock, "event", "exit")
    wire.send(sock, {"id": 4, "op": "discard"})
    _hear(sock, "id", 4)


def _hear(sock: socket.socket, key: str, value: object) -> None:
    message: wire.Message | None = {}
    while message is not None and message.get(key) != value and "error" not in message:
        message = wire.receive(sock)[0]


def _touch_system_calls() -> None:
    """The calls of a start that a rehearsal must not make, made where they change nothing."""
    for call in (mounts.contain, mounts.cover, mounts.unmount):
        try:
            call(_NOWHERE)
        except OSError:
            pass
    mounts.split_options(("lowerdir=a:b", "upperdir=c", "workdir=d", "volatile", "ro", "rslave"))
    mounts.stay()


def _write(path: str, text: str, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
