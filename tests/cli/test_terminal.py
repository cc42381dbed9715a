from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import terminal
from cli.client import Takeover
from cli.terminal import Demultiplexer


def _frame(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


@given(
    frames=st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=40)), max_size=8),
    cuts=st.lists(st.integers(1, 20), min_size=1, max_size=50),
)
def test_any_cutting_of_the_stream_gives_the_same_output(frames: list[tuple[int, bytes]], cuts: list[int]) -> None:
    written = {1: b"", 2: b""}

    def write(stream: int, data: bytes) -> None:
        written[stream] += data

    whole = b"".join(_frame(stream, data) for stream, data in frames)
    demultiplexer = Demultiplexer(write)
    position = 0
    for turn in range(len(whole)):
        step = cuts[turn % len(cuts)]
        demultiplexer.feed(whole[position : position + step])
        position += step
    assert written == {n: b"".join(data for stream, data in frames if stream == n) for n in (1, 2)}


@pytest.mark.parametrize(
    ("reads", "detached"),
    [([b"\x10\x11"], True), ([b"\x10", b"\x11"], True), ([b"\x10x\x11"], False), ([b"ab\x10\x10\x11"], True)],
)
def test_detach_keys(reads: list[bytes], detached: bool) -> None:
    keys = terminal._DetachKeys()
    assert any([keys.seen(data) for data in reads]) is detached


def test_pump_half_closes_at_the_end_of_input_and_keeps_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, daemon = socket.socketpair()
    reading, writing = os.pipe()
    written: list[tuple[int, bytes]] = []
    monkeypatch.setattr(terminal, "write_stream", lambda stream, data: written.append((stream, data)))
    saved = os.dup(0)
    try:
        os.dup2(reading, 0)
        os.write(writing, b"question")
        os.close(writing)
        daemon.sendall(_frame(2, b"answer"))
        daemon.shutdown(socket.SHUT_WR)
        assert terminal.pump(Takeover(ours, _frame(1, b"early"), ""), terminal=False, send_stdin=True) is False
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(reading)
        ours.close()
    received = daemon.recv(100)
    daemon.close()
    assert written == [(1, b"early"), (2, b"answer")]
    assert received in (b"question", b"")
