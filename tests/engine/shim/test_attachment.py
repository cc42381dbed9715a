"""A client's output is complete and in order however slowly it reads, and nobody waits for it."""

import os
import socket
from pathlib import Path

import pytest

from engine.shim import attachment as module
from engine.shim.attachment import Attachment
from engine.shim.loop import Loop
from engine.shim.wire import STDERR, STDOUT, header


@pytest.fixture
def loop() -> Loop:
    return Loop(lambda _pid, _status: None)


def no_end(_attachment: Attachment, _hung_up: bool) -> None:
    """For tests that do not type."""


def attach(loop: Loop, tmp_path: Path, *streams: int, framed: bool = False) -> tuple[Attachment, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    made = Attachment(
        loop, theirs, streams=frozenset(streams), framed=framed, close_input=False, spill_dir=str(tmp_path)
    )
    return made, ours


def run_until_gone(loop: Loop, made: Attachment) -> None:
    made._on_gone = lambda _attachment: loop.stop()
    loop.run()


def drain(sock: socket.socket, loop: Loop) -> bytes:
    """Read on the loop, so that sender and reader take turns."""
    parts: list[bytes] = []

    def readable(_events: int) -> None:
        data = sock.recv(1 << 16)
        parts.append(data)
        if not data:
            loop.forget(sock.fileno())
            loop.stop()

    loop.watch(sock.fileno(), 1, readable)
    loop.run()
    sock.close()
    return b"".join(parts)


def test_only_asked_streams_in_dockers_frames(loop: Loop, tmp_path: Path) -> None:
    made, ours = attach(loop, tmp_path, STDERR, framed=True)
    made.begin(None, no_end, lambda _attachment: None)
    made.push(STDOUT, b"not asked")
    made.push(STDERR, b"asked")
    made.finish()
    assert ours.recv(100) == header(STDERR, 5) + b"asked"
    assert ours.recv(100) == b""
    ours.close()
    run_until_gone(loop, made)
    loop.close()


def test_typing_on_after_the_end_costs_no_output(loop: Loop, tmp_path: Path) -> None:
    made, ours = attach(loop, tmp_path, STDOUT)
    gone: list[Attachment] = []
    made.begin(None, no_end, gone.append)
    ours.sendall(b"unread input")
    made.push(STDOUT, b"last words")
    made.finish()
    ours.sendall(b"and more")
    assert ours.recv(100) == b"last words"
    assert ours.recv(100) == b""
    assert gone == []
    ours.close()
    run_until_gone(loop, made)
    loop.close()


def test_a_slow_reader_gets_everything_in_order_through_memory_and_file(loop: Loop, tmp_path: Path) -> None:
    made, ours = attach(loop, tmp_path, STDOUT)
    gone: list[Attachment] = []
    made.begin(None, no_end, gone.append)
    chunks = [os.urandom(100_000) for _ in range(40)]
    for chunk in chunks:
        made.push(STDOUT, chunk)
    assert made._spill >= 0
    assert list(tmp_path.iterdir()) == []  # unlinked
    made.finish()
    assert drain(ours, loop) == b"".join(chunks)
    assert gone == []
    run_until_gone(loop, made)
    loop.close()


def test_a_reader_too_slow_is_cut_off(loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPILL_LIMIT", 1_000_000)
    made, ours = attach(loop, tmp_path, STDOUT)
    gone: list[Attachment] = []
    made.begin(None, no_end, gone.append)
    for _ in range(40):
        made.push(STDOUT, b"x" * 100_000)
    assert gone == [made]
    ours.close()
    loop.close()


def test_no_room_to_spill_costs_only_this_client(loop: Loop) -> None:
    made, ours = attach(loop, Path("/nonexistent"), STDOUT)
    gone: list[Attachment] = []
    made.begin(None, no_end, gone.append)
    for _ in range(40):
        made.push(STDOUT, b"x" * 100_000)
    assert gone == [made]
    ours.close()
    loop.close()


def test_input_arrives_and_its_end_once(loop: Loop, tmp_path: Path) -> None:
    made, ours = attach(loop, tmp_path, STDOUT)
    typed: list[bytes] = []
    ends: list[bool] = []

    def on_end(_attachment: Attachment, hung_up: bool) -> None:
        ends.append(hung_up)
        loop.stop()

    made.begin(typed.append, on_end, lambda _attachment: None)
    ours.sendall(b"hello")
    ours.shutdown(socket.SHUT_WR)
    loop.run()
    assert (typed, ends) == ([b"hello"], [False])
    made.push(STDOUT, b"still heard")
    assert ours.recv(100) == b"still heard"
    made.drop()
    assert ends == [False]
    ours.close()
    loop.close()


def test_what_was_typed_before_a_hang_up_is_not_lost_when_output_cannot_be_sent(loop: Loop, tmp_path: Path) -> None:
    made, ours = attach(loop, tmp_path, STDOUT)
    typed: list[bytes] = []
    ends: list[bool] = []
    made.begin(typed.append, lambda _attachment, hung_up: ends.append(hung_up), lambda _attachment: loop.stop())
    made.pause_input(True)
    ours.sendall(b"last line")
    ours.close()
    made.push(STDOUT, b"nobody hears this")
    assert made._on_gone is not None
    made.pause_input(False)
    loop.run()
    assert (typed, ends) == ([b"last line"], [True])
    loop.close()


def test_a_peer_that_closes_is_noticed(loop: Loop, tmp_path: Path) -> None:
    made, ours = attach(loop, tmp_path, STDOUT)
    made.begin(None, no_end, lambda _attachment: None)
    ours.close()
    run_until_gone(loop, made)
    assert made._on_gone is None
    loop.close()
