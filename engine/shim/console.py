"""Terminals: the console socket on which the OCI runtime hands over a pseudo-terminal's master, and its size."""

import contextlib
import fcntl
import os
import socket
import struct
import termios

from engine.shim import wire


def set_size(master: int, rows: int, columns: int) -> None:
    """Resize; the kernel sends SIGWINCH to the foreground process group."""
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows & 0xFFFF, columns & 0xFFFF, 0, 0))


class ConsoleSocket:
    """Listens in the current folder until the runtime has sent the master."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        self._listener.bind(name)
        self._listener.listen(1)

    @property
    def path(self) -> str:
        """An absolute name that fits a socket address however deep the run folder lies."""
        return f"/proc/{os.getpid()}/cwd/{self._name}"

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept_master(self) -> int | None:
        """The master, if the runtime has sent it by now."""
        try:
            connection = self._listener.accept()[0]
        except BlockingIOError:
            return None
        with connection:
            # The runtime writes right after it connects; half a second covers any scheduling.
            connection.settimeout(0.5)
            try:
                ancillary = connection.recvmsg(4096, socket.CMSG_SPACE(16), socket.MSG_CMSG_CLOEXEC)[1]
            except OSError:
                return None
        masters = wire.received_descriptors(ancillary)
        for surplus in masters[1:]:
            os.close(surplus)
        return masters[0] if masters else None

    def close(self) -> None:
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._name)
