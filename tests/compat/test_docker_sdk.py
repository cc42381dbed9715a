"""The docker SDK for Python against a running berth: what scripts and test frameworks do with it."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.daemons import Berth

docker = pytest.importorskip("docker")
# The SDK leaves sockets of taken-over connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@pytest.fixture
def sdk(berth: Berth) -> Iterator[Any]:
    client = docker.DockerClient(base_url=berth.host, timeout=30)
    yield client
    for container in client.containers.list(all=True):
        container.remove(force=True, v=True)
    client.close()


def test_the_version_is_negotiated(sdk: Any) -> None:
    assert sdk.ping() is True
    assert sdk.version()["ApiVersion"] == "1.51"
    assert sdk.info()["Driver"] in ("overlay2", "overlayfs", "vfs")


def test_run_returns_the_output(sdk: Any) -> None:
    assert sdk.containers.run("busybox", ["echo", "hi"], remove=True) == b"hi\n"


def test_a_failing_run_raises_with_what_stderr_said(sdk: Any) -> None:
    with pytest.raises(docker.errors.ContainerError) as caught:
        sdk.containers.run("busybox", ["sh", "-c", "echo bad >&2; exit 3"], remove=True)
    assert caught.value.exit_status == 3
    assert caught.value.stderr == b"bad\n"


def test_errors_have_their_own_classes(sdk: Any) -> None:
    with pytest.raises(docker.errors.NotFound, match="No such container: nosuch"):
        sdk.containers.get("nosuch")
    with pytest.raises(docker.errors.ImageNotFound):
        sdk.images.get("nosuch")
    sdk.containers.create("busybox", name="taken")
    with pytest.raises(docker.errors.APIError) as caught:
        sdk.containers.create("busybox", name="taken")
    assert caught.value.status_code == 409


def test_life_of_a_container(sdk: Any) -> None:
    container = sdk.containers.run("busybox", ["sleep", "100"], detach=True, name="life", labels={"a": "b"})
    assert container.status == "created"
    container.reload()
    assert container.status == "running"
    assert [found.id for found in sdk.containers.list(filters={"label": "a=b"})] == [container.id]
    container.pause()
    container.reload()
    assert container.status == "paused"
    container.unpause()
    container.rename("lived")
    container.stop(timeout=0)
    assert container.wait() == {"StatusCode": 137}
    container.reload()
    assert (container.status, container.name) == ("exited", "lived")
    container.remove()
    with pytest.raises(docker.errors.NotFound):
        container.reload()


def test_exec_with_separate_streams_and_an_exit_code(sdk: Any) -> None:
    container = sdk.containers.run("busybox", ["sleep", "100"], detach=True)
    result = container.exec_run(["sh", "-c", "echo out; echo err >&2; exit 4"], demux=True)
    assert result.exit_code == 4
    assert result.output == (b"out\n", b"err\n")
    assert container.exec_run("id -u", user="33").output == b"33\n"
    assert (
        container.exec_run(["sh", "-c", "echo $A; pwd"], environment={"A": "1"}, workdir="/tmp").output == b"1\n/tmp\n"
    )


def test_logs_follow_until_the_end(sdk: Any) -> None:
    container = sdk.containers.run("busybox", ["sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.1; done"], detach=True)
    assert b"".join(container.logs(stream=True, follow=True)) == b"1\n2\n3\n"
    assert container.logs(tail=1) == b"3\n"
    stamped = container.logs(timestamps=True).splitlines()
    assert [line.split(b" ")[1] for line in stamped] == [b"1", b"2", b"3"]


def test_attached_streams_carry_stdin_and_its_end(sdk: Any) -> None:
    container = sdk.containers.create("busybox", ["cat"], stdin_open=True)
    container.client.api.inspect_container(container.id)
    socket = container.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
    container.start()
    socket._sock.sendall(b"through\n")
    received = b""
    while b"through" not in received:
        received += socket._sock.recv(100)
    assert received[:8] == b"\x01\0\0\0\0\0\0\x08"
    socket.close()


def test_archives_go_in_and_come_out(sdk: Any) -> None:
    container = sdk.containers.create("busybox", ["cat", "/tmp/in"])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("in")
        info.size = 5
        archive.addfile(info, io.BytesIO(b"bytes"))
    assert container.put_archive("/tmp", buffer.getvalue()) is True
    container.start()
    container.wait()
    assert container.logs() == b"bytes"
    pieces, stat = container.get_archive("/tmp/in")
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
        member = archive.extractfile("in")
        assert member is not None
        assert member.read() == b"bytes"
    assert (stat["name"], stat["size"]) == ("in", 5)


def test_published_ports_are_found_where_the_sdk_looks(sdk: Any) -> None:
    container = sdk.containers.run("busybox", ["sleep", "100"], detach=True, ports={"80/tcp": ("127.0.0.1", None)})
    container.reload()
    (binding,) = container.ports["80/tcp"]
    assert binding["HostIp"] == "127.0.0.1"
    assert int(binding["HostPort"]) > 0


def test_images_are_tagged_saved_loaded_and_removed(sdk: Any) -> None:
    image = sdk.images.get("busybox")
    assert image.tag("sdk/copy", "1") is True
    image.reload()
    archive = b"".join(image.save(named="sdk/copy:1"))
    sdk.images.remove("sdk/copy:1")
    (loaded,) = sdk.images.load(archive)
    assert loaded.id == image.id
    assert "sdk/copy:1" in sdk.images.get("busybox").tags
    sdk.images.remove("sdk/copy:1")
    with pytest.raises(docker.errors.ImageNotFound):
        sdk.images.get("sdk/copy:1")


def test_push_and_pull_through_the_embedded_registry(sdk: Any, berth: Berth) -> None:
    name = f"localhost:{berth.registry.rpartition(':')[2]}/sdk"
    sdk.images.get("busybox").tag(name, "v1")
    lines = list(sdk.images.push(name, tag="v1", stream=True, decode=True))
    assert not [line for line in lines if "error" in line]
    assert any(line.get("aux", {}).get("Tag") == "v1" for line in lines)
    sdk.images.remove(f"{name}:v1")
    pulled = sdk.images.pull(name, tag="v1")
    assert pulled.id == sdk.images.get("busybox").id
    assert sdk.containers.run(f"{name}:v1", ["echo", "pulled"], remove=True) == b"pulled\n"
    sdk.images.remove(f"{name}:v1")


def test_volumes(sdk: Any) -> None:
    volume = sdk.volumes.create("sdkvolume", labels={"x": "y"})
    sdk.containers.run("busybox", ["sh", "-c", "echo kept > /v/f"], volumes={"sdkvolume": {"bind": "/v"}}, remove=True)
    output = sdk.containers.run(
        "busybox", ["cat", "/v/f"], volumes={"sdkvolume": {"bind": "/v", "mode": "ro"}}, remove=True
    )
    assert output == b"kept\n"
    assert [found.name for found in sdk.volumes.list(filters={"label": "x=y"})] == ["sdkvolume"]
    volume.remove()
    with pytest.raises(docker.errors.NotFound):
        sdk.volumes.get("sdkvolume")


def test_events_arrive_as_they_happen(sdk: Any) -> None:
    events = sdk.events(decode=True, filters={"type": "container"})
    seen: list[str] = []

    def listen() -> None:
        for event in events:
            seen.append(event["Action"])
            if event["Action"] == "destroy":
                return

    listener = threading.Thread(target=listen)
    listener.start()
    sdk.containers.run("busybox", ["true"], remove=True)
    listener.join(20)
    events.close()
    assert [action for action in seen if action in ("create", "start", "die", "destroy")] == [
        "create",
        "start",
        "die",
        "destroy",
    ]


def test_stats_and_top(sdk: Any) -> None:
    container = sdk.containers.run("busybox", ["sleep", "100"], detach=True)
    stats = container.stats(stream=False)
    assert stats["pids_stats"]["current"] == 1
    assert stats["memory_stats"]["usage"] > 0
    assert stats["cpu_stats"]["cpu_usage"]["total_usage"] > 0
    processes = container.top()
    column = processes["Titles"].index("CMD")
    assert [row[column] for row in processes["Processes"]] == ["sleep 100"]


def test_commit_makes_an_image(sdk: Any) -> None:
    container = sdk.containers.run("busybox", ["touch", "/made"], detach=True)
    container.wait()
    assert container.diff() == [{"Path": "/made", "Kind": 1}]
    image = container.commit("sdk/committed", "1", message="m", author="a")
    assert sdk.containers.run(image.id, ["ls", "/made"], remove=True) == b"/made\n"
    container.remove()
    sdk.images.remove("sdk/committed:1")


def test_networks_connect_containers_by_name(sdk: Any) -> None:
    network = sdk.networks.create("sdknet")
    server = sdk.containers.run("busybox", ["sleep", "100"], detach=True, name="server", network="sdknet")
    assert b"1 packets received" in sdk.containers.run(
        "busybox", ["ping", "-c", "1", "-W", "2", "server"], network="sdknet", remove=True
    )
    network.reload()
    assert [container.name for container in network.containers] == ["server"]
    server.remove(force=True)
    network.remove()
