"""Cutting archives: every compression, any chunk size, links, long names, damage."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import tarfile
from pathlib import Path

import pytest
import zstandard

from engine.images.members import Inflater, Splitter, clean

from .conftest import tar_of

FILES = {"a": b"one", "dir/b": b"x" * 5000, "empty": b"", "n" * 150 + "/long": b"long"}


def split(data: bytes, folder: Path, size: int) -> Splitter:
    splitter = Splitter(folder)
    for start in range(0, len(data), size):
        splitter.feed_sync([data[start : start + size]])
    splitter.close_sync()
    return splitter


@pytest.mark.parametrize("size", [1, 511, 512, 513, 100_000])
@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_files_with_their_digests(tmp_path: Path, size: int, format: int) -> None:
    members = split(tar_of(FILES, format=format), tmp_path, size).members
    assert {name: member.path.read_bytes() for name, member in members.items()} == FILES
    assert all(m.digest == "sha256:" + hashlib.sha256(FILES[n]).hexdigest() for n, m in members.items())


@pytest.mark.parametrize(
    "pack", [gzip.compress, bz2.compress, lzma.compress, zstandard.ZstdCompressor().compress], ids=lambda p: p.__name__
)
@pytest.mark.parametrize("size", [1, 7, 4096])
def test_any_compression(tmp_path: Path, pack: object, size: int) -> None:
    members = split(pack(tar_of(FILES)), tmp_path, size).members  # type: ignore[operator]
    assert set(members) == set(FILES)


def test_compressed_streams_in_a_row_are_one() -> None:
    inflater = Inflater()
    out = b"".join(inflater.feed_sync(gzip.compress(b"ab") + gzip.compress(b"cd"))) + inflater.finish_sync()
    assert out == b"abcd"


def test_links_lead_to_their_files(tmp_path: Path) -> None:
    data = tar_of({"x/layer.tar": b"L"}, {"y/layer.tar": "../x/layer.tar", "z": "z"})
    splitter = split(data, tmp_path, 100)
    found = splitter.resolve("y/layer.tar")
    assert found is not None and found.path.read_bytes() == b"L"
    assert splitter.resolve("z") is None


@pytest.mark.parametrize("damage", ["cut body", "cut padding", "header", "gzip", "negative"])
def test_damage_is_told(tmp_path: Path, damage: str) -> None:
    data = tar_of({"a": b"x" * 2000})
    if damage == "cut body":
        data = data[:1500]
    elif damage == "cut padding":
        data = data[:2520]
    elif damage == "header":
        data = b"\1" + data[1:]
    elif damage == "gzip":
        data = gzip.compress(data)[:-20]
    else:
        block = bytearray(data[:512])
        block[124:136] = b"\xff" * 12
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        data = bytes(block)
    with pytest.raises(ValueError, match=r"EOF|invalid tar header"):
        split(data, tmp_path, 600)


def test_names_are_only_for_looking_up(tmp_path: Path) -> None:
    outside = tmp_path.parent / "evil"
    split(tar_of({"../../evil": b"!", "/abs": b"?"}), tmp_path, 512)
    assert not outside.exists()
    assert clean("./../a//b") == "a/b"


def test_other_kinds_are_skipped(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for kind in (tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            entry = tarfile.TarInfo("k" + kind.decode())
            entry.type = kind
            archive.addfile(entry)
        entry = tarfile.TarInfo("file")
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"1"))
    assert set(split(out.getvalue(), tmp_path, 512).members) == {"file"}


def test_members_of_one_name_are_files_of_their_own(tmp_path: Path) -> None:
    """The digest of one must never stand for the bytes of another: files become blobs under that digest."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in (("a", b"first"), ("a", b"second"), ("b", b"third")):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    members = split(out.getvalue(), tmp_path, 512).members
    assert {name: member.path.read_bytes() for name, member in members.items()} == {"a": b"second", "b": b"third"}


@pytest.mark.parametrize(
    "pack", [gzip.compress, bz2.compress, lzma.compress, zstandard.ZstdCompressor().compress], ids=lambda p: p.__name__
)
def test_what_grows_a_thousandfold_comes_in_pieces(pack: object) -> None:
    size = 64 << 20
    data = pack(bytes(size))  # type: ignore[operator]
    inflater = Inflater()
    total = largest = 0
    for plain in inflater.feed_sync(data + data[:20]):
        total, largest = total + len(plain), max(largest, len(plain))
    assert total == size and largest <= 33 << 20
    with pytest.raises(ValueError, match="unexpected EOF"):
        inflater.finish_sync()


def test_xz_that_wants_much_memory_is_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 512 << 20}]
    data = lzma.compress(b"x", format=lzma.FORMAT_XZ, filters=filters)
    with pytest.raises(ValueError, match="damaged xz data: Memory usage limit exceeded"):
        list(Inflater().feed_sync(data))


def test_names_have_an_end(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too many long names"):
        split(tar_of({f"{i}{'n' * 900_000}": b"" for i in range(20)}), tmp_path, 1 << 20)
