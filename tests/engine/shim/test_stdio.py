"""A process's streams: everything it wrote is heard, its end is not delayed by whom it left behind."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from engine.shim import stdio as module
from engine.shim.log import JsonFile
from engine.shim.loop import REST_SECONDS, Loop
from engine.shim.stdio import INPUT_LIMIT, Stdio
from engine.shim.wire import STDERR, STDOUT, header

BOTH = frozenset((STDOUT, STDERR))


class Process:
    """The far ends of a Stdio's pipes, as a process would have them."""

    def __init__(self, tmp_path: Path, **options: Any) -> None:
        self.loop = Loop(lambda _pid, _status: None)
        self.log_path = tmp_path / "log"
        settings = {"terminal": False, "open_stdin": False, "stdin_once": False, "owner": (0, 0), **options}
        self.log = JsonFile(str(self.log_path), attributes={})
        self.daemons = {socket.socket(socket.AF_UNIX)}
        self.stdio = Stdio(
            self.loop, spill_dir=str(tmp_path), log=self.log, daemons=lambda: frozenset(self.daemons), **settings
        )
        self.stdin, self.stdout, self.stderr = (os.dup(end) for end in self.stdio.child_ends)
        self.stdio.close_child_ends()
        self.stdio.begin()

    def another_daemon(self) -> None:
        self.daemons.pop().close()
        self.daemons.add(socket.socket(socket.AF_UNIX))

    def end(self, *, keep_output: bool = False) -> None:
        if not keep_output:
            os.close(self.stdout)
            os.close(self.stderr)
        ended: list[bool] = []

        def done() -> None:
            ended.append(True)
            self.loop.stop()

        self.stdio.drain(done)
        if not ended:
            self.loop.run()
        self.stdio.finish()

    def close(self) -> None:
        os.close(self.stdin)
        for attachment in tuple(self.stdio.attachments):
            attachment.drop()
        self.stdio.close()
        for connection in self.daemons:
            connection.close()
        self.log.close()
        self.loop.close()


def client(process: Process, *, stdin: bool = False, close_input: bool = False) -> socket.socket:
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    process.stdio.attach(theirs, stdin=stdin, streams=BOTH, close_input=close_input)
    return ours


def received(sock: socket.socket) -> bytes:
    with sock:
        return b"".join(iter(lambda: sock.recv(1 << 16), b""))


def test_what_was_written_before_the_end_is_heard_and_logged(tmp_path: Path) -> None:
    process = Process(tmp_path)
    ours = client(process)
    os.write(process.stdout, b"a" * 50_000)
    os.write(process.stderr, b"err")
    process.end()
    assert received(ours) == header(STDOUT, 50_000) + b"a" * 50_000 + header(STDERR, 3) + b"err"
    assert len(process.log_path.read_bytes().splitlines()) == 5
    process.close()


def test_a_holder_of_the_output_delays_the_end_by_a_bound_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAIN_SECONDS", 0.01)
    process = Process(tmp_path)
    ours = client(process)
    os.write(process.stdout, b"before\n")
    process.end(keep_output=True)
    assert received(ours) == header(STDOUT, 7) + b"before\n"
    # it is not killed by SIGPIPE for writing on
    assert os.write(process.stdout, b"after") == 5
    os.close(process.stdout)
    os.close(process.stderr)
    process.close()


def test_input_reaches_the_process_and_ends_where_asked(tmp_path: Path) -> None:
    process = Process(tmp_path, open_stdin=True)
    first, second = client(process, stdin=True), client(process, stdin=True, close_input=True)
    first.sendall(b"one ")
    first.shutdown(socket.SHUT_WR)
    process.loop.after(0.01, lambda: second.sendall(b"two"))
    process.loop.after(0.02, lambda: second.shutdown(socket.SHUT_WR))
    process.loop.after(0.05, process.loop.stop)
    process.loop.run()
    assert os.read(process.stdin, 100) == b"one two"
    assert os.read(process.stdin, 100) == b""
    process.end()
    for sock in (first, second):
        assert received(sock) == b""
    process.close()


def test_a_process_that_does_not_read_stops_the_typing_not_the_loop(tmp_path: Path) -> None:
    process = Process(tmp_path, open_stdin=True)
    ours = client(process, stdin=True)
    ours.setblocking(False)
    sent = 0

    def feed() -> None:
        nonlocal sent
        try:
            while True:
                sent += ours.send(b"x" * 65536)
        except BlockingIOError:
            process.loop.after(0.005, feed)

    feed()
    process.loop.after(0.1, process.loop.stop)
    process.loop.run()
    assert process.stdio._input_size <= INPUT_LIMIT + module.READ_SIZE
    assert sent < 2_000_000
    process.end()
    ours.close()
    process.close()


def test_a_closed_input_swallows_what_is_typed(tmp_path: Path) -> None:
    process = Process(tmp_path, open_stdin=True)
    ours = client(process, stdin=True)
    os.close(process.stdin)
    process.stdin = os.open("/dev/null", os.O_RDONLY)
    ours.sendall(b"nobody reads")
    process.loop.after(0.02, process.loop.stop)
    process.loop.run()
    os.write(process.stdout, b"alive")
    process.end()
    assert received(ours) == header(STDOUT, 5) + b"alive"
    process.close()


def test_the_next_daemon_does_not_answer_for_the_clients_of_one_whose_death_is_noticed_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HANG_UP_SECONDS", 0.01)
    process = Process(tmp_path, open_stdin=True)
    (first,) = process.daemons
    sock = client(process, stdin=True, close_input=True)
    process.daemons.add(socket.socket(socket.AF_UNIX))
    sock.close()

    def noticed() -> None:
        process.daemons.remove(first)
        first.close()

    process.loop.after(0.005, noticed)
    process.loop.after(0.05, process.loop.stop)
    process.loop.run()
    os.set_blocking(process.stdin, False)
    with pytest.raises(BlockingIOError):
        os.read(process.stdin, 10)
    process.end()
    process.close()


@pytest.mark.parametrize("daemon_lives", [True, False])
def test_a_client_that_leaves_ends_the_input_but_a_daemon_that_dies_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, daemon_lives: bool
) -> None:
    monkeypatch.setattr(module, "HANG_UP_SECONDS", 0.01)
    process = Process(tmp_path, open_stdin=True)
    client(process, stdin=True, close_input=True).close()
    if not daemon_lives:
        process.loop.after(0.005, process.another_daemon)
    process.loop.after(0.05, process.loop.stop)
    process.loop.run()
    os.set_blocking(process.stdin, False)
    if daemon_lives:
        assert os.read(process.stdin, 10) == b""
    else:
        with pytest.raises(BlockingIOError):
            os.read(process.stdin, 10)
    process.end()
    process.close()


def test_many_small_pieces_are_handed_on_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(tmp_path)
    pieces: list[tuple[float, int]] = []
    script = "import os; [os.write(1, b'x' * 200) for _ in range(5000)]"
    flood: list[subprocess.Popen[bytes]] = []

    def write(_stream: int, data: bytes) -> None:
        pieces.append((time.monotonic(), len(data)))
        if not flood:
            flood.append(subprocess.Popen([sys.executable, "-c", script], stdout=process.stdout))
        if sum(size for _, size in pieces) == 5 + 1_000_000:
            process.loop.stop()

    monkeypatch.setattr(process.log, "write", write)
    os.write(process.stdout, b"first")
    process.loop.run()
    assert flood[0].wait() == 0
    assert pieces[0][1] == 5
    small = [when for when, size in pieces[1:] if size < module.FLOW_SIZE]
    assert len(small) <= (small[-1] - small[0]) / REST_SECONDS + 3
    process.end()
    process.close()
