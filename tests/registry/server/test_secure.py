"""The cipher: one owner at a time, and no more in memory than a piece."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from pathlib import Path

import pytest

from registry.server import secure
from registry.server.secure import OpenObject, new_context
from registry.server.tls import OwnCertificates


@pytest.fixture
def ends(tmp_path: Path) -> tuple[OpenObject, ssl.SSLObject, ssl.MemoryBIO]:
    """The server's cipher, the client's, and what the client reads from; hands are shaken."""
    own = OwnCertificates(tmp_path)
    own.ensure_sync(["localhost"])
    context = new_context()
    context.load_cert_chain(own.certificate, own.key)
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(up, down, server_side=True)
    client = trusting.wrap_bio(down, up)
    assert isinstance(server, OpenObject)
    for end in (client, server, client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    return server, client, down


async def test_the_loop_waits_while_a_thread_has_the_cipher(
    ends: tuple[OpenObject, ssl.SSLObject, ssl.MemoryBIO], tmp_path: Path
) -> None:
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
        count, sealed = server.seal_sync(b"head", file.fileno(), 0, 100)
    assert (count, down.pending) == (4, before)
    work.set_result(0)
    await asyncio.sleep(0)
    server.write(b"behind")
    late = down.read()
    down.write(late[:before])
    down.write(sealed)
    down.write(late[before:])
    assert [client.read() for _ in range(3)] == [b"head", b"body", b"behind"]
    assert server.read() == b"question"


def test_a_piece_is_bounded(ends: tuple[OpenObject, ssl.SSLObject, ssl.MemoryBIO], tmp_path: Path) -> None:
    server, client, down = ends
    data = os.urandom(1024 * 1024)
    (tmp_path / "file").write_bytes(data)
    read = b""
    with open(tmp_path / "file", "rb") as file:
        while len(read) < len(data):
            count, sealed = server.seal_sync(b"", file.fileno(), len(read), len(data) - len(read))
            assert 0 < count <= secure._READ_BYTES and len(sealed) < count * 1.01
            down.write(sealed)
            end = len(read) + count
            while len(read) < end:
                read += client.read(end - len(read))
        assert server.seal_sync(b"", file.fileno(), len(data), 10) == (0, b"")
    assert read == data
