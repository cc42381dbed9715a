"""The client against a daemon made of a thread and a canned answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.client import ApiError, Client, Unreachable

Serve = Callable[[bytes], tuple[Client, list[bytes]]]


@pytest.fixture
def serve(short_root: Path) -> Iterator[Serve]:
    """Start a one-request server that sends `answer`; gives a client and the list of what it received."""
    listener = socket.socket(socket.AF_UNIX)
    path = short_root / "s"
    listener.bind(str(path))
    listener.listen()
    threads: list[threading.Thread] = []

    def start(answer: bytes) -> tuple[Client, list[bytes]]:
        received: list[bytes] = []
        thread = threading.Thread(target=_answer_once, args=(listener, answer, received))
        thread.start()
        threads.append(thread)
        return Client(f"unix://{path}"), received

    yield start
    for thread in threads:
        thread.join(5)
    listener.close()


def _answer_once(listener: socket.socket, answer: bytes, received: list[bytes]) -> None:
    connection, _ = listener.accept()
    with connection:
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(65536)
        received.append(data)
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass


def _response(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def test_a_document(serve: Serve) -> None:
    client, received = serve(_response("200 OK", b'{"a": [1]}'))
    assert client.json("GET", "/x", {"all": True, "none": None, "n": 3}) == {"a": [1]}
    assert received[0].startswith(b"GET /v1.41/x?all=1&n=3 HTTP/1.1\r\n")


def test_no_content_is_nothing(serve: Serve) -> None:
    client, _ = serve(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert client.json("POST", "/x") is None


def test_the_daemons_sentence_is_the_error(serve: Serve) -> None:
    client, _ = serve(_response("409 Conflict", b'{"message": "name in use"}'))
    with pytest.raises(ApiError, match="^name in use$") as caught:
        client.json("POST", "/x", body={})
    assert caught.value.status == 409


def test_an_error_that_is_not_json_is_shown_as_it_is(serve: Serve) -> None:
    client, _ = serve(_response("502 Bad Gateway", b"proxy says no\n"))
    with pytest.raises(ApiError, match="^proxy says no$"):
        client.json("GET", "/x")


def test_lines_come_one_by_one(serve: Serve) -> None:
    client, _ = serve(_response("200 OK", b'{"a":1}\r\n\r\n{"a":2}\r\n'))
    assert list(client.lines("POST", "/x")) == [{"a": 1}, {"a": 2}]


def test_no_daemon(short_root: Path) -> None:
    with pytest.raises(Unreachable, match="Is it running"):
        Client(f"unix://{short_root}/none").json("GET", "/x")


def test_a_scheme_that_is_not_spoken() -> None:
    with pytest.raises(Unreachable, match="only unix"):
        Client("ssh://host")


def test_take_over_keeps_what_came_with_the_head(serve: Serve) -> None:
    head = b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\n\r\n"
    client, received = serve(head + b"early")
    connection = client.take_over("/x", body={"Tty": False})
    rest = connection.sock.recv(100) if not connection.leftover else b""
    assert connection.leftover + rest == b"early"
    assert connection.multiplexed
    connection.close()
    assert b"Upgrade: tcp" in received[0]


def test_take_over_refused(serve: Serve) -> None:
    client, _ = serve(_response("404 Not Found", b'{"message": "No such container: x"}'))
    with pytest.raises(ApiError, match="No such container: x"):
        client.take_over("/x")


def test_a_daemon_that_goes_without_an_answer_is_unreachable(serve: Serve) -> None:
    client, _ = serve(b"")
    with pytest.raises(Unreachable, match="Cannot connect to the berth daemon"):
        client.json("GET", "/x")
