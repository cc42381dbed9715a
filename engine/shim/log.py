"""The container's log, in json-file's format, rotated as dockerd rotates it.

Written by whole batches: one pass over a read's bytes makes all of its entries, without a step per line. A full disk
loses entries, never the container: an entry is on disk whole or not at all.
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

from engine.shim import wire

_PR_SET_PDEATHSIG = 1
_SYNCED_BYTES = 1 << 20

PIECE = 16 * 1024  # a longer line is split into entries of this size, without a newline at their end

_NAMES = {wire.STDOUT: "stdout", wire.STDERR: "stderr"}
# Bytes that stand for themselves in an entry; the newline is handled apart.
_PLAIN = bytes(byte for byte in range(0x20, 0x80) if byte not in b'"\\<>&') + b"\n"
_HIGH = bytes(range(0x80, 0x100))
# What an ASCII byte that is not plain becomes, as Go writes it; the backslash first, because every other replacement
# brings one.
_ESCAPES = {byte: b"\\u00%02x" % byte for byte in (*range(0x20), *b"<>&")}
_ESCAPES = {ord("\\"): b"\\\\", ord('"'): b'\\"', **_ESCAPES, ord("\r"): b"\\r"}
del _ESCAPES[ord("\n")]
_HTML = tuple((bytes((byte,)), _ESCAPES[byte]) for byte in b"<>&")
_SURROGATES = dict.fromkeys(range(0xDC80, 0xDD00), "\\ufffd")
_SEPARATORS = (("\u2028".encode(), b"\\u2028"), ("\u2029".encode(), b"\\u2029"))
_START = b'{"log":"'
_MOST_PARTS = 1000  # the kernel takes 1024 of one writev
# Beyond one byte in this many that is not plain, a chunk is binary.
_SPARSE = 8
# The C function, where the interpreter has it; both quote a string and keep what is not ASCII.
_quote = json.encoder.encode_basestring

_UNITS = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def escape(chunk: bytes) -> bytes:
    """The inside of a JSON string, newlines left as they are; what is not UTF-8 becomes U+FFFD."""
    odd = chunk.translate(None, _PLAIN)
    if not odd:
        return chunk
    if len(odd) > 64 and len(odd) * _SPARSE > len(chunk):
        if chunk.count(chunk[:1]) == len(chunk):  # zeroes, mostly
            return escape(chunk[:1]) * len(chunk)
        return _escape_binary(chunk)
    low = odd.translate(None, _HIGH)
    if low:
        for byte, escaped in _ESCAPES.items():
            if byte in low:
                chunk = chunk.replace(bytes((byte,)), escaped)
    if len(low) < len(odd):
        chunk = _escape_text(chunk)
    return chunk


def _escape_text(chunk: bytes) -> bytes:
    try:
        chunk.decode()
    except UnicodeDecodeError:
        chunk = chunk.decode("utf-8", "surrogateescape").translate(_SURROGATES).encode()
    if b"\xe2\x80" in chunk:
        for character, escaped in _SEPARATORS:
            chunk = chunk.replace(character, escaped)
    return chunk


def _escape_binary(chunk: bytes) -> bytes:
    """Where every other byte needs a replacement, one pass of the C encoder costs a fifth of replacing kind by kind.

    It writes the short forms of tab, backspace and form feed, and one U+FFFD for a torn character: as valid, and read
    back the same, but not byte for byte what dockerd writes.
    """
    text = chunk.decode("utf-8", "replace")
    replaced = _HTML + _SEPARATORS if b"\xe2\x80" in chunk else _HTML
    chunk = "\n".join([_quote(line)[1:-1] for line in text.split("\n")]).encode()
    for character, escaped in replaced:
        chunk = chunk.replace(character, escaped)
    return chunk


def timestamp(nanoseconds: int) -> bytes:
    """RFC 3339 in UTC with the nanoseconds that are not trailing zeroes, as Go writes it."""
    seconds, rest = divmod(nanoseconds, 10**9)
    fraction = (b".%09d" % rest).rstrip(b"0") if rest else b""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode() + fraction + b"Z"


def size_of(text: str) -> int:
    """Bytes of "10m", "1.5g", "2048": decimal units, as json-file's max-size has them. ValueError on anything else."""
    trimmed = text.strip().lower().removesuffix("ib").removesuffix("b")
    unit = trimmed[-1:] if trimmed[-1:].isalpha() else ""
    if unit not in _UNITS:
        raise ValueError(f"invalid size: '{text}'")
    return int(float(trimmed.removesuffix(unit)) * _UNITS[unit])


def cut(data: bytes) -> tuple[bytes, list[bytes], bytes]:
    """Split a batch into (lines, entries, tail).

    `lines` are whole lines short enough for one entry each, and end in a newline or are empty; `entries` are the texts
    of single entries that follow (pieces of long lines); `tail` is an unfinished line.
    """
    position, end = 0, len(data)
    while end - position >= PIECE:
        newline = data.rfind(b"\n", position, position + PIECE)
        if newline < 0:
            return data[:position], *_pieces(data[position:])
        position = newline + 1
    last = data.rfind(b"\n") + 1
    return data[:last], [], data[last:]


def _pieces(data: bytes) -> tuple[list[bytes], bytes]:
    """A batch that begins with a long line, as single entries, and its unfinished rest."""
    entries: list[bytes] = []
    position = 0
    while True:
        newline = data.find(b"\n", position, position + PIECE)
        if newline >= 0:
            entries.append(data[position : newline + 1])
            position = newline + 1
        elif len(data) - position >= PIECE:
            stop = _character_start(data, position + PIECE)
            entries.append(data[position:stop])
            position = stop
        else:
            return entries, data[position:]


def _character_start(data: bytes, stop: int) -> int:
    """`stop`, or up to three bytes before it so that no UTF-8 character is torn apart."""
    for back in range(4):
        if stop - back >= len(data) or data[stop - back] & 0xC0 != 0x80:
            return stop - back
    return stop


class Log:
    """What the shim needs of a log driver. Only one that has a thread of its own can be full or lingering."""

    # Readable when something has happened in the driver's thread; then `woken` wants to be called. -1: no thread.
    descriptor = -1

    @property
    def full(self) -> bool:
        """Whether the container's output should not be read for now."""
        return False

    @property
    def lingering(self) -> bool:
        """Whether a closed log still has entries to deliver, and may."""
        return False

    def write(self, stream: int, data: bytes) -> None:
        """Take a read's bytes of one stream."""

    def flush(self) -> None:
        """Write unfinished lines too: the process has ended."""

    def truncate(self) -> None:
        """Empty the log."""

    def reaped(self, pid: int) -> None:
        """A child of the shim has ended; it may have been the log's."""

    def woken(self) -> None:
        """Take note of what has happened in the driver's thread."""

    def close(self) -> None:
        """Nothing more will be written."""


class JsonFile(Log):
    """The json-file driver; `local` is the same with other defaults."""

    def __init__(
        self,
        path: str,
        *,
        attributes: Mapping[str, str],
        max_size: int = -1,
        max_files: int = 1,
        compress: bool = False,
        on_trouble: Callable[[OSError], None] = lambda _error: None,
    ) -> None:
        self._path = path
        self._max_size = max_size
        self._max_files = max(1, max_files)
        self._compress = compress
        self._compressor = 0
        self._on_trouble = on_trouble
        self._troubled = False
        # Docker's key order: log, stream, attrs, time.
        extra = (
            b'","attrs":' + json.dumps(dict(attributes), separators=(",", ":"), sort_keys=True).encode()
            if attributes
            else b'"'
        )
        self._middles = {
            stream: b'","stream":"' + name.encode() + extra + b',"time":"' for stream, name in _NAMES.items()
        }
        self._tails = dict.fromkeys(_NAMES, b"")
        self._open()
        if compress and os.path.exists(f"{path}.1"):  # the last run ended before this was done
            self._compressor = _compress_in_child(f"{path}.1")

    def write(self, stream: int, data: bytes) -> None:
        tail = self._tails[stream]
        lines, entries, self._tails[stream] = cut(tail + data if tail else data)
        end = self._middles[stream] + timestamp(time.time_ns()) + b'"}\n'
        parts: list[bytes] = []
        if lines:
            whole = b"\\n" + end
            parts = [_START, escape(lines[:-1]).replace(b"\n", whole + _START), whole]
        for entry in entries:
            parts += [_START, escape(entry[:-1]), b"\\n"] if entry.endswith(b"\n") else [_START, escape(entry)]
            parts.append(end)
        if parts:
            self._append(parts)

    def flush(self) -> None:
        for stream, tail in self._tails.items():
            if tail:
                self._tails[stream] = b""
                end = self._middles[stream] + timestamp(time.time_ns()) + b'"}\n'
                self._append([_START, escape(tail), end])

    def truncate(self) -> None:
        os.ftruncate(self._file, 0)
        self._size = 0
        self._stop_compressing()
        for number in range(1, self._max_files):
            for suffix in ("", ".gz"):
                _remove(f"{self._path}.{number}{suffix}")

    def close(self) -> None:
        self._stop_compressing()
        os.close(self._file)

    def reaped(self, pid: int) -> None:
        if pid == self._compressor:
            self._compressor = 0

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(self._path, flags, 0o640)
        self._size = os.fstat(self._file).st_size
        if self._size and os.pread(self._file, 1, self._size - 1) != b"\n":
            # A power loss tore the last line, or left zeroes; glued to it, the next entry would be unreadable too.
            with contextlib.suppress(OSError):  # a full disk loses that entry, never the container
                self._size += os.write(self._file, b"\n")

    def _append(self, parts: list[bytes]) -> None:
        try:
            if len(parts) <= _MOST_PARTS and (
                self._max_size <= 0 or self._size + sum(map(len, parts)) < self._max_size
            ):
                self._write(parts)
                return
            encoded = b"".join(parts)
            if self._max_size <= 0:
                self._write([encoded])
                return
            start = 0
            while start < len(encoded):
                if self._size >= self._max_size:
                    self._make_room()
                limit = self._max_size if self._size < self._max_size else 2 * self._max_size  # no rotation for now
                # up to and including the entry that crosses the limit, as dockerd does
                stop = encoded.find(b"\n", start + limit - self._size - 1) + 1 or len(encoded)
                self._write([encoded[start:stop]])
                start = stop
        except OSError as error:
            if not self._troubled:
                self._troubled = True
                self._on_trouble(error)

    def _write(self, parts: list[bytes]) -> None:
        size = sum(map(len, parts))
        written = os.writev(self._file, parts) if len(parts) > 1 else 0
        if written < size:
            self._write_rest(b"".join(parts), written)
        else:
            self._size += written
        self._troubled = False

    def _write_rest(self, encoded: bytes, written: int) -> None:
        view = memoryview(encoded)
        try:
            while written < len(view):
                written += os.write(self._file, view[written:])
        except OSError:
            # no torn entry: keep the whole ones of what was written
            whole = encoded.rfind(b"\n", 0, written) + 1
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size + whole)
            self._size += whole
            raise
        self._size += written

    def _make_room(self) -> None:
        """Rotate, but not under the child that compresses the last file unless it is too slow for the container."""
        if self._compressor:
            if self._size < 2 * self._max_size:
                return
            self._stop_compressing()
        self._rotate()

    def _rotate(self) -> None:
        if self._max_files == 1:
            os.ftruncate(self._file, 0)
            self._size = 0
            return
        for suffix in ("", ".gz"):  # the next one with the last number may come in the other form
            _remove(f"{self._path}.{self._max_files - 1}{suffix}")
        for number in range(self._max_files - 1, 1, -1):
            for suffix in ("", ".gz"):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(f"{self._path}.{number - 1}{suffix}", f"{self._path}.{number}{suffix}")
        with contextlib.suppress(FileNotFoundError):  # someone removed it, or the last rotation stopped here
            os.rename(self._path, f"{self._path}.1")
        old = self._file
        self._open()
        os.close(old)
        if self._compress:
            self._compressor = _compress_in_child(f"{self._path}.1")

    def _stop_compressing(self) -> None:
        """End the child, so that nobody but us renames; its file stays as it was."""
        pid, self._compressor = self._compressor, 0
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):  # the loop was faster
                os.waitpid(pid, 0)
            _remove(f"{self._path}.1.tmp")


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _compress_in_child(path: str) -> int:
    """Compressing 100 MB takes seconds; a child does it, so that the container's output flows on.

    The original goes when its successor, and the successor's name, would outlive a loss of power.
    """
    pid = os.fork()
    if pid:
        return pid
    with contextlib.suppress(BaseException):
        import ctypes
        import gzip
        import shutil

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        with open(path, "rb") as source, open(f"{path}.tmp", "wb", _SYNCED_BYTES, opener=_open_synced) as file:
            # The name in the header is the file's identity, by which a reader that has the original open finds its
            # place among the rotated files.
            name = str(os.fstat(source.fileno()).st_ino)
            with gzip.GzipFile(name, "wb", compresslevel=6, fileobj=file) as target:
                shutil.copyfileobj(source, target, 256 * 1024)
        os.rename(f"{path}.tmp", f"{path}.gz")
        folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_CLOEXEC)
        os.fsync(folder)
        os.unlink(path)
    os._exit(0)


def _open_synced(path: str, flags: int) -> int:
    """For writes that are on disk when they return. Nothing interrupts one, so who ends the child waits for it; for a
    sync at the end he would wait for the whole file."""
    return os.open(path, flags | os.O_DSYNC, 0o640)


class NoLog(Log):
    """The driver `none`, and the cache where there is none."""


_FILE_DEFAULTS = {
    "json-file": ("-1", "1", "false"),
    "local": (str(20 << 20), "5", "true"),
}
_REMOTE = ("syslog", "journald", "gelf", "fluentd")


def open_log(settings: dict[str, Any], on_trouble: Callable[[OSError], None]) -> Log:
    """The log that a driver name and its options ask for.

    A driver that delivers elsewhere keeps a `local` file at the path too, so that the log can be read here. ValueError
    for what is unknown; OSError when a destination that must be there cannot be reached.
    """
    driver, limit = settings["driver"], settings.get("buffer")
    if driver in _REMOTE:
        from engine.shim import logqueue, sinks

        try:
            sink = sinks.open_sink(driver, settings["sink"])
        except OSError as error:
            raise OSError(f"failed to initialize logging driver: {error}") from error
        # What the driver tells of a container beside each line is for the far side, as with dockerd.
        cache = _open_file("local", {**settings, "attrs": {}}, on_trouble) if settings["path"] else NoLog()
        return logqueue.Remote(sink, cache, limit=limit, on_trouble=on_trouble)
    if driver != "none" and driver not in _FILE_DEFAULTS:
        raise ValueError(f"logger: no log driver named '{driver}' is registered")
    if driver == "none" or not settings["path"]:
        return NoLog()
    if limit is None:
        return _open_file(driver, settings, on_trouble)
    from engine.shim import logqueue

    troubles = logqueue.Troubles(on_trouble)
    return logqueue.BufferedFile(_open_file(driver, settings, troubles.note), limit, troubles)


def _open_file(driver: str, settings: dict[str, Any], on_trouble: Callable[[OSError], None]) -> JsonFile:
    options, (size, files, compress) = settings["options"], _FILE_DEFAULTS[driver]
    size = str(options.get("max-size", size))
    return JsonFile(
        settings["path"],
        attributes=settings["attrs"],
        max_size=-1 if size == "-1" else size_of(size),
        max_files=int(options.get("max-file", files)),
        compress=str(options.get("compress", compress)).lower() in ("true", "1", "t"),
        on_trouble=on_trouble,
    )
