"""The process that workers are forked from: one fresh interpreter that has imported what jobs need, and nothing else.

It reads ``{"fork": id}`` or ``{"kill": id}`` from its control socket (SOCK_SEQPACKET, its number is the first
argument) and tells ``{"ended": id, "status": wait status}`` of every child. A fork message carries the child's job
socket. A child does one job and exits, so whatever root, namespace or umask it took on ends with it. When the control
socket closes (the daemon is gone, or the pool is idle) every child is killed and the foundry exits.
"""

from __future__ import annotations

import array
import gc
import json
import os
import select
import signal
import socket
import sys
from typing import Any

from engine.kernel import process
from engine.snapshots import jobs

MESSAGE_LIMIT = 192 * 1024


def receive(sock: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """One message and the descriptors that came with it; None at the end of the conversation."""
    room = socket.CMSG_SPACE(16 * array.array("i").itemsize)
    data, ancillary, _, _ = sock.recvmsg(MESSAGE_LIMIT, room, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(value[: len(value) - len(value) % fds.itemsize])
    return (json.loads(data) if data else None), list(fds)


class JobChannel:
    """The child's end of its job socket: partial results, progress, and the one final word."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._told = 0

    def progress(self, count: int) -> None:
        """Tell how many source bytes are consumed, at most once per 512 KiB; never waits for the daemon."""
        if count - self._told >= 1 << 19:
            self._told = count
            try:
                self._sock.send(b'{"progress":%d}' % count, socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass

    def part(self, value: Any) -> None:
        """Send one piece of a long result."""
        self._sock.send(json.dumps({"part": value}).encode())

    def done(self, value: Any) -> None:
        self._sock.send(json.dumps({"result": value}).encode())

    def failed(self, error: BaseException) -> None:
        self._sock.send(json.dumps({"error": describe(error)}).encode()[:MESSAGE_LIMIT])


def describe(error: BaseException) -> dict[str, Any]:
    """An exception as data: the daemon raises the same built-in kind again."""
    if isinstance(error, OSError) and error.errno is not None:
        name = error.filename
        if isinstance(name, bytes):
            name = name.decode("utf-8", "replace")
        return {"kind": "OSError", "errno": error.errno, "message": error.strerror or "", "name": name}
    kind = "ValueError" if isinstance(error, ValueError | EOFError) else type(error).__name__
    return {"kind": kind, "message": str(error)[:4096]}


def _child(sock: socket.socket, parent: int) -> None:
    """Life of a worker; never returns."""
    status = 1
    try:
        process.die_with_parent(parent)
        process.set_name("berth-worker")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        os.umask(0)
        channel = JobChannel(sock)
        request, fds = receive(sock)
        if request is not None:
            try:
                channel.done(jobs.TABLE[request["job"]](channel, fds, **request["args"]))
            except BaseException as error:  # noqa: BLE001 - everything is told to the daemon, which raises it again
                channel.failed(error)
            status = 0
    except OSError:
        status = 1  # the daemon no longer listens
    finally:
        os._exit(status)


class Foundry:
    """The loop of the foundry process."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._pids: dict[int, int] = {}
        self._watched: dict[int, int] = {}

    def run(self) -> None:
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._control.fileno():
                    if not self._command():
                        return
                else:
                    self._reap(fd)

    def _command(self) -> bool:
        message, fds = receive(self._control)
        if message is None:
            return False
        if "kill" in message:
            pid = self._pids.get(message["kill"])
            if pid is not None:  # not reaped yet, so the number is still its own
                os.kill(pid, signal.SIGKILL)
            return True
        self._fork(message["fork"], fds[0])
        return True

    def _fork(self, job: int, fd: int) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._control.close()
            for watched in self._watched:
                os.close(watched)
            _child(socket.socket(fileno=fd), parent)
        os.close(fd)
        pidfd = os.pidfd_open(pid)
        self._pids[job] = pid
        self._watched[pidfd] = job
        self._poll.register(pidfd, select.POLLIN)

    def _reap(self, pidfd: int) -> None:
        job = self._watched.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(self._pids.pop(job), 0)
        self._control.send(json.dumps({"ended": job, "status": status}).encode())

    def end(self) -> None:
        """Kill and reap every child; their mounts and half-written trees are the next start's trash."""
        for pid in self._pids.values():
            os.kill(pid, signal.SIGKILL)
        for pid in self._pids.values():
            os.waitpid(pid, 0)


def main() -> None:
    """Entry point of the foundry process."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    process.set_name("berth-foundry")
    gc.collect()
    gc.freeze()
    foundry = Foundry(socket.socket(fileno=int(sys.argv[1])))
    try:
        foundry.run()
    except (BrokenPipeError, ConnectionResetError):
        pass
    finally:
        foundry.end()
