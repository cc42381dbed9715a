"""Large bodies around the protocol: the connection lives on, breaks are resumable, and silence is not waited for."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from registry.digest import Digest, Hasher
from registry.server import bodies, direct, uploads
from registry.server.secure import OpenObject
from registry.store.growing import Chunk, GrowingFile
from tests.registry.server.conftest import Client, Start, Wire

MIB = 1024 * 1024


@pytest.fixture(params=["few", "crowd"])
def others(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "crowd":
        monkeypatch.setattr(uploads, "_CROWD", 0)


@pytest_asyncio.fixture(params=["plain", "tls"])
async def client(start: Start, request: pytest.FixtureRequest, tmp_path: Path, others: None) -> Client:
    return await start(own_tls_folder=tmp_path / "tls" if request.param == "tls" else None)


@pytest.mark.parametrize("others", ["few"], indirect=True)
async def test_a_crowd_goes_through_its_own_threads(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    poured = 0
    pour = direct.DirectBody.pour

    async def counted(body: direct.DirectBody, sink: Callable[[memoryview], None]) -> None:
        nonlocal poured
        poured += 1
        await pour(body, sink)

    monkeypatch.setattr(direct.DirectBody, "pour", counted)
    monkeypatch.setattr(uploads, "_CROWD", 2)
    wires = [await Wire.to(client) for _ in range(9)]
    data = [os.urandom(MIB + 4096 * number + number) for number in range(len(wires))]
    paths = [await wire.open_upload() for wire in wires]
    for wire, path, body in zip(wires, paths, data, strict=True):
        wire.send("PATCH", path, body[:-1], length=len(body))
    async with asyncio.timeout(20):
        while poured < len(wires) - 2:
            await asyncio.sleep(0.01)
    for wire, path, body in zip(wires, paths, data, strict=True):
        wire.writer.write(body[-1:])
        assert (await wire.answer())[0] == 202
        wire.send("PUT", f"{path}?digest={Digest.of(body)}")
        assert (await wire.answer())[0] == 201
        await wire.close()


async def test_a_disk_that_fills_under_a_large_body_is_507(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    wire = await Wire.to(client)
    path = await wire.open_upload()
    written = 0

    def write_sync(file: GrowingFile, chunks: Sequence[Chunk], hasher: Hasher | None) -> None:
        nonlocal written
        written += 1
        if written > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, chunks, hasher)

    write = GrowingFile.write_sync
    monkeypatch.setattr(GrowingFile, "write_sync", write_sync)
    wire.send("PATCH", path, os.urandom(3 * MIB))
    assert (await wire.answer())[0] == 507
    assert (await client.call("GET", path, ssl=False)).status == 404
    await wire.close()


@pytest.mark.parametrize("size", [MIB, 3 * MIB + 17, 9 * MIB])
async def test_the_connection_goes_on_after_a_large_body(client: Client, size: int) -> None:
    wire = await Wire.to(client)
    for _ in range(2):
        data = os.urandom(size)
        path = await wire.open_upload()
        wire.send("PATCH", path, data)
        status, headers = await wire.answer()
        assert (status, headers["range"]) == (202, f"0-{size - 1}")
        digest = Digest.of(data)
        wire.send("PUT", f"{path}?digest={digest}")
        assert (await wire.answer())[0] == 201
        assert (await client.call("GET", f"/v2/a/blobs/{digest}", ssl=False)).body == data
    await wire.close()


async def test_the_loop_decrypts_little_of_a_large_body(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each record costs it several times what it costs a thread that does nothing else."""
    taken = 0
    read = OpenObject.read

    def counted(cipher: OpenObject, *arguments: Any) -> Any:
        nonlocal taken
        data = read(cipher, *arguments)
        taken += len(data)
        return data

    monkeypatch.setattr(OpenObject, "read", counted)
    wire = await Wire.to(client)
    data = os.urandom(4 * MIB)
    path = await wire.open_upload()
    wire.send("PATCH", path, data)
    assert (await wire.answer())[0] == 202
    assert taken <= 96 * 1024
    wire.send("PUT", f"{path}?digest={Digest.of(data)}")
    assert (await wire.answer())[0] == 201
    await wire.close()


@pytest.mark.parametrize("size", [MIB // 2, 3 * MIB])
async def test_a_connection_goes_on_after_a_large_body_that_was_refused(client: Client, size: int) -> None:
    wire = await Wire.to(client)
    path = await wire.open_upload()
    unknown = path.partition("?")[0] + "0"
    for _ in range(2):
        wire.send("PATCH", unknown, os.urandom(size))
        assert (await wire.answer())[0] == 404
        wire.send("GET", "/v2/")
        assert (await wire.answer())[0] == 200
    await wire.close()


async def test_what_is_sent_behind_a_large_body_is_the_next_request(client: Client) -> None:
    wire = await Wire.to(client)
    data = os.urandom(2 * MIB)
    path = await wire.open_upload()
    wire.send("PATCH", path, data)
    wire.send("PUT", f"{path}?digest={Digest.of(data)}")
    wire.send("GET", "/v2/")
    assert [(await wire.answer())[0] for _ in range(3)] == [202, 201, 200]
    await wire.close()


async def test_a_client_that_asks_first_is_told_to_go_on(client: Client) -> None:
    wire = await Wire.to(client)
    data = os.urandom(2 * MIB)
    path = await wire.open_upload()
    wire.send("PATCH", path, length=len(data), headers="Expect: 100-continue\r\n")
    assert (await wire.answer())[0] == 100
    wire.writer.write(data)
    assert (await wire.answer())[0] == 202
    wire.send("PUT", f"{path}?digest={Digest.of(data)}")
    assert (await wire.answer())[0] == 201
    await wire.close()


async def test_a_connection_that_is_to_be_closed_is_closed(client: Client) -> None:
    wire = await Wire.to(client)
    data = os.urandom(2 * MIB)
    wire.send("POST", f"/v2/a/blobs/uploads/?digest={Digest.of(data)}", data, headers="Connection: close\r\n")
    assert (await wire.answer())[0] == 201
    async with asyncio.timeout(1):
        assert await wire.reader.read() == b""
    await wire.close()


async def test_a_refused_body_ends_the_connection(client: Client) -> None:
    wire = await Wire.to(client)
    data = os.urandom(2 * MIB)
    wire.send("POST", f"/v2/a/blobs/uploads/?digest={Digest.of(b'else')}", data)
    status, headers = await wire.answer()
    assert status == 400
    # Everything was read, so even after an error the connection is as good as new.
    assert "connection" not in headers
    wire.send("GET", "/v2/")
    assert (await wire.answer())[0] == 200
    await wire.close()


async def test_a_break_in_a_large_body_is_resumed(client: Client) -> None:
    data = os.urandom(3 * MIB)
    first = await Wire.to(client)
    path = await first.open_upload()
    first.send("PATCH", path, data[: 2 * MIB], length=len(data))
    await first.writer.drain()
    await first.close()
    second = await Wire.to(client)
    async with asyncio.timeout(10):
        offset = 0
        while offset < 2 * MIB:
            second.send("GET", path)
            offset = int((await second.answer())[1]["range"].partition("-")[2]) + 1
            await asyncio.sleep(0.01)
    second.send("PUT", f"{path}?digest={Digest.of(data)}", data[offset:])
    assert (await second.answer())[0] == 201
    await second.close()


async def test_a_slow_large_body_is_on_disk_while_it_comes(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "BODY_PAUSE_SECONDS", 0.05)
    data = os.urandom(2 * MIB)
    wire, other = await Wire.to(client), await Wire.to(client)
    path = await wire.open_upload()
    wire.send("PATCH", path, data[:100_000], length=len(data))
    async with asyncio.timeout(10):
        arrived = 0
        while arrived < 100_000 - 4096:  # less than a block waits in memory where the disk is written directly
            other.send("GET", path)
            arrived = int((await other.answer())[1]["range"].partition("-")[2]) + 1
            await asyncio.sleep(0.01)
    wire.writer.write(data[100_000:])
    assert (await wire.answer())[0] == 202
    wire.send("PUT", f"{path}?digest={Digest.of(data)}")
    assert (await wire.answer())[0] == 201
    await wire.close()
    await other.close()


@pytest.mark.parametrize("length", [2 * MIB, 100_000])
async def test_a_client_that_falls_silent_is_dropped(
    client: Client, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    for module in (bodies, direct):
        monkeypatch.setattr(module, "BODY_PAUSE_SECONDS", 0.05)
        monkeypatch.setattr(module, "BODY_STALL_SECONDS", 0.2)
    wire, other = await Wire.to(client), await Wire.to(client)
    path = await wire.open_upload()
    wire.send("PATCH", path, b"x" * 5000, length=length)
    async with asyncio.timeout(10):
        assert await wire.reader.read() == b""
    # What it had sent is kept for when it comes back.
    other.send("GET", path)
    assert (await other.answer())[1]["range"] == "0-4999"
    await wire.close()
    await other.close()
