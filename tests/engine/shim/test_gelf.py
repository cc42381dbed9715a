"""GELF documents, their compression and their chunks."""

import gzip
import json
import os
import socket
import zlib
from typing import Any

import pytest

from engine.shim.gelf import CHUNK, Gelf, chunks, compressed
from engine.shim.sinks import Connection
from engine.shim.wire import STDERR, STDOUT

SETTINGS: dict[str, Any] = {
    "network": "udp",
    "address": "127.0.0.1:9",
    "hostname": "h",
    "extra": {"_tag": "t"},
    "compression": "none",
    "level": 1,
    "reconnects": 1,
    "delay": 0,
}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What would have gone over the network."""
    found: list[bytes] = []

    def connect(_self: Connection) -> socket.socket | None:
        return None

    def send(_self: Connection, data: bytes) -> None:
        found.append(data)

    monkeypatch.setattr(Connection, "connect", connect)
    monkeypatch.setattr(Connection, "send", send)
    return found


def test_a_message_is_one_document(sent: list[bytes]) -> None:
    sink = Gelf(SETTINGS)
    at = 1_700_000_000_123_456_789
    sink.send([(at, STDOUT, b"hi \xff", None), (at, STDOUT, b"", None), (at, STDERR, b"bad", None)])
    first, second = map(json.loads, sent)
    assert first == {
        "version": "1.1",
        "host": "h",
        "short_message": "hi \ufffd",
        "timestamp": 1_700_000_000.123,
        "level": 6,
        "_tag": "t",
    }
    assert (second["short_message"], second["level"]) == ("bad", 3)


def test_tcp_ends_each_document_with_a_zero_byte(sent: list[bytes]) -> None:
    sink = Gelf(SETTINGS | {"network": "tcp"})
    sink.send([(0, STDOUT, b"a", None), (0, STDOUT, b"b", None)])
    [stream] = sent
    assert [json.loads(part)["short_message"] for part in stream.split(b"\0")[:-1]] == ["a", "b"]


def test_tcp_is_tried_again_and_then_given_up(monkeypatch: pytest.MonkeyPatch, sent: list[bytes]) -> None:
    tries: list[bytes] = []

    def refuse(_self: Connection, data: bytes) -> None:
        tries.append(data)
        raise OSError("away")

    sink = Gelf(SETTINGS | {"network": "tcp"})
    monkeypatch.setattr(Connection, "send", refuse)
    with pytest.raises(OSError, match="away"):
        sink.send([(0, STDOUT, b"a", None)])
    assert len(tries) == 2
    assert not sent


def test_compression() -> None:
    assert gzip.decompress(compressed(b"text", "gzip", 1)) == b"text"
    assert zlib.decompress(compressed(b"text", "zlib", 9)) == b"text"
    assert compressed(b"text", "none", 1) == b"text"


def test_long_documents_go_in_chunks() -> None:
    assert chunks(b"x" * (CHUNK + 12)) == [b"x" * (CHUNK + 12)]
    data = os.urandom(3 * CHUNK)
    parts = chunks(data)
    assert [part[:2] for part in parts] == [b"\x1e\x0f"] * 3
    assert len({part[2:10] for part in parts}) == 1
    assert [(part[10], part[11]) for part in parts] == [(0, 3), (1, 3), (2, 3)]
    assert b"".join(part[12:] for part in parts) == data
    with pytest.raises(OSError, match="would need 129 chunks"):
        chunks(b"x" * (128 * CHUNK + 1))
