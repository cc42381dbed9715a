"""The container's log, in json-file's format, rotated as dockerd rotates it.

Written by whole batches: one pass over a read's bytes makes all of its entries, without a step per line. A full disk
loses entries, never the container: an entry is on disk whole or not at all.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from engine.shim import wire

PIECE = 16 * 1024  # a longer line is split into entries of this size, without a newline at their end

_NAMES = {wire.STDOUT: "stdout", wire.STDERR: "stderr"}
# Bytes that stand for themselves in an entry; the newline is handled apart.
_PLAIN = bytes(byte for byte in range(0x20, 0x80) if byte not in b'"\\<>&') + b"\n"
_SHORT = {ord('"'): b'\\"', ord("\\"): b"\\\\", ord("\r"): b"\\r"}
_SURROGATES = dict.fromkeys(range(0xDC80, 0xDD00), "\\ufffd")
_SEPARATORS = (("\u2028", "\\u2028"), ("\u2029", "\\u2029"))

_UNITS = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def escape(chunk: bytes) -> bytes:
    """The inside of a JSON string, newlines left as they are; what is not UTF-8 becomes U+FFFD."""
    odd = chunk.translate(None, _PLAIN)
    if not odd:
        return chunk
    kinds = set(odd)
    # the backslash first, because every other replacement brings one
    for byte in sorted(kinds, key=lambda byte: byte != ord("\\")):
        if byte < 0x80:
            chunk = chunk.replace(bytes((byte,)), _SHORT.get(byte) or b"\\u00%02x" % byte)
    if max(kinds) >= 0x80:
        chunk = _escape_text(chunk)
    return chunk


def _escape_text(chunk: bytes) -> bytes:
    try:
        chunk.decode()
    except UnicodeDecodeError:
        chunk = chunk.decode("utf-8", "surrogateescape").translate(_SURROGATES).encode()
    if b"\xe2\x80" in chunk:
        for character, escaped in _SEPARATORS:
            chunk = chunk.replace(character.encode(), escaped.encode())
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
    """What the shim needs of a log driver."""

    def write(self, stream: int, data: bytes) -> None:
        """Take a read's bytes of one stream."""
        raise NotImplementedError

    def flush(self) -> None:
        """Write unfinished lines too: the process has ended."""
        raise NotImplementedError

    def truncate(self) -> None:
        """Empty the log."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


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

    def write(self, stream: int, data: bytes) -> None:
        tail = self._tails[stream]
        lines, entries, self._tails[stream] = cut(tail + data if tail else data)
        end = self._middles[stream] + timestamp(time.time_ns()) + b'"}\n'
        encoded = []
        if lines:
            encoded.append(b'{"log":"' + escape(lines[:-1]).replace(b"\n", b"\\n" + end + b'{"log":"') + b"\\n" + end)
        encoded.extend(b'{"log":"' + escape(entry).replace(b"\n", b"\\n") + end for entry in entries)
        if encoded:
            self._append(b"".join(encoded))

    def flush(self) -> None:
        for stream, tail in self._tails.items():
            if tail:
                self._tails[stream] = b""
                end = self._middles[stream] + timestamp(time.time_ns()) + b'"}\n'
                self._append(b'{"log":"' + escape(tail) + end)

    def truncate(self) -> None:
        os.ftruncate(self._file, 0)
        self._size = 0
        for number in range(1, self._max_files):
            for suffix in ("", ".gz"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{self._path}.{number}{suffix}")

    def close(self) -> None:
        os.close(self._file)

    def reaped(self, pid: int) -> None:
        """The child that compressed a rotated file has ended."""
        if pid == self._compressor:
            self._compressor = 0

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(self._path, flags, 0o640)
        self._size = os.fstat(self._file).st_size

    def _append(self, encoded: bytes) -> None:
        try:
            if self._max_size <= 0:
                self._write(encoded)
                return
            while encoded:
                if self._size >= self._max_size and not self._compressor:
                    self._rotate()
                # up to and including the entry that crosses the limit, as dockerd does
                room = max(1, self._max_size - self._size)
                stop = encoded.find(b"\n", room - 1) + 1 or len(encoded)
                part, encoded = encoded[:stop], encoded[stop:]
                self._write(part)
        except OSError as error:
            if not self._troubled:
                self._troubled = True
                self._on_trouble(error)

    def _write(self, encoded: bytes) -> None:
        view = memoryview(encoded)
        written = 0
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
        self._troubled = False

    def _rotate(self) -> None:
        if self._max_files == 1:
            os.ftruncate(self._file, 0)
            self._size = 0
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._path}.{self._max_files - 1}.gz")  # the next one with its number may come uncompressed
        for number in range(self._max_files - 1, 1, -1):
            for suffix in ("", ".gz"):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(f"{self._path}.{number - 1}{suffix}", f"{self._path}.{number}{suffix}")
        os.rename(self._path, f"{self._path}.1")
        old = self._file
        self._open()
        os.close(old)
        if self._compress:
            self._compressor = _compress_in_child(f"{self._path}.1")


def _compress_in_child(path: str) -> int:
    """Compressing 100 MB takes seconds; a child does it, so that the container's output flows on."""
    pid = os.fork()
    if pid:
        return pid
    with contextlib.suppress(BaseException):
        import gzip
        import shutil

        with open(path, "rb") as source, gzip.open(f"{path}.tmp", "wb", compresslevel=6) as target:
            shutil.copyfileobj(source, target, 256 * 1024)
        os.rename(f"{path}.tmp", f"{path}.gz")
        os.unlink(path)
    os._exit(0)


class NoLog(Log):
    """The driver `none`."""

    def write(self, stream: int, data: bytes) -> None:
        pass

    def flush(self) -> None:
        pass

    def truncate(self) -> None:
        pass

    def close(self) -> None:
        pass


def open_log(settings: dict[str, Any], on_trouble: Callable[[OSError], None]) -> Log:
    """The log that a driver name and its options ask for. ValueError for what is unknown."""
    driver, options = settings["driver"], settings["options"]
    if driver == "none" or not settings["path"]:
        return NoLog()
    defaults = {"json-file": ("-1", "1", "false"), "local": ("20m", "5", "true")}.get(driver)
    if defaults is None:
        raise ValueError(f"logger: no log driver named '{driver}' is registered")
    max_size = str(options.get("max-size", defaults[0]))
    return JsonFile(
        settings["path"],
        attributes=settings["attrs"],
        max_size=-1 if max_size == "-1" else size_of(max_size),
        max_files=int(options.get("max-file", defaults[1])),
        compress=str(options.get("compress", defaults[2])).lower() in ("true", "1", "t"),
        on_trouble=on_trouble,
    )
