"""Stories about the engine as a whole: reloads, proxies, disk usage."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certificates import Authority, Pair
from tests.support.daemons import Berth, free_port, running
from tests.support.listening import Listener

pytestmark = pytest.mark.system


class Proxy(Listener):
    """Answers whatever it is asked as a proxy with 502, and remembers what that was."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        self.asked.append(connection.recv(65536).decode())
        connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.close()


def reload(berth: Berth, document: object, told: str = "configuration reloaded") -> None:
    """Write daemon.json and wait until SIGHUP took it over."""
    (berth.root / "daemon.json").write_text(json.dumps(document))
    seen = berth.log.read_text().count(told)
    os.kill(berth.pid, signal.SIGHUP)
    end = time.monotonic() + 10
    while berth.log.read_text().count(told) == seen:
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


def test_a_reload_reaches_the_registry(berth: Berth) -> None:
    reload(berth, {"registry": {"immutable": ["**:v*"], "tokens": True}})
    told = "configuration of the registry reloaded: immutable_tags"
    end = time.monotonic() + 10
    while told not in berth.log.read_text():
        assert time.monotonic() < end, berth.last_words()
        time.sleep(0.05)
    assert "needs a restart to take effect: berth.tokens" in berth.log.read_text()
    reload(berth, {"registry": {"imutable": []}}, "the configuration was not reloaded: registry: unknown")
    reload(berth, {})


def test_new_containers_get_the_reloaded_defaults(berth: Berth, busybox: str) -> None:
    reload(berth, {"default-shm-size": "3m", "default-ipc-mode": "shareable"})
    try:
        done = berth.docker("run", "--rm", busybox, "df", "-k", "/dev/shm", check=True)
        assert done.stdout.splitlines()[-1].split()[1] == "3072"
        name = berth.docker("create", busybox, check=True).stdout.strip()
        assert berth.docker("inspect", "-f", "{{.HostConfig.IpcMode}}", name).stdout == "shareable\n"
        berth.docker("rm", name)
    finally:
        reload(berth, {"default-shm-size": "64m", "default-ipc-mode": "private"})


def test_a_seccomp_profile_of_the_daemons_own() -> None:
    berth = Berth(registry=False)
    profile = berth.root / "profile.json"
    denied = {"names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [denied]}))
    berth.options = ("--seccomp-profile", str(profile))
    with running(berth):
        assert f"name=seccomp,profile={profile}" in berth.docker("info", "-f", "{{.SecurityOptions}}").stdout
        done = berth.docker("run", "--rm", "busybox", "chmod", "777", ".")
        assert (done.returncode, "Operation not permitted" in done.stderr) == (1, True), done.stderr


def test_over_tls_a_client_that_has_said_everything_hears_everything(tmp_path: Path) -> None:
    authority, port = Authority(tmp_path), free_port()
    server, client = authority.pair("server"), authority.pair("client")

    def flags(pair: Pair) -> tuple[str, ...]:
        files = {"--tlscacert": authority.ca, "--tlscert": pair.cert, "--tlskey": pair.key}
        return ("--tlsverify", *(word for name, path in files.items() for word in (name, str(path))))

    host = ("-H", f"tcp://127.0.0.1:{port}")
    with running(Berth(options=(*host, *flags(server)), registry=False)):
        for stdin, told in ((None, "out\n"), ("in\n", "in\nout\n")):
            words = ["-i"] if stdin else []
            command = ["run", "--rm", *words, "busybox", "sh", "-c", "cat; sleep 0.2; echo out"]
            done = subprocess.run(
                ["docker", *host, *flags(client), *command], input=stdin, capture_output=True, text=True, timeout=30
            )
            assert (done.stdout, done.returncode) == (told, 0), done.stderr


def test_the_port_of_the_daemon_is_not_published() -> None:
    port = free_port()
    with running(Berth(options=("-H", f"127.0.0.1:{port}"), registry=False)) as berth:
        done = berth.docker("run", "--rm", "-p", f"{port}:80", "busybox", "true")
        assert done.returncode == 125
        assert f"Bind for 0.0.0.0:{port} failed: port is already allocated" in done.stderr
        (warning,) = json.loads(berth.docker("info", "-f", "{{json .Warnings}}").stdout)[:1]
        assert f"API is accessible on http://127.0.0.1:{port} without encryption." in warning


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


def test_devices_that_cdi_describes_are_shown_and_given(berth: Berth, busybox: str) -> None:
    folder = berth.root / "cdi"
    folder.mkdir()
    device = {"name": "one", "containerEdits": {"env": ["FROM_CDI=yes"]}}
    document = {"cdiVersion": "0.6.0", "kind": "vendor.com/net", "devices": [device]}
    (folder / "net.json").write_text(json.dumps(document))
    (folder / "bad.json").write_text("{}")
    ask = ("--device", "vendor.com/net=one", busybox, "sh", "-c", "echo $FROM_CDI")
    for options, shown, code, words in (
        ((), [{"Source": "cdi", "ID": "vendor.com/net=one"}], 0, "yes"),
        (("--feature", "cdi=false"), [], 125, 'could not select device driver "cdi" with capabilities: []'),
    ):
        with running(Berth(options=("--cdi-spec-dir", str(folder), *options), registry=False)) as other:
            info = json.loads(other.docker("info", "-f", "{{json .}}").stdout)
            assert (info.get("DiscoveredDevices", []), bool(info["CDISpecDirs"])) == (shown, bool(shown))
            assert any(f"{folder}/bad.json" in warning for warning in info["Warnings"] or ()) is bool(shown)
            done = other.docker("run", "--rm", *ask)
            assert (done.returncode, words in done.stdout + done.stderr) == (code, True), done.stderr
