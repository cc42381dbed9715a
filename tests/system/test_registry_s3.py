"""Replicas on one bucket: a real S3 server process, several registries, one of them killed in mid-upload."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from registry.config import S3
from registry.digest import Digest
from tests.suites.storage import StorageSuite
from tests.support import ceph

obstore = pytest.importorskip("obstore")
MOTO = shutil.which("moto_server") or os.environ.get("BERTH_MOTO_SERVER")
pytestmark = pytest.mark.system

PROJECT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(400):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, "ended early"
        time.sleep(0.05)
    raise AssertionError("did not start")


@pytest.fixture(scope="module", params=["moto", "radosgw"])
def endpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "radosgw":
        if not ceph.is_installed():
            pytest.skip(f"needs {', '.join(ceph.PROGRAMS)}")
        try:
            gateway = ceph.ObjectGateway(tmp_path_factory.mktemp("ceph"))
        except ceph.NotStarted as error:
            pytest.skip(str(error))
        yield gateway.endpoint
        gateway.stop()
        return
    if not MOTO:
        pytest.skip("needs moto_server (pip install 'moto[server]')")
    port = free_port()
    process = subprocess.Popen(
        [MOTO, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def bucket(endpoint: str) -> str:
    name = f"b{time.time_ns()}"
    ceph.make_bucket(endpoint, name, ceph.KEY, ceph.SECRET)
    return name


class TestS3(StorageSuite):
    @pytest_asyncio.fixture
    async def driver(self, endpoint: str, bucket: str) -> AsyncIterator[object]:
        from registry.store.s3 import S3Driver

        settings = S3(bucket, endpoint=endpoint, access_key=ceph.KEY, secret_key=ceph.SECRET, root="some/prefix")
        driver = S3Driver.connect(settings)
        yield driver
        await driver.close()


class Replica:
    """One registry process on the bucket."""

    def __init__(self, tmp_path: Path, endpoint: str, bucket: str, redirect: bool) -> None:
        self.port = free_port()
        path = tmp_path / f"{self.port}.yml"
        path.write_text(
            "version: 0.1\nlog: {accesslog: {disabled: true}}\n"
            f"storage:\n  s3: {{bucket: {bucket}, regionendpoint: '{endpoint}',\n"
            f"    accesskey: {ceph.KEY}, secretkey: {ceph.SECRET}}}\n"
            f"  redirect: {{disable: {str(not redirect).lower()}}}\n  delete: {{enabled: true}}\n"
            f"http: {{addr: '127.0.0.1:{self.port}'}}\n"
        )
        command = [sys.executable, "-m", "cli", "registry", "serve", str(path)]
        self.process = subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.DEVNULL)
        wait_for(self.port, self.process)
        self.base = f"http://127.0.0.1:{self.port}"

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(15)


async def test_another_replica_goes_on_where_a_killed_one_stopped(tmp_path: Path, endpoint: str, bucket: str) -> None:
    one, two = (Replica(tmp_path, endpoint, bucket, redirect) for redirect in (False, True))
    try:
        data = os.urandom(2_400_000)
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{one.base}/v2/a/blobs/uploads/") as answer:
                path = answer.headers["Location"].removeprefix(one.base)
            async with session.patch(one.base + path, data=data[:900_000]) as answer:
                assert answer.status == 202
            sending = asyncio.get_running_loop().create_task(_half_an_upload(one.port, path, data[900_000:]))
            await asyncio.sleep(0.3)
            one.stop(signal.SIGKILL)
            await asyncio.gather(sending, return_exceptions=True)
            async with session.get(two.base + path) as answer:
                offset = int(answer.headers["Range"].partition("-")[2]) + 1
            assert 900_000 <= offset < len(data)
            digest = Digest.of(data)
            rest = data[offset : offset + 900_000], data[offset + 900_000 :]
            async with session.patch(two.base + path, data=rest[0]) as answer:
                assert answer.status == 202
            async with session.put(f"{two.base}{path}?digest={digest}", data=rest[1]) as answer:
                assert answer.status == 201
            async with session.get(f"{two.base}/v2/a/blobs/{digest}", allow_redirects=False) as answer:
                assert answer.status == 307 and bucket in answer.headers["Location"]
            async with session.get(f"{two.base}/v2/a/blobs/{digest}") as answer:
                assert await answer.read() == data
    finally:
        two.stop()
        if one.process.poll() is None:
            one.stop()


async def _half_an_upload(port: int, path: str, data: bytes) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"PATCH {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data[:500_000])
    await writer.drain()
    await asyncio.sleep(1)
    writer.close()
