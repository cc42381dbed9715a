"""One attached client: its output queue and its input.

A peer that reads slowly is buffered, in memory first, then in an unlinked file, and cut off beyond a bound, so that
neither the container nor the log ever waits for it.
"""

import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Callable

from engine.shim import wire
from engine.shim.loop import HANGUP, READ, WRITE, Loop

MEMORY_LIMIT = 256 * 1024
SPILL_LIMIT = 1024 * 1024 * 1024
SPILL_READ = 256 * 1024
INPUT_READ = 64 * 1024

Input = Callable[[bytes], None]
InputEnd = Callable[["Attachment", bool], None]


class Attachment:
    """Owns the shim's end of the stream pair."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        *,
        streams: frozenset[int],
        framed: bool,
        close_input: bool,
        spill_dir: str,
    ) -> None:
        self._loop = loop
        self._sock = sock
        self.streams = streams
        self._framed = framed
        self.close_input = close_input
        self._spill_dir = spill_dir
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._spill = -1
        self._spill_read = self._spill_written = 0
        self._finishing = False
        self._input: Input | None = None
        self._on_input_end: InputEnd | None = None
        self._input_paused = False
        self._input_ended = False
        self._ended = False
        self._on_gone: Callable[[Attachment], None] | None = None
        self.progress = time.monotonic()
        sock.setblocking(False)

    def begin(self, on_input: Input | None, on_input_end: InputEnd, on_gone: Callable[["Attachment"], None]) -> None:
        """Watch the peer. `on_input` gets what it writes; None ignores that. The others are called once each, in order.

        `on_input_end` is told whether the peer hung up, in place of half-closing.
        """
        self._input = on_input
        self._on_input_end = on_input_end
        self._on_gone = on_gone
        self._watch()

    def push(self, stream: int, data: bytes) -> None:
        """Send output, now or later."""
        if stream not in self.streams or self._finishing or self._on_gone is None:
            return
        parts = [wire.header(stream, len(data)), data] if self._framed else [data]
        if not self._queued and self._spill < 0:
            try:
                sent = self._sock.sendmsg(parts, [], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._lose_output()
                return
            parts = _rest(parts, sent)
            if not parts:
                return
        self._keep(parts)
        self._watch()

    def finish(self) -> None:
        """All output has been pushed: end the stream when it has been sent."""
        self._finishing = True
        self._flushed_or_watch()

    def pause_input(self, paused: bool) -> None:
        """Stop or resume reading what the peer writes, so that input is bounded too."""
        if self._input_paused != paused:
            self._input_paused = paused
            self._watch()

    def drop(self) -> None:
        """Close now, losing what was not sent."""
        if self._on_gone is None:
            return
        self._end_input(hung_up=True)
        gone, self._on_gone = self._on_gone, None
        self._loop.forget(self._sock.fileno())
        self._sock.close()
        self._forget_output()
        gone(self)

    def _lose_output(self) -> None:
        """The peer has closed. What it wrote before may still be unread, and its end is noticed by reading."""
        self.streams = frozenset()
        self._forget_output()
        if self._input_ended:
            self.drop()
        else:
            self._watch()

    def _forget_output(self) -> None:
        if self._spill >= 0:
            os.close(self._spill)
            self._spill = -1
        self._queue.clear()
        self._queued = 0

    def _keep(self, parts: list[bytes]) -> None:
        if self._spill < 0 and self._queued < MEMORY_LIMIT:
            for part in parts:
                self._queue.append(memoryview(part))
                self._queued += len(part)
            return
        try:
            if self._spill < 0:
                self._spill = os.open(self._spill_dir, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            for part in parts:
                self._spill_written += _write_whole(self._spill, part, self._spill_written)
        except OSError:
            self.drop()  # no room to buffer: this client loses, nobody else
            return
        if self._spill_written - self._spill_read > SPILL_LIMIT:
            self.drop()

    def _events(self, events: int) -> None:
        if events & WRITE:
            self._send_queued()
        if self._on_gone is not None and events & READ:
            self._receive(hung_up=bool(events & HANGUP))
        elif self._on_gone is not None and events & HANGUP and self._input_ended:
            self.drop()

    def _send_queued(self) -> None:
        try:
            while self._refill():
                sent = self._sock.send(self._queue[0], socket.MSG_NOSIGNAL)
                self._queued -= sent
                self.progress = time.monotonic()
                if sent == len(self._queue[0]):
                    self._queue.popleft()
                else:
                    self._queue[0] = self._queue[0][sent:]
        except BlockingIOError:
            return
        except OSError:
            self._lose_output()
            return
        self._flushed_or_watch()

    def _refill(self) -> bool:
        """Whether anything is queued, taking from the spill file when memory has run empty."""
        if self._queue:
            return True
        if self._spill < 0:
            return False
        data = os.pread(self._spill, min(SPILL_READ, self._spill_written - self._spill_read), self._spill_read)
        if not data:
            os.close(self._spill)
            self._spill = -1
            self._spill_read = self._spill_written = 0
            return False
        self._spill_read += len(data)
        self._queue.append(memoryview(data))
        self._queued = len(data)
        self._loop.busy = True
        return True

    def _receive(self, *, hung_up: bool) -> None:
        try:
            data = self._sock.recv(INPUT_READ)
        except (BlockingIOError, ConnectionResetError):
            return  # a reset is told once, before what is left to read
        if data:
            if self._input is not None:
                self._input(data)
            return
        self._end_input(hung_up=hung_up)
        if self.streams and not self._ended:
            self._watch()
        else:
            self.drop()

    def _end_input(self, *, hung_up: bool) -> None:
        if not self._input_ended:
            self._input_ended = True
            if self._input is not None and self._on_input_end is not None:
                self._on_input_end(self, hung_up)

    def _flushed_or_watch(self) -> None:
        if self._on_gone is None:
            return
        if not self._finishing or self._queued or self._spill >= 0:
            self._watch()
            return
        self.progress = time.monotonic()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        self._ended = True
        if self._input_ended:
            self.drop()
            return
        # Closing with unread input, or before the peer's last write, would reset the stream and cost it unread output:
        # swallow what it types until it closes.
        self._input = None
        self._input_paused = False
        self._watch()

    def _watch(self) -> None:
        if self._on_gone is None:
            return
        wanted = 0 if self._input_paused or self._input_ended else READ  # an ended input is readable for ever
        if self._queued or self._spill >= 0:
            wanted |= WRITE
        if wanted or self._input_ended:
            self._loop.watch(self._sock.fileno(), wanted, self._events)
        else:
            self._loop.forget(self._sock.fileno())  # paused: a hang-up must wait until the input before it is read


def _rest(parts: list[bytes], sent: int) -> list[bytes]:
    rest: list[bytes] = []
    for part in parts:
        if sent < len(part):
            rest.append(part[sent:] if sent else part)
        sent = max(0, sent - len(part))
    return rest


def _write_whole(descriptor: int, data: bytes, offset: int) -> int:
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], offset + done)
    return done
