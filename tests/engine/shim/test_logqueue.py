"""A log with a thread of its own: what is delivered, when it is full, what is lost, and that nothing ends it."""

import json
import os
import select
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.shim import logqueue
from engine.shim.log import PIECE, JsonFile, Log, NoLog
from engine.shim.logqueue import BufferedFile, Message, Remote, Sink, Troubles
from engine.shim.wire import STDERR, STDOUT

DEADLINE = 10.0


class Memory(Sink):
    """A sink that remembers, can be stopped, and can fail."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.open = threading.Event()
        self.open.set()
        self.failing = False
        self.closed = threading.Event()

    def send(self, messages: list[Message]) -> None:
        assert self.open.wait(DEADLINE)
        if self.failing:
            raise OSError("away")
        self.messages += messages

    def close(self) -> None:
        self.closed.set()

    @property
    def lines(self) -> list[bytes]:
        return [message[2] for message in self.messages]


def finish(log: Remote | BufferedFile) -> None:
    log.flush()
    log.close()
    log._worker.wait_idle(DEADLINE)
    os.close(log._worker.descriptor)
    os.close(log._worker._writer)


@pytest.fixture
def sink() -> Iterator[Memory]:
    memory = Memory()
    yield memory
    memory.open.set()


def remote(sink: Memory, limit: int | None = None, troubles: list[OSError] | None = None) -> Remote:
    return Remote(sink, NoLog(), limit=limit, on_trouble=(troubles if troubles is not None else []).append)


def is_full(log: Log) -> bool:
    return log.full


def is_lingering(log: Log) -> bool:
    return log.lingering


def test_lines_arrive_without_their_newlines_and_unfinished_ones_at_the_end(sink: Memory) -> None:
    log = remote(sink)
    log.write(STDOUT, b"one\ntwo\n\nthr")
    log.write(STDERR, b"err\n")
    log.write(STDOUT, b"ee")
    finish(log)
    assert [(message[1], message[2]) for message in sink.messages] == [
        (STDOUT, b"one"),
        (STDOUT, b"two"),
        (STDOUT, b""),
        (STDERR, b"err"),
        (STDOUT, b"three"),
    ]
    assert sink.closed.is_set()


def test_the_parts_of_a_long_line_belong_together(sink: Memory) -> None:
    log = remote(sink)
    log.write(STDOUT, b"x" * (2 * PIECE))
    log.write(STDOUT, b"end\nplain\n")
    finish(log)
    parts = [message[3] for message in sink.messages]
    assert [part and part[1:] for part in parts] == [(1, False), (2, False), (3, True), None]
    assert len({part[0] for part in parts if part}) == 1
    assert [len(line) for line in sink.lines] == [PIECE, PIECE, 3, 5]


def test_pieces_of_a_line_belong_together_and_the_end_leaves_one(sink: Memory) -> None:
    log = remote(sink)
    log.write(STDOUT, b"x" * (PIECE + 3))
    log.write(STDOUT, b"y\nwhole\ncut off")
    finish(log)
    (first, second, whole, rest) = sink.messages
    assert first[3] is not None and second[3] is not None and rest[3] is not None
    assert (first[3][1:], second[3][1:], whole[3], rest[3][1:]) == ((1, False), (2, True), None, (1, False))
    assert first[3][0] == second[3][0] != rest[3][0]
    assert first[0] == second[0]  # pieces have the time of the first
    assert rest[2] == b"cut off"


def test_a_blocking_log_is_full_until_half_of_it_is_delivered(sink: Memory) -> None:
    log = remote(sink)
    sink.open.clear()
    log.write(STDOUT, b"x" * 1000 + b"\n")
    assert is_full(log) is False
    for _ in range(70):
        log.write(STDOUT, (b"y" * 1000 + b"\n") * 16)
    assert is_full(log) is True
    sink.open.set()
    assert select.select([log.descriptor], [], [], DEADLINE)[0]
    log.woken()
    assert is_full(log) is False
    finish(log)
    assert len(sink.lines) == 1 + 70 * 16


def test_a_log_that_may_not_block_loses_lines_and_keeps_whole_ones(sink: Memory) -> None:
    log = remote(sink, limit=1000)
    sink.open.clear()
    for number in range(100):
        log.write(STDOUT, b"%098d\n" % number * 2)
        assert not log.full
    sink.open.set()
    finish(log)
    assert 5 <= len(sink.lines) < 30
    assert {len(line) for line in sink.lines} == {98}


def test_a_sink_that_fails_is_told_of_once_and_used_again(sink: Memory) -> None:
    troubles: list[OSError] = []
    log = remote(sink, troubles=troubles)
    sink.failing = True
    for _ in range(3):
        log.write(STDOUT, b"lost\n")
    log._worker.wait_idle(DEADLINE)
    sink.failing = False
    log.write(STDOUT, b"kept\n")
    log._worker.wait_idle(DEADLINE)
    log.woken()
    finish(log)
    assert [str(trouble) for trouble in troubles] == ["away"]
    assert sink.lines == [b"kept"]


def test_a_closed_log_lingers_until_it_is_delivered_but_not_for_ever(
    sink: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = remote(sink)
    sink.open.clear()
    log.write(STDOUT, b"late\n")
    assert not is_lingering(log)
    log.close()
    assert is_lingering(log)
    monkeypatch.setattr(logqueue, "LINGER_SECONDS", 0.0)
    assert not is_lingering(log)
    sink.open.set()
    assert sink.closed.wait(DEADLINE)
    assert sink.lines == [b"late"]
    os.close(log._worker.descriptor)
    os.close(log._worker._writer)


def test_what_goes_elsewhere_stays_readable_here(sink: Memory, tmp_path: Path) -> None:
    cache = JsonFile(str(tmp_path / "cache"), attributes={"tag": "t"})
    log = Remote(sink, cache, limit=None, on_trouble=lambda _error: None)
    sink.open.clear()
    log.write(STDOUT, b"a\nb")
    log.flush()
    kept = [json.loads(line) for line in (tmp_path / "cache").read_bytes().splitlines()]
    assert [(entry["log"], entry["attrs"]) for entry in kept] == [("a\n", {"tag": "t"}), ("b", {"tag": "t"})]
    log.truncate()
    assert (tmp_path / "cache").stat().st_size == 0
    sink.open.set()
    finish(log)


def test_a_buffered_file_is_complete_once_flushed(tmp_path: Path) -> None:
    troubles = Troubles(lambda _error: None)
    log = BufferedFile(JsonFile(str(tmp_path / "log"), attributes={}), 1 << 20, troubles)
    for number in range(500):
        log.write(STDOUT, b"%d\n" % number)
    log.write(STDOUT, b"rest")
    log.flush()
    texts = [json.loads(line)["log"] for line in (tmp_path / "log").read_bytes().splitlines()]
    assert texts == [f"{number}\n" for number in range(500)] + ["rest"]
    log.truncate()
    finish(log)
    assert (tmp_path / "log").stat().st_size == 0


def test_a_full_disk_under_a_buffered_file_is_told_in_the_loop() -> None:
    told: list[OSError] = []
    troubles = Troubles(told.append)
    log = BufferedFile(JsonFile("/dev/full", attributes={}, on_trouble=troubles.note), 1 << 20, troubles)
    log.write(STDOUT, b"lost\n")
    log._worker.wait_idle(DEADLINE)
    assert not told
    assert select.select([log.descriptor], [], [], DEADLINE)[0]
    log.woken()
    assert [trouble.strerror for trouble in told] == ["No space left on device"]
    finish(log)
