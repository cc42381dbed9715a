"""Reading json-file logs: rendering, tail, rotation, follow."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from engine.clock import SECOND, rfc3339
from engine.containers import logs
from engine.containers.logs import LogCursor, LogQuery, Renderer, log_files, read_log, start_of_tail, truncate_log_sync


def line(text: str, stream: str = "stdout", at: int = 1, attrs: dict[str, str] | None = None) -> bytes:
    entry: dict[str, object] = {"log": text, "stream": stream, "time": rfc3339(at * SECOND)}
    if attrs:
        entry["attrs"] = attrs
    return json.dumps(entry).encode() + b"\n"


def frame(text: str, number: int = 1) -> bytes:
    return bytes([number, 0, 0, 0]) + len(text.encode()).to_bytes(4, "big") + text.encode()


def render(query: LogQuery, *lines: bytes, framed: bool = False) -> bytes:
    return Renderer(query, framed=framed).render(b"".join(lines))


class Log:
    """A log file that a test writes and reads."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "c-json.log"
        self.running = False
        self.end = asyncio.Event()

    def write(self, *texts: str) -> None:
        with self.path.open("ab") as file:
            for text in texts:
                file.write(line(f"{text}\n"))

    def rotate(self) -> None:
        for number in range(8, 0, -1):
            old = Path(f"{self.path}.{number}")
            if old.exists():
                old.rename(f"{self.path}.{number + 1}")
        self.path.rename(f"{self.path}.1")

    def chunks(self, query: LogQuery, *, framed: bool = False) -> AsyncIterator[bytes]:
        return read_log(self.path, query, framed=framed, ended=lambda: not self.running, end_event=self.end)

    async def text(self, query: LogQuery) -> str:
        return b"".join([chunk async for chunk in self.chunks(query)]).decode()


@pytest_asyncio.fixture
async def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


class Follower:
    """Reads a followed log in the background."""

    def __init__(self, log: Log, query: LogQuery) -> None:
        self.seen = b""
        self._changed = asyncio.Event()
        self.task = asyncio.ensure_future(self._read(log.chunks(query)))

    async def _read(self, chunks: AsyncIterator[bytes]) -> None:
        async for chunk in chunks:
            self.seen += chunk
            self._changed.set()

    async def sees(self, text: str) -> None:
        async with asyncio.timeout(5):
            while self.seen.decode() != text:
                self._changed.clear()
                await self._changed.wait()

    async def ends(self) -> None:
        async with asyncio.timeout(5):
            await self.task


def test_streams_are_chosen_and_framed() -> None:
    lines = line("out\n"), line("err\n", "stderr")
    assert render(LogQuery(), *lines) == b"out\nerr\n"
    assert render(LogQuery(stderr=False), *lines) == b"out\n"
    assert render(LogQuery(stdout=False), *lines) == b"err\n"
    assert render(LogQuery(), *lines, framed=True) == frame("out\n") + frame("err\n", 2)


def test_timestamps_and_details_go_before_the_text() -> None:
    entry = line("x\n", attrs={"b": "1 2", "a": "é"})
    assert render(LogQuery(timestamps=True), entry) == b"1970-01-01T00:00:01.000000000Z x\n"
    assert render(LogQuery(details=True), entry) == b"a=%C3%A9,b=1+2 x\n"
    both = render(LogQuery(details=True, timestamps=True), entry)
    assert both == b"1970-01-01T00:00:01.000000000Z a=%C3%A9,b=1+2 x\n"


def test_since_and_until_are_inclusive() -> None:
    lines = [line(f"{at}\n", at=at) for at in (1, 2, 3, 4)]
    assert render(LogQuery(since_ns=2 * SECOND), *lines) == b"2\n3\n4\n"
    renderer = Renderer(LogQuery(since_ns=2 * SECOND, until_ns=3 * SECOND), framed=False)
    assert renderer.render(b"".join(lines[:3])) == b"2\n3\n"
    assert not renderer.past_until
    assert renderer.render(b"".join(lines[3:])) == b""
    assert renderer.past_until


@pytest.mark.parametrize(
    "torn", [b"", b'{"log":"x', b"[]", b'{"log":5}', b'{"log":"x","stream":"stdout","time":"soon"}']
)
def test_unreadable_lines_are_passed_over(torn: bytes) -> None:
    assert render(LogQuery(timestamps=True), torn + b"\n", line("y\n")).endswith(b" y\n")


@given(
    st.lists(st.binary(max_size=6).map(lambda b: b.replace(b"\n", b"x")), max_size=12),
    st.booleans(),
    st.integers(1, 5),
    st.integers(1, 9),
)
def test_the_tail_starts_where_a_plain_search_says(texts: list[bytes], torn: bool, wanted: int, block: int) -> None:
    whole = [text + b"\n" for text in texts]
    content = b"".join(whole) + (b"torn" if torn else b"")
    before, logs.BLOCK_BYTES = logs.BLOCK_BYTES, block
    try:
        offset, found = start_of_tail(io.BytesIO(content), wanted)
    finally:
        logs.BLOCK_BYTES = before
    assert found == min(wanted, len(whole))
    assert offset == sum(len(text) for text in whole[: max(0, len(whole) - wanted)])


def test_files_are_listed_oldest_first(tmp_path: Path) -> None:
    for name in ("x.log", "x.log.1", "x.log.2.gz", "x.log.10", "x.log.tmp", "y.log.1"):
        (tmp_path / name).touch()
    assert [p.name for p in log_files(tmp_path / "x.log")] == ["x.log.10", "x.log.2.gz", "x.log.1", "x.log"]
    assert log_files(tmp_path / "no/x.log") == [tmp_path / "no/x.log"]


async def test_everything_is_read_across_rotated_files(log: Log) -> None:
    log.write("a", "b")
    log.rotate()
    log.write("c")
    log.rotate()
    log.write("d")
    old = Path(f"{log.path}.2")
    Path(f"{old}.gz").write_bytes(gzip.compress(old.read_bytes()))
    old.unlink()
    assert await log.text(LogQuery()) == "a\nb\nc\nd\n"
    assert await log.text(LogQuery(tail=3)) == "b\nc\nd\n"
    assert await log.text(LogQuery(tail=1)) == "d\n"
    assert await log.text(LogQuery(tail=0)) == ""
    assert await log.text(LogQuery(tail=9)) == "a\nb\nc\nd\n"


async def test_a_log_that_is_not_there_is_empty(log: Log) -> None:
    assert await log.text(LogQuery()) == ""
    assert await log.text(LogQuery(follow=True)) == ""
    missing = read_log(
        log.path.parent / "no" / "x", LogQuery(follow=True), framed=False, ended=lambda: False, end_event=log.end
    )
    assert [chunk async for chunk in missing] == []


async def test_a_long_log_comes_in_batches(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "BATCH_BYTES", 200)
    texts = [f"line {number}" for number in range(50)]
    log.write(*texts)
    chunks = [chunk async for chunk in log.chunks(LogQuery())]
    assert len(chunks) > 10
    assert b"".join(chunks).decode() == "".join(f"{text}\n" for text in texts)


async def test_a_line_longer_than_a_batch_is_whole(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "BATCH_BYTES", 64)
    log.write("x" * 500, "y")
    assert await log.text(LogQuery()) == "x" * 500 + "\ny\n"


async def test_reading_stops_after_until(log: Log) -> None:
    log.path.write_bytes(line("a\n", at=1) + line("b\n", at=5))
    log.running = True
    chunks = [chunk async for chunk in log.chunks(LogQuery(follow=True, until_ns=2 * SECOND))]
    assert chunks == [b"a\n"]


async def test_following_goes_on_until_the_container_ends(log: Log) -> None:
    log.running = True
    log.write("a")
    follower = Follower(log, LogQuery(follow=True))
    await follower.sees("a\n")
    log.write("b")
    await follower.sees("a\nb\n")
    log.write("c")
    log.running = False
    log.end.set()
    await follower.ends()
    assert follower.seen == b"a\nb\nc\n"


async def test_following_starts_at_the_end_with_tail_0(log: Log) -> None:
    log.running = True
    log.write("old")
    follower = Follower(log, LogQuery(follow=True, tail=0))
    await asyncio.sleep(0.005)
    log.write("new")
    await follower.sees("new\n")
    log.running = False
    log.end.set()
    await follower.ends()


async def test_following_survives_rotation_and_truncation(log: Log) -> None:
    log.running = True
    log.write("a")
    follower = Follower(log, LogQuery(follow=True))
    await follower.sees("a\n")
    log.write("b")
    log.rotate()
    log.write("c", "d")
    await follower.sees("a\nb\nc\nd\n")
    log.path.write_bytes(b"")
    log.write("e")
    await follower.sees("a\nb\nc\nd\ne\n")
    log.running = False
    log.end.set()
    await follower.ends()


async def test_who_stops_following_leaves_nothing_open(log: Log) -> None:
    log.running = True
    log.write("a")
    follower = Follower(log, LogQuery(follow=True))
    await follower.sees("a\n")
    follower.task.cancel()
    await asyncio.wait([follower.task])
    assert follower.task.cancelled()


def drained(cursor: LogCursor) -> list[bytes]:
    lines: list[bytes] = []
    while found := cursor.read_sync():
        lines += found.splitlines()
    return lines


@pytest.fixture
def sync_log(tmp_path: Path) -> Callable[[str], None]:
    path = tmp_path / "c-json.log"

    def write(text: str) -> None:
        with path.open("ab") as file:
            file.write(text.encode())

    return write


def test_no_file_is_skipped_when_two_rotations_happen_between_two_reads(tmp_path: Path) -> None:
    log_path = tmp_path / "x"
    cursor = LogCursor(log_path)
    log_path.write_bytes(b"1\n")
    cursor.open_sync(None)
    assert drained(cursor) == [b"1"]
    log_path.rename(tmp_path / "x.2")
    (tmp_path / "x.1").write_bytes(b"2\n")
    log_path.write_bytes(b"3\n")
    assert drained(cursor) == [b"2", b"3"]
    cursor.close_sync()


def test_a_reader_whose_file_was_dropped_goes_on_with_all_that_came_after(tmp_path: Path) -> None:
    log_path = tmp_path / "x"
    cursor = LogCursor(log_path)
    log_path.write_bytes(b"1\n")
    cursor.open_sync(None)
    assert drained(cursor) == [b"1"]
    log_path.unlink()
    assert drained(cursor) == []
    (tmp_path / "x.1").write_bytes(b"2\n")
    log_path.write_bytes(b"3\n")
    assert drained(cursor) == [b"2", b"3"]
    cursor.close_sync()


def test_half_a_line_waits_for_its_rest(tmp_path: Path, sync_log: Callable[[str], None]) -> None:
    sync_log("one\ntw")
    cursor = LogCursor(tmp_path / "c-json.log")
    cursor.open_sync(None)
    assert drained(cursor) == [b"one"]
    sync_log("o\n")
    assert drained(cursor) == [b"two"]
    cursor.close_sync()


def compress(plain: Path) -> None:
    """As the shim does: the header names the inode of the file it was made from."""
    with open(f"{plain}.gz", "wb") as file, gzip.GzipFile(str(plain.stat().st_ino), "wb", fileobj=file) as target:
        target.write(plain.read_bytes())
    plain.unlink()


def test_a_reader_finds_its_place_among_compressed_files(tmp_path: Path) -> None:
    log_path = tmp_path / "x"
    cursor = LogCursor(log_path)
    log_path.write_bytes(b"1\n")
    cursor.open_sync(None)
    assert drained(cursor) == [b"1"]
    for text in (b"2\n", b"3\n"):
        for number in (2, 1):
            with contextlib.suppress(FileNotFoundError):
                (tmp_path / f"x.{number}.gz").rename(tmp_path / f"x.{number + 1}.gz")
        log_path.rename(tmp_path / "x.1")
        compress(tmp_path / "x.1")
        log_path.write_bytes(text)
    assert drained(cursor) == [b"2", b"3"]
    cursor.close_sync()


def test_a_file_with_the_inode_of_a_gone_one_is_another_file(tmp_path: Path) -> None:
    log_path = tmp_path / "x"
    log_path.write_bytes(b"now\n")
    with (
        open(f"{log_path}.1.gz", "wb") as file,
        gzip.GzipFile(str(log_path.stat().st_ino), "wb", fileobj=file) as target,
    ):
        target.write(b"then\n")
    cursor = LogCursor(log_path)
    cursor.open_sync(None)
    assert drained(cursor) == [b"then", b"now"]
    log_path.rename(tmp_path / "x.2")
    (tmp_path / "x.1.gz").rename(tmp_path / "x.3.gz")
    (tmp_path / "x.1").write_bytes(b"next\n")
    log_path.write_bytes(b"last\n")
    assert drained(cursor) == [b"next", b"last"]
    cursor.close_sync()


def test_a_file_that_is_being_compressed_is_read_once(tmp_path: Path) -> None:
    for name in ("x", "x.1", "x.1.gz", "x.2.gz", "x.1.tmp"):
        (tmp_path / name).touch()
    assert [file.name for file in log_files(tmp_path / "x")] == ["x.2.gz", "x.1", "x"]


def test_the_tail_of_a_compressed_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.with_name("x.1").write_bytes(b"".join(b"%d\n" % number for number in range(1000)))
    compress(path.with_name("x.1"))
    path.write_bytes(b"new\n")
    for wanted in (2, 500, 1001, 2000):
        cursor = LogCursor(path)
        cursor.open_sync(wanted)
        expected = [b"%d" % number for number in range(1000)] + [b"new"]
        assert drained(cursor) == expected[-wanted:]
        cursor.close_sync()


def packed(first: int, last: int) -> bytes:
    """A rotated file with these lines, each written at the second that it names."""
    return gzip.compress(b"".join(line(f"{number}\n", at=number) for number in range(first, last + 1)))


def zeroed(data: bytes) -> bytes:
    """The same with its second half never written."""
    return data[: len(data) // 2].ljust(len(data), b"\0")


DAMAGES: list[Callable[[bytes], bytes]] = [
    lambda data: data[: len(data) // 2],
    lambda data: data[:4],
    lambda _data: b"",
    lambda data: bytes(len(data)),
    zeroed,
    lambda data: data[:-8] + b"checksum",
]


@pytest.fixture(params=DAMAGES, ids=["cut", "cut early", "empty", "zeroes", "zeroed tail", "wrong checksum"])
def damaged(request: pytest.FixtureRequest, log: Log) -> Log:
    """A log of whole files, and a damaged one between them that held 100 to 899."""
    Path(f"{log.path}.3.gz").write_bytes(packed(10, 19))
    Path(f"{log.path}.2.gz").write_bytes(request.param(packed(100, 899)))
    Path(f"{log.path}.1.gz").write_bytes(packed(900, 919))
    log.path.write_bytes(b"".join(line(f"{number}\n", at=number) for number in range(1000, 1003)))
    return log


WITHIN = [str(number) for number in range(100, 900)]
BEFORE, AFTER = [str(number) for number in range(10, 20)], [*map(str, range(900, 920)), "1000", "1001", "1002"]


def within(texts: list[str]) -> list[str]:
    """What is shown of the damaged file: its beginning."""
    found = [text for text in texts if text in WITHIN]
    assert found == WITHIN[: len(found)]
    return found


async def test_a_damaged_file_hides_no_other(damaged: Log) -> None:
    shown = (await damaged.text(LogQuery())).split()
    assert shown == BEFORE + within(shown) + AFTER


async def test_what_can_be_read_of_a_damaged_file_is_shown(log: Log) -> None:
    data = packed(100, 899)
    for damage, least in ((data[: len(data) // 2], 300), (zeroed(data), 300), (data[:-8] + b"checksum", 800)):
        Path(f"{log.path}.1.gz").write_bytes(damage)
        assert len(within((await log.text(LogQuery())).split())) >= least


async def test_a_tail_reaches_over_a_damaged_file(damaged: Log) -> None:
    for tail in (0, 2, 3, 15, 23):
        assert (await damaged.text(LogQuery(tail=tail))).split() == AFTER[len(AFTER) - tail :]
    shown = (await damaged.text(LogQuery(tail=5000))).split()
    assert shown == BEFORE + within(shown) + AFTER
    for tail in (len(AFTER) + len(within(shown)) // 2, len(shown) - 5):  # begins in it, and before it
        assert (await damaged.text(LogQuery(tail=tail))).split() == shown[len(shown) - tail :]


async def test_times_are_sought_over_a_damaged_file(damaged: Log) -> None:
    assert (await damaged.text(LogQuery(since_ns=910 * SECOND))).split() == AFTER[10:]
    shown = (await damaged.text(LogQuery(since_ns=15 * SECOND, until_ns=905 * SECOND))).split()
    assert shown == BEFORE[5:] + within(shown) + AFTER[:6]


async def test_a_damaged_file_is_passed_while_following(damaged: Log) -> None:
    damaged.running = True
    shown = await damaged.text(LogQuery())
    follower, late = Follower(damaged, LogQuery(follow=True)), Follower(damaged, LogQuery(follow=True, tail=1))
    await follower.sees(shown)
    await late.sees("1002\n")
    for number in (3, 2, 1):
        Path(f"{damaged.path}.{number}.gz").rename(f"{damaged.path}.{number + 1}.gz")
    damaged.path.rename(f"{damaged.path}.1")
    damaged.write("new")
    await follower.sees(f"{shown}new\n")
    await late.sees("1002\nnew\n")
    damaged.running = False
    damaged.end.set()
    await follower.ends()
    await late.ends()


async def test_a_damaged_file_alone_is_a_log(log: Log) -> None:
    """The current file is not there: a power loss between two steps of a rotation."""
    Path(f"{log.path}.1.gz").write_bytes(zeroed(packed(100, 899)))
    shown = (await log.text(LogQuery())).split()
    assert within(shown) == shown
    assert await log.text(LogQuery(tail=0)) == ""


@pytest.mark.parametrize(
    "torn", [b'{"log":"to\n', b'{"log":"to' + bytes(9) + b"\n", bytes(9) + b"\n", bytes(9), b'{"log":"to' + bytes(9)]
)
@pytest.mark.parametrize("name", ["c-json.log", "container-local.log"])
async def test_a_torn_line_hides_none_after_it(tmp_path: Path, torn: bytes, name: str) -> None:
    log = Log(tmp_path)
    log.path = tmp_path / name
    log.path.write_bytes(line("a\n", at=1) + torn + line("b\n", at=2) + line("c\n", at=3))
    assert await log.text(LogQuery()) == "a\nb\nc\n"
    assert await log.text(LogQuery(tail=2)) == "b\nc\n"
    assert await log.text(LogQuery(since_ns=2 * SECOND)) == "b\nc\n"
    log.rotate()
    log.write("d")
    assert await log.text(LogQuery(timestamps=True, tail=3)) == "".join(
        f"1970-01-01T00:00:0{at}.000000000Z {text}\n" for at, text in ((2, "b"), (3, "c"), (1, "d"))
    )


async def test_a_torn_end_of_a_rotated_file_hides_nothing_of_the_next(log: Log) -> None:
    log.path.write_bytes(line("a\n") + b'{"log":"to')
    log.rotate()
    log.write("b")
    assert await log.text(LogQuery()) == "a\nb\n"
    assert await log.text(LogQuery(tail=2)) == "a\nb\n"


def test_zeroes_without_end_are_not_kept_until_a_line_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync_log: Callable[[str], None]
) -> None:
    """A hundred megabytes of them were copied whole for each half that was read."""
    monkeypatch.setattr(logs, "BATCH_BYTES", 1000)
    monkeypatch.setattr(logs, "LONGEST_BYTES", 3000)
    sync_log("a\n" + "\0" * 50_000 + "b\n")
    cursor = LogCursor(tmp_path / "c-json.log")
    cursor.open_sync(None)
    chunks = list(iter(cursor.read_sync, b""))
    assert b"".join(chunks).replace(b"\0", b"") == b"a\nb\n"
    assert max(map(len, chunks)) <= 4000
    cursor.close_sync()


def test_a_stopped_containers_log_is_emptied(tmp_path: Path) -> None:
    for name in ("x", "x.1", "x.2.gz", "y", "x.tmp"):
        (tmp_path / name).write_bytes(b"1\n")
    truncate_log_sync(tmp_path / "x")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x", "x.tmp", "y"]
    assert (tmp_path / "x").read_bytes() == b""
    truncate_log_sync(tmp_path / "none")
