"""Reading what the shim wrote: json-file logs with tail, since, until, timestamps, details, and follow.

Files are tracked by identity, so a follower goes on across rotation; a tail is found from the end, whatever the size.
Work is done in batches on a pool thread; what comes out is ready for the wire (docker's frames, or raw bytes for a
terminal).
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar
from urllib.parse import quote_plus

import msgspec

from engine.clock import parse_rfc3339, rfc3339_fixed
from engine.containers.logfile import Compressed, LogFile, identity_sync, open_file_sync
from engine.kernel.inotify import FolderWatch
from engine.tasks import run_blocking, run_to_end, wait_any

BATCH_BYTES = 512 * 1024
BLOCK_BYTES = 64 * 1024
LONGEST_BYTES = 4 << 20  # far beyond any entry: the shim makes several of a line that long
_LISTING_ATTEMPTS = 5
_LINE_ENDS = re.compile(rb"[\n\0]+")
_STDOUT, _STDERR = b"\x01\x00\x00\x00", b"\x02\x00\x00\x00"

L = TypeVar("L")


@dataclass(frozen=True, slots=True)
class LogQuery:
    """What a client wants to see; times in nanoseconds, ``tail`` None for everything."""

    stdout: bool = True
    stderr: bool = True
    timestamps: bool = False
    details: bool = False
    since_ns: int | None = None
    until_ns: int | None = None
    tail: int | None = None
    follow: bool = False


class Line(msgspec.Struct, gc=False):
    """What was written, and where: most who read a log want no more of it. They come by thousands, and hold nothing
    that could form a cycle."""

    log: str = ""
    stream: str = ""


class Entry(Line, gc=False):
    """One line of a json-file log, whole."""

    time: str = ""
    attrs: dict[str, str] = {}


_LINES = msgspec.json.Decoder(Line)
_ENTRIES = msgspec.json.Decoder(Entry)
_FIXED_LENGTH = len("2006-01-02T15:04:05.000000000")


class _Heads(dict[int, bytes]):
    """The heads of frames of one stream by the length of what follows; lengths repeat."""

    def __init__(self, stream: bytes) -> None:
        super().__init__()
        self._stream = stream

    def __missing__(self, length: int) -> bytes:
        head = self[length] = self._stream + length.to_bytes(4, "big")
        return head


class Renderer:
    """Turns log lines into what the client reads. Lines of one write share their time, so it is looked at once."""

    def __init__(self, query: LogQuery, *, framed: bool) -> None:
        self._query = query
        self._framed = framed
        self._timed = query.since_ns is not None or query.until_ns is not None
        # What `docker logs` asks for without options: everything, as it is.
        self._is_plain = (
            framed and query.stdout and query.stderr and not (self._timed or query.timestamps or query.details)
        )
        self._stdout, self._stderr = _Heads(_STDOUT), _Heads(_STDERR)
        self._time: str | None = None
        self._prefix = b""
        self._in_time = True
        self.past_until = False

    def render(self, chunk: bytes) -> bytes:
        """The wire bytes of some whole lines; unreadable lines are passed over (a crash may have torn one)."""
        if self._is_plain:
            return self._render_plain(_decode(_LINES, chunk))
        out: list[bytes] = []
        query = self._query
        for entry in _decode(_ENTRIES, chunk):
            if not (query.stdout if entry.stream == "stdout" else query.stderr):
                continue
            if entry.time != self._time and not self._take_time(entry.time):
                continue
            if self._in_time:
                self._append(out, entry)
        return b"".join(out)

    def _render_plain(self, lines: Iterable[Line]) -> bytes:
        """Every line in its frame."""
        out: list[bytes] = []
        append, stdout, stderr = out.append, self._stdout, self._stderr
        for line in lines:
            try:
                text = line.log.encode()
            except UnicodeEncodeError:
                text = line.log.encode("utf-8", "surrogatepass")
            append((stderr if line.stream == "stderr" else stdout)[len(text)])
            append(text)
        return b"".join(out)

    def _take_time(self, time: str) -> bool:
        """Look at an entry's time; False when it is none, and somebody wants to know it."""
        try:
            if self._timed:
                self._in_time = self._wanted(parse_rfc3339(time))
            if self._query.timestamps:
                self._prefix = _fixed(time).encode() + b" "
        except ValueError:
            return False
        self._time = time
        return True

    def _wanted(self, at: int) -> bool:
        query = self._query
        if query.until_ns is not None and at > query.until_ns:
            self.past_until = True
            return False
        return query.since_ns is None or at >= query.since_ns

    def _append(self, out: list[bytes], entry: Entry) -> None:
        try:
            text = entry.log.encode()
        except UnicodeEncodeError:
            text = entry.log.encode("utf-8", "surrogatepass")
        if self._query.details:
            text = _details(entry.attrs) + b" " + text
        if self._query.timestamps:
            text = self._prefix + text
        if self._framed:
            out.append((self._stderr if entry.stream == "stderr" else self._stdout)[len(text)])
        out.append(text)


def _decode(decoder: msgspec.json.Decoder[L], chunk: bytes) -> Iterable[L]:
    try:
        return decoder.decode_lines(chunk)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _readable(decoder, chunk)


def _readable(decoder: msgspec.json.Decoder[L], chunk: bytes) -> Iterator[L]:
    """Line by line what there is. A loss of power may leave zeroes; no entry holds one, so another may begin there."""
    for line in _LINE_ENDS.split(chunk):
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            yield decoder.decode(line)


def _fixed(time: str) -> str:
    """The time with nine digits of its second, as docker shows it. ValueError when it is none."""
    if len(time) <= _FIXED_LENGTH + 1 and time[19:20] == "." and time.endswith("Z"):
        return time[:-1].ljust(_FIXED_LENGTH, "0") + "Z"
    return rfc3339_fixed(parse_rfc3339(time))


def _details(attrs: dict[str, str]) -> bytes:
    return ",".join(f"{quote_plus(k)}={quote_plus(v)}" for k, v in sorted(attrs.items())).encode()


def log_files(path: Path) -> list[Path]:
    """The files of one log, oldest first: rotated ones (``.2``, ``.1``, perhaps ``.gz``) and the current.

    A file that has just been compressed is there twice for an instant; the plain one counts then.
    """
    rotated: dict[int, Path] = {}
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(path.parent), reverse=True):  # x.1.gz before x.1, which replaces it
            if name.startswith(path.name + "."):
                number = name[len(path.name) + 1 :].removesuffix(".gz")
                if number.isdigit():
                    rotated[int(number)] = path.parent / name
    return [rotated[number] for number in sorted(rotated, reverse=True)] + [path]


def truncate_log_sync(path: Path) -> None:
    """Empty a log that nobody writes, and remove what was rotated away."""
    with contextlib.suppress(FileNotFoundError):
        os.truncate(path, 0)
    for file in log_files(path)[:-1]:
        for each in (file, file.with_name(f"{file.name}.gz")):
            each.unlink(missing_ok=True)


def _open_all_sync(path: Path) -> list[LogFile]:
    """The files of one log, opened. Rotation and compression rename them meanwhile, so what was opened is checked."""
    for attempt in range(_LISTING_ATTEMPTS):
        files = _open_listed_sync(path)
        now = [inode for inode in map(_inode_sync, log_files(path)) if inode is not None]
        if attempt == _LISTING_ATTEMPTS - 1 or [os.fstat(file.fileno()).st_ino for file in files] == now:
            break
        for file in files:
            file.close()
    return files


def _open_listed_sync(path: Path) -> list[LogFile]:
    files = []
    for each in log_files(path):
        with contextlib.suppress(FileNotFoundError):
            files.append(open_file_sync(each))
    return files


def start_of_tail(file: LogFile, lines: int) -> tuple[int, int]:
    """The offset at which the last ``lines`` whole lines begin, and how many there are (fewer in a short file)."""
    if isinstance(file, Compressed):
        return _start_of_compressed_tail(file, lines)
    position, found = file.seek(0, io.SEEK_END), -1  # the newline that ends the last line begins no other
    while position > 0:
        size = min(BLOCK_BYTES, position)
        position -= size
        file.seek(position)
        block = file.read(size)
        at = len(block)
        while (at := block.rfind(b"\n", 0, at)) >= 0:
            found += 1
            if found == lines:
                return position + at + 1, found
    return 0, found + 1


def _start_of_compressed_tail(file: Compressed, lines: int) -> tuple[int, int]:
    """The same for a file that can only be read forwards: once to count, once to find."""
    total = 0
    while block := file.read(BATCH_BYTES):
        total += block.count(b"\n")
    skipped, offset = max(0, total - lines), 0
    file.seek(0)
    left = skipped
    while left > 0 and (block := file.read(BATCH_BYTES)):
        count = block.count(b"\n")
        if count < left:
            left -= count
            offset += len(block)
            continue
        at = -1
        for _ in range(left):
            at = block.find(b"\n", at + 1)
        return offset + at + 1, total - skipped
    return offset, total - skipped


class LogCursor:
    """A position in a log that moves forward through rotated files into the current one and follows its rotation."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: list[LogFile] = []
        self._file: LogFile | None = None
        self._rest = b""

    def open_sync(self, tail: int | None) -> None:
        """Open the files and go to the start of the tail."""
        files = _open_all_sync(self._path)
        if tail is not None:
            files = _seek_tail(files, tail)
        self._queue = files

    def read_sync(self) -> bytes:
        """The next whole lines, about ``BATCH_BYTES`` of them; empty at the end of what is there now."""
        while True:
            if self._file is None:
                if not self._queue:
                    return b""
                self._file, self._rest = self._queue.pop(0), b""
            data = self._file.read(BATCH_BYTES)
            if data:
                if self._rest:
                    data = self._rest + data
                end = data.rfind(b"\n") + 1
                if not end and len(data) > LONGEST_BYTES:  # zeroes, say: no line, so it is not kept until it ends
                    end = len(data)
                self._rest = data[end:]
                if end:
                    return data[:end]
                continue
            if not self._advance_sync():
                return b""

    def _advance_sync(self) -> bool:
        """At the end of a file: go to the next one, if there is one."""
        assert self._file is not None
        if self._queue:
            self._file.close()
            self._file = None
            return True
        if not self._rotated_sync():
            return self._restarted_sync()
        more = self._file.read(1)
        if more:  # written between our last read and the rotation
            self._file.seek(-1, io.SEEK_CUR)
            return True
        self._queue = self._newer_sync(identity_sync(self._file))
        self._file.close()
        self._file = None
        return bool(self._queue)

    def _newer_sync(self, identity: tuple[int, bytes]) -> list[LogFile]:
        """The files after the one that was read; all of them where that one is gone, because all are newer then."""
        files = _open_all_sync(self._path)
        identities = [identity_sync(file) for file in files]
        after = identities.index(identity) + 1 if identity in identities else 0
        for file in files[:after]:
            file.close()
        return files[after:]

    def _rotated_sync(self) -> bool:
        assert self._file is not None
        try:
            current = os.stat(self._path)
        except FileNotFoundError:
            return False
        return os.fstat(self._file.fileno()).st_ino != current.st_ino

    def _restarted_sync(self) -> bool:
        """Whether the file was truncated; then it is read from its start."""
        assert self._file is not None
        if not isinstance(self._file, io.BufferedReader) or _size_sync(self._file) >= self._file.tell():
            return False
        self._file.seek(0)
        self._rest = b""
        return True

    def close_sync(self) -> None:
        """Close every file."""
        for file in [*self._queue, *([self._file] if self._file else [])]:
            file.close()


def _size_sync(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def _inode_sync(path: Path) -> int | None:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return None


def _seek_tail(files: list[LogFile], tail: int) -> list[LogFile]:
    kept: list[LogFile] = []
    wanted = tail
    for file in reversed(files):
        if wanted <= 0:
            if not kept:  # tail 0: nothing of the past, but the place from which to follow
                file.seek(0, io.SEEK_END)
                kept.append(file)
            else:
                file.close()
            continue
        offset, found = start_of_tail(file, wanted)
        file.seek(offset)
        kept.append(file)
        wanted -= found
    return kept[::-1]


async def read_log(
    path: Path, query: LogQuery, *, framed: bool, ended: Callable[[], bool], end_event: asyncio.Event
) -> AsyncGenerator[bytes, None]:
    """Wire-ready chunks of a container's log. With ``follow`` it goes on until the container has ended."""
    cursor, renderer = LogCursor(path), Renderer(query, framed=framed)
    watch = FolderWatch(path.parent) if query.follow and path.parent.is_dir() else None
    try:
        await run_to_end("disk", cursor.open_sync, query.tail)
        while not renderer.past_until:
            if watch is not None:
                watch.changed.clear()
            finished = ended()
            chunk, more = await run_to_end("disk", _batch_sync, cursor, renderer)
            if chunk:
                yield chunk
            if more:
                continue
            if watch is None or finished:
                return
            await _change(watch, end_event, query.until_ns)
    finally:
        if watch is not None:
            watch.close()
        await run_blocking(cursor.close_sync)


def _batch_sync(cursor: LogCursor, renderer: Renderer) -> tuple[bytes, bool]:
    chunk = cursor.read_sync()
    return renderer.render(chunk), bool(chunk)


async def _change(watch: FolderWatch, end_event: asyncio.Event, until_ns: int | None) -> None:
    """Wait until the log may have grown or the container has ended."""
    await wait_any(watch.changed.wait(), end_event.wait(), timeout=1.0 if until_ns else None)
