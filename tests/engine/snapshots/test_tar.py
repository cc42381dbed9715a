"""The tar format against Python's and GNU's writers, and against archives made to hurt."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.snapshots import tar


class Bytes:
    """An in-memory ``tar.Input``."""

    def __init__(self, data: bytes) -> None:
        self._in = io.BytesIO(data)

    def take(self, size: int) -> bytes:
        return self._in.read(size)

    def exactly(self, size: int) -> bytes:
        data = self._in.read(size)
        if len(data) != size:
            raise EOFError("unexpected EOF")
        return data

    def copy(self, size: int, fd: int) -> None:
        os.write(fd, self.exactly(size))

    def skip(self, size: int) -> None:
        self.exactly(size)


def archive(*members: tarfile.TarInfo, form: int = tarfile.PAX_FORMAT, data: bytes = b"") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as writer:
        for member in members:
            writer.addfile(member, io.BytesIO(data) if member.isreg() else None)
    return out.getvalue()


def member(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def read(data: bytes) -> list[tar.Entry]:
    return list(tar.Reader(Bytes(data)))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_field_survives_every_format(form: int) -> None:
    info = member("dir/file", size=3, mode=0o4755, uid=1000, gid=2000, mtime=1700000000)
    (entry,) = read(archive(info, form=form, data=b"abc"))
    assert (entry.name, entry.kind, entry.mode, entry.uid, entry.gid) == (b"dir/file", tar.REGULAR, 0o4755, 1000, 2000)
    assert (entry.size, entry.mtime_ns) == (3, 1700000000 * 10**9)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_links_and_large_numbers(form: int) -> None:
    name, link = "n" * 90 + "/" + "m" * 200, "l" * 300
    info = member(name, type=tarfile.SYMTYPE, linkname=link, uid=3_000_000_000, gid=3_000_000_001)
    (entry,) = read(archive(info, form=form))
    assert (entry.name, entry.link, entry.uid, entry.gid) == (
        name.encode(),
        link.encode(),
        3_000_000_000,
        3_000_000_001,
    )


def test_pax_times_and_attributes() -> None:
    info = member("f", pax_headers={"mtime": "1700000000.123456789", "SCHILY.xattr.user.a": "b"})
    (entry,) = read(archive(info))
    assert entry.mtime_ns == 1700000000123456789
    assert entry.xattrs == [(b"user.a", b"b")]


def test_global_headers_do_not_apply_to_entries() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", pax_headers={"comment": "x", "uid": "7"}) as writer:
        writer.addfile(member("f"))
    (entry,) = read(out.getvalue())
    assert (entry.name, entry.uid) == (b"f", 0)


def test_old_regular_type_with_slash_is_a_folder() -> None:
    data = bytearray(archive(member("d"), form=tarfile.USTAR_FORMAT))
    data[1:2], data[156:157] = b"/", b"\0"
    data[148:156] = b"        "
    data[148:156] = b"%06o\0 " % sum(data[:512])
    (entry,) = read(bytes(data))
    assert (entry.name, entry.kind) == (b"d/", tar.FOLDER)


@pytest.mark.parametrize(
    "form", ["gnu", "pax --sparse-version=0.0", "pax --sparse-version=0.1", "pax --sparse-version=1.0"]
)
def test_sparse_files_of_gnu_tar(tmp_path: Path, form: str) -> None:
    if shutil.which("tar") is None:
        pytest.skip("needs GNU tar")
    source = tmp_path / "s"
    with source.open("wb") as out:
        for place in range(12):  # more pieces than fit the first header of the old format
            out.seek(place * 1_000_000)
            out.write(b"%d" % place)
        out.truncate(20_000_000)
    command = ["tar", "-C", str(tmp_path), "-S", *f"--format={form}".split(), "-cf", "-", "s"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    assert len(data) < 200_000
    reader = tar.Reader(Bytes(data))
    entry = next(iter(reader))
    assert (entry.name, entry.size) == (b"s", 20_000_000)
    result = tmp_path / "out"
    with result.open("wb") as out:
        reader.copy_to(entry, out.fileno())
    assert result.read_bytes() == source.read_bytes()


def test_archive_may_end_without_its_zero_blocks() -> None:
    data = archive(member("f", size=1), data=b"x")[:1024]
    assert [e.name for e in read(data)] == [b"f"]


def _damaged(data: bytes, place: int, value: bytes) -> bytes:
    changed = bytearray(data)
    changed[place : place + len(value)] = value
    changed[148:156] = b"        "
    changed[148:156] = b"%06o\0 " % sum(changed[:512])
    return bytes(changed)


@pytest.mark.parametrize(
    "data",
    [
        archive(member("f"))[:300],
        archive(member("f", size=600), data=b"x" * 600)[:700],
        b"x" * 512,
        archive(member("f")).replace(b"f", b"g", 1),
        _damaged(archive(member("f")), 124, b"\xff" * 12),
        _damaged(archive(member("f")), 124, b"zzz"),
        _damaged(archive(member("f")), 156, b"L"),
        bytes(512) + archive(member("f")),
        archive(member("f", pax_headers={"size": "-5"})),
        archive(member("f", pax_headers={"GNU.sparse.map": "0,5,2,5", "GNU.sparse.size": "9"})),
        archive(member("f", pax_headers={"GNU.sparse.map": "0,99999999999", "GNU.sparse.size": "9"})),
        archive(member("f", pax_headers={"a": "b" * tar.SPECIAL_LIMIT})),
    ],
)
def test_damage_is_refused(data: bytes) -> None:
    with pytest.raises((ValueError, EOFError)):
        read(data)


@given(st.binary(max_size=3000))
def test_no_input_does_anything_but_fail_or_end(data: bytes) -> None:
    try:
        read(data)
    except (ValueError, EOFError):
        pass


@given(st.binary(min_size=512, max_size=512))
def test_any_header_block_with_a_right_checksum_is_handled(block: bytes) -> None:
    data = _damaged(block, 0, b"")
    try:
        read(data)
    except (ValueError, EOFError):
        pass


_NAMES = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=300)


@given(_NAMES, _NAMES, st.integers(0, 2**32 - 2), st.integers(0, 2**40), st.integers(0, 0o7777))
def test_python_reads_what_is_written(name: str, link: str, uid: int, mtime: int, mode: int) -> None:
    name = name.strip("/") or "x"
    entry = tar.Entry(name.encode(), tar.SYMLINK)
    entry.link, entry.uid, entry.mode = link.encode(), uid, mode
    entry.mtime_ns = min(mtime, 8**11 - 1) * 10**9
    entry.xattrs = [(b"user.x", b"\x01binary\n\xff")]
    with tarfile.open(fileobj=io.BytesIO(tar.header(entry) + tar.TRAILER)) as reader:
        (info,) = reader.getmembers()
    assert (info.name, info.linkname, info.uid, info.mode) == (name, link, uid, mode)
    (again,) = read(tar.header(entry) + tar.TRAILER)
    assert (again.name, again.link, again.uid, again.xattrs) == (entry.name, entry.link, uid, entry.xattrs)


@pytest.mark.parametrize("length", [99, 100, 101, 155, 156, 200, 255, 256, 257, 400])
def test_name_lengths_around_the_limits(length: int) -> None:
    name = ("d" * 60 + "/") * 10
    name = name[: length - 1] + "f"
    entry = tar.Entry(name.encode(), tar.REGULAR)
    with tarfile.open(fileobj=io.BytesIO(tar.header(entry) + tar.TRAILER)) as reader:
        assert reader.getnames() == [name]
