"""Bytes between a client and a container's stream, and the keys that end an attachment."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from engine.api.app import Route
from engine.api.relay import DetachScanner, parse_detach_keys, relay, stdout_frame
from engine.api.streams import RAW_STREAM, Takeover
from engine.errors import InvalidParameter
from tests.engine.api.conftest import Serve
from tests.support.served import Served


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("", b"\x10\x11"),
        ("ctrl-p,ctrl-q", b"\x10\x11"),
        ("DEL,x", b"\x7fx"),
        ("a,b", b"ab"),
        ("ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_", b"\x00\x1b\x1c\x1d\x1e\x1f"),
        ("A", b"A"),
    ],
)
def test_keys(text: str, keys: bytes) -> None:
    assert parse_detach_keys(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-aa", "ctrl-1", "a,,b", "del", "é", "ctrl-A,a"])
def test_what_are_no_keys_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse_detach_keys(text)
    assert caught.value.message == f"Invalid detach keys ({text}) provided"


def passed(keys: bytes, pieces: list[bytes]) -> tuple[bytes, bool]:
    scanner, out = DetachScanner(keys), b""
    for piece in pieces:
        out += scanner.feed(piece)
        if scanner.detached:
            break
    return out, scanner.detached


def test_bytes_pass_and_the_sequence_detaches() -> None:
    assert passed(b"\x10\x11", [b"hello"]) == (b"hello", False)
    assert passed(b"\x10\x11", [b"hi\x10\x11bye"]) == (b"hi", True)
    assert passed(b"\x10\x11", [b"hi\x10", b"\x11"]) == (b"hi", True)


def test_a_beginning_waits_for_the_next_key() -> None:
    assert passed(b"\x10\x11", [b"a\x10"]) == (b"a", False)
    assert passed(b"\x10\x11", [b"a\x10", b"b"]) == (b"a\x10b", False)
    assert passed(b"\x10\x11", [b"\x10", b"\x10", b"\x11"]) == (b"\x10", True)
    assert passed(b"aab", [b"a", b"a", b"a", b"b"]) == (b"a", True)


@given(
    st.sampled_from([b"a", b"ab", b"aa", b"aab", b"aba", b"abab"]),
    st.lists(st.binary(max_size=5).map(lambda b: bytes(97 + x % 3 for x in b)), max_size=10),
)
def test_any_split_of_the_input_gives_the_same_bytes(keys: bytes, pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    out, detached = passed(keys, pieces)
    at = whole.find(keys)
    if at >= 0:
        assert (out, detached) == (whole[:at], True)
        return
    assert not detached
    assert whole.startswith(out)
    held = whole[len(out) :]
    assert keys.startswith(held)
    assert (out, detached) == passed(keys, [whole])


class Relayed:
    """One relay between an HTTP client and a socket that plays the container."""

    def __init__(self) -> None:
        ours, self.container = socket.socketpair()
        self.stream = ours
        for end in (ours, self.container):
            end.setblocking(False)
        self.scanner: DetachScanner | None = None
        self.frame_output = False
        self.detached: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def table(self) -> list[Route]:
        return [Route("POST", "/attach", self.attach, streams=True)]

    async def attach(self, request: web.Request) -> web.StreamResponse:
        client = Takeover(request)
        client.begin(request, RAW_STREAM, {})
        try:
            self.detached.set_result(await relay(client, self.stream, self.scanner, frame_output=self.frame_output))
        finally:
            client.close_write()
        return client.finished()

    async def gets(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (more := await self.receive()):
            data += more
        return data

    async def receive(self) -> bytes:
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.container, 65536), 5)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.container, data)


@pytest_asyncio.fixture
async def relayed() -> AsyncIterator[Relayed]:
    made = Relayed()
    yield made
    made.container.close()
    made.stream.close()


@pytest_asyncio.fixture
async def api(relayed: Relayed, serve: Serve) -> Served:
    return await serve(relayed.table())


async def attached(api: Served) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await api.raw()
    writer.write(b"POST /attach HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    return reader, writer


async def test_both_directions_flow_and_the_containers_end_ends_it(api: Served, relayed: Relayed) -> None:
    reader, writer = await attached(api)
    writer.write(b"typed")
    assert await relayed.gets(5) == b"typed"
    await relayed.send(b"shown")
    assert await asyncio.wait_for(reader.readexactly(5), 5) == b"shown"
    await relayed.send(b"last words")
    relayed.container.close()
    assert await asyncio.wait_for(reader.read(), 5) == b"last words"
    assert await relayed.detached is False


async def test_the_clients_end_of_input_leaves_the_output(api: Served, relayed: Relayed) -> None:
    reader, writer = await attached(api)
    writer.write(b"all")
    writer.write_eof()
    assert await relayed.gets(4) == b"all"
    assert await relayed.receive() == b""
    await relayed.send(b"answer")
    relayed.container.close()
    assert await asyncio.wait_for(reader.read(), 5) == b"answer"


async def test_the_detach_keys_end_the_attachment_alone(api: Served, relayed: Relayed) -> None:
    relayed.scanner = DetachScanner(b"\x10\x11")
    reader, writer = await attached(api)
    writer.write(b"ls\x10\x11")
    assert await relayed.gets(2) == b"ls"
    assert await asyncio.wait_for(reader.read(), 5) == b""
    assert await asyncio.wait_for(relayed.detached, 5) is True


async def test_without_a_scanner_the_keys_are_data(api: Served, relayed: Relayed) -> None:
    _, writer = await attached(api)
    writer.write(b"x\x10\x11y")
    assert await relayed.gets(4) == b"x\x10\x11y"


async def test_a_container_that_takes_no_more_input_can_still_speak(api: Served, relayed: Relayed) -> None:
    reader, writer = await attached(api)
    relayed.container.shutdown(socket.SHUT_RD)
    for _ in range(5):
        writer.write(b"ignored")
        await asyncio.sleep(0.001)
    await relayed.send(b"still here")
    assert await asyncio.wait_for(reader.readexactly(10), 5) == b"still here"


async def test_a_terminals_output_can_be_framed(api: Served, relayed: Relayed) -> None:
    relayed.frame_output = True
    reader, _ = await attached(api)
    await relayed.send(b"x")
    assert await asyncio.wait_for(reader.readexactly(9), 5) == b"\x01\x00\x00\x00\x00\x00\x00\x01x"
    assert stdout_frame(b"ab") == b"\x01\x00\x00\x00\x00\x00\x00\x02ab"


async def test_a_client_that_does_not_read_holds_back_only_itself(api: Served, relayed: Relayed) -> None:
    reader, _ = await attached(api)
    sent, chunk = 0, b"x" * 65536
    while sent < 64 << 20:
        try:
            await asyncio.wait_for(relayed.send(chunk), 0.05)
        except TimeoutError:
            break
        sent += len(chunk)
    assert sent < 64 << 20, "output went into memory without bound"
    got = await asyncio.wait_for(reader.readexactly(sent), 10)
    assert len(got) == sent
