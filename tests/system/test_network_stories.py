"""Networks as people use them: the docker command line against a running berth."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from tests.support.daemons import Berth, free_port

pytestmark = pytest.mark.system


@pytest.fixture(autouse=True)
def tidy(berth: Berth) -> Iterator[None]:
    """Every story begins without containers and networks of another."""
    yield
    berth.remove_containers()
    berth.docker("network", "prune", "-f")


def page(port: int, path: str = "hostname") -> str:
    """What a container's web server answers through a published port; empty when it does not."""
    end = time.monotonic() + 3
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=2) as response:
                return str(response.read().decode())
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
    return ""


def serve(berth: Berth, name: str, *options: str) -> str:
    command = ("run", "-d", "--name", name, "--hostname", name, *options, "busybox", "httpd", "-f", "-h", "/etc")
    return berth.docker(*command, check=True).stdout.strip()


def test_a_published_port_outlives_the_daemon(berth: Berth) -> None:
    port = free_port()
    serve(berth, "web", "-p", f"{port}:80")
    assert berth.docker("port", "web").stdout == f"80/tcp -> 0.0.0.0:{port}\n"
    assert page(port) == "web\n"
    berth.kill()
    try:
        assert page(port) == "web\n"
    finally:
        berth.start()
    assert page(port) == "web\n"
    second = berth.docker("run", "--rm", "-p", f"{port}:80", "busybox", "true")
    assert second.returncode == 125 and f"Bind for 0.0.0.0:{port} failed: port is already allocated" in second.stderr
    berth.docker("restart", "-t", "0", "web", check=True)
    assert page(port) == "web\n"
    berth.docker("rm", "-f", "web", check=True)
    serve(berth, "next", "-p", f"{port}:80")
    assert page(port) == "next\n"


def test_containers_find_each_other_by_name(berth: Berth) -> None:
    berth.docker("network", "create", "town", check=True)
    serve(berth, "web", "--network", "town", "--network-alias", "www")
    for name in ("web", "www", "web.town"):
        got = berth.docker("run", "--rm", "--network", "town", "busybox", "wget", "-qO-", f"http://{name}/hostname")
        assert got.stdout == "web\n", got.stderr
    stranger = berth.docker("run", "--rm", "busybox", "nslookup", "web")
    assert stranger.returncode != 0
    berth.docker("rename", "web", "shop", check=True)
    got = berth.docker("run", "--rm", "--network", "town", "busybox", "wget", "-qO-", "http://shop/hostname")
    assert got.stdout == "web\n", got.stderr


def test_names_are_answered_after_the_daemon_was_killed(berth: Berth) -> None:
    berth.docker("network", "create", "town", check=True)
    serve(berth, "web", "--network", "town")
    berth.kill()
    berth.start()
    got = berth.docker("run", "--rm", "--network", "town", "busybox", "wget", "-qO-", "http://web/hostname")
    assert got.stdout == "web\n", got.stderr


def test_connect_and_disconnect_while_it_runs(berth: Berth) -> None:
    port = free_port()
    berth.docker("network", "create", "town", check=True)
    serve(berth, "web", "-p", f"{port}:80")
    berth.docker("network", "connect", "--alias", "late", "town", "web", check=True)
    got = berth.docker("run", "--rm", "--network", "town", "busybox", "wget", "-qO-", "http://late/hostname")
    assert got.stdout == "web\n", got.stderr
    networks = json.loads(berth.docker("inspect", "-f", "{{json .NetworkSettings.Networks}}", "web").stdout)
    assert set(networks) == {"bridge", "town"} and "late" in networks["town"]["Aliases"]
    berth.docker("network", "disconnect", "bridge", "web", check=True)
    assert page(port) == "web\n"
    refused = berth.docker("network", "rm", "town")
    assert refused.returncode == 1 and "has active endpoints" in refused.stderr
    berth.docker("restart", "-t", "0", "web", check=True)
    addresses = berth.docker("exec", "web", "ip", "-o", "-4", "addr").stdout
    assert addresses.count("eth") >= 1 and page(port) == "web\n"


def test_joined_host_and_no_network(berth: Berth) -> None:
    serve(berth, "web")
    got = berth.docker(
        "run", "--rm", "--network", "container:web", "busybox", "wget", "-qO-", "http://127.0.0.1/hostname"
    )
    assert got.stdout == "web\n", got.stderr
    alone = berth.docker("run", "--rm", "--network", "none", "busybox", "ip", "-o", "link").stdout
    assert len(alone.splitlines()) == 1
    assert (
        berth.docker("run", "--rm", "--network", "host", "busybox", "ip", "link", "show", berth.bridge).returncode == 0
    )


def test_an_unknown_network_fails_at_the_start(berth: Berth) -> None:
    got = berth.docker("run", "--name", "lost", "--network", "nope", "busybox", "true")
    assert got.returncode == 125 and "network nope not found" in got.stderr
    assert berth.docker("ps", "-a", "--format", "{{.Names}}:{{.State}}").stdout == "lost:created\n"
