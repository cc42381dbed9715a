"""The standard streams of one process: from its pipes or terminal to the log and every attachment, and back.

Reads are large and handed on whole, so that a chatty process costs a few calls per quarter of a MiB: one that writes
much in small pieces is read at most once a millisecond, its first piece at once. What the process
wrote before it ended is always read before its end is told (`drain`); a child that it left holding its output cannot
delay that beyond a bound.
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import termios
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from engine.shim import console, wire
from engine.shim.attachment import Attachment
from engine.shim.log import Log
from engine.shim.loop import HANGUP, READ, WRITE, Loop

# Twice what a quick writer has for us after a rest: it need not wait for our next look.
PIPE_SIZE = 512 * 1024
READ_SIZE = 256 * 1024
# Pieces smaller than this that come faster than one in FLOW_SECONDS are left to gather.
FLOW_SIZE = 64 * 1024
FLOW_SECONDS = 0.002
INPUT_LIMIT = 128 * 1024
# How long the end of a process waits for the end of its output, when something else still holds that open.
DRAIN_SECONDS = 0.5
# A dying daemon's connections end one after the other, within this time even on a busy machine.
HANG_UP_SECONDS = 1.0

# The connections of the daemons there are now.
Daemons = Callable[[], frozenset[socket.socket]]


class Stdio:
    """Pipes exist from the start; a terminal arrives through `set_master`."""

    def __init__(
        self,
        loop: Loop,
        *,
        terminal: bool,
        open_stdin: bool,
        stdin_once: bool,
        spill_dir: str,
        log: Log | None,
        daemons: Daemons,
        owner: Sequence[int],
    ) -> None:
        self._loop = loop
        self.terminal = terminal
        self._open_stdin = open_stdin
        self._stdin_once = stdin_once
        self._spill_dir = spill_dir
        self._log = log
        self._daemons = daemons
        self.attachments: list[Attachment] = []
        self._outputs: dict[int, int] = {}  # descriptor -> stream
        self._stdin = -1
        self._master = -1
        self._input: deque[memoryview] = deque()
        self._input_size = 0
        self._close_after_input = False
        self._child_ends: list[int] = []
        self._discard = False
        self._last_read = 0.0
        self._held_back = False  # the log is full: the output is not read
        self._finished = False
        self._on_drained: Callable[[], None] | None = None
        if not terminal:
            self._open_pipes()
            self._give_away(owner)

    @property
    def child_ends(self) -> tuple[int, int, int]:
        """What becomes descriptors 0, 1 and 2 of the process (or of the runtime, where a terminal is used)."""
        if self.terminal:
            return (0, 1, 1)  # the shim's own, which are /dev/null
        stdin, stdout, stderr = self._child_ends
        return stdin, stdout, stderr

    def close_child_ends(self) -> None:
        """The process has them now (or never will)."""
        for descriptor in set(self._child_ends):
            os.close(descriptor)
        self._child_ends = []

    def set_master(self, master: int, size: tuple[int, int] | None) -> None:
        """The terminal's master end; sized at once, because the process has not started yet."""
        os.set_blocking(master, False)
        self._master = self._stdin = master
        self._outputs[master] = wire.STDOUT
        if size is not None:
            console.set_size(master, *size)

    def resize(self, rows: int, columns: int) -> None:
        if self._master < 0:
            raise OSError(errno.ENOTTY, "process has no terminal")
        console.set_size(self._master, rows, columns)

    def begin(self) -> None:
        """The process runs: read its output. Before, a pipe might hold the words of a runtime that failed."""
        self._watch_outputs()
        if self._log is not None and self._log.descriptor >= 0:
            self._loop.watch(self._log.descriptor, READ, self._log_woken)
        self._pump_input()

    def attach(self, sock: socket.socket, *, stdin: bool, streams: frozenset[int], close_input: bool) -> None:
        attachment = Attachment(
            self._loop,
            sock,
            streams=streams,
            framed=not self.terminal,
            close_input=(close_input or self._stdin_once) and not self.terminal,
            spill_dir=self._spill_dir,
        )
        self.attachments.append(attachment)
        takes_input = stdin and self._open_stdin
        typed_out = partial(self._typed_out, self._daemons())
        attachment.begin(self._typed if takes_input else None, typed_out, self._gone)
        if takes_input and self._input_size > INPUT_LIMIT:
            attachment.pause_input(True)
        if self._finished:
            attachment.finish()

    def drain(self, done: Callable[[], None]) -> None:
        """The process has ended: call `done` when all that it wrote has been handed on."""
        self._on_drained = done
        if self._held_back:  # what is left is little, and the end waits for no log
            self._held_back = False
            self._watch_outputs()
        self._drop_input()
        for descriptor in list(self._outputs):
            if descriptor != self._master:
                self._read_pending(descriptor)
        if self._outputs:
            self._loop.after(DRAIN_SECONDS, self._drained)
        else:
            self._drained()

    def finish(self) -> None:
        """The end has been told: end every attachment behind its last byte."""
        self._finished = True
        for attachment in list(self.attachments):
            attachment.finish()

    def close(self) -> None:
        """Release everything but attachments that are still being sent to."""
        self.close_child_ends()
        self._drop_input()
        for descriptor in list(self._outputs):
            self._end_of(descriptor)

    def _open_pipes(self) -> None:
        if self._open_stdin:
            stdin, self._stdin = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self._stdin, False)
        else:
            stdin = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._child_ends.append(stdin)
        for stream in (wire.STDOUT, wire.STDERR):
            reader, writer = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(reader, False)
            with contextlib.suppress(OSError):  # beyond the user's pipe allowance the default size does
                fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
            self._outputs[reader] = stream
            self._child_ends.append(writer)

    def _give_away(self, owner: Sequence[int]) -> None:
        """Let container root open its streams anew (/dev/stdout), as whom the host knows it."""
        if any(owner):
            for descriptor in self._child_ends:
                if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                    os.fchown(descriptor, *owner)

    # output

    def _readable(self, descriptor: int, _events: int) -> None:
        self._read(descriptor)

    def _read(self, descriptor: int) -> int:
        """Hand on what one read gives; 0 when there is nothing now or any more."""
        try:
            data = os.read(descriptor, READ_SIZE)
        except BlockingIOError:
            return 0
        except OSError:  # EIO: the last holder of the terminal is gone
            data = b""
        if not data:
            self._end_of(descriptor)
            return 0
        if len(data) >= 4096:
            self._loop.busy = True
        if len(data) < FLOW_SIZE:
            now = time.monotonic()
            self._loop.rest = now - self._last_read < FLOW_SECONDS
            self._last_read = now
        if not self._discard:
            stream = self._outputs[descriptor]
            if self._log is not None:
                self._log.write(stream, data)
            for attachment in tuple(self.attachments):
                attachment.push(stream, data)
            if self._log is not None and not self._held_back and self._on_drained is None and self._log.full:
                self._hold_back()
        return len(data)

    def _watch_outputs(self) -> None:
        for descriptor in self._outputs:
            self._loop.watch(descriptor, READ, partial(self._readable, descriptor))

    def _hold_back(self) -> None:
        """A blocking log is full: the container waits, as soon as its pipes are full too."""
        self._held_back = True
        for descriptor in self._outputs:
            self._loop.forget(descriptor)

    def _log_woken(self, _events: int) -> None:
        if self._log is None:
            return
        self._log.woken()
        if self._held_back and not self._log.full:
            self._held_back = False
            self._watch_outputs()
            if self._master >= 0:
                self._watch_input()

    def _read_pending(self, descriptor: int) -> None:
        # A pipe is in order: what the ended process wrote is among the bytes it holds now. Who writes on is not waited
        # for.
        pending = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0\0\0\0"))[0]
        while pending > 0 and descriptor in self._outputs:
            pending -= self._read(descriptor) or pending
        if descriptor in self._outputs:
            self._read(descriptor)  # usually its end

    def _end_of(self, descriptor: int) -> None:
        if self._outputs.pop(descriptor, None) is None:
            return
        self._loop.forget(descriptor)
        if descriptor == self._master:
            self._drop_input()
            self._master = -1
        os.close(descriptor)
        if not self._outputs and self._on_drained is not None:
            self._drained()

    def _drained(self) -> None:
        done, self._on_drained = self._on_drained, None
        if done is None:
            return
        # Whoever else holds the output keeps a reader, else SIGPIPE would end it; nobody hears it any more.
        self._discard = True
        if self._log is not None:
            self._log.flush()
        done()

    # input

    def _typed(self, data: bytes) -> None:
        if self._stdin >= 0:
            self._input.append(memoryview(data))
            self._input_size += len(data)
            self._pump_input()

    def _typed_out(self, daemons: frozenset[socket.socket], attachment: Attachment, hung_up: bool) -> None:
        """A client's input has ended: the process's too, where that was asked for.

        `daemons` are those that it can have come from: the next daemon may be here before the death of one is noticed.
        """
        if not attachment.close_input:
            return
        if hung_up:
            # A client that left, or the daemon that died? Of the latter nothing in the container may notice.
            self._loop.after(HANG_UP_SECONDS, partial(self._end_input_if_alive, daemons))
        else:
            self._end_input()

    def _end_input_if_alive(self, daemons: frozenset[socket.socket]) -> None:
        if daemons & self._daemons():
            self._end_input()

    def _end_input(self) -> None:
        self._close_after_input = True
        self._pump_input()

    def _pump_input(self) -> None:
        if self._stdin < 0:
            return
        try:
            while self._input:
                written = os.write(self._stdin, self._input[0])
                self._input_size -= written
                if written == len(self._input[0]):
                    self._input.popleft()
                else:
                    self._input[0] = self._input[0][written:]
        except BlockingIOError:
            pass
        except OSError:  # the process closed its input
            self._drop_input()
            return
        if self._close_after_input and not self._input:
            self._drop_input()
            return
        self._watch_input()
        for attachment in self.attachments:
            attachment.pause_input(self._input_size > INPUT_LIMIT)

    def _watch_input(self) -> None:
        if self._stdin == self._master:
            wanted = (0 if self._held_back else READ) | (WRITE if self._input else 0)
            if wanted:
                self._loop.watch(self._stdin, wanted, self._master_ready)
            else:
                self._loop.forget(self._stdin)
        elif self._input:
            self._loop.watch(self._stdin, WRITE, lambda _events: self._pump_input())
        else:
            self._loop.forget(self._stdin)

    def _master_ready(self, events: int) -> None:
        if events & WRITE:
            self._pump_input()
        if events & (READ | HANGUP) and self._master >= 0 and not self._held_back:
            self._read(self._master)

    def _drop_input(self) -> None:
        """Close the process's input; what is typed from now on is swallowed."""
        self._input.clear()
        self._input_size = 0
        if self._stdin >= 0 and self._stdin != self._master:
            self._loop.forget(self._stdin)
            os.close(self._stdin)
        self._stdin = -1
        for attachment in self.attachments:
            attachment.pause_input(False)

    def _gone(self, attachment: Attachment) -> None:
        if attachment in self.attachments:
            self.attachments.remove(attachment)
