"""Cuts an arriving archive into files: decompresses, reads tar headers, writes and hashes each member.

Blocking by design: ``feed_sync`` runs on a pool thread while the loop receives the next bytes. Only what image archives
need of tar is understood (files, links, folders, pax and GNU long names); member names never become paths. Whatever is
sent, memory stays small: bytes that grow a thousandfold when they are decompressed do so in pieces.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import IO, Any, Protocol

import zstandard
from isal import isal_zlib

from registry.digest import Digest, new_hasher

_BLOCK = 512
_MAX_MEMBERS = 65_536
_MAX_HEADER_DATA = 1 << 20
_MAX_NAMES = 16 << 20
_PIECE = 1 << 20
# zstandard's objects give all that their input holds at once: 32 MiB at most for this much.
_ZSTD_STEP = 1024
_XZ_MEMORY = 256 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """One file of the archive, now at ``path``; or a link to another member."""

    path: Path
    size: int
    digest: Digest
    link: str = ""


class Decompressor(Protocol):
    """What zlib's, lzma's, bz2's and zstandard's objects have in common."""

    @property
    def eof(self) -> bool: ...


Pieces = Generator[bytes, None, bytes]
"""Plain bytes in pieces, of one compressed stream; what comes after its end is returned."""


def _gunzip(stream: Any, data: bytes) -> Pieces:
    while True:
        out = stream.decompress(data, _PIECE)
        data = stream.unconsumed_tail
        if out:
            yield out
        if stream.eof or not (data or out):
            return bytes(stream.unused_data)


def _unzstd(stream: Any, data: bytes) -> Pieces:
    for start in range(0, len(data), _ZSTD_STEP):
        if out := stream.decompress(data[start : start + _ZSTD_STEP]):
            yield out
        if stream.eof:
            return bytes(stream.unused_data) + data[start + _ZSTD_STEP :]
    return b""


def _unpress(stream: Any, data: bytes) -> Pieces:
    """bzip2 and xz."""
    while True:
        if out := stream.decompress(data, _PIECE):
            yield out
        data = b""
        if stream.eof or stream.needs_input:
            return bytes(stream.unused_data)


@dataclass(frozen=True, slots=True)
class _Format:
    """How one compression begins, is begun and goes on."""

    name: str
    magic: bytes
    make: Callable[[], Decompressor]
    pieces: Callable[[Any, bytes], Pieces]


_FORMATS = (
    _Format("gzip", b"\x1f\x8b\x08", lambda: isal_zlib.decompressobj(wbits=31), _gunzip),
    _Format("zstd", b"\x28\xb5\x2f\xfd", lambda: zstandard.ZstdDecompressor().decompressobj(), _unzstd),
    _Format("xz", b"\xfd7zXZ\x00", lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY), _unpress),
    _Format("bzip2", b"BZh", bz2.BZ2Decompressor, _unpress),
)


_DAMAGE: tuple[Any, ...] = (
    isal_zlib.error,
    lzma.LZMAError,
    zstandard.ZstdError,
    OSError,
    EOFError,
)


def compression_by_magic(head: bytes) -> str:
    """``gzip``, ``zstd``, ``xz``, ``bzip2`` or ``""`` for anything else."""
    return next((each.name for each in _FORMATS if head.startswith(each.magic)), "")


class Inflater:
    """Bytes in, plain bytes out, whatever the compression; several compressed streams in a row are one."""

    def __init__(self) -> None:
        self.compression: str | None = None
        self._head = b""
        self._format: _Format | None = None
        self._at: Decompressor | None = None

    def feed_sync(self, data: bytes) -> Iterator[bytes]:
        """The plain bytes that ``data`` adds. Raises ``ValueError`` for damaged input."""
        if self.compression is None:
            data = self._head + data
            if len(data) < 6:
                self._head = data
                return
            self._begin(data)
        if self._format is None:
            yield data
            return
        try:
            yield from self._inflate(data)
        except _DAMAGE as error:
            raise ValueError(f"damaged {self.compression} data: {error}") from error

    def finish_sync(self) -> bytes:
        """The rest of very short input. Raises ``ValueError`` when a compressed stream is not complete."""
        if self.compression is None:
            self.compression = ""
            return self._head
        if self._at is not None and not self._at.eof:
            raise ValueError("unexpected EOF")
        return b""

    def _begin(self, data: bytes) -> None:
        self.compression = compression_by_magic(data)
        self._format = next((each for each in _FORMATS if each.name == self.compression), None)
        self._head = b""

    def _inflate(self, data: bytes) -> Iterator[bytes]:
        assert self._format is not None
        while data:
            if self._at is None or self._at.eof:
                if not data.strip(b"\0"):
                    return
                self._at = self._format.make()
            data = yield from self._format.pieces(self._at, data)


def plain_digest_sync(path: Path) -> Digest:
    """The digest of a file's plain bytes, whatever it is compressed with. ``ValueError`` for damaged input."""
    inflater = Inflater()
    hasher = new_hasher()
    with path.open("rb") as file:
        while chunk := file.read(_PIECE):
            for plain in inflater.feed_sync(chunk):
                hasher.update(plain)
    hasher.update(inflater.finish_sync())
    return Digest.of_hasher(hasher)


class Splitter:
    """Feed it an archive, get its members by cleaned name. ``directory`` exists and is the caller's to remove."""

    def __init__(self, directory: Path) -> None:
        self.members: dict[str, Member] = {}
        self._count = 0
        self._names = 0
        self._directory = directory
        self._inflater = Inflater()
        self._pending = bytearray()
        self._left = 0
        self._padding = 0
        self._file: IO[bytes] | None = None
        self._hasher = hashlib.sha256()
        self._header: _Header | None = None
        self._collected = bytearray()
        self._overrides: dict[str, str] = {}
        self._ended = False

    def feed_sync(self, chunks: Sequence[bytes]) -> None:
        """The next bytes, as received. Raises ``ValueError`` for what is no archive."""
        for chunk in chunks:
            for plain in self._inflater.feed_sync(chunk):
                self._take(memoryview(plain))

    def close_sync(self) -> dict[str, Member]:
        """The end of the bytes; the members. Raises ``ValueError`` when the archive is cut short."""
        try:
            self._take(memoryview(self._inflater.finish_sync()))
            if self._header is not None or (self._pending and not self._ended):
                raise ValueError("unexpected EOF")
            return self.members
        finally:
            self.abort_sync()

    def abort_sync(self) -> None:
        """Close what is open; the files stay for whoever owns the directory."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def resolve(self, name: str) -> Member | None:
        """The member called ``name``, through links."""
        return resolve(self.members, name)

    def _take(self, data: memoryview) -> None:
        while data and not self._ended:
            if self._header is not None:
                data = self._body(data)
                continue
            missing = _BLOCK - len(self._pending)
            self._pending += data[:missing]
            data = data[missing:]
            if len(self._pending) == _BLOCK:
                block, self._pending = bytes(self._pending), bytearray()
                self._begin(block)

    def _begin(self, block: bytes) -> None:
        if not block.strip(b"\0"):
            self._ended = True
            return
        header = _parse(block)
        if "size" in self._overrides and header.kind in "07\0":
            header.size = int(self._overrides["size"])
        self._header = header
        self._left, self._padding = header.size, -header.size % _BLOCK
        if header.kind in "xgLK":
            if header.size > _MAX_HEADER_DATA:
                raise ValueError("archive/tar: header field too long")
        elif header.kind in "07\0":
            # Two members of one name are two files: the digest of one must never come to stand for the other.
            self._hasher = hashlib.sha256()
            self._file = (self._directory / str(self._counted())).open("xb", buffering=0)
        self._finish_if_done()

    def _body(self, data: memoryview) -> memoryview:
        part = data[: self._left]
        self._left -= len(part)
        if self._file is not None:
            self._file.write(part)
            self._hasher.update(part)
        elif self._header is not None and self._header.kind in "xgLK":
            self._collected += part
        data = data[len(part) :]
        if not self._left:
            skipped = data[: self._padding]
            self._padding -= len(skipped)
            data = data[len(skipped) :]
        self._finish_if_done()
        return data

    def _finish_if_done(self) -> None:
        header = self._header
        if header is None or self._left or self._padding:
            return
        self._header = None
        if header.kind in "xgLK":
            self._special(header.kind, bytes(self._collected))
            self._collected = bytearray()
            return
        name = clean(self._overrides.get("path", header.name))
        link = self._overrides.get("linkpath", header.link)
        self._overrides = {}
        if self._file is not None:
            path = Path(self._file.name)
            self._file.close()
            self._file = None
            self._keep(name, Member(path, header.size, Digest.of_hasher(self._hasher)))
        elif header.kind == "1":
            self._link(name, clean(link))
        elif header.kind == "2":
            self._link(name, clean(join(dirname(name), link)))

    def _link(self, name: str, target: str) -> None:
        self._counted()
        self._keep(name, Member(self._directory, 0, Digest.of(b""), target))

    def _keep(self, name: str, member: Member) -> None:
        self._names += len(name) + len(member.link)
        if self._names > _MAX_NAMES:
            raise ValueError("too many long names in the archive")
        self.members[name] = member

    def _counted(self) -> int:
        """The number of the member that begins."""
        self._count += 1
        if self._count > _MAX_MEMBERS:
            raise ValueError("too many files in the archive")
        return self._count

    def _special(self, kind: str, data: bytes) -> None:
        if kind == "L":
            self._overrides["path"] = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif kind == "K":
            self._overrides["linkpath"] = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif kind == "x":
            self._overrides.update(_pax(data))


@dataclass(slots=True)
class _Header:
    name: str
    size: int
    kind: str
    link: str


def clean(name: str) -> str:
    """A member name without ``./`` and ``..`` tricks, for look-ups only."""
    return normpath("/" + name).lstrip("/")


def resolve(members: Mapping[str, Member], name: str) -> Member | None:
    """The file called ``name``, following at most eight links."""
    for _ in range(8):
        member = members.get(clean(name))
        if member is None or not member.link:
            return member
        name = member.link
    return None


def _parse(block: bytes) -> _Header:
    stored = _number(block[148:156])
    if stored != sum(block[:148]) + 8 * 32 + sum(block[156:]):
        raise ValueError("archive/tar: invalid tar header")
    name = _text(block[:100])
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    size = _number(block[124:136])
    if size < 0:
        raise ValueError("archive/tar: invalid tar header")
    kind = chr(block[156])
    return _Header(f"{prefix}/{name}" if prefix else name, 0 if kind in "123456" else size, kind, _text(block[157:257]))


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _number(field: bytes) -> int:
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        return value if not field[0] & 0x40 else -1
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError as error:
        raise ValueError("archive/tar: invalid tar header") from error


def _pax(data: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    while data:
        length, space, _ = data.partition(b" ")
        if not space or not length.isdigit() or not len(length) + 1 < int(length) <= len(data):
            raise ValueError("archive/tar: invalid tar header")
        record, data = data[len(length) + 1 : int(length)], data[int(length) :]
        key, _, value = record.rstrip(b"\n").partition(b"=")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
    if not found.get("size", "0").isdigit():
        raise ValueError("archive/tar: invalid tar header")
    return {key: found[key] for key in ("path", "linkpath", "size") if key in found}
