"""Entries in the journal's native protocol."""

import socket
import struct
from pathlib import Path

import pytest

from engine.shim.journald import Journald, field
from engine.shim.wire import STDERR, STDOUT


def test_fields_with_newlines_carry_their_length() -> None:
    assert field("A", b"b") == b"A=b\n"
    assert field("A", b"b\nc") == b"A\n" + struct.pack("<Q", 3) + b"b\nc\n"


def test_an_entry(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        sink = Journald({"fields": {"CONTAINER_TAG": "t"}, "socket": path})
        sink.send([(10**9, STDERR, b"bad", None), (10**9, STDOUT, b"part", ("g", 2, False))])
        entry = journal.recv(4096).splitlines()
        assert {b"MESSAGE=bad", b"PRIORITY=3", b"CONTAINER_TAG=t"} <= set(entry)
        entry = journal.recv(4096).splitlines()
        assert {b"MESSAGE=part", b"PRIORITY=6", b"CONTAINER_PARTIAL_MESSAGE=true", b"CONTAINER_PARTIAL_ID=g"} <= set(
            entry
        )
        sink.close()


def test_a_journal_is_needed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="^journald is not enabled on this host$"):
        Journald({"fields": {}, "socket": str(tmp_path / "none")})
