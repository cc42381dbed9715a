"""Large files around the transport: every byte, on a connection that lives on; and clients that are slow, or gone."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest
import pytest_asyncio

from registry.digest import Digest
from registry.server import sending
from registry.store import paths
from tests.registry.server.conftest import Client, Start, Wire

MIB = 1024 * 1024
# More than the buffers between server and client take.
LARGE = 12 * MIB


@pytest_asyncio.fixture(params=["plain", "tls"])
async def client(start: Start, request: pytest.FixtureRequest, tmp_path: Path) -> Client:
    return await start(own_tls_folder=tmp_path / "tls" if request.param == "tls" else None)


async def pushed(client: Client, size: int) -> tuple[bytes, str]:
    """A blob and its path."""
    data = os.urandom(size)
    return data, f"/v2/a/blobs/{await client.push_blob('a', data, ssl=False)}"


async def stalled(client: Client, path: str) -> Wire:
    """A client that takes the head of its answer and no more."""
    wire = await Wire.to(client, receive_bytes=64 * 1024)
    wire.send("GET", path)
    async with asyncio.timeout(10):
        assert (await wire.head())[0] == 200
    return wire


async def all_gone(client: Client) -> None:
    """Until the server answers no request any more."""
    async with asyncio.timeout(10):
        while any(handler._request_in_progress for handler in client.server._servers[0].connections):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("size", [64 * 1024 + 1, 128 * 1024, 3 * MIB + 17, 9 * MIB])
async def test_answers_follow_each_other_on_one_connection(client: Client, size: int) -> None:
    data, path = await pushed(client, size)
    wire = await Wire.to(client)
    for first, last in ((0, size - 1), (1, size - 2), (size - 70_000, size - 1), (5, 9)):
        first = max(first, 0)
        wire.send("GET", path, headers=f"Range: bytes={first}-{last}\r\n")
        status, headers, body = await wire.whole()
        assert (status, headers["content-range"]) == (206, f"bytes {first}-{last}/{size}")
        assert body == data[first : last + 1]
        wire.send("HEAD", path)
        assert (await wire.head())[1]["content-length"] == str(size)
    wire.send("GET", path)
    assert (await wire.whole())[2] == data
    await wire.close()


async def test_requests_that_wait_behind_a_large_answer_are_answered(client: Client) -> None:
    data, path = await pushed(client, 3 * MIB)
    wire = await Wire.to(client)
    for _ in range(3):
        wire.send("GET", path)
        wire.send("GET", "/v2/")
    for _ in range(3):
        assert (await wire.whole())[2] == data
        assert (await wire.whole())[2] == b"{}"
    await wire.close()


async def test_a_connection_that_is_to_be_closed_is_closed_behind_the_last_byte(client: Client) -> None:
    data, path = await pushed(client, 3 * MIB)
    wire = await Wire.to(client)
    wire.send("GET", path, headers="Connection: close\r\n")
    assert (await wire.whole())[2] == data
    async with asyncio.timeout(2):
        assert await wire.reader.read() == b""
    await wire.close()


async def test_parallel_pulls_get_their_own_bytes(client: Client) -> None:
    blobs = [await pushed(client, MIB + number) for number in range(12)]

    async def pull(data: bytes, path: str) -> None:
        wire = await Wire.to(client)
        for _ in range(3):
            wire.send("GET", path)
            assert (await wire.whole())[2] == data
        await wire.close()

    await asyncio.gather(*(pull(*blob) for blob in blobs))


async def test_clients_that_do_not_read_hold_no_thread(client: Client) -> None:
    data, path = await pushed(client, LARGE)
    waiting = [await stalled(client, path) for _ in range(20)]
    small, small_path = await pushed(client, MIB)
    async with asyncio.timeout(10):
        assert (await client.call("GET", small_path, ssl=False)).body == small
    # One that goes on in the end has missed nothing.
    async with asyncio.timeout(20):
        assert await waiting[0].reader.readexactly(len(data)) == data
    for wire in waiting:
        wire.writer.transport.abort()
    await all_gone(client)


async def test_a_client_that_takes_nothing_is_dropped(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "SEND_STALL_SECONDS", 0.2)
    _, path = await pushed(client, LARGE)
    wire = await stalled(client, path)
    await all_gone(client)
    with pytest.raises((OSError, asyncio.IncompleteReadError)):
        await wire.reader.readexactly(LARGE)
    await wire.close()


async def test_a_client_that_leaves_is_not_waited_for(client: Client) -> None:
    data, path = await pushed(client, LARGE)
    for _ in range(3):
        wire = await stalled(client, path)
        wire.writer.transport.abort()
        await all_gone(client)
    assert (await client.call("GET", path, ssl=False)).body == data


async def test_a_file_that_is_cut_short_breaks_the_connection(client: Client) -> None:
    data, path = await pushed(client, LARGE)
    file = client.server.driver.local_path(paths.blob_data(Digest.of(data)))
    assert file is not None
    wire = await stalled(client, path)
    os.truncate(file, LARGE - MIB)
    with pytest.raises((OSError, asyncio.IncompleteReadError)):
        await wire.reader.readexactly(LARGE)
    await wire.close()


async def test_stopping_lets_a_reader_finish(client: Client) -> None:
    data, path = await pushed(client, LARGE)
    wire = await stalled(client, path)
    stopping = asyncio.ensure_future(client.server.stop())
    await asyncio.sleep(0.05)
    async with asyncio.timeout(10):
        assert await wire.reader.readexactly(len(data)) == data
    await wire.close()
    await stopping


async def test_stopping_does_not_wait_for_one_who_does_not_read(client: Client) -> None:
    _, path = await pushed(client, LARGE)
    wire = await stalled(client, path)
    async with asyncio.timeout(8):
        await client.server.stop()
    with pytest.raises((OSError, asyncio.IncompleteReadError)):
        await wire.reader.readexactly(LARGE)
    await wire.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl's client")
async def test_new_keys_in_the_middle_of_an_answer(start: Start, tmp_path: Path) -> None:
    client = await start(own_tls_folder=tmp_path / "tls")
    data, path = await pushed(client, LARGE)
    request = f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode()
    command = ("openssl", "s_client", "-brief", "-tls1_3", "-connect", f"{client.host}:{client.port}")
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdin is not None and process.stdout is not None
    async with asyncio.timeout(20):
        process.stdin.write(request)
        await process.stdout.readuntil(b"\r\n\r\n")
        process.stdin.write(b"K\n")  # asks for new keys of both sides
        assert await process.stdout.readexactly(len(data)) == data
        await asyncio.sleep(0.1)
        process.stdin.write(request)
        await process.stdout.readuntil(b"\r\n\r\n")
        assert await process.stdout.readexactly(len(data)) == data
        process.stdin.close()
        await process.wait()
