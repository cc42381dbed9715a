"""The user's terminal and a container's stdio: raw mode, window size, detach keys, and the copying between them.

Promises: the terminal is put back whatever happens; nothing the container wrote before it ended is lost; the end of
the user's input half-closes the connection and leaves the output open.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from types import FrameType

from cli.client import Takeover

_DETACH_KEYS = b"\x10\x11"  # ctrl-p ctrl-q, docker's default
_READ_BYTES = 1 << 16
_HEADER_BYTES = 8


@contextlib.contextmanager
def raw_terminal(wanted: bool) -> Iterator[None]:
    """Raw mode for the terminal on stdin while the block runs; nothing when it is not wanted or no terminal."""
    descriptor = 0
    if not wanted or not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def window() -> tuple[int, int]:
    """The size of our terminal: rows, columns."""
    size = shutil.get_terminal_size()
    return size.lines, size.columns


@contextlib.contextmanager
def on_resize(resize: Callable[[int, int], None], wanted: bool) -> Iterator[None]:
    """Call `resize(rows, columns)` whenever the window changes while the block runs."""
    if not wanted or not os.isatty(1):
        yield
        return

    def changed(_number: int, _frame: FrameType | None) -> None:
        resize(*window())

    before = signal.signal(signal.SIGWINCH, changed)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


@contextlib.contextmanager
def forwarded_signals(send: Callable[[str], None], wanted: bool) -> Iterator[None]:
    """Pass what would end this client on to the container instead, as `docker run` does without a terminal."""
    if not wanted:
        yield
        return

    def arrived(number: int, _frame: FrameType | None) -> None:
        send(signal.Signals(number).name)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.signal(number, arrived) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Demultiplexer:
    """Docker's 8-byte framed stream cut back into stdout and stderr, whatever pieces it arrives in."""

    def __init__(self, write: Callable[[int, bytes], None]) -> None:
        self._write = write
        self._header = b""
        self._stream = 1
        self._left = 0

    def feed(self, piece: bytes) -> None:
        """Take the next bytes from the connection; payload is passed on at once, not frame by frame."""
        view = memoryview(piece)
        while view:
            if self._left:
                part = view[: self._left]
                self._write(self._stream, bytes(part))
                self._left -= len(part)
                view = view[len(part) :]
                continue
            missing = _HEADER_BYTES - len(self._header)
            self._header += bytes(view[:missing])
            view = view[missing:]
            if len(self._header) == _HEADER_BYTES:
                self._stream = self._header[0]
                self._left = int.from_bytes(self._header[4:], "big")
                self._header = b""


def write_stream(stream: int, data: bytes) -> None:
    """Write container output to our stdout, or stderr for stream 2, without buffering."""
    descriptor = 2 if stream == 2 else 1
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def pump(connection: Takeover, *, terminal: bool, send_stdin: bool) -> bool:
    """Copy both ways until the container's output ends. True when the user detached with the detach keys."""
    sys.stdout.flush()
    demultiplexer = Demultiplexer(write_stream)
    feed = (lambda piece: write_stream(1, piece)) if terminal else demultiplexer.feed
    sock = connection.sock
    if connection.leftover:
        feed(connection.leftover)
    keys = _DetachKeys() if terminal else None
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    if send_stdin:
        poller.register(0, select.POLLIN | select.POLLHUP)
    while True:
        for descriptor, _event in poller.poll():
            if descriptor == 0:
                data = os.read(0, _READ_BYTES)
                if keys is not None and keys.seen(data):
                    return True
                if not _send(sock, data):
                    poller.unregister(0)
                continue
            piece = _receive(sock)
            if not piece:
                return False
            feed(piece)


def _receive(sock: socket.socket) -> bytes:
    try:
        return sock.recv(_READ_BYTES)
    except ConnectionResetError:
        return b""


def _send(sock: socket.socket, data: bytes) -> bool:
    """Send the user's input; at its end half-close. False when no more input shall be read."""
    with contextlib.suppress(OSError):
        if data:
            sock.sendall(data)
            return True
        sock.shutdown(socket.SHUT_WR)
    return False


class _DetachKeys:
    """Recognises the detach sequence across reads. The keys before it have already been sent; that is harmless."""

    def __init__(self) -> None:
        self._matched = 0

    def seen(self, data: bytes) -> bool:
        for byte in data:
            self._matched = self._matched + 1 if byte == _DETACH_KEYS[self._matched] else int(byte == _DETACH_KEYS[0])
            if self._matched == len(_DETACH_KEYS):
                return True
        return False
