"""The cipher: one owner at a time, and no more in memory than a piece."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.server import secure
from registry.server.secure import OpenObject, new_context
from registry.server.tls import OwnCertificates

Ends = tuple[OpenObject, ssl.SSLObject, ssl.MemoryBIO]


def shake_hands(folder: Path, trusting: ssl.SSLContext) -> Ends:
    """The server's cipher, the client's, and what the client reads from; hands are shaken."""
    own = OwnCertificates(folder)
    own.ensure_sync(["localhost"])
    context = new_context()
    context.load_cert_chain(own.certificate, own.key)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(up, down, server_side=True)
    client = trusting.wrap_bio(down, up)
    assert isinstance(server, OpenObject)
    for end in (client, server, client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    return server, client, down


@pytest.fixture
def ends(tmp_path: Path) -> Ends:
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    return shake_hands(tmp_path, trusting)


@contextlib.contextmanager
def pipe() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets with little room between them."""
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
    with near, far:
        yield near, far


async def test_the_loop_waits_while_a_thread_has_the_cipher(ends: Ends, tmp_path: Path) -> None:
    server, client, down = ends
    client.write(b"question")
    work: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    server.lend(work)
    for act in (server.read, server.unwrap, lambda: server.write(b"between")):
        with pytest.raises(ssl.SSLWantReadError):
            act()
    before = down.pending
    (tmp_path / "file").write_bytes(b"body")
    with open(tmp_path / "file", "rb") as file:
        with pipe() as (near, far):
            sealed = bytes(server.seal_sync(b"head"))
            assert server.send_file_sync(near, file.fileno(), 0, 100) == (4, b"")
            sealed += far.recv(1000)
    assert down.pending == before
    work.set_result(0)
    await asyncio.sleep(0)
    server.write(b"behind")
    late = down.read()
    down.write(late[:before])
    down.write(sealed)
    down.write(late[before:])
    assert [client.read() for _ in range(3)] == [b"head", b"body", b"behind"]
    assert server.read() == b"question"


def test_a_file_goes_as_far_as_the_socket_takes_it(ends: Ends, tmp_path: Path) -> None:
    server, client, down = ends
    data = os.urandom(1024 * 1024)
    (tmp_path / "file").write_bytes(data)
    read = b""
    rest = memoryview(b"")
    with open(tmp_path / "file", "rb") as file, pipe() as (near, far):
        done = 0
        while len(read) < len(data):
            while rest:
                with contextlib.suppress(BlockingIOError):
                    rest = rest[near.send(rest, socket.MSG_DONTWAIT) :]
                down.write(far.recv(1024 * 1024))
                with contextlib.suppress(ssl.SSLWantReadError):
                    while True:
                        read += client.read(65536)
            count, rest = server.send_file_sync(near, file.fileno(), done, len(data) - done)
            done += count
            # No more is encrypted than the socket takes and one piece; that piece is what the caller keeps.
            assert len(rest) < secure._READ_BYTES * 1.01
            assert done - len(read) < 4 * secure._READ_BYTES
            with contextlib.suppress(BlockingIOError):
                down.write(far.recv(1024 * 1024, socket.MSG_DONTWAIT))
            with contextlib.suppress(ssl.SSLWantReadError):
                while True:
                    read += client.read(65536)
        assert server.send_file_sync(near, file.fileno(), len(data), 10) == (0, b"")
    assert read == data


@pytest.mark.parametrize("wanted", ["AES128-GCM-SHA256", "AES256-GCM-SHA384"])
def test_the_client_chooses_the_cipher(tmp_path: Path, wanted: str) -> None:
    other = "AES256-GCM-SHA384" if "128" in wanted else "AES128-GCM-SHA256"
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    # Only of TLS 1.2 can a client in Python say the order.
    trusting.maximum_version = ssl.TLSVersion.TLSv1_2
    trusting.set_ciphers(f"ECDHE-ECDSA-{wanted}:ECDHE-ECDSA-{other}")
    _, client, _ = shake_hands(tmp_path, trusting)
    chosen = client.cipher()
    assert chosen is not None and chosen[0] == f"ECDHE-ECDSA-{wanted}"
