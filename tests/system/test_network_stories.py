"""Networks as people use them: the docker command line against a running berth."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from tests.support.daemons import Berth, free_port, running

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


def networks(berth: Berth, name: str) -> list[str]:
    """The networks that inspect shows for a container."""
    return sorted(json.loads(berth.docker("inspect", "-f", "{{json .NetworkSettings.Networks}}", name).stdout))


def test_who_has_left_a_network_stays_out_of_it(berth: Berth) -> None:
    berth.docker("network", "create", "town", check=True)
    berth.docker("create", "--name", "moved", "busybox", "sleep", "100", check=True)
    berth.docker("network", "connect", "town", "moved", check=True)
    berth.docker("network", "disconnect", "bridge", "moved", check=True)
    berth.docker("start", "moved", check=True)
    assert networks(berth, "moved") == ["town"]
    berth.docker("network", "disconnect", "town", "moved", check=True)
    berth.docker("restart", "-t", "0", "moved", check=True)
    assert networks(berth, "moved") == []
    assert len(berth.docker("exec", "moved", "ip", "-o", "link").stdout.splitlines()) == 1
    berth.docker("network", "connect", "bridge", "moved", check=True)
    assert networks(berth, "moved") == ["bridge"]


def test_a_removed_network_can_be_left(berth: Berth) -> None:
    berth.docker("network", "create", "town", check=True)
    berth.docker("create", "--name", "lost", "--network", "town", "busybox", "true", check=True)
    berth.docker("network", "rm", "town", check=True)
    assert "network town not found" in berth.docker("start", "lost").stderr
    berth.docker("network", "disconnect", "-f", "town", "lost", check=True)
    berth.docker("start", "lost", check=True)
    never = berth.docker("network", "disconnect", "-f", "never", "lost")
    assert "is not connected to the network never" in never.stderr


def test_links_on_a_network_of_ones_own_wait_for_their_container(berth: Berth) -> None:
    berth.docker("network", "create", "town", check=True)
    links = ("--link", "never:foo", "--link", "web:bar")
    berth.docker("run", "-d", "--name", "early", "--network", "town", *links, "busybox", "sleep", "100", check=True)
    shape = "{{json .HostConfig.Links}} {{json .NetworkSettings.Networks.town.Links}}"
    shown = berth.docker("inspect", "-f", shape, "early")
    assert shown.stdout == 'null ["never:foo","web:bar"]\n'
    assert berth.docker("exec", "early", "nslookup", "bar").returncode != 0
    serve(berth, "web", "--network", "town")
    got = berth.docker("exec", "early", "wget", "-qO-", "http://bar/hostname")
    assert got.stdout == "web\n", got.stderr


def test_a_link_to_who_shares_a_network_leads_to_its_owner(berth: Berth) -> None:
    serve(berth, "web")
    berth.docker("run", "-d", "--name", "guest", "--network", "container:web", "busybox", "sleep", "100", check=True)
    command = ("run", "--rm", "--name", "child", "--link", "guest:foo", "busybox", "sh", "-c")
    got = berth.docker(*command, "grep foo /etc/hosts | cut -f2; echo $FOO_NAME; wget -qO- http://foo/hostname")
    names, environment, answer = got.stdout.splitlines()
    assert names.split() == ["foo", "web"] and (environment, answer) == ("/child/foo", "web"), got.stderr


def test_link_local_addresses_are_on_the_interface(berth: Berth) -> None:
    given = ("--link-local-ip", "169.254.8.8", "--link-local-ip", "fe80::77")
    got = berth.docker("run", "--rm", *given, "busybox", "ip", "-o", "addr", "show", "eth0")
    assert "inet 169.254.8.8/16 " in got.stdout and "inet6 fe80::77/64 " in got.stdout, got.stderr
    wrong = berth.docker("run", "--rm", "--link-local-ip", "169.253.5.5", "busybox", "true")
    assert wrong.returncode == 125 and "invalid link local IP address: 169.253.5.5" in wrong.stderr


def namespace_seen(berth: Berth, name: str) -> str:
    """The addresses that `nsenter --net=SandboxKey` finds."""
    key = berth.docker("inspect", "-f", "{{.NetworkSettings.SandboxKey}}", name).stdout.strip()
    return subprocess.run(["nsenter", f"--net={key}", "ip", "-o", "-4", "addr"], capture_output=True, text=True).stdout


def test_an_interface_is_named_and_set_as_asked(berth: Berth) -> None:
    option = "com.docker.network.endpoint"
    for name in ("one", "two", "three"):
        berth.docker("network", "create", name, check=True)
    lan = f"name=one,driver-opt={option}.ifname=lan,driver-opt={option}.sysctls=net.ipv4.conf.IFNAME.log_martians=1"
    second = f"name=two,driver-opt={option}.ifname=eth0"
    networks = ("--network", lan, "--network", second)
    berth.docker("run", "-d", "--name", "box", *networks, "busybox", "sleep", "60", check=True)
    assert berth.docker("exec", "box", "sysctl", "-n", "net.ipv4.conf.lan.log_martians").stdout == "1\n"
    assert berth.docker("exec", "box", "sysctl", "-n", "net.ipv4.conf.eth0.log_martians").stdout == "0\n"
    taken = berth.docker("network", "connect", "--driver-opt", f"{option}.ifname=lan", "three", "box")
    assert taken.returncode == 1 and "error renaming interface" in taken.stderr
    berth.kill()
    berth.start()
    berth.docker("network", "connect", "three", "box", check=True)
    assert berth.docker("exec", "box", "ls", "/sys/class/net").stdout.split() == ["eth0", "eth1", "lan", "lo"]


def test_a_container_without_ipv6_has_no_such_address(berth: Berth) -> None:
    berth.docker("network", "create", "--ipv6", "--subnet", "fd00:77::/64", "six", check=True)
    off = ("--sysctl", "net.ipv6.conf.all.disable_ipv6=1")
    berth.docker("run", "-d", "--name", "four", "--network", "six", *off, "busybox", "sleep", "60", check=True)
    shown = ("inspect", "-f", "{{.NetworkSettings.Networks.six.GlobalIPv6Address}}")
    assert berth.docker(*shown, "four").stdout == "\n"
    berth.docker("run", "-d", "--name", "both", "--network", "six", "busybox", "sleep", "60", check=True)
    assert berth.docker(*shown, "both").stdout.startswith("fd00:77::")
    assert berth.docker("exec", "both", "ping", "-6", "-c", "1", "four").returncode == 1
    assert berth.docker("exec", "both", "ping", "-4", "-c", "1", "four").returncode == 0


def test_the_namespace_is_entered_by_its_sandbox_key(berth: Berth) -> None:
    serve(berth, "web")
    serve(berth, "onhost", "--network", "host")
    address = berth.docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web").stdout.strip()
    assert f" {address}/16 " in namespace_seen(berth, "web")
    assert f" {berth.bip} " in namespace_seen(berth, "onhost")
    berth.kill()
    berth.start()
    assert f" {address}/16 " in namespace_seen(berth, "web")
    assert f" {berth.bip} " in namespace_seen(berth, "onhost")
    berth.docker("rm", "-f", "web", check=True)
    end = time.monotonic() + 5
    while (left := {path.name for path in (berth.exec_root / "netns").iterdir()}) != {"default"}:
        assert time.monotonic() < end, left
        time.sleep(0.05)


def test_who_would_join_itself_is_told(berth: Berth) -> None:
    got = berth.docker("run", "--name", "me", "--network", "container:me", "busybox", "true")
    assert got.returncode == 125 and "cannot join own network" in got.stderr
    berth.docker("rm", "me", check=True)
    for kind in ("--ipc", "--pid"):
        got = berth.docker("run", "--name", "me", kind, "container:me", "busybox", "true")
        assert got.returncode == 125 and "No such container: me" in got.stderr
    assert berth.docker("ps", "-aq").stdout == ""


def test_no_warning_of_forwarding_that_is_on(berth: Berth) -> None:
    made = berth.docker("create", "busybox", "true", check=True)
    assert made.stderr == ""


def test_a_daemon_without_a_bridge_and_with_a_gateway_of_its_own() -> None:
    berth = Berth(options=("--host-gateway-ip", "192.0.2.77", "--userland-proxy=false"), registry=False)
    berth.bridge, berth.bip = "none", ""
    with running(berth):
        links = berth.docker("run", "--rm", "busybox", "ip", "-o", "link", check=True).stdout
        assert len(links.splitlines()) == 1
        command = ("run", "--rm", "--add-host", "here:host-gateway", "busybox", "grep", "here", "/etc/hosts")
        assert berth.docker(*command, check=True).stdout.split() == ["192.0.2.77", "here"]


def test_ports_are_published_by_the_first_network_that_can(berth: Berth) -> None:
    port = free_port()
    berth.docker("create", "--name", "web", "-p", f"{port}:80", "busybox", "httpd", "-f", "-h", "/etc", check=True)
    berth.docker("network", "disconnect", "bridge", "web", check=True)
    berth.docker("start", "web", check=True)
    shown = ("inspect", "-f", "{{json .NetworkSettings.Ports}}", "web")
    assert berth.docker(*shown).stdout == "{}\n"
    berth.docker("network", "connect", "bridge", "web", check=True)
    assert berth.docker("port", "web").stdout == f"80/tcp -> 0.0.0.0:{port}\n"
    assert page(port)
    second = berth.docker("run", "--rm", "-p", f"{port}:80", "busybox", "true")
    assert second.returncode == 125 and f"Bind for 0.0.0.0:{port} failed: port is already allocated" in second.stderr
    berth.kill()
    try:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("", port))
    finally:
        berth.start()
    assert page(port) and berth.docker("port", "web").stdout == f"80/tcp -> 0.0.0.0:{port}\n"
    berth.docker("rm", "-f", "web", check=True)
    serve(berth, "next", "-p", f"{port}:80")
    assert page(port) == "next\n"


def test_a_restarted_container_has_its_address_again(berth: Berth) -> None:
    serve(berth, "web")
    shown = ("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web")
    address = berth.docker(*shown, check=True).stdout
    for _ in range(6):
        berth.docker("restart", "-t", "0", "web", check=True)
        assert berth.docker(*shown).stdout == address
