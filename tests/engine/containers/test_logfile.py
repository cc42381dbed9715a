"""Files of a log: what can be read of compressed ones, damaged in every way that a loss of power damages them."""

from __future__ import annotations

import gzip
import io
import random
import zlib
from pathlib import Path

import pytest

from engine.containers.logfile import Compressed, LogFile, identity_sync, open_file_sync

NOISE = random.Random(0)
CONTENT = b"".join(b"%d %s\n" % (number, NOISE.randbytes(12).hex().encode()) for number in range(3000))
WHOLE = gzip.compress(CONTENT)
HALF = WHOLE[:35_000]


def cut(data: bytes) -> bytes:
    """What is in a file that was cut, as the plainest reader has it."""
    return zlib.decompressobj(31).decompress(data)


# What is in the file, and what can be read of it.
FILES = {
    "whole": (WHOLE, CONTENT),
    "of nothing": (gzip.compress(b""), b""),
    "of the same": (gzip.compress(bytes(9_000_000)), bytes(9_000_000)),
    "padded": (WHOLE + bytes(5000), CONTENT),
    "cut in its end": (WHOLE[:-5], CONTENT),
    "cut": (HALF, cut(HALF)),
    "cut in its beginning": (WHOLE[:5], b""),
    "empty": (b"", b""),
    "zeroes": (bytes(20_000), b""),
    "zeroes at its end": (HALF + bytes(20_000), cut(HALF)),
    "many zeroes at its end": (HALF + bytes(1_200_000), cut(HALF)),
    "a wrong checksum": (WHOLE[:-8] + b"checksum", CONTENT),
    "nonsense": (b"no gzip at all", b""),
}


def read_all(file: LogFile, size: int) -> bytes:
    return b"".join(iter(lambda: file.read(size), b""))


@pytest.fixture(params=FILES.values(), ids=FILES.keys())
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, bytes]:
    data, content = request.param
    path = tmp_path / "x.1.gz"
    path.write_bytes(data)
    return path, content


def test_a_damaged_file_ends_where_it_cannot_be_read_any_further(packed: tuple[Path, bytes]) -> None:
    path, content = packed
    file = open_file_sync(path)
    assert isinstance(file, Compressed)
    assert read_all(file, 512 * 1024) == content
    assert file.read(1) == b""
    file.close()


def test_what_could_be_read_is_found_again_by_its_place(packed: tuple[Path, bytes]) -> None:
    path, content = packed
    file = Compressed(path)
    for offset in (len(content), len(content) // 2, 0, len(content) // 3):
        file.seek(offset)
        assert read_all(file, 100_000) == content[offset:]
    file.seek(0)
    file.seek(0, io.SEEK_END)
    assert file.read(1) == b""
    file.close()


def test_a_damaged_file_has_an_identity(packed: tuple[Path, bytes]) -> None:
    path, content = packed
    file = open_file_sync(path)
    assert identity_sync(file) == (path.stat().st_ino, content[:256])
    file.close()


def test_what_comes_before_nonsense_can_be_read(tmp_path: Path) -> None:
    """In the first piece that is unpacked, and in a later one; all but the last repetition."""
    for number in (5000, 35_000):
        path = tmp_path / "x.1.gz"
        path.write_bytes(WHOLE[:number] + b"\xff" * 20_000)
        file = Compressed(path)
        assert read_all(file, 512 * 1024).startswith(cut(WHOLE[:number])[:-300])
        file.close()


def test_a_plain_file_is_known_by_its_inode_and_its_beginning(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(CONTENT)
    file = open_file_sync(tmp_path / "x")
    assert identity_sync(file) == ((tmp_path / "x").stat().st_ino, CONTENT[:256])
    file.close()
