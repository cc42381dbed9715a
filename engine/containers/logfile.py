"""One file of a log, opened for reading: plain, or compressed after a rotation, and which one it is whatever its name.

A compressed file ends where it cannot be read any further: a loss of power may have cut it, or left zeroes in it.
"""

from __future__ import annotations

import contextlib
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from isal import isal_zlib

_PACKED_BYTES = 16 * 1024  # of input at once; what comes of it is ten times that, and may be a thousand times
_SKIPPED_BYTES = 512 * 1024
_GZIP_WITH_NAME = b"\x08"
_GZIP_WINDOW = 31
_TRAILER_BYTES = 8
_BEGINNING = 4096
_FIRST = 256
_DAMAGED: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # its stubs say that it is an instance


class Compressed:
    """A compressed file, read forwards."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._end = _end_of_written(self._file)
        self._restart()

    def _restart(self) -> None:
        self._pieces = _unpack(self._file, self._end)
        self._position = 0
        self._ready = b""

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; none at the end."""
        while not self._ready:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._ready = piece
        data, self._ready = self._ready[:size], self._ready[size:]
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> None:
        """Go to an offset from the start, or to the end, by reading what is before it."""
        if whence == io.SEEK_END:
            while self.read(_SKIPPED_BYTES):
                pass
            return
        if offset < self._position:
            self._restart()
        while self.read(min(_SKIPPED_BYTES, offset - self._position)):
            pass

    def fileno(self) -> int:
        """The descriptor of what is compressed."""
        return self._file.fileno()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


LogFile = IO[bytes] | Compressed


def open_file_sync(path: Path) -> LogFile:
    """Open a file of a log, by its name."""
    return Compressed(path) if path.suffix == ".gz" else path.open("rb")


def identity_sync(file: LogFile) -> tuple[int, bytes]:
    """What stays the same about a file that is renamed and compressed: its inode, which the shim notes in what it
    compresses, and how it begins, because the inode of a file that is gone may soon be another's.
    """
    descriptor = file.fileno()
    head = os.pread(descriptor, _BEGINNING, 0)
    if not isinstance(file, Compressed):
        return os.fstat(descriptor).st_ino, head[:_FIRST]
    name = head[10:].partition(b"\0")[0]
    inode = int(name) if head[3:4] == _GZIP_WITH_NAME and name.isdigit() else os.fstat(descriptor).st_ino
    try:
        return inode, zlib.decompressobj(_GZIP_WINDOW).decompress(head, _FIRST)
    except zlib.error:  # damaged from its beginning
        return inode, b""


def _end_of_written(file: IO[bytes]) -> int:
    """Where the zeroes begin that a loss of power left, else the end. They may unpack to what looks like lines, copies
    of earlier ones; what is whole ends with its checksum and its size, which are not zero both."""
    end = file.seek(0, io.SEEK_END)
    file.seek(max(0, end - _TRAILER_BYTES))
    if any(file.read()):
        return end
    while end > 0:
        start = max(0, end - _SKIPPED_BYTES)
        file.seek(start)
        if written := file.read(end - start).rstrip(b"\0"):
            return start + len(written)
        end = start
    return 0


def _unpack(file: IO[bytes], end: int) -> Iterator[bytes]:
    file.seek(0)
    unpacker = isal_zlib.decompressobj(_GZIP_WINDOW)
    for start in range(0, end, _PACKED_BYTES):
        packed = file.read(min(_PACKED_BYTES, end - start))
        try:
            piece = unpacker.decompress(packed)
        except _DAMAGED:
            yield _before_damage(file, start, packed)
            return
        if piece:
            yield piece
        if unpacker.eof:
            return


def _before_damage(file: IO[bytes], start: int, packed: bytes) -> bytes:
    """What can be read of a piece that has damage in it. The unpacker gave nothing of it: it is led there again, and
    then on byte by byte."""
    file.seek(0)
    unpacker = isal_zlib.decompressobj(_GZIP_WINDOW)
    for _ in range(0, start, _PACKED_BYTES):
        unpacker.decompress(file.read(_PACKED_BYTES))
    readable: list[bytes] = []
    with contextlib.suppress(_DAMAGED):
        readable.extend(unpacker.decompress(packed[at : at + 1]) for at in range(len(packed)))
    return b"".join(readable)
