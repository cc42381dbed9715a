"""Stories about the engine as a whole: reloads, proxies, disk usage."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.daemons import Berth

pytestmark = pytest.mark.system


class Proxy:
    """Answers whatever it is asked as a proxy with 502, and remembers what that was."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.asked.append(connection.recv(65536).decode())
                connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.close()


def reload(berth: Berth, document: object) -> None:
    """Write daemon.json and wait until SIGHUP took it over."""
    (berth.root / "daemon.json").write_text(json.dumps(document))
    seen = berth.log.read_text().count("configuration reloaded")
    os.kill(berth.pid, signal.SIGHUP)
    end = time.monotonic() + 10
    while berth.log.read_text().count("configuration reloaded") == seen:
        assert time.monotonic() < end, berth.last_words()
        time.sleep(0.05)


def test_a_reload_is_an_event_with_the_settings_now_in_force(berth: Berth) -> None:
    before = int(time.time())
    reload(berth, {"labels": ["a=b"], "max-concurrent-downloads": 7, "debug": False})
    span = ("--since", str(before), "--until", str(int(time.time()) + 1))
    told = berth.docker("events", *span, "--filter", "event=reload", "--format", "{{json .}}")
    (event,) = (json.loads(line) for line in told.stdout.splitlines())
    attributes = event["Actor"]["Attributes"]
    assert (event["Type"], event["Actor"]["ID"]) == ("daemon", berth.docker("info", "-f", "{{.ID}}").stdout.strip())
    assert (attributes["labels"], attributes["max-concurrent-downloads"]) == ('["a=b"]', "7")
    assert attributes["name"] == os.uname().nodename
    reload(berth, {})


def test_pulls_pushes_and_logins_go_through_the_proxy(berth: Berth, busybox: str, proxy: Proxy) -> None:
    url = f"http://joe:secret@{proxy.address}"
    reload(berth, {"proxies": {"http-proxy": url, "https-proxy": url, "no-proxy": "direct.invalid"}})
    try:
        assert berth.docker("info", "-f", "{{.HTTPSProxy}} {{.NoProxy}}").stdout.strip() == (
            f"http://xxxxx:xxxxx@{proxy.address} direct.invalid"
        )
        berth.docker("tag", busybox, "registry.invalid/x", check=True)
        for command in (
            ("pull", "registry.invalid/y"),
            ("push", "registry.invalid/x"),
            ("login", "-u", "me", "-p", "pw", "registry.invalid"),
        ):
            proxy.asked.clear()
            assert berth.docker(*command).returncode, command
            assert proxy.asked, command
            password = base64.b64encode(b"joe:secret").decode()
            assert proxy.asked[0].startswith("CONNECT registry.invalid:443 HTTP/1.1\r\n")
            assert f"Proxy-Authorization: Basic {password}\r\n" in proxy.asked[0]
        proxy.asked.clear()
        assert berth.docker("pull", "direct.invalid/y").returncode
        assert not proxy.asked
    finally:
        reload(berth, {})
        berth.docker("rmi", "registry.invalid/x")
