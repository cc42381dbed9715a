"""What hostile or unlucky clients do to a registry: floods of connections, cuts, kills, a full disk, two processes."""

from __future__ import annotations

import asyncio
import io
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from registry.digest import Digest
from tests.support.plain_registry import PlainRegistry

pytestmark = pytest.mark.system


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PlainRegistry]:
    server = PlainRegistry(tmp_path / "root")
    yield server
    server.stop()


async def push(session: aiohttp.ClientSession, base: str, repository: str, data: bytes) -> int:
    digest = Digest.of(data)
    async with session.post(f"{base}/v2/{repository}/blobs/uploads/?digest={digest}", data=data) as answer:
        return answer.status


async def test_idle_connections_do_not_keep_others_out(server: PlainRegistry) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(10_000, hard - 500)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    idle: list[socket.socket] = []
    try:
        for number in range(count):
            sock = socket.create_connection(("127.0.0.1", server.port))
            idle.append(sock)
            if number % 2:
                sock.sendall(b"GET /v2/ HTTP/1.1\r\nHo")
        async with aiohttp.ClientSession() as session:
            async with asyncio.timeout(20):
                assert await push(session, server.base, "a", b"still served") == 201
    finally:
        for sock in idle:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_nonsense_on_the_wire_is_refused_and_survived(server: PlainRegistry) -> None:
    for request in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET /v2/ HTTP/9.9\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET /v2/%2e%2e/%2e%2e/etc/passwd/manifests/x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /v2/a/manifests/x%0d%0aSet-Cookie:y HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /v2/a/blobs/sha256:%2e%2e%2f HTTP/1.1\r\nHost: a\r\nRange: bytes=-\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request)
        try:
            async with asyncio.timeout(5):
                answer = await reader.read(65536)
        except (TimeoutError, ConnectionError):
            answer = b""
        assert not answer or answer[9:10] == b"4", answer[:200]
        assert b"Set-Cookie" not in answer.partition(b"\r\n\r\n")[0]
        writer.close()
    async with aiohttp.ClientSession() as session, session.get(server.base + "/v2/") as healthy:
        assert healthy.status == 200


async def test_a_killed_server_leaves_nothing_half_made(tmp_path: Path) -> None:
    root = tmp_path / "root"
    server = PlainRegistry(root)
    data = os.urandom(2_000_000)
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{server.base}/v2/a/blobs/uploads/") as answer:
            path = answer.headers["Location"].removeprefix(server.base)
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        head = f"PATCH {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        writer.write(head + data[:1_500_000])
        await writer.drain()
        upload = (
            root / "docker/registry/v2/repositories" / path.split("/v2/")[1].replace("/blobs/uploads/", "/_uploads/")
        )
        async with asyncio.timeout(10):
            while not (upload / "data").exists() or (upload / "data").stat().st_size == 0:
                await asyncio.sleep(0.01)
        server.stop(signal.SIGKILL)
        writer.close()
    assert list((root / "docker/registry/v2").glob("blobs/**/data")) == []
    server = PlainRegistry(root)
    try:
        async with aiohttp.ClientSession() as session:
            async with session.get(server.base + path) as answer:
                offset = int(answer.headers["Range"].partition("-")[2]) + 1
            assert 0 < offset <= 1_500_000
            url = f"{server.base}{path}?digest={Digest.of(data)}"
            async with session.put(url, data=io.BytesIO(data[offset:])) as answer:
                assert answer.status == 201
            async with session.get(answer.headers["Location"]) as answer:
                assert await answer.read() == data
    finally:
        server.stop()


async def test_a_full_disk_is_told_and_its_space_comes_back(tmp_path: Path) -> None:
    root = tmp_path / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(root)], check=True)
    try:
        server = PlainRegistry(root)
        try:
            async with aiohttp.ClientSession() as session:
                assert await push(session, server.base, "a", os.urandom(900_000)) == 201
                # In chunks, and around the protocol.
                for body in (_endless(8_000_000), io.BytesIO(os.urandom(8_000_000))):
                    async with session.post(f"{server.base}/v2/a/blobs/uploads/") as answer:
                        url = answer.headers["Location"]
                    try:
                        async with session.patch(url, data=body) as answer:
                            assert answer.status in (500, 507)
                    except aiohttp.ClientError:
                        pass  # the answer came while the body was still being sent
                    async with session.get(url) as answer:
                        assert answer.status == 404, "an upload that found no room is gone"
                    async with asyncio.timeout(10):
                        while shutil.disk_usage(root).free < 2_500_000:
                            await asyncio.sleep(0.05)
                    assert len(list(root.glob("docker/registry/v2/blobs/**/data"))) == 1
                assert await push(session, server.base, "a", os.urandom(900_000)) == 201
        finally:
            server.stop()
    finally:
        subprocess.run(["umount", str(root)], check=True)


async def _endless(size: int):  # type: ignore[no-untyped-def]
    for _ in range(size // 100_000):
        yield os.urandom(100_000)


async def test_two_processes_on_one_folder(tmp_path: Path) -> None:
    one, two = PlainRegistry(tmp_path / "root"), PlainRegistry(tmp_path / "root")
    try:
        async with aiohttp.ClientSession() as session:
            blob = os.urandom(500_000)
            pushes = [push(session, base, f"r{n}", blob) for n in range(4) for base in (one.base, two.base)]
            assert set(await asyncio.gather(*pushes)) == {201}
            config = b"{}"
            assert await push(session, one.base, "r0", config) == 201
            entry = {"mediaType": "x/y", "digest": str(Digest.of(config)), "size": 2}
            for number, base in enumerate((one.base, two.base, one.base)):
                document = json.dumps(
                    {"schemaVersion": 2, "config": entry, "layers": [], "annotations": {"n": str(number)}}
                )
                headers = {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}
                async with session.put(f"{base}/v2/r0/manifests/t", data=document, headers=headers) as answer:
                    assert answer.status == 201
                for other in (one.base, two.base):
                    async with session.get(f"{other}/v2/r0/manifests/t") as answer:
                        assert (await answer.json(content_type=None))["annotations"]["n"] == str(number)
    finally:
        one.stop()
        two.stop()


@pytest.mark.parametrize("size", [400_000, 4_000_000])
async def test_uploads_in_progress_finish_while_the_server_drains(server: PlainRegistry, size: int) -> None:
    data = os.urandom(size)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    digest = Digest.of(data)
    head = f"POST /v2/a/blobs/uploads/?digest={digest} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data[: size // 2])
    await writer.drain()
    await asyncio.sleep(0.3)
    server.process.terminate()
    await asyncio.sleep(0.3)
    writer.write(data[size // 2 :])
    async with asyncio.timeout(10):
        assert (await reader.readline()).startswith(b"HTTP/1.1 201 ")
    writer.close()
    assert server.process.wait(15) == 0
