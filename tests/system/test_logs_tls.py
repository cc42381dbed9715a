"""Stories of logs that go to their servers over TLS, with docker's command line."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from tests.support.daemons import Berth
from tests.support.listening import Listener

pytestmark = pytest.mark.system

WAIT_SECONDS = 20.0


class Server(Listener):
    """Takes TLS connections on the loopback address and keeps what it is sent; asks for a certificate if told to."""

    def __init__(self, authority: Authority, *, wants_certificate: bool = False) -> None:
        pair = authority.pair("server")
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pair.cert, pair.key)
        if wants_certificate:
            self._context.load_verify_locations(authority.ca)
            self._context.verify_mode = ssl.CERT_REQUIRED
        self.data = b""
        self.clients: list[str] = []
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        connection.settimeout(WAIT_SECONDS)
        with self._context.wrap_socket(connection, server_side=True) as secured:
            subject = (secured.getpeercert() or {}).get("subject", ())
            self.clients += [value for part in subject for _, value in part]  # type: ignore[misc]
            while data := secured.recv(65536):
                self.data += data


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def server(authority: Authority) -> Iterator[Server]:
    made = Server(authority)
    yield made
    made.close()


@pytest.fixture
def strict(authority: Authority) -> Iterator[Server]:
    """Takes clients only with a certificate of the authority."""
    made = Server(authority, wants_certificate=True)
    yield made
    made.close()


def run(berth: Berth, driver: str, *options: str) -> tuple[int, str]:
    """A container that says hello; its exit code, and what was said on stderr."""
    words = [word for option in options for word in ("--log-opt", option)]
    script = ("sh", "-c", "echo hello; echo again")
    done = berth.docker("run", "--rm", "--network", "none", "--log-driver", driver, *words, "busybox", *script)
    return done.returncode, done.stderr


def arrived(server: Server, *texts: bytes) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not all(text in server.data for text in texts):
        assert time.monotonic() < end, server.data
        time.sleep(0.02)


def test_syslog_to_a_server_that_an_authority_of_ours_vouches_for(
    berth: Berth, authority: Authority, server: Server
) -> None:
    options = (f"syslog-address=tcp+tls://{server.address}", f"syslog-tls-ca-cert={authority.ca}", "tag=t")
    assert run(berth, "syslog", *options, "syslog-format=rfc5424") == (0, "")
    arrived(server, b" hello\n", b" again\n")
    length, _, rest = server.data.partition(b" ")
    assert rest[: int(length)].endswith(b" hello\n")  # RFC 5425: each message begins with its length
    server.data = b""
    assert run(berth, "syslog", *options, "syslog-format=rfc3164") == (0, "")
    arrived(server, b"]: hello\n<30>")


def test_syslog_to_a_server_that_need_not_be_vouched_for(berth: Berth, server: Server) -> None:
    address = f"syslog-address=tcp+tls://{server.address}"
    assert run(berth, "syslog", address, "syslog-tls-skip-verify=true") == (0, "")
    arrived(server, b"]: hello\n", b"]: again\n")


def test_syslog_with_a_certificate_of_the_clients(berth: Berth, authority: Authority, strict: Server) -> None:
    pair = authority.pair("shim")
    options = (f"syslog-address=tcp+tls://{strict.address}", f"syslog-tls-ca-cert={authority.ca}")
    own = (f"syslog-tls-cert={pair.cert}", f"syslog-tls-key={pair.key}")
    assert run(berth, "syslog", *options, *own) == (0, "")
    arrived(strict, b"]: hello\n")
    assert strict.clients == ["shim"]


def test_certificates_that_cannot_be_used_are_named(
    berth: Berth, authority: Authority, server: Server, tmp_path: Path
) -> None:
    address, good = f"syslog-address=tcp+tls://{server.address}", authority.pair("shim")
    (bad := tmp_path / "bad.pem").write_text("nothing")
    failed = "failed to initialize logging driver: "
    missing, pair = "open /no.pem: no such file or directory", f"{failed}could not load X509 key pair: "
    for options, expected in (
        (["syslog-tls-ca-cert=/no.pem"], f'{failed}could not read CA certificate "/no.pem": {missing}\n'),
        ([f"syslog-tls-ca-cert={bad}"], f'{failed}failed to append certificates from PEM file: "{bad}"\n'),
        (["syslog-tls-cert=/no.pem", f"syslog-tls-key={good.key}"], f"{pair}{missing}\n"),
        ([f"syslog-tls-cert={good.cert}"], f"{pair}open : no such file or directory\n"),
        ([f"syslog-tls-cert={good.cert}", f"syslog-tls-key={bad}"], f"{pair}tls: "),
    ):
        code, words = run(berth, "syslog", address, *options)
        assert code and expected in words, options


@pytest.mark.parametrize(
    ("driver", "option"), [("fluentd", "fluentd-address=tls://{}"), ("syslog", "syslog-address=tcp+tls://{}")]
)
def test_servers_have_to_be_trusted(berth: Berth, server: Server, driver: str, option: str) -> None:
    code, words = run(berth, driver, option.format(server.address))
    assert code == 125
    assert (
        "failed to initialize logging driver: tls: failed to verify certificate: "
        "x509: certificate signed by unknown authority"
    ) in words
    assert not server.data


def test_a_syslog_server_that_comes_back_is_sent_to_again(berth: Berth, authority: Authority, server: Server) -> None:
    options = (f"syslog-address=tcp+tls://{server.address}", f"syslog-tls-ca-cert={authority.ca}")
    words = [word for option in options for word in ("--log-opt", option)]
    script = "echo one; sleep 0.5; for n in 1 2 3 4 5; do echo more$n; sleep 0.2; done"
    run_one = ("run", "-d", "--network", "none", "--name", "back", "--log-driver", "syslog", *words)
    berth.docker(*run_one, "busybox", "sh", "-c", script, check=True)
    arrived(server, b"]: one\n")
    berth.docker("wait", "back", check=True)
    arrived(server, b"]: more5\n")
    berth.docker("rm", "back", check=True)
