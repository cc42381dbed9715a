"""The tar format: headers to entries and back, byte for byte, without touching a file system.

Reads ustar, pax (sizes, times, attributes, sparse 0.x and 1.0), GNU long names, old GNU sparse and base-256 numbers;
refuses bad checksums, negative numbers, oversized special headers and cut archives with Go's words, as clients know
them.
Writes ustar, with a pax header only where ustar cannot hold a value.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Iterator
from typing import Protocol

BLOCK = 512
SPECIAL_LIMIT = 1 << 20
"""A pax or long-name header beyond this is refused: it would only serve to exhaust memory."""

REGULAR, HARD_LINK, SYMLINK, CHAR, BLOCK_DEVICE, FOLDER, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_ZERO = bytes(BLOCK)
_ID_LIMIT = (1 << 32) - 1
_INVALID = "archive/tar: invalid tar header"
_XATTR = b"SCHILY.xattr."


class Input(Protocol):
    """Where an archive is read from (``feed.Feed``)."""

    def take(self, size: int) -> bytes: ...
    def exactly(self, size: int) -> bytes: ...
    def copy(self, size: int, fd: int) -> None: ...
    def skip(self, size: int) -> None: ...


class Entry:
    """One member. ``sparse`` lists (offset, length) of stored data, ``stored`` counts the bytes in the archive."""

    __slots__ = (
        "devmajor", "devminor", "gid", "kind", "link", "mode", "mtime_ns", "name", "size", "sparse", "stored", "uid",
        "xattrs",
    )  # fmt: skip

    def __init__(self, name: bytes, kind: bytes) -> None:
        self.name = name
        self.kind = kind
        self.link = b""
        self.mode = 0o644
        self.uid = self.gid = self.size = self.stored = self.mtime_ns = self.devmajor = self.devminor = 0
        self.xattrs: list[tuple[bytes, bytes]] = []
        self.sparse: list[tuple[int, int]] | None = None


@functools.lru_cache(4096)
def number(field: bytes) -> int:
    """A numeric field: octal text, or base-256 where the top bit is set. The same few values come again and again."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big")
        bits = len(field) * 8
        value &= (1 << (bits - 1)) - 1
        if field[0] & 0x40:
            value -= 1 << (bits - 1)
        return value
    text = field.split(b"\0", 1)[0].strip(b" ")
    if not text:
        return 0
    try:
        return int(text, 8)
    except ValueError:
        raise ValueError(_INVALID) from None


def _time_ns(text: bytes) -> int:
    """A pax time (decimal seconds with any fraction) in nanoseconds."""
    whole, _, fraction = text.partition(b".")
    try:
        ns = int((fraction + b"000000000")[:9]) if fraction else 0
        return int(whole) * 1_000_000_000 + (-ns if whole.startswith(b"-") else ns)
    except ValueError:
        raise ValueError(_INVALID) from None


def parse_pax(data: bytes) -> dict[bytes, bytes]:
    """The records of a pax header; GNU's repeated sparse 0.0 pairs are folded into ``GNU.sparse.map``."""
    records: dict[bytes, bytes] = {}
    pairs: list[bytes] = []
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 20)
        digits = data[position:space]
        if space < 0 or not digits.isdigit():
            raise ValueError(_INVALID)
        end = position + int(digits)
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end > len(data) or end <= space + 1 or data[end - 1 : end] != b"\n" or not equals or not key:
            raise ValueError(_INVALID)
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            pairs.append(value)
        else:
            records[key] = value
        position = end
    if pairs:
        records[b"GNU.sparse.map"] = b",".join(pairs)
    return records


def _checked(block: bytes) -> None:
    """Compare the checksum, summed as unsigned bytes or, as old writers did, as signed ones."""
    told = number(block[148:156])
    total = sum(block) - sum(block[148:156]) + 256
    if told != total:
        high = sum(1 for byte in block[:148] if byte > 127) + sum(1 for byte in block[156:] if byte > 127)
        if told != total - 256 * high:
            raise ValueError(_INVALID)


class Reader:
    """Iterates over an archive's entries. The consumer reads a content through ``copy_to`` or not at all."""

    def __init__(self, source: Input) -> None:
        self._in = source
        self._left = 0
        self._pad = 0

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self._next()) is not None:
            yield entry

    def _block(self) -> bytes | None:
        """The next header block; None at the archive's end (two zero blocks, or no more data)."""
        block = self._in.take(BLOCK)
        if not block:
            return None
        if len(block) < BLOCK:
            raise EOFError("unexpected EOF")
        if block == _ZERO:
            second = self._in.take(BLOCK)
            if second and second != _ZERO:
                raise ValueError(_INVALID)
            return None
        _checked(block)
        return block

    def _special(self, size: int) -> bytes:
        if not 0 <= size <= SPECIAL_LIMIT:
            raise ValueError("archive/tar: header field too long")
        data = self._in.exactly(size)
        self._in.skip(-size % BLOCK)
        return data

    def _next(self) -> Entry | None:
        self._in.skip(self._left + self._pad)
        self._left = self._pad = 0
        pax: dict[bytes, bytes] = {}
        long_name = long_link = None
        while True:
            block = self._block()
            if block is None:
                if pax or long_name is not None or long_link is not None:
                    raise EOFError("unexpected EOF")
                return None
            kind, size = block[156:157], number(block[124:136])
            if kind == b"x":
                pax = parse_pax(self._special(size))
            elif kind == b"g":
                self._special(size)
            elif kind == b"L":
                long_name = self._special(size).split(b"\0", 1)[0]
            elif kind == b"K":
                long_link = self._special(size).split(b"\0", 1)[0]
            else:
                return self._entry(block, pax, long_name, long_link)

    def _entry(self, block: bytes, pax: dict[bytes, bytes], name: bytes | None, link: bytes | None) -> Entry:
        fields = _HEADER.unpack(block)
        entry = Entry(fields[0].split(b"\0", 1)[0], fields[7])
        entry.link = fields[8].split(b"\0", 1)[0]
        entry.mode, entry.uid, entry.gid = number(fields[1]) & 0o7777, number(fields[2]), number(fields[3])
        entry.size, entry.mtime_ns = number(fields[4]), number(fields[5]) * 1_000_000_000
        if fields[9] == b"ustar\0":
            prefix = fields[15].split(b"\0", 1)[0]
            if prefix:
                entry.name = prefix + b"/" + entry.name
        if entry.kind in (CHAR, BLOCK_DEVICE):
            entry.devmajor, entry.devminor = number(fields[13]), number(fields[14])
        if name is not None:
            entry.name = name
        if link is not None:
            entry.link = link
        if pax:
            _apply_pax(entry, pax)
        return self._settle(entry, block, pax)

    def _settle(self, entry: Entry, block: bytes, pax: dict[bytes, bytes]) -> Entry:
        """Old types to new ones, sizes, sparse maps."""
        if entry.kind in (b"\0", b"7"):
            entry.kind = REGULAR
        if entry.kind == REGULAR and entry.name.endswith(b"/"):
            entry.kind = FOLDER
        if entry.size < 0 or not (0 <= entry.uid < _ID_LIMIT and 0 <= entry.gid < _ID_LIMIT):
            raise ValueError(_INVALID)
        if not 0 <= entry.mtime_ns < 1 << 63:
            entry.mtime_ns = 0  # as docker does with times no file system can hold
        entry.stored = entry.size if entry.kind in (REGULAR, b"S") or entry.kind not in b"123456" else 0
        self._left, self._pad = entry.stored, -entry.stored % BLOCK
        if entry.kind == b"S":
            self._old_sparse(entry, block)
        elif pax and any(key.startswith(b"GNU.sparse.") for key in pax):
            self._pax_sparse(entry, pax)
        return entry

    def _old_sparse(self, entry: Entry, block: bytes) -> None:
        entry.kind = REGULAR
        entry.size = number(block[483:495])
        pieces, more = _old_pairs(block[386:482]), block[482]
        while more:
            extension = self._in.exactly(BLOCK)
            pieces += _old_pairs(extension[:504])
            more = extension[504]
            if len(pieces) > SPECIAL_LIMIT:
                raise ValueError(_INVALID)
        entry.sparse = _checked_map(pieces, entry)

    def _pax_sparse(self, entry: Entry, pax: dict[bytes, bytes]) -> None:
        try:
            real = pax.get(b"GNU.sparse.realsize") or pax.get(b"GNU.sparse.size")
            if pax.get(b"GNU.sparse.major") == b"1":
                pieces = self._map_in_data(entry)
            else:
                values = [int(v) for v in pax.get(b"GNU.sparse.map", b"").split(b",") if v]
                pieces = list(zip(values[::2], values[1::2], strict=True))
            entry.size = int(real) if real else entry.size
        except ValueError:
            raise ValueError(_INVALID) from None
        entry.name = pax.get(b"GNU.sparse.name") or entry.name
        entry.sparse = _checked_map(pieces, entry)

    def _map_in_data(self, entry: Entry) -> list[tuple[int, int]]:
        """Sparse 1.0: the map stands before the data, as decimal lines padded to whole blocks."""
        lines: list[bytes] = []
        rest, wanted = b"", 1
        while len(lines) < wanted:
            if self._left < BLOCK or len(rest) > SPECIAL_LIMIT:
                raise ValueError(_INVALID)
            block = self._in.exactly(BLOCK)
            self._left -= BLOCK
            entry.stored -= BLOCK
            *whole, rest = (rest + block).split(b"\n")
            lines += whole
            if lines:
                wanted = 1 + 2 * int(lines[0])
                if wanted > SPECIAL_LIMIT:
                    raise ValueError(_INVALID)
        values = [int(line) for line in lines[1:wanted]]
        return list(zip(values[::2], values[1::2], strict=True))

    def copy_to(self, entry: Entry, fd: int) -> None:
        """Write the current entry's content to the empty file ``fd``."""
        if entry.sparse is None:
            self._in.copy(self._left, fd)
        else:
            _write_sparse(self._in, entry, fd)
        self._left = 0


def _write_sparse(source: Input, entry: Entry, fd: int) -> None:
    for offset, length in entry.sparse or ():
        if length:
            os.lseek(fd, offset, os.SEEK_SET)
            source.copy(length, fd)
    os.ftruncate(fd, entry.size)


def _old_pairs(data: bytes) -> list[tuple[int, int]]:
    pairs = [(data[i : i + 12], data[i + 12 : i + 24]) for i in range(0, len(data) - 23, 24)]
    return [(number(offset), number(length)) for offset, length in pairs if offset[0] and length[0]]


def _checked_map(pieces: list[tuple[int, int]], entry: Entry) -> list[tuple[int, int]]:
    """Pieces in order, without overlap, inside the file, and adding up to what is stored."""
    end = total = 0
    for offset, length in pieces:
        if offset < end or length < 0 or offset + length > entry.size:
            raise ValueError(_INVALID)
        end = offset + length
        total += length
    if total != entry.stored:
        raise ValueError(_INVALID)
    return pieces


def _apply_pax(entry: Entry, pax: dict[bytes, bytes]) -> None:
    try:
        for key, value in pax.items():
            if key == b"path":
                entry.name = value or entry.name
            elif key == b"linkpath":
                entry.link = value or entry.link
            elif key == b"mtime":
                entry.mtime_ns = _time_ns(value) if value else entry.mtime_ns
            elif key == b"size":
                entry.size = int(value) if value else entry.size
            elif key == b"uid":
                entry.uid = int(value) if value else entry.uid
            elif key == b"gid":
                entry.gid = int(value) if value else entry.gid
            elif key.startswith(_XATTR):
                entry.xattrs.append((key[len(_XATTR) :], value))
    except ValueError:
        raise ValueError(_INVALID) from None
    if b"\0" in entry.name or b"\0" in entry.link:
        raise ValueError(_INVALID)


def _octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def _pax_record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    size = len(body) + 1
    while len(str(size)) + len(body) != size:
        size = len(str(size)) + len(body)
    return str(size).encode() + body


def _split_name(name: bytes) -> tuple[bytes, bytes] | None:
    """ustar's (prefix, name) of a long path; None where it does not fit."""
    if len(name) <= 100:
        return b"", name
    cut = name.rfind(b"/", 0, 156)
    if cut <= 0 or not 0 < len(name) - cut - 1 <= 100:
        cut = name.find(b"/", max(0, len(name) - 101))
        if not 0 < cut <= 155 or cut == len(name) - 1:
            return None
    return name[:cut], name[cut + 1 :]


@functools.lru_cache(4096)
def _numbers(mode: int, uid: int, gid: int, size: int, seconds: int) -> tuple[bytes, int]:
    """The numeric fields in front of the checksum and their sum: many files differ in little but their names."""
    fields = b"".join(
        (_octal(mode, 8), _octal(uid, 8), _octal(gid, 8), _octal(size, 12), _octal(min(seconds, 8**11 - 1), 12))
    )
    return fields, sum(fields)


@functools.lru_cache(256)
def _tail(kind: bytes, link: bytes, device: tuple[int, int], prefix: bytes) -> tuple[bytes, bytes, int]:
    """The kind with the link, what follows them, and the sum of it all."""
    major, minor = (_octal(min(number, 8**7 - 1), 8) for number in device)
    front = kind + link.ljust(100, b"\0")
    back = b"ustar\00000" + bytes(64) + major + minor + prefix.ljust(167, b"\0")
    return front, back, sum(front) + sum(back)


def _ustar(entry: Entry, name: bytes, prefix: bytes, link: bytes, limits: tuple[int, int, int]) -> bytes:
    seconds = max(0, entry.mtime_ns // 1_000_000_000)
    numbers, numbers_sum = _numbers(entry.mode, *limits, seconds)
    front, back, tail_sum = _tail(entry.kind, link, (entry.devmajor, entry.devminor), prefix)
    checksum = b"%06o\0 " % (sum(name) + numbers_sum + tail_sum + 8 * 32)
    return b"".join((name.ljust(100, b"\0"), numbers, checksum, front, back))


def header(entry: Entry) -> bytes:
    """The header blocks of ``entry``; times are whole seconds, as docker writes them."""
    name, link = entry.name, entry.link
    records: list[tuple[bytes, bytes]] = []
    split = _split_name(name)
    if split is None or not (name.isascii() and link.isascii()):
        records.append((b"path", name))
        split = (b"", name[-100:]) if split is None else split
    if len(link) > 100 or not link.isascii():
        records.append((b"linkpath", link))
    limits = (entry.uid, entry.gid, entry.size)
    if entry.uid >= 8**7 or entry.gid >= 8**7 or entry.size >= 8**11:
        held = ((b"uid", entry.uid, 8**7), (b"gid", entry.gid, 8**7), (b"size", entry.size, 8**11))
        records += [(key, b"%d" % value) for key, value, limit in held if value >= limit]
        uid, gid, size = (value if value < limit else 0 for _, value, limit in held)
        limits = uid, gid, size
    if entry.xattrs:
        records += [(_XATTR + key, value) for key, value in entry.xattrs]
    block = _ustar(entry, split[1], split[0], link[:100], limits)
    if not records:
        return block
    body = b"".join(_pax_record(key, value) for key, value in sorted(records))
    special = Entry(b"PaxHeaders.0/" + split[1][-80:], b"x")
    head = _ustar(special, special.name, b"", b"", (0, 0, len(body)))
    return head + body + bytes(-len(body) % BLOCK) + block


TRAILER = bytes(2 * BLOCK)
