"""A compressed blob as a stream of verified plain bytes, for the tar reader in a worker.

A blob is gzip, zstd, xz, bzip2 or plain, told apart by its first bytes. Where there is something to decompress or to
hash a thread does it: that releases the interpreter lock, so it overlaps with the file-system calls of the reader.
Plain bytes that nobody wants a digest of are read as they are pulled. Memory is bounded whatever a blob expands to.
Damage is ``ValueError``, an early end ``EOFError``.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

import zstandard
from isal import isal_zlib

CHUNK = 1 << 20
_READ = 1 << 18
_AHEAD = 6

GZIP, ZSTD, XZ, BZIP2 = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00", b"BZh"
# The stubs declare this class as an instance.
_GzipError = cast("type[Exception]", isal_zlib.error)


def compression_of(head: bytes) -> str:
    """The compression a blob's first bytes tell: ``gzip``, ``zstd``, ``xz``, ``bzip2`` or ``none``."""
    if head.startswith(GZIP):
        return "gzip"
    skippable = len(head) >= 4 and 0x50 <= head[0] <= 0x5F and head[1:4] == b"\x2a\x4d\x18"
    if head.startswith(ZSTD) or skippable:
        return "zstd"
    if head.startswith(XZ):
        return "xz"
    if head.startswith(BZIP2) and head[3:4].isdigit():
        return "bzip2"
    return "none"


class Source:
    """The compressed side: reads ``length`` bytes (None: to the end) from a descriptor and counts them."""

    def __init__(self, fd: int, length: int | None) -> None:
        self._fd = fd
        self._left = length
        self.count = 0

    def read(self, size: int = _READ) -> bytes:
        if self._left is not None:
            size = min(size, self._left)
        data = os.read(self._fd, size) if size else b""
        self.count += len(data)
        if self._left is not None:
            if not data and self._left:
                raise EOFError("unexpected EOF")
            self._left -= len(data)
        return data


def plain(source: Source) -> tuple[str, Iterator[bytes]]:
    """The compression of ``source``, and its decompressed bytes in chunks of at most ``CHUNK``."""
    head = source.read()
    while 0 < len(head) < 6:
        more = source.read()
        if not more:
            break
        head += more
    kind = compression_of(head)
    return kind, _chunks(kind, head, source)


def _chunks(kind: str, head: bytes, source: Source) -> Iterator[bytes]:
    if kind == "none":
        while head:
            yield head
            head = source.read(CHUNK)
        return
    try:
        if kind == "gzip":
            yield from _gunzip(head, source)
        elif kind == "zstd":
            yield from _unzstd(head, source)
        else:
            yield from _unpress(lzma.LZMADecompressor if kind == "xz" else bz2.BZ2Decompressor, head, source)
    except (_GzipError, zstandard.ZstdError, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{kind}: {error}") from error


def _gunzip(data: bytes, source: Source) -> Iterator[bytes]:
    """gzip, members one after another; trailing zero bytes are padding."""
    while data:
        member = isal_zlib.decompressobj(wbits=31)
        while not member.eof:
            out = member.decompress(data, CHUNK)
            if out:
                yield out
            data = member.unconsumed_tail
            if not data and not member.eof and not out:
                data = source.read()
                if not data:
                    raise EOFError("unexpected EOF")
        data = member.unused_data or source.read()
        if data and not data.strip(b"\0"):
            while data and not data.strip(b"\0"):
                data = source.read()
            if data:
                raise ValueError("gzip: invalid header")


def _unzstd(head: bytes, source: Source) -> Iterator[bytes]:
    whole = cast(IO[bytes], _Prefixed(head, source))
    reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(whole, read_across_frames=True)
    while data := reader.read(CHUNK):
        yield data


class _Prefixed:
    """A source whose first bytes were read already, for a decompressor that pulls."""

    def __init__(self, head: bytes, source: Source) -> None:
        self._head = head
        self._source = source

    def read(self, size: int = -1) -> bytes:
        head, self._head = self._head, b""
        if 0 <= size < len(head):
            head, self._head = head[:size], head[size:]
        return head or self._source.read(size if size > 0 else _READ)


def _unpress(factory: Callable[[], Any], data: bytes, source: Source) -> Iterator[bytes]:
    """bzip2 and xz: streams one after another."""
    while data:
        stream = factory()
        while not stream.eof:
            out = stream.decompress(data, CHUNK)
            data = b""
            if out:
                yield out
            if stream.needs_input and not stream.eof:
                data = source.read()
                if not data:
                    raise EOFError("unexpected EOF")
        data = stream.unused_data or source.read()
        if isinstance(stream, lzma.LZMADecompressor):
            data = data.lstrip(b"\0") or source.read().lstrip(b"\0")


class Feed:
    """Plain bytes by pull, with the digest of everything that went through."""

    def __init__(self, fd: int, *, length: int | None = None, digest: bool = True) -> None:
        self.source = Source(fd, length)
        self._sha = hashlib.sha256() if digest else None
        self._view = memoryview(b"")
        self._ended = False
        self._pulled: Iterator[bytes] | None = None
        self.total = 0

    def _open(self) -> Iterator[bytes]:
        kind, chunks = plain(self.source)
        return chunks if kind == "none" and self._sha is None else self._ahead(chunks)

    def _ahead(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The chunks, made and hashed by a thread that is a few of them ahead."""
        ready: queue.Queue[bytes | BaseException] = queue.Queue(_AHEAD)
        threading.Thread(target=self._pump, args=(chunks, ready), daemon=True).start()
        while item := ready.get():
            if isinstance(item, BaseException):
                raise item
            yield item

    def _pump(self, chunks: Iterator[bytes], ready: queue.Queue[bytes | BaseException]) -> None:
        try:
            for chunk in chunks:
                if self._sha is not None:
                    self._sha.update(chunk)
                ready.put(chunk)
        except BaseException as error:  # noqa: BLE001 - raised again by the consumer
            ready.put(error)
        else:
            ready.put(b"")

    def _next(self) -> bool:
        """Make the next chunk current; False at the end."""
        if self._ended:
            return False
        if self._pulled is None:
            self._pulled = self._open()
        try:
            item = next(self._pulled, b"")
        except BaseException:
            self._ended = True
            raise
        self._ended = not item
        self._view = memoryview(item)
        self.total += len(item)
        return bool(item)

    def take(self, size: int) -> bytes:
        """``size`` bytes, fewer only at the end."""
        if size <= len(self._view):
            data = bytes(self._view[:size])
            self._view = self._view[size:]
            return data
        parts = []
        while size:
            if not self._view and not self._next():
                break
            piece = self._view[:size]
            self._view = self._view[len(piece) :]
            size -= len(piece)
            parts.append(bytes(piece))
        return b"".join(parts)

    def exactly(self, size: int) -> bytes:
        """``size`` bytes or ``EOFError``."""
        data = self.take(size)
        if len(data) != size:
            raise EOFError("unexpected EOF")
        return data

    def copy(self, size: int, fd: int) -> None:
        """Write the next ``size`` bytes to ``fd``."""
        while size:
            if not self._view and not self._next():
                raise EOFError("unexpected EOF")
            written = os.write(fd, self._view[:size])
            self._view = self._view[written:]
            size -= written

    def skip(self, size: int) -> None:
        """Pass over the next ``size`` bytes."""
        while size:
            if not self._view and not self._next():
                raise EOFError("unexpected EOF")
            step = min(size, len(self._view))
            self._view = self._view[step:]
            size -= step

    def drain(self) -> None:
        """Read to the end, so that the digest covers all of it."""
        self._view = memoryview(b"")
        while self._next():
            pass
        self._view = memoryview(b"")

    def hex_digest(self) -> str:
        """Digest of the plain bytes; meaningful after ``drain``."""
        return self._sha.hexdigest() if self._sha is not None else ""
