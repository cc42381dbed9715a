"""The zygote: waits for spawn requests, forks shims, reaps them and what they orphan.

It outlives the daemon for as long as it has shims, because PID 1 may not reap; with neither daemon nor shim it removes
its socket and ends.
"""

import contextlib
import ctypes
import gc
import os
import signal
import socket
import traceback
from functools import partial

from engine.shim import rehearsal, wire
from engine.shim.loop import READ, Loop, wake_on
from engine.shim.monitor import run_shim

PR_SET_CHILD_SUBREAPER = 36
PR_SET_NAME = 15
IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT)


class Zygote:
    """One per exec root and build."""

    def __init__(self, path: str, first: socket.socket) -> None:
        self._path = path
        self._loop = Loop(self._reaped)
        self._shims: set[int] = set()
        self._daemons: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._listener.bind(path)
        os.chmod(path, 0o600)
        self._listener.listen(16)
        self._loop.watch(self._listener.fileno(), READ, self._accept)
        self._adopt(first)

    def run(self) -> None:
        self._loop.catch_signals()
        self._loop.run()
        self._listener.close()

    def _accept(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._adopt(self._listener.accept()[0])

    def _adopt(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._daemons.append(sock)
        self._loop.watch(sock.fileno(), READ, partial(self._readable, sock))

    def _readable(self, sock: socket.socket, _events: int) -> None:
        try:
            message, descriptors = wire.receive(sock)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            message, descriptors = None, []
        if message is None:
            self._drop(sock)
            return
        try:
            answer = self._perform(message, descriptors)
        except (OSError, LookupError, ValueError) as error:
            answer = wire.failure(error)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._tell(sock, {"id": message.get("id"), **answer})

    def _perform(self, message: wire.Message, descriptors: list[int]) -> wire.Message:
        match message.get("op"):
            case "hello":
                return {"protocol": wire.PROTOCOL, "pid": os.getpid(), "shims": len(self._shims)}
            case "leave":
                return {"leaving": not self._shims and len(self._daemons) == 1}
            case "spawn":
                return {"pid": self._spawn(message["run_dir"], descriptors)}
        return {"error": f"unknown request {message.get('op')!r}", "kind": "ValueError"}

    def _spawn(self, run_dir: str, descriptors: list[int]) -> int:
        pid = os.fork()
        if pid:
            self._shims.add(pid)
            return pid
        # The child: nothing of the zygote may stay open or run on, whatever happens.
        code = 70
        try:
            gc.enable()
            self._loop.close()
            self._listener.close()
            for daemon in self._daemons:
                daemon.close()
            run_shim(run_dir, descriptors[0], descriptors[1:])
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)

    def _reaped(self, pid: int, status: int) -> None:
        if pid not in self._shims:
            return  # left behind by a shim that was killed
        self._shims.discard(pid)
        for daemon in list(self._daemons):
            self._tell(daemon, {"event": "shim_died", "pid": pid, "status": os.waitstatus_to_exitcode(status)})
        self._leave_if_alone()

    def _tell(self, sock: socket.socket, message: wire.Message) -> None:
        try:
            wire.send(sock, message)
        except OSError:
            self._drop(sock)

    def _drop(self, sock: socket.socket) -> None:
        if sock in self._daemons:
            self._daemons.remove(sock)
            self._loop.forget(sock.fileno())
            sock.close()
            self._leave_if_alone()

    def _leave_if_alone(self) -> None:
        if not self._daemons and not self._shims:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            self._loop.stop()


def main(path: str, descriptor: int) -> None:
    """Serve on `path`; `descriptor` is the first daemon's connection."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    wake_on(signal.SIGCHLD)
    wake_on(signal.SIGTERM)  # for the shims; made there it would cost each some pages
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(PR_SET_NAME, b"berth-zygote", 0, 0, 0)
    os.umask(0o022)
    os.chdir("/")
    rehearsal.rehearse(f"{path}.rehearsal")
    zygote = Zygote(path, socket.socket(fileno=descriptor))
    gc.collect()
    # Objects of the zygote stay out of the collector, so that a shim's collection does not copy their pages.
    gc.disable()
    gc.freeze()
    rehearsal.fill_holes()
    zygote.run()
