"""The forward protocol, read back with a msgpack decoder."""

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.shim.fluentd import Fluentd, moment, table, text
from engine.shim.wire import STDERR, STDOUT

AT = 1_700_000_000_123_456_789


def settings(path: Path, **changed: Any) -> dict[str, Any]:
    given = {
        "network": "unix",
        "address": str(path / "s"),
        "tag": "t",
        "record": {"container_id": "c", "container_name": "/n", "color": "red"},
        "async": False,
        "sub_second": False,
        "ack": False,
        "retry_wait": 0.0,
        "max_retries": 3,
    }
    return given | changed


@pytest.fixture
def serve(tmp_path: Path) -> Callable[[], socket.socket]:
    def listen() -> socket.socket:
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(tmp_path / "s"))
        server.listen(2)
        return server

    return listen


@pytest.mark.parametrize("size", [0, 31, 32, 255, 256, 65535, 65536])
def test_strings_of_every_size(size: int) -> None:
    assert msgspec.msgpack.decode(text(b"x" * size)) == "x" * size


@pytest.mark.parametrize("size", [0, 1, 15, 16, 300])
def test_tables_of_every_size(size: int) -> None:
    entries = {b"key%d" % number: b"value" for number in range(size)}
    assert msgspec.msgpack.decode(table(entries)) == {key.decode(): "value" for key in entries}


def test_times_by_the_second_and_finer() -> None:
    assert msgspec.msgpack.decode(moment(AT, sub_second=False)) == 1_700_000_000
    event = msgspec.msgpack.decode(moment(AT, sub_second=True))
    assert (event.code, event.data) == (0, bytes.fromhex("6553f100") + (123_456_789).to_bytes(4, "big"))


def test_a_message_has_dockers_fields(tmp_path: Path, serve: Callable[[], socket.socket]) -> None:
    with serve() as server:
        sink = Fluentd(settings(tmp_path))
        sink.send([(AT, STDERR, b"line", None), (AT, STDOUT, b"part", ("g", 1, False))])
        peer, _ = server.accept()
        with peer:
            data = peer.recv(65536)
        sink.close()
    half = data.index(b"\x94", 1)
    assert msgspec.msgpack.decode(data[:half]) == [
        "t",
        1_700_000_000,
        {"container_id": "c", "container_name": "/n", "source": "stderr", "log": "line", "color": "red"},
        {},
    ]
    partial = msgspec.msgpack.decode(data[half:])[2]
    assert partial.items() >= {
        ("partial_message", "true"),
        ("partial_id", "g"),
        ("partial_ordinal", "1"),
        ("partial_last", "false"),
    }


def test_an_acknowledgement_is_waited_for(tmp_path: Path, serve: Callable[[], socket.socket]) -> None:
    with serve() as server:
        sink = Fluentd(settings(tmp_path, ack=True))
        thread = threading.Thread(target=sink.send, args=([(AT, STDOUT, b"line", None)],))
        thread.start()
        peer, _ = server.accept()
        with peer:
            chunk = msgspec.msgpack.decode(peer.recv(65536))[3]["chunk"]
            assert thread.is_alive()
            peer.sendall(msgspec.msgpack.encode({"ack": chunk}))
            thread.join(10)
        assert not thread.is_alive()
        sink.close()


def test_who_is_away_at_the_start_matters_without_async(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="connect: no such file or directory"):
        Fluentd(settings(tmp_path))
    Fluentd(settings(tmp_path, **{"async": True})).close()


def test_tries_are_counted_and_grow_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    sink = Fluentd(settings(tmp_path, **{"async": True, "retry_wait": 2.0}))
    with pytest.raises(OSError):
        sink.send([(AT, STDOUT, b"line", None)])
    assert waits == [2.0, 3.0, 4.5]
    sink.close()
