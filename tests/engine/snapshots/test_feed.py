"""Blobs in every compression come out plain and hashed; damage and cuts are told apart from data."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
from pathlib import Path

import pytest
import zstandard

from engine.snapshots.feed import CHUNK, Feed, Source, compression_of, plain

DATA = os.urandom(300_000) + bytes(4_000_000) + os.urandom(100)
FORMS = {
    "none": DATA,
    "gzip": gzip.compress(DATA, 1),
    "zstd": zstandard.ZstdCompressor().compress(DATA),
    "xz": lzma.compress(DATA, preset=0),
    "bzip2": bz2.compress(DATA, 1),
}


def feed_of(folder: Path, data: bytes, **options: int) -> tuple[Feed, int]:
    path = folder / "blob"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    return Feed(fd, **options), fd


@pytest.mark.parametrize("kind", FORMS)
def test_each_compression(tmp_path: Path, kind: str) -> None:
    assert compression_of(FORMS[kind][:6]) == kind
    feed, fd = feed_of(tmp_path, FORMS[kind])
    assert feed.exactly(1000) == DATA[:1000]
    feed.skip(400_000)
    assert feed.take(50) == DATA[401_000:401_050]
    feed.drain()
    assert feed.hex_digest() == hashlib.sha256(DATA).hexdigest()
    assert feed.total == len(DATA)
    assert feed.source.count == len(FORMS[kind])
    os.close(fd)


@pytest.mark.parametrize("kind", ["gzip", "zstd", "xz", "bzip2"])
def test_several_streams_in_one_blob(tmp_path: Path, kind: str) -> None:
    feed, fd = feed_of(tmp_path, FORMS[kind] + FORMS[kind])
    feed.drain()
    assert feed.hex_digest() == hashlib.sha256(DATA + DATA).hexdigest()
    os.close(fd)


@pytest.mark.parametrize("kind", ["gzip", "zstd", "xz", "bzip2"])
def test_a_cut_blob_never_looks_whole(tmp_path: Path, kind: str) -> None:
    feed, fd = feed_of(tmp_path, FORMS[kind][:-200])
    if kind == "zstd":  # zstandard's reader ends quietly; the digest does not match then
        feed.drain()
        assert feed.hex_digest() != hashlib.sha256(DATA).hexdigest()
    else:
        with pytest.raises(EOFError):
            feed.drain()
    os.close(fd)


@pytest.mark.parametrize("kind", ["gzip", "zstd", "xz", "bzip2"])
def test_damage_fails_or_shows_in_the_digest(tmp_path: Path, kind: str) -> None:
    blob = bytearray(FORMS[kind])
    blob[len(blob) // 2 : len(blob) // 2 + 50] = os.urandom(50)
    feed, fd = feed_of(tmp_path, bytes(blob))
    try:
        feed.drain()
        assert feed.hex_digest() != hashlib.sha256(DATA).hexdigest()
    except (ValueError, EOFError) as error:
        assert str(error)
    finally:
        os.close(fd)


def test_chunks_are_bounded_whatever_a_blob_expands_to(tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(gzip.compress(bytes(50_000_000)))
    fd = os.open(path, os.O_RDONLY)
    _, chunks = plain(Source(fd, None))
    assert max(len(chunk) for chunk in chunks) <= CHUNK
    os.close(fd)


def test_a_part_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"before" + DATA + b"after")
    fd = os.open(path, os.O_RDONLY)
    os.lseek(fd, 6, os.SEEK_SET)
    feed = Feed(fd, length=len(DATA))
    feed.drain()
    assert feed.hex_digest() == hashlib.sha256(DATA).hexdigest()
    os.close(fd)


def test_the_end_is_an_error_only_where_more_was_promised(tmp_path: Path) -> None:
    feed, fd = feed_of(tmp_path, b"abc")
    assert feed.take(10) == b"abc"
    with pytest.raises(EOFError):
        feed.exactly(1)
    os.close(fd)


def test_an_empty_blob(tmp_path: Path) -> None:
    feed, fd = feed_of(tmp_path, b"")
    feed.drain()
    assert feed.hex_digest() == hashlib.sha256(b"").hexdigest()
    os.close(fd)
