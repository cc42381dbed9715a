"""Stories of logs, with docker's command line: drivers, rotation, reading back, servers that are slow or away."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import msgspec
import pytest

from tests.support.daemons import Berth

pytestmark = pytest.mark.system

Docker = Callable[..., CompletedProcess[str]]
WAIT_SECONDS = 20.0
SAY = "echo out; echo err >&2; printf last"


class Listener:
    """A server that keeps what it is sent: TCP or UDP on the loopback address."""

    def __init__(self, kind: socket.SocketKind) -> None:
        self.kind = kind
        self.received: list[bytes] = []
        self.reading = threading.Event()
        self.reading.set()
        self._socket = socket.socket(socket.AF_INET, kind)
        if kind == socket.SOCK_STREAM:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._peers: list[socket.socket] = []
        if kind == socket.SOCK_STREAM:
            self._socket.listen(8)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                if self.kind == socket.SOCK_DGRAM:
                    self.received.append(self._socket.recv(65536))
                else:
                    peer = self._socket.accept()[0]
                    self._peers.append(peer)
                    threading.Thread(target=self._read, args=(peer,), daemon=True).start()

    def _read(self, peer: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while self.reading.wait() and (data := peer.recv(65536)):
                self.received.append(data)

    @property
    def data(self) -> bytes:
        return b"".join(self.received)

    def close(self) -> None:
        self.reading.set()
        for each in (self._socket, *self._peers):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.fixture
def tcp() -> Iterator[Listener]:
    listener = Listener(socket.SOCK_STREAM)
    yield listener
    listener.close()


@pytest.fixture
def udp() -> Iterator[Listener]:
    listener = Listener(socket.SOCK_DGRAM)
    yield listener
    listener.close()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.01)


def run(docker: Docker, name: str, script: str, *options: str, driver: str) -> CompletedProcess[str]:
    """A container that ends, and its log read back."""
    docker(
        "run",
        "--network",
        "none",
        "--name",
        name,
        "--log-driver",
        driver,
        *options,
        "busybox",
        "sh",
        "-c",
        script,
        check=True,
    )
    return docker("logs", name, check=True)


def opts(**options: str) -> list[str]:
    return [word for key, value in options.items() for word in ("--log-opt", f"{key.replace('_', '-')}={value}")]


def remove(docker: Docker, *names: str) -> None:
    docker("rm", "-f", *names, check=True)


def test_syslog_over_udp_and_the_log_is_readable(docker: Docker, udp: Listener) -> None:
    options = opts(syslog_address=f"udp://{udp.address}", syslog_format="rfc3164", tag="{{.Name}}/{{.ImageName}}")
    logs = run(docker, "sys", SAY, *options, driver="syslog")
    assert (logs.stdout, logs.stderr) == ("out\nlast", "err\n")
    until(lambda: len(udp.received) == 3)
    records = sorted(udp.received)
    assert records[0].startswith(b"<27>") and records[0].rstrip().endswith(b": err")
    assert b" sys/busybox[" in records[0]
    assert sorted(record.rpartition(b": ")[2] for record in records[1:]) == [b"last\n", b"out\n"]
    remove(docker, "sys")


def test_syslog_over_tcp(docker: Docker, tcp: Listener) -> None:
    options = opts(syslog_address=f"tcp://{tcp.address}", syslog_facility="local1", syslog_format="rfc5424micro")
    run(docker, "systcp", "seq 1 2000", *options, driver="syslog")
    until(lambda: tcp.data.count(b"\n") == 2000)
    lines = tcp.data.splitlines()
    assert all(line.startswith(b"<142>1 20") for line in lines)
    assert [int(line.rpartition(b" ")[2]) for line in lines] == list(range(1, 2001))
    remove(docker, "systcp")


def test_gelf_over_udp(docker: Docker, udp: Listener) -> None:
    options = opts(gelf_address=f"udp://{udp.address}", labels="team")
    run(docker, "gelf", SAY, *options, "--label", "team=blue", driver="gelf")
    until(lambda: len(udp.received) == 3)
    documents = [json.loads(gzip.decompress(datagram)) for datagram in udp.received]
    assert {(d["short_message"], d["level"]) for d in documents} == {("out", 6), ("err", 3), ("last", 6)}
    assert {(d["_container_name"], d["_image_name"], d["_team"]) for d in documents} == {("gelf", "busybox", "blue")}
    remove(docker, "gelf")


def test_gelf_with_zlib_and_chunks(docker: Docker, udp: Listener) -> None:
    options = opts(gelf_address=f"udp://{udp.address}", gelf_compression_type="zlib", gelf_compression_level="1")
    script = "head -c 9000 /dev/urandom | base64 -w 0; echo"
    logs = run(docker, "gelfz", script, *options, driver="gelf")
    until(lambda: bool(udp.received) and len(udp.received) == udp.received[0][11])
    whole = b"".join(part[12:] for part in sorted(udp.received, key=lambda part: part[10]))
    assert json.loads(zlib.decompress(whole))["short_message"] == logs.stdout.rstrip("\n")
    remove(docker, "gelfz")


def test_gelf_over_tcp(docker: Docker, tcp: Listener) -> None:
    run(docker, "gelft", SAY, *opts(gelf_address=f"tcp://{tcp.address}"), driver="gelf")
    until(lambda: tcp.data.count(b"\0") == 3)
    assert {json.loads(part)["short_message"] for part in tcp.data.split(b"\0")[:-1]} == {"out", "err", "last"}
    remove(docker, "gelft")


def test_fluentd(docker: Docker, tcp: Listener) -> None:
    options = opts(fluentd_address=tcp.address, tag="app.{{.Name}}", fluentd_sub_second_precision="true", env="COLOR")
    run(docker, "flu", "echo hello", *options, "-e", "COLOR=red", driver="fluentd")
    until(lambda: len(tcp.data) > 100)
    tag, at, record, option = msgspec.msgpack.decode(tcp.data)
    assert (tag, at.code, option) == ("app.flu", 0, {})
    assert record.items() >= {"log": "hello", "source": "stdout", "container_name": "/flu", "COLOR": "red"}.items()
    remove(docker, "flu")


def test_a_server_that_must_be_there_is_named_when_it_is_not(docker: Docker, udp: Listener) -> None:
    for driver, option in (
        ("syslog", f"syslog-address=tcp://{udp.address}"),
        ("fluentd", f"fluentd-address={udp.address}"),
    ):
        refused = docker(
            "run", "--rm", "--network", "none", "--log-driver", driver, "--log-opt", option, "busybox", "true"
        )
        words = f"failed to initialize logging driver: dial tcp {udp.address}: connect: connection refused"
        assert refused.returncode != 0
        assert words in refused.stderr


def test_a_fluentd_that_comes_late_gets_everything(docker: Docker, busybox: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = opts(fluentd_address=f"127.0.0.1:{port}", fluentd_async="true", fluentd_retry_wait="100ms")
    script = "seq 1 100; sleep 30"
    docker(
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        "late",
        "--log-driver",
        "fluentd",
        *options,
        busybox,
        "sh",
        "-c",
        script,
    )
    until(lambda: docker("logs", "late").stdout.count("\n") == 100)
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        server.listen(1)
        server.settimeout(WAIT_SECONDS)
        peer, _ = server.accept()
        seen = b""
        with peer:
            peer.settimeout(WAIT_SECONDS)
            while b"\xa3log\xa3100" not in seen:
                seen += peer.recv(65536)
    assert seen.count(b"container_name") == 100
    remove(docker, "late")


def test_a_server_that_does_not_read_makes_a_blocking_container_wait(docker: Docker, tcp: Listener) -> None:
    tcp.reading.clear()
    options = opts(syslog_address=f"tcp://{tcp.address}")
    line = "x" * 100
    script = f"yes {line} | head -n 200000; echo the end"
    docker(
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        "slow",
        "--log-driver",
        "syslog",
        *options,
        "busybox",
        "sh",
        "-c",
        script,
    )
    time.sleep(2)
    assert docker("inspect", "-f", "{{.State.Running}}", "slow").stdout == "true\n"
    tcp.reading.set()
    assert docker("wait", "slow").stdout == "0\n"
    until(lambda: tcp.data.endswith(b"the end\n"))
    assert tcp.data.count(b"\n") == 200_001
    remove(docker, "slow")


def test_a_container_that_may_not_wait_does_not(docker: Docker, tcp: Listener) -> None:
    tcp.reading.clear()
    options = opts(syslog_address=f"tcp://{tcp.address}", mode="non-blocking", max_buffer_size="100k")
    script = f"yes {'x' * 100} | head -n 200000"
    run(docker, "hasty", script, *options, driver="syslog")
    assert docker("logs", "--tail", "1", "hasty").stdout == "x" * 100 + "\n"
    assert tcp.data.count(b"\n") < 200_000
    remove(docker, "hasty")


def test_a_full_blocking_log_can_be_killed(docker: Docker, tcp: Listener) -> None:
    tcp.reading.clear()
    options = opts(syslog_address=f"tcp://{tcp.address}")
    docker("run", "-d", "--network", "none", "--name", "stuck", "--log-driver", "syslog", *options, "busybox", "yes")
    time.sleep(1)
    docker("kill", "stuck", check=True)
    assert docker("wait", "stuck").stdout == "137\n"
    remove(docker, "stuck")


def test_without_a_cache_there_is_nothing_to_read(docker: Docker, udp: Listener) -> None:
    options = opts(syslog_address=f"udp://{udp.address}", cache_disabled="true")
    docker(
        "run",
        "--network",
        "none",
        "--name",
        "nocache",
        "--log-driver",
        "syslog",
        *options,
        "busybox",
        "true",
        check=True,
    )
    docker("run", "--network", "none", "--name", "nolog", "--log-driver", "none", "busybox", "true", check=True)
    for name in ("nocache", "nolog"):
        assert "configured logging driver does not support reading" in docker("logs", name).stderr
    remove(docker, "nocache", "nolog")


def test_local_rotates_compresses_and_is_read_whole(docker: Docker, berth: Berth) -> None:
    logs = run(
        docker, "loc", "seq 1 30000; sleep 0.5; seq 30001 60000", *opts(max_size="1m", max_file="20"), driver="local"
    )
    assert [int(line) for line in logs.stdout.splitlines()] == list(range(1, 60001))
    [folder] = [path.parent for path in berth.data_root.glob("containers/*/container-local.log")]
    assert list(folder.glob("container-local.log.*.gz"))
    tail = docker("logs", "--tail", "25000", "loc").stdout.splitlines()
    assert [int(line) for line in tail] == list(range(35001, 60001))
    remove(docker, "loc")


def test_following_misses_nothing_across_rotations(docker: Docker, berth: Berth) -> None:
    options = opts(max_size="200k", max_file="50", compress="true")
    script = "sleep 0.5; for i in 1 2 3 4 5 6; do seq ${i}00001 ${i}04000; sleep 0.1; done"
    docker(
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        "fol",
        "--log-driver",
        "json-file",
        *options,
        "busybox",
        "sh",
        "-c",
        script,
    )
    followed = docker("logs", "-f", "fol", check=True).stdout.splitlines()
    assert [int(line) for line in followed] == [i * 100_000 + n for i in range(1, 7) for n in range(1, 4001)]
    remove(docker, "fol")


def test_attributes_are_details(docker: Docker) -> None:
    options = (*opts(labels="team", env="A", tag="{{.Name}}"), "--label", "team=blue", "-e", "A=1")
    run(docker, "det", "echo hi", *options, driver="json-file")
    assert docker("logs", "--details", "det").stdout == "A=1,tag=det,team=blue hi\n"
    remove(docker, "det")


def test_a_file_that_may_not_block_is_complete_at_the_end(docker: Docker) -> None:
    logs = run(docker, "nb", "seq 1 1000", *opts(mode="non-blocking"), driver="json-file")
    assert [int(line) for line in logs.stdout.splitlines()] == list(range(1, 1001))
    remove(docker, "nb")


def truncate(berth: Berth, name: str) -> int:
    connection = http.client.HTTPConnection("berth")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(berth.socket))
    with contextlib.closing(connection):
        connection.request("POST", f"/v1.47/containers/{name}/logs/truncate")
        return connection.getresponse().status


def test_a_log_is_emptied_while_it_is_written_and_after(docker: Docker, berth: Berth, folder: Path) -> None:
    script = "echo before; while ! test -e /f/go; do sleep 0.05; done; echo after"
    docker(
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        "emp",
        "-v",
        f"{folder}:/f",
        "busybox",
        "sh",
        "-c",
        script,
        check=True,
    )
    until(lambda: docker("logs", "emp").stdout == "before\n")
    assert truncate(berth, "emp") == 204
    assert docker("logs", "emp").stdout == ""
    (folder / "go").touch()
    docker("wait", "emp", check=True)
    assert docker("logs", "emp").stdout == "after\n"
    assert truncate(berth, "emp") == 204
    assert docker("logs", "emp").stdout == ""
    assert truncate(berth, "nobody") == 404
    remove(docker, "emp")


def test_unknown_options_are_refused_at_create(docker: Docker) -> None:
    refused = docker("create", "--log-opt", "x=1", "busybox", "true")
    assert "unknown log opt 'x' for json-file log driver" in refused.stderr


def test_a_restarted_daemon_reads_on(docker: Docker, berth: Berth, udp: Listener) -> None:
    options = opts(syslog_address=f"udp://{udp.address}")
    script = "echo one; sleep 1.5; echo two; sleep 60"
    docker(
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        "on",
        "--log-driver",
        "syslog",
        *options,
        "busybox",
        "sh",
        "-c",
        script,
    )
    until(lambda: docker("logs", "on").stdout == "one\n")
    berth.kill()
    time.sleep(1.5)
    berth.start()
    assert docker("logs", "on").stdout == "one\ntwo\n"
    until(lambda: len(udp.received) == 2)
    remove(docker, "on")
