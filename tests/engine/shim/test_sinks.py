"""Connections of remote log drivers: Go's words for failures, a new connection after a broken one."""

import socket
import threading
from pathlib import Path

import pytest

from engine.shim.journald import Journald
from engine.shim.sinks import Connection, open_sink


def test_failures_read_like_gos(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"^dial unix /no/where: connect: no such file or directory$"):
        Connection("unix", "/no/where").connect()
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path)
        with pytest.raises(OSError, match=f"^dial unix {path}: connect: connection refused$"):
            Connection("unix", path).connect()


def test_a_broken_connection_is_made_again(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(2)
        connection = Connection("unix", path)
        connection.send(b"one")
        first, _ = server.accept()
        assert first.recv(10) == b"one"
        first.close()
        with pytest.raises(OSError):
            connection.send(b"lost")
        connection.send(b"two")
        second, _ = server.accept()
        assert second.recv(10) == b"two"
        second.close()
        with pytest.raises(ConnectionResetError):
            connection.receive(10)
        connection.close()


def test_the_end_waits_until_the_server_has_everything() -> None:
    """A server that says something nobody reads, as TLS does with its tickets, and that is slow to take the rest."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        connection = Connection("tcp", f"127.0.0.1:{server.getsockname()[1]}")
        connection.connect()
        peer, _ = server.accept()
        with peer:
            peer.sendall(b"words")
            connection.send(b"x" * 200_000)
            ending = threading.Thread(target=connection.finish)
            ending.start()
            ending.join(0.02)
            taken = 0
            while data := peer.recv(65536):
                taken += len(data)
        ending.join()
    assert taken == 200_000


def test_datagrams_keep_their_bounds() -> None:
    assert Connection("udp", "127.0.0.1:9").keeps_bounds
    assert Connection("unixgram", "/x").keeps_bounds
    assert not Connection("tcp", "127.0.0.1:9").keeps_bounds


def test_drivers_by_name(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        sink = open_sink("journald", {"fields": {}, "socket": path})
        assert isinstance(sink, Journald)
        sink.close()
