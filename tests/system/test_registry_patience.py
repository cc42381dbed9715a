"""A registry process over a long day: told other settings while it runs; hundreds of clients that stall under TLS."""

from __future__ import annotations

import asyncio
import io
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import pytest

from registry.digest import Digest

pytestmark = pytest.mark.system
PROJECT = Path(__file__).resolve().parents[2]
MIB = 1024 * 1024
STALLED = {"readers": 500, "writers": 500, "floods": 120}
PATIENCE_SECONDS = 8.0
# What one client that stalls may cost: its cipher with a piece on its way out, its parser and half a head; no more,
# however large what it asked for, or says that it will send.
BYTES_EACH = 700 * 1024
SHARED_BYTES = 96 * MIB


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """`berth registry serve` with a configuration file and TLS of its own."""

    def __init__(self, folder: Path, more: str = "", patience: float = 0.0) -> None:
        self.folder, self.port = folder, free_port()
        self.file, self.log = folder / "config.yml", folder / "log"
        self.configure(more)
        command = [sys.executable, "-m", "cli"]
        if patience:
            # Nobody wants to wait two minutes for a test.
            program = (
                "import registry.server.sending as s, registry.server.bodies as b, registry.server.direct as d, cli;"
                f"s.SEND_STALL_SECONDS = b.BODY_STALL_SECONDS = d.BODY_STALL_SECONDS = {patience};"
                "import runpy; runpy.run_module('cli', run_name='__main__')"
            )
            command = [sys.executable, "-c", program]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "registry", "serve", str(self.file)], cwd=PROJECT, stderr=log, stdout=log
            )
        self.wait_for("registry listening")

    def configure(self, more: str) -> None:
        root = self.folder / "root"
        self.file.write_text(
            f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {root}}}, delete: {{enabled: true}}}}\n"
            f"http: {{addr: 127.0.0.1:{self.port}}}\nberth: {{tls: {self.folder}/tls, anonymous: true{more}}}\n"
        )

    def wait_for(self, words: str) -> None:
        end = time.monotonic() + 20
        while words not in self.log.read_text():
            assert time.monotonic() < end and self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)

    @property
    def memory_bytes(self) -> int:
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * resource.getpagesize()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)


@pytest.fixture
def servers() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_sighup_takes_over_what_may_change_and_names_the_rest(servers: ExitStack, tmp_path: Path) -> None:
    server = Server(tmp_path)
    servers.callback(server.stop)
    server.configure(", immutable: ['**:v*'], tokens: true")
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("configuration of the registry reloaded: immutable_tags")
    assert "needs a restart to take effect: berth.tokens" in server.log.read_text()
    server.configure(", imutable: ['**:v*']")
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("the configuration was not reloaded: unknown configuration key: berth.imutable")
    server.configure("")
    server.file.write_text(server.file.read_text() + "log: {level: error}\n")
    server.process.send_signal(signal.SIGHUP)
    # The line that would say so is below the new level.
    said = server.log.read_text()
    time.sleep(1)
    assert server.log.read_text() == said and server.process.poll() is None


def trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


class Stalled:
    """Says something under TLS and reads nothing more; little room for what is sent to it."""

    def __init__(self, port: int, context: ssl.SSLContext, words: bytes) -> None:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        sock.connect(("127.0.0.1", port))
        self.sock = context.wrap_socket(sock)
        self.sock.settimeout(30)
        self.sock.sendall(words)

    def is_cut(self) -> bool:
        """Whether the server ends the connection, whatever comes before that."""
        end = time.monotonic() + 30
        try:
            while self.sock.recv(65536):
                if time.monotonic() > end:
                    return False
        except TimeoutError:
            return False
        except OSError:
            return True
        return True


async def push(session: aiohttp.ClientSession, base: str, data: bytes) -> str:
    digest = Digest.of(data)
    async with session.post(f"{base}/v2/a/blobs/uploads/?digest={digest}", data=io.BytesIO(data)) as answer:
        assert answer.status == 201, await answer.text()
    return f"{base}/v2/a/blobs/{digest}"


@pytest.mark.parametrize("kind", STALLED)
async def test_hundreds_who_stall_under_tls(servers: ExitStack, tmp_path: Path, kind: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    servers.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
    server = Server(tmp_path, patience=PATIENCE_SECONDS)
    servers.callback(server.stop)
    base, context = f"https://127.0.0.1:{server.port}", trusting()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        address = await push(session, base, os.urandom(16 * MIB))
        before = server.memory_bytes
        words = f"GET {address.removeprefix(base)} HTTP/1.1\r\nHost: here\r\n\r\n".encode()
        if kind != "readers":
            head = f"POST /v2/a/blobs/uploads/?digest={Digest.of(b'')} HTTP/1.1\r\nHost: here\r\n"
            words = f"{head}Content-Length: {1024 * MIB}\r\n\r\n".encode()
            # Slow ones, and ones that fill whatever they are given before they fall silent.
            words += bytes(48 * 1024 if kind == "writers" else 7 * MIB)

        def stall() -> list[Stalled]:
            return [Stalled(server.port, context, words) for _ in range(STALLED[kind])]

        crowd = await asyncio.to_thread(stall)
        for one in crowd:
            servers.callback(one.sock.close)
        most = server.memory_bytes
        small = os.urandom(MIB)
        for _ in range(10):
            async with asyncio.timeout(10):
                async with session.get(await push(session, base, small)) as answer:
                    assert await answer.read() == small
            most = max(most, server.memory_bytes)
            await asyncio.sleep(0.1)
        each = (most - before) / STALLED[kind]
        print(f"{kind}: {each / 1024:.0f} KiB each, {most / MIB:.0f} MiB in all")
        assert most - before < STALLED[kind] * BYTES_EACH + SHARED_BYTES
        await asyncio.sleep(PATIENCE_SECONDS + 1)
        cut = await asyncio.to_thread(lambda: [one.is_cut() for one in crowd])
        assert all(cut), f"{cut.count(False)} are still there"
        async with session.get(address) as answer:
            assert len(await answer.read()) == 16 * MIB
