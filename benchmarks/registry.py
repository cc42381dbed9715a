"""Two registries side by side: the same work, in alternating rounds, medians and ratios as a Markdown table.

    python benchmarks/registry.py BASELINE_URL BERTH_URL [--rounds 5] [--only push,get] [--pids BASELINE_PID,BERTH_PID]

It starts nothing and installs nothing: both registries must run, empty or not, and allow anonymous pushes. TLS is
measured with https URLs (certificates are not verified). Ciphers are offered in the order of Go's clients, which is
what docker, containerd and podman are; `--openssl-order` offers them as curl and Python do.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import functools
import hashlib
import json
import os
import random
import socket
import ssl
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
MIB = 1024 * 1024


def digest_of(data: bytes) -> str:
    """The sha256 digest of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


CIPHERS = b"""openssl_conf = start
[start]
ssl_conf = kinds
[kinds]
system_default = clients
[clients]
Ciphersuites = TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256
"""


def offer_as_go_does() -> None:
    """Begin again with a configuration of OpenSSL's: Python itself cannot say the order of TLS 1.3's ciphers."""
    if os.environ.get("OPENSSL_CONF", "").startswith("/proc/self/fd/"):
        return
    file = os.memfd_create("ciphers", 0)
    os.write(file, CIPHERS)
    configuration = {"OPENSSL_CONF": f"/proc/self/fd/{file}"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **configuration})


@functools.cache
def _trusting() -> ssl.SSLContext:
    """One for all connections, without any CA: reading the system's for each costs more than the handshake measured."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@dataclass(frozen=True)
class Target:
    """One registry under test."""

    name: str
    host: str
    port: int
    tls: bool

    @classmethod
    def parse(cls, name: str, url: str) -> Target:
        """From a URL."""
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        return cls(name, parts.hostname or "127.0.0.1", parts.port or (443 if tls else 80), tls)

    def context(self) -> ssl.SSLContext | None:
        """A TLS context that verifies nothing: this measures, it does not trust."""
        return _trusting() if self.tls else None

    def connect(self) -> socket.socket:
        """A blocking connection."""
        sock = socket.create_connection((self.host, self.port), timeout=120)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = self.context()
        return context.wrap_socket(sock) if context is not None else sock

    def head(self, method: str, path: str, headers: str = "") -> bytes:
        """The head of a request."""
        return f"{method} {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n{headers}\r\n".encode()


class Blocking:
    """One blocking keep-alive connection, for large bodies: the interpreter is out of the way while bytes move."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.sock = target.connect()
        self.buffer = bytearray(MIB)

    def request(self, method: str, path: str, body: bytes = b"", headers: str = "") -> tuple[int, dict[str, str]]:
        """Send, read the answer, drop its body."""
        self.sock.sendall(self.target.head(method, path, f"{headers}Content-Length: {len(body)}\r\n"))
        if body:
            self.sock.sendall(body)
        return self.answer(method)

    def answer(self, method: str) -> tuple[int, dict[str, str]]:
        """Status and headers of the next answer."""
        data = b""
        while b"\r\n\r\n" not in data:
            more = self.sock.recv(65536)
            if not more:
                raise ConnectionError("closed")
            data += more
        head, _, rest = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
        left = 0 if method == "HEAD" else int(headers.get("content-length", "0")) - len(rest)
        while left > 0:
            left -= self.sock.recv_into(self.buffer, min(left, len(self.buffer)))
        return int(lines[0].split()[1]), headers

    def push(self, repository: str, data: bytes, digest: str) -> None:
        """POST, PATCH, PUT, as docker does."""
        status, headers = self.request("POST", f"/v2/{repository}/blobs/uploads/")
        assert status == 202, status
        path = path_of(headers["location"])
        status, headers = self.request("PATCH", path, data, "Content-Type: application/octet-stream\r\n")
        assert status == 202, status
        path = path_of(headers["location"])
        status, _ = self.request("PUT", path + ("&" if "?" in path else "?") + "digest=" + digest)
        assert status == 201, status

    def close(self) -> None:
        """Hang up."""
        self.sock.close()


def path_of(location: str) -> str:
    """Path and query of a Location."""
    parts = urlsplit(location)
    return parts.path + (f"?{parts.query}" if parts.query else "")


class Exchange(asyncio.Protocol):
    """Small requests on one connection, one after the other, until a count is used up."""

    def __init__(self, jobs: list[bytes], done: asyncio.Future[None], heads_only: bool, expect: bytes) -> None:
        self.jobs = jobs
        self.done = done
        self.heads_only = heads_only
        self.expect = expect
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.step()

    def step(self) -> None:
        if not self.jobs:
            self.transport.close()
            if not self.done.done():
                self.done.set_result(None)
            return
        self.transport.write(self.jobs.pop())  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.data += data
        end = self.data.find(b"\r\n\r\n")
        if end < 0:
            return
        length = 0
        if not self.heads_only:
            low = self.data[:end].lower()
            at = low.find(b"content-length:")
            if at >= 0:
                length = int(low[at + 15 :].split(b"\r\n", 1)[0])
            elif b"transfer-encoding: chunked" in low:
                if not self.data.endswith(b"0\r\n\r\n"):
                    return
                length = len(self.data) - end - 4
        if len(self.data) < end + 4 + length:
            return
        if self.data[9:12] != self.expect:
            self.done.set_exception(AssertionError(self.data[:300]))
            self.transport.close()
            return
        self.data = b""
        self.step()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError("closed early"))


def storm(target: Target, jobs: list[bytes], connections: int, expect: bytes, heads_only: bool = False) -> float:
    """Requests a second."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        piles: list[list[bytes]] = [jobs[i::connections] for i in range(connections)]
        waits = []
        began = time.perf_counter()
        for pile in piles:
            done: asyncio.Future[None] = loop.create_future()
            waits.append(done)
            await loop.create_connection(
                lambda pile=pile, done=done: Exchange(pile, done, heads_only, expect),  # type: ignore[misc]
                target.host,
                target.port,
                ssl=target.context(),
            )
        await asyncio.gather(*waits)
        return len(jobs) / (time.perf_counter() - began)

    try:
        import uvloop

        return uvloop.run(main())
    except ImportError:
        return asyncio.run(main())


class Bench:
    """The works. Each returns a rate: more is better."""

    def __init__(self, targets: list[Target], scale: float) -> None:
        self.targets = targets
        self.scale = scale
        self.big = os.urandom(MIB) * int(256 * scale)
        self.images: dict[str, tuple[bytes, str, str]] = {}

    def unique(self, data: bytes) -> tuple[bytes, str]:
        """Content no registry has seen, with its digest computed before the clock starts."""
        fresh = os.urandom(32) + data[32:]
        return fresh, digest_of(fresh)

    def image(self, target: Target) -> tuple[bytes, str, str]:
        """A small image at bench/image:latest of a target: manifest, its digest, its layer's digest."""
        if target.name in self.images:
            return self.images[target.name]
        connection = Blocking(target)
        config, layer = b"{}", os.urandom(1000)
        for data in (config, layer):
            connection.push("bench/image", data, digest_of(data))
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": {"mediaType": CONFIG_TYPE, "digest": digest_of(config), "size": len(config)},
                "layers": [{"mediaType": LAYER_TYPE, "digest": digest_of(layer), "size": len(layer)}],
            }
        ).encode()
        header = f"Content-Type: {MANIFEST_TYPE}\r\n"
        status, _ = connection.request("PUT", "/v2/bench/image/manifests/latest", manifest, header)
        assert status == 201, status
        connection.close()
        self.images[target.name] = (manifest, digest_of(manifest), digest_of(layer))
        return self.images[target.name]

    def push_big(self, target: Target) -> float:
        """MB/s of one 256 MB blob."""
        data, digest = self.unique(self.big)
        connection = Blocking(target)
        began = time.perf_counter()
        connection.push("bench/big", data, digest)
        took = time.perf_counter() - began
        connection.close()
        return len(data) / took / 1e6

    def push_parallel(self, target: Target) -> float:
        """MB/s of 48 blobs of 4 MB at once."""
        base = os.urandom(4 * MIB)
        blobs = [self.unique(base) for _ in range(48)]

        def one(blob: tuple[bytes, str]) -> None:
            connection = Blocking(target)
            connection.push("bench/many", *blob)
            connection.close()

        began = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(48) as pool:
            list(pool.map(one, blobs))
        return 48 * 4 * MIB / (time.perf_counter() - began) / 1e6

    def pull_big(self, target: Target) -> float:
        """MB/s of one 256 MB blob, read and dropped."""
        digest = digest_of(self.big)
        connection = Blocking(target)
        if connection.request("HEAD", f"/v2/bench/big/blobs/{digest}")[0] != 200:
            connection.push("bench/big", self.big, digest)
        began = time.perf_counter()
        status, _ = connection.request("GET", f"/v2/bench/big/blobs/{digest}")
        took = time.perf_counter() - began
        assert status == 200, status
        connection.close()
        return len(self.big) / took / 1e6

    def get_manifest(self, target: Target) -> float:
        """Manifest GETs a second, by tag."""
        self.image(target)
        request = target.head("GET", "/v2/bench/image/manifests/latest", f"Accept: {MANIFEST_TYPE}\r\n")
        return storm(target, [request] * int(6000 * self.scale), 16, b"200")

    def head_blob(self, target: Target) -> float:
        """Blob HEADs a second."""
        layer = self.image(target)[2]
        request = target.head("HEAD", f"/v2/bench/image/blobs/{layer}")
        return storm(target, [request] * int(6000 * self.scale), 16, b"200", heads_only=True)

    def put_manifest(self, target: Target) -> float:
        """Manifest PUTs a second, each a new manifest and a new tag."""
        manifest = json.loads(self.image(target)[0])
        jobs = []
        for _ in range(int(600 * self.scale)):
            manifest["annotations"] = {"n": str(random.random())}
            body = json.dumps(manifest).encode()
            head = f"Content-Type: {MANIFEST_TYPE}\r\nContent-Length: {len(body)}\r\n"
            jobs.append(target.head("PUT", f"/v2/bench/image/manifests/t{random.getrandbits(60):x}", head) + body)
        return storm(target, jobs, 16, b"201")

    def mount(self, target: Target) -> float:
        """Cross-repository mounts a second, each into a new repository."""
        layer = self.image(target)[2]
        jobs = [
            target.head(
                "POST",
                f"/v2/bench/m{random.getrandbits(60):x}/blobs/uploads/?mount={layer}&from=bench/image",
                "Content-Length: 0\r\n",
            )
            for _ in range(int(800 * self.scale))
        ]
        return storm(target, jobs, 16, b"201")

    def tag_page(self, target: Target) -> float:
        """Pages of 100 out of 10,000 tags a second."""
        self.fill_tags(target)
        jobs = [
            target.head("GET", f"/v2/bench/tags/tags/list?n=100&last=t{random.randrange(9900):05}")
            for _ in range(int(300 * self.scale))
        ]
        return storm(target, jobs, 8, b"200")

    def fill_tags(self, target: Target) -> None:
        """Ten thousand tags on one image, once."""
        if ("tags", target.name) in self.images:
            return
        manifest, _, layer = self.image(target)
        config = json.loads(manifest)["config"]["digest"]
        connection = Blocking(target)
        for digest in (layer, config):
            path = f"/v2/bench/tags/blobs/uploads/?mount={digest}&from=bench/image"
            assert connection.request("POST", path)[0] == 201
        if connection.request("HEAD", "/v2/bench/tags/manifests/t09999")[0] != 200:
            head = f"Content-Type: {MANIFEST_TYPE}\r\nContent-Length: {len(manifest)}\r\n"
            jobs = [target.head("PUT", f"/v2/bench/tags/manifests/t{n:05}", head) + manifest for n in range(10000)]
            storm(target, jobs, 16, b"201")
        connection.close()
        self.images[("tags", target.name)] = self.images[target.name]  # type: ignore[index]


WORKS: dict[str, tuple[str, Callable[[Bench, Target], float], str]] = {
    "push": ("push of a 256 MB blob", Bench.push_big, "MB/s"),
    "parallel": ("48 parallel 4 MB pushes", Bench.push_parallel, "MB/s"),
    "pull": ("pull of a 256 MB blob", Bench.pull_big, "MB/s"),
    "get": ("manifest GET", Bench.get_manifest, "1/s"),
    "head": ("blob HEAD", Bench.head_blob, "1/s"),
    "put": ("manifest PUT", Bench.put_manifest, "1/s"),
    "mount": ("cross-repository mount", Bench.mount, "1/s"),
    "tags": ("tag page of 100 out of 10,000", Bench.tag_page, "1/s"),
}


def peak_memory_mb(pid: int) -> float:
    """The most memory a process ever had resident, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("baseline")
    parser.add_argument("berth")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(WORKS))
    parser.add_argument("--pids", default="", help="process ids of both, to print their peak memory")
    parser.add_argument("--scale", type=float, default=1.0, help="make the work smaller or larger")
    parser.add_argument("--openssl-order", action="store_true", help="offer TLS 1.3 ciphers in OpenSSL's order")
    options = parser.parse_args()
    if options.berth.startswith("https") and not options.openssl_order:
        offer_as_go_does()
    targets = [Target.parse("registry:2", options.baseline), Target.parse("berth", options.berth)]
    bench = Bench(targets, options.scale)
    print(f"| {'TLS' if targets[1].tls else 'plain HTTP'} | registry:2 | berth | ratio |")
    print("|---|---|---|---|")
    for name in options.only.split(","):
        title, work, unit = WORKS[name]
        rates: dict[str, list[float]] = {target.name: [] for target in targets}
        for number in range(options.rounds + 1):
            for target in targets if number % 2 else reversed(targets):
                rate = work(bench, target)
                if number:  # the first round warms caches and is not counted
                    rates[target.name].append(rate)
        base, ours = (statistics.median(rates[target.name]) for target in targets)
        print(f"| {title} ({unit}) | {base:,.0f} | {ours:,.0f} | {ours / base:.2f} |", flush=True)
    if options.pids:
        memory = [peak_memory_mb(int(pid)) for pid in options.pids.split(",")]
        print(f"| peak memory (MB) | {memory[0]:.0f} | {memory[1]:.0f} | {memory[1] / memory[0]:.2f} |")


if __name__ == "__main__":
    main()
