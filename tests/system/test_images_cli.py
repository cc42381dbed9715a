"""Images and the containers on them, by the real command line: commit, removal, events."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

from tests.support.daemons import Berth

pytestmark = pytest.mark.system

Docker = Callable[..., CompletedProcess[str]]


def layer_folders(berth: Berth) -> set[str]:
    """The keys of all unpacked layers."""
    return {path.name for path in (berth.data_root / "layers").iterdir() if len(path.name) == 64}


def copy_of_busybox(docker: Docker, name: str, text: str) -> None:
    """An image with a layer that no other image has."""
    docker("run", "--name", "maker", "busybox", "sh", "-c", f"echo {text} >/mark", check=True)
    docker("commit", "maker", name, check=True)
    docker("rm", "maker", check=True)


def test_a_container_outlives_its_image(berth: Berth, docker: Docker) -> None:
    before = layer_folders(berth)
    copy_of_busybox(docker, "short-lived", "kept")
    docker("create", "--name", "user", "short-lived", "cat", "/mark", check=True)
    docker("rmi", "-f", "short-lived", check=True)
    assert docker("start", "-a", "user", check=True).stdout == "kept\n"
    berth.kill()
    berth.start()
    assert docker("start", "-a", "user", check=True).stdout == "kept\n"
    assert layer_folders(berth) > before
    docker("rm", "user", check=True)
    assert layer_folders(berth) == before


def test_a_commit_survives_a_daemon_killed_at_once(berth: Berth, docker: Docker) -> None:
    script = "mkdir /d; ln -s a /d/l; for i in $(seq 300); do echo $i >/d/$i; done"
    docker("run", "--name", "big", "busybox", "sh", "-c", script, check=True)
    docker("commit", "big", "cut", check=True)
    berth.kill()
    berth.start()
    assert docker("run", "--rm", "cut", "cat", "/d/300", check=True).stdout == "300\n"
    size = docker("image", "inspect", "-f", "{{.Size}}", "cut", check=True).stdout
    docker("save", "-o", str(berth.root / "cut.tar"), "cut", check=True)
    docker("rm", "big", check=True)
    docker("rmi", "cut", check=True)
    docker("load", "-i", str(berth.root / "cut.tar"), check=True)
    assert docker("image", "inspect", "-f", "{{.Size}}", "cut", check=True).stdout == size
    docker("rmi", "cut", check=True)


def test_one_stream_tells_of_every_kind_of_thing(berth: Berth, docker: Docker) -> None:
    command = ["docker", "-H", berth.host, "events", "--format", "{{json .}}"]
    listener = subprocess.Popen(command, stdout=subprocess.PIPE, env=berth.environment())
    assert listener.stdout is not None
    try:
        while docker("info", "-f", "{{.NEventsListener}}", check=True).stdout.strip() == "0":
            time.sleep(0.05)
        _do_everything(berth, docker)
        docker("container", "prune", "-f", check=True)
        docker("network", "prune", "-f", check=True)
        docker("volume", "prune", "-f", check=True)  # the last word
        seen: set[tuple[str, str]] = set()
        for line in listener.stdout:
            event = json.loads(line)
            seen.add((event["Type"], event["Action"].partition(":")[0]))
            if ("volume", "prune") in seen:
                break
    finally:
        listener.terminate()
        listener.wait()
        listener.stdout.close()
    assert seen >= {
        *(("container", word) for word in ("create", "attach", "start", "die", "commit", "destroy", "rename", "kill")),
        *(("container", word) for word in ("exec_create", "exec_start", "exec_die", "pause", "unpause", "top")),
        *(
            ("container", word)
            for word in ("export", "archive-path", "extract-to-dir", "update", "restart", "stop", "prune")
        ),
        *(("image", word) for word in ("tag", "untag", "delete", "push", "pull", "save", "load", "import")),
        *(("network", word) for word in ("create", "connect", "disconnect", "destroy", "prune")),
        *(("volume", word) for word in ("create", "mount", "unmount", "destroy", "prune")),
    }


def _do_everything(berth: Berth, docker: Docker) -> None:
    """Each kind of event at least once."""
    here = f"{berth.registry}/events/app:1"
    docker("network", "create", "net", check=True)
    docker("volume", "create", "vol", check=True)
    docker("run", "-v", "vol:/v", "--name", "one", "busybox", "true", check=True)
    docker("run", "-d", "--name", "two", "busybox", "sleep", "600", check=True)
    for words in (
        "exec two true", "top two", "pause two", "unpause two", "update -c 512 two", "network connect net two",
        "network disconnect net two", "rename two three", "restart -t 0 three", "stop -t 0 three", f"commit one {here}",
        f"push {here}", f"rmi {here}", f"pull {here}", f"tag {here} other", f"save -o {berth.root}/x.tar other",
        f"load -i {berth.root}/x.tar", f"rmi {here} other", f"export -o {berth.root}/e.tar one",
        f"import {berth.root}/e.tar imported", "rmi imported", "rm one three", "volume rm vol",
    ):  # fmt: skip
        docker(*words.split(), check=True)
    (berth.root / "f").write_text("x")
    docker("create", "--name", "four", "busybox", check=True)
    docker("cp", str(berth.root / "f"), "four:/f", check=True)
    docker("cp", "four:/f", str(berth.root / "g"), check=True)
    docker("rm", "four", check=True)
