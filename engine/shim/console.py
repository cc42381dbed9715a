"""Terminals: the console socket on which the OCI runtime hands over a pseudo-terminal's master, and its size."""

import contextlib
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable

from engine.shim import wire
from engine.shim.loop import READ, Loop


def set_size(master: int, rows: int, columns: int) -> None:
    """Resize; the kernel sends SIGWINCH to the foreground process group."""
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows & 0xFFFF, columns & 0xFFFF, 0, 0))


class ConsoleSocket:
    """Listens in the current folder until the runtime has sent the master."""

    def __init__(self, loop: Loop, name: str, take: Callable[[int], None]) -> None:
        """`take` is called with the master, at most once and before `close` returns."""
        self._loop = loop
        self._name = name
        self._take = take
        self._connection: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        self._listener.bind(name)
        self._listener.listen(1)
        loop.watch(self._listener.fileno(), READ, self._look)

    @property
    def path(self) -> str:
        """An absolute name that fits a socket address however deep the run folder lies."""
        return f"/proc/{os.getpid()}/cwd/{self._name}"

    def close(self) -> None:
        """The runtime has ended; what it sent last is still taken."""
        self._look(READ)
        self._hang_up()
        self._loop.forget(self._listener.fileno())
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._name)

    def _look(self, _events: int) -> None:
        try:
            if self._connection is None:
                self._connection = self._listener.accept()[0]
                self._connection.setblocking(False)
                self._loop.watch(self._connection.fileno(), READ, self._look)
            ancillary = self._connection.recvmsg(4096, socket.CMSG_SPACE(16), socket.MSG_CMSG_CLOEXEC)[1]
        except BlockingIOError:
            return
        except OSError:
            ancillary = []
        self._hang_up()
        masters = wire.received_descriptors(ancillary)
        for surplus in masters[1:]:
            os.close(surplus)
        if masters:
            self._take(masters[0])

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._loop.forget(self._connection.fileno())
            self._connection.close()
            self._connection = None
