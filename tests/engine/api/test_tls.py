"""The client's end of a TLS connection, on ciphers that talk through memory."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path

import pytest

from engine.api.tls import HalfOpenCipher, server_context
from tests.support.certificates import Authority


class Talk:
    """A server's cipher and a client's, after their handshake."""

    def __init__(self, folder: Path) -> None:
        authority = Authority(folder)
        pair = authority.pair("server")
        context = server_context()
        context.load_cert_chain(pair.cert, pair.key)
        self.up, self.down = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = context.wrap_bio(self.up, self.down, server_side=True)
        trust = ssl.create_default_context(cafile=str(authority.ca))
        self.client = trust.wrap_bio(self.down, self.up, server_hostname="localhost")
        for side in (self.client, self.server, self.client, self.server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()

    def end(self, words: bytes) -> None:
        """The client's last words, and its end."""
        self.client.write(words)
        with contextlib.suppress(ssl.SSLWantReadError):
            self.client.unwrap()


async def test_who_listens_for_the_end_can_still_answer(tmp_path: Path) -> None:
    talk, ends = Talk(tmp_path), 0

    def ended() -> None:
        nonlocal ends
        ends += 1

    assert isinstance(talk.server, HalfOpenCipher)
    talk.server.on_end = ended
    talk.end(b"last words")
    assert talk.server.read(100) == b"last words"
    for _ in range(2):
        with pytest.raises(ssl.SSLWantReadError):
            talk.server.read(100)
    assert ends == 0  # what was read is delivered first
    await asyncio.sleep(0)
    assert ends == 1
    assert talk.server.write(b"an answer") == 9
    assert talk.down.pending


async def test_the_end_is_the_end_where_nobody_listens(tmp_path: Path) -> None:
    talk = Talk(tmp_path)
    talk.end(b"last words")
    words = bytearray(4)
    assert talk.server.read(4, words) == 4 and words == b"last"
    assert [talk.server.read(100), talk.server.read(100)] == [b" words", b""]
