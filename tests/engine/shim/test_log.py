"""json-file's format byte for byte, and what rotation and a full disk do to it."""

import errno
import gzip
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from engine.shim import log as log_module
from engine.shim.log import PIECE, JsonFile, NoLog, cut, escape, open_log, size_of, timestamp
from engine.shim.wire import STDERR, STDOUT


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def texts(path: Path) -> list[str]:
    return [entry["log"] for entry in entries(path)]


def wait_for_child(pid: int) -> None:
    os.waitpid(pid, 0)


@pytest.mark.parametrize(
    ("raw", "escaped"),
    [
        (b"plain text\n", b"plain text\n"),
        (b'say "hi" \\ <a&b>', rb"say \"hi\" \\ \u003ca\u0026b\u003e"),
        (b"\ttab\r\x00\x1b", rb"\u0009tab\r\u0000\u001b"),
        ("é € 😀".encode(), "é € 😀".encode()),
        (b"bad \xff\xfe end", rb"bad \ufffd\ufffd end"),
        ("\u2028\u2029".encode(), rb"\u2028\u2029"),
        (b"\x7f", b"\x7f"),
    ],
)
def test_escaping_is_dockerds(raw: bytes, escaped: bytes) -> None:
    assert escape(raw) == escaped


@pytest.mark.parametrize(
    ("nanoseconds", "written"),
    [
        (1_700_000_000_123_456_789, b"2023-11-14T22:13:20.123456789Z"),
        (1_700_000_000_120_000_000, b"2023-11-14T22:13:20.12Z"),
        (1_700_000_000_000_000_000, b"2023-11-14T22:13:20Z"),
        (1_700_000_000_000_000_005, b"2023-11-14T22:13:20.000000005Z"),
    ],
)
def test_times_have_no_trailing_zeroes(nanoseconds: int, written: bytes) -> None:
    assert timestamp(nanoseconds) == written


@pytest.mark.parametrize(
    ("text", "size"), [("10m", 10**7), ("1.5k", 1500), ("2048", 2048), ("1g", 10**9), ("3kb", 3000), (" 7b ", 7)]
)
def test_sizes_are_decimal(text: str, size: int) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["", "ten", "5x", "m"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        size_of(text)


def test_lines_are_cut_whole_and_long_ones_in_pieces() -> None:
    assert cut(b"a\nb\nrest") == (b"a\nb\n", [], b"rest")
    assert cut(b"rest") == (b"", [], b"rest")
    long = b"x" * (PIECE + 10)
    assert cut(b"a\n" + long + b"\nb\nc") == (b"a\n", [b"x" * PIECE, b"x" * 10 + b"\n", b"b\n"], b"c")
    assert cut(b"x" * PIECE + b"\n") == (b"", [b"x" * PIECE, b"\n"], b"")
    assert cut(b"x" * (PIECE - 1) + b"\nend") == (b"x" * (PIECE - 1) + b"\n", [], b"end")


def test_a_character_is_not_torn_by_a_piece() -> None:
    line = b"x" * (PIECE - 1) + "é".encode()
    assert cut(line + b"!\n")[1] == [b"x" * (PIECE - 1), "é!\n".encode()]


def test_many_batches_make_the_same_entries_as_one(tmp_path: Path) -> None:
    data = b"".join(b"line %d\n" % number for number in range(300)) + b"y" * 40_000 + b"\nlast"
    whole, bits = JsonFile(str(tmp_path / "whole"), attributes={}), JsonFile(str(tmp_path / "bits"), attributes={})
    whole.write(STDOUT, data)
    for start in range(0, len(data), 77):
        bits.write(STDOUT, data[start : start + 77])
    for log in (whole, bits):
        log.flush()
        log.close()
    assert texts(tmp_path / "whole") == texts(tmp_path / "bits")
    assert "".join(texts(tmp_path / "whole")).encode() == data


def test_an_entry_has_dockers_keys_in_dockers_order(tmp_path: Path) -> None:
    log = JsonFile(str(tmp_path / "log"), attributes={"b": "2", "a": "1"})
    log.write(STDERR, b"hello\n")
    log.close()
    line = (tmp_path / "log").read_text()
    assert line.startswith('{"log":"hello\\n","stream":"stderr","attrs":{"a":"1","b":"2"},"time":"20')
    assert line.endswith('Z"}\n')


def test_streams_do_not_mix_their_unfinished_lines(tmp_path: Path) -> None:
    log = JsonFile(str(tmp_path / "log"), attributes={})
    log.write(STDOUT, b"out ")
    log.write(STDERR, b"err ")
    log.write(STDOUT, b"put\n")
    log.flush()
    log.close()
    assert [(entry["stream"], entry["log"]) for entry in entries(tmp_path / "log")] == [
        ("stdout", "out put\n"),
        ("stderr", "err "),
    ]


def test_rotation_keeps_the_newest_files_and_every_entry_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = JsonFile(str(path), attributes={}, max_size=1000, max_files=3)
    log.write(STDOUT, b"".join(b"%04d\n" % number for number in range(100)))
    log.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    kept = texts(tmp_path / "log.2") + texts(tmp_path / "log.1") + texts(path)
    assert kept == [f"{number:04d}\n" for number in range(100 - len(kept), 100)]
    # the entry that crosses the limit still belongs to the file, as dockerd has it
    assert 1000 <= (tmp_path / "log.1").stat().st_size < 1100


def test_a_single_file_starts_over(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = JsonFile(str(path), attributes={}, max_size=500, max_files=1)
    log.write(STDOUT, b"".join(b"%04d\n" % number for number in range(100)))
    log.close()
    assert [file.name for file in tmp_path.iterdir()] == ["log"]
    assert texts(path)[-1] == "0099\n"


def test_rotated_files_are_compressed_beside_the_writing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = JsonFile(str(path), attributes={}, max_size=500, max_files=3, compress=True)
    for number in range(30):
        log.write(STDOUT, b"%04d\n" % number)
        if log._compressor:
            child = log._compressor
            wait_for_child(child)
            log.reaped(child)
    log.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["log", "log.1.gz", "log.2.gz"]
    last = json.loads(gzip.decompress((tmp_path / "log.1.gz").read_bytes()).splitlines()[-1])
    assert last["log"] < texts(path)[0]


def test_emptying_removes_what_was_rotated(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = JsonFile(str(path), attributes={}, max_size=300, max_files=3)
    log.write(STDOUT, b"x\n" * 50)
    log.truncate()
    log.write(STDOUT, b"after\n")
    log.close()
    assert [file.name for file in tmp_path.iterdir()] == ["log"]
    assert texts(path) == ["after\n"]


def test_a_full_disk_is_reported_once_and_does_not_raise() -> None:
    troubles: list[OSError] = []
    log = JsonFile("/dev/full", attributes={}, on_trouble=troubles.append)
    log.write(STDOUT, b"lost\n")
    log.write(STDOUT, b"lost too\n")
    log.close()
    assert [trouble.strerror for trouble in troubles] == ["No space left on device"]


def test_drivers_by_name(tmp_path: Path) -> None:
    def settings(driver: str, **options: str) -> dict[str, Any]:
        return {"driver": driver, "path": str(tmp_path / driver), "options": options, "attrs": {}}

    assert isinstance(open_log(settings("none"), lambda _error: None), NoLog)
    local = open_log(settings("local"), lambda _error: None)
    assert isinstance(local, JsonFile)
    assert (local._max_size, local._max_files, local._compress) == (20 << 20, 5, True)
    local.close()
    chosen = open_log(settings("json-file", **{"max-size": "2m", "max-file": "4"}), lambda _error: None)
    assert isinstance(chosen, JsonFile)
    assert (chosen._max_size, chosen._max_files, chosen._compress) == (2_000_000, 4, False)
    chosen.close()
    with pytest.raises(ValueError, match="no log driver named 'paper'"):
        open_log(settings("paper"), lambda _error: None)


def test_binary_is_read_back_as_what_it_was() -> None:
    noise = bytes(range(256)) * 40
    read = json.loads(b'"' + escape(noise).replace(b"\n", b"\\n") + b'"')
    assert read == noise.decode("utf-8", "replace")
    assert escape(bytes(1000)) == rb"\u0000" * 1000
    text = b"\t<\\>\"'&" * 200 + "\u2028é\n".encode()
    assert json.loads(b'"' + escape(text).replace(b"\n", b"\\n") + b'"') == text.decode()
    assert b"<" not in escape(text)


def test_what_comes_while_a_file_is_compressed_is_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entry by entry it took minutes, in which the shim heard of nothing, not even of a kill."""
    writes = []
    log = JsonFile(str(tmp_path / "log"), attributes={}, max_size=100_000, max_files=4, compress=True)
    write = log._write

    def counted(parts: list[bytes]) -> None:
        writes.append(sum(map(len, parts)))
        write(parts)

    log._size, log._compressor = 100_000, os.getpid()  # full, and the child is not done
    monkeypatch.setattr(log, "_write", counted)
    log.write(1, b"y\n" * 1000)
    assert len(writes) == 1
    log._compressor = 0
    log.close()


def test_a_compressor_that_is_too_slow_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def endless(_path: str) -> int:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        started.append(pid)
        return pid

    monkeypatch.setattr(log_module, "_compress_in_child", endless)
    path = tmp_path / "log"
    log = JsonFile(str(path), attributes={}, max_size=500, max_files=4, compress=True)
    for number in range(60):
        log.write(STDOUT, b"%04d\n" % number)
    log.close()
    assert len(started) > 1
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    assert all(file.stat().st_size < 1200 for file in tmp_path.iterdir())
    kept = texts(tmp_path / "log.3") + texts(tmp_path / "log.2") + texts(tmp_path / "log.1") + texts(path)
    assert kept == [f"{number:04d}\n" for number in range(60 - len(kept), 60)]


def test_what_the_last_run_left_uncompressed_is_compressed_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log"
    Path(f"{path}.1").write_bytes(b"old\n")
    log = JsonFile(str(path), attributes={}, max_size=500, max_files=4, compress=True)
    wait_for_child(log._compressor)
    log.reaped(log._compressor)
    log.close()
    assert gzip.decompress((tmp_path / "log.1.gz").read_bytes()) == b"old\n"
    assert not (tmp_path / "log.1").exists()


def test_a_rotated_file_goes_only_when_its_successor_would_outlive_a_loss_of_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the durable original was gone, and what replaced it cut or all zeroes."""
    path = str(tmp_path / "log.1")
    Path(path).write_bytes(os.urandom(1_500_000))  # more than one write
    steps = os.open(tmp_path / "steps", os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # also the child's
    opened, rename, fsync, unlink = os.open, os.rename, os.fsync, os.unlink

    def noted_open(name: str, flags: int, *mode: int) -> int:
        if name.endswith(".tmp"):
            os.write(
                steps, b"open %s synced:%d\n" % (os.path.basename(name).encode(), flags & os.O_DSYNC == os.O_DSYNC)
            )
        return opened(name, flags, *mode)

    def noted_rename(name: str, to: str) -> None:
        os.write(steps, b"rename %d\n" % os.path.getsize(name))
        rename(name, to)

    def noted_fsync(descriptor: int) -> None:
        fsync(descriptor)
        os.write(steps, b"sync %s\n" % os.readlink(f"/proc/self/fd/{descriptor}").encode())

    def noted_unlink(name: str) -> None:
        os.write(steps, b"unlink %s\n" % os.path.basename(name).encode())
        unlink(name)

    monkeypatch.setattr(os, "open", noted_open)
    monkeypatch.setattr(os, "rename", noted_rename)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "unlink", noted_unlink)
    wait_for_child(log_module._compress_in_child(path))
    os.close(steps)
    assert (tmp_path / "steps").read_text().splitlines() == [
        "open log.1.tmp synced:1",
        f"rename {os.path.getsize(f'{path}.gz')}",
        f"sync {tmp_path}",
        "unlink log.1",
    ]


def test_a_rotated_file_stays_when_its_successor_cannot_be_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "log.1").write_bytes(b"old\n")
    monkeypatch.setattr(os, "fsync", failing)
    wait_for_child(log_module._compress_in_child(str(tmp_path / "log.1")))
    assert (tmp_path / "log.1").read_bytes() == b"old\n"


@pytest.mark.parametrize("torn", [b'{"log":"to', bytes(5000), b'{"log":"whole\\n"}\n' + bytes(1)])
@pytest.mark.parametrize("driver", ["json-file", "local"])
def test_what_follows_a_torn_line_begins_a_line_of_its_own(tmp_path: Path, torn: bytes, driver: str) -> None:
    path = tmp_path / "log"
    path.write_bytes(torn)
    log = open_log({"driver": driver, "path": str(path), "options": {}, "attrs": {}}, lambda _error: None)
    log.write(STDOUT, b"new\n")
    log.close()
    assert path.read_bytes().startswith(torn + b"\n{")
    assert json.loads(path.read_bytes().splitlines()[-1])["log"] == "new\n"


def test_a_line_begun_anew_counts_for_the_size(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"torn")
    log = JsonFile(str(path), attributes={}, max_size=10_000)
    log.write(STDOUT, b"new\n")
    assert log._size == path.stat().st_size
    log.close()


def test_a_torn_line_on_a_full_disk_keeps_no_container_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "log"
    path.write_bytes(b"torn")
    monkeypatch.setattr(os, "write", full)
    log = JsonFile(str(path), attributes={})
    log.close()
    assert path.read_bytes() == b"torn"


def test_a_log_that_ends_with_a_line_is_continued_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for text in (b"one\n", b"two\n"):
        log = JsonFile(str(path), attributes={})
        log.write(STDOUT, text)
        log.close()
    assert texts(path) == ["one\n", "two\n"]


def test_a_destination_that_is_away_is_named(tmp_path: Path) -> None:
    sink = {
        "network": "unix",
        "address": str(tmp_path / "none"),
        "facility": 3,
        "format": "",
        "tag": "t",
        "hostname": "h",
    }
    settings = {"driver": "syslog", "path": "", "options": {}, "attrs": {}, "sink": sink}
    with pytest.raises(OSError, match="^failed to initialize logging driver: dial unix .*: no such file or directory$"):
        open_log(settings, lambda _error: None)
