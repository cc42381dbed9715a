"""What a container whose users are others on the host cannot have, and what it is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.containers.host import HostFacts
from engine.containers.remap import MappedView, check_remapped, ids_of
from engine.containers.settings import HostConfig
from engine.kernel.idmap import IdMap, IdRange
from engine.kernel.mount import MountStep

IDS = IdMap((IdRange(0, 100000, 65536),), (IdRange(0, 100000, 65536),))
FACTS = HostFacts(ids=IDS)
NAMESPACE = "/proc/1/fd/9"
VIEW = MappedView(Path("/data"), Path("/run/c"), NAMESPACE)


def test_who_opts_out_has_the_hosts_ids() -> None:
    assert ids_of(HostConfig(), FACTS) == IDS
    assert ids_of(HostConfig(userns_mode="host"), FACTS) is None
    assert ids_of(HostConfig(), HostFacts()) is None


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ({"privileged": True}, "privileged mode is incompatible with user namespaces.  You must run the container in"),
        ({"network_mode": "host"}, "cannot share the host's network namespace when user namespaces are enabled"),
        ({"pid_mode": "host"}, "cannot share the host PID namespace when user namespaces are enabled"),
        ({"ipc_mode": "host"}, "cannot share the host IPC namespace when user namespaces are enabled"),
    ],
)
def test_what_takes_the_hosts_powers_takes_the_hosts_ids(host: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_remapped(HostConfig(**host), FACTS)  # type: ignore[arg-type]
    assert str(caught.value).startswith(words)
    check_remapped(HostConfig(**host, userns_mode="host"), FACTS)  # type: ignore[arg-type]
    check_remapped(HostConfig(**host), HostFacts())  # type: ignore[arg-type]


def test_an_overlay_takes_its_folders_from_the_view() -> None:
    options = (
        "lowerdir=../init/a/fs:b",
        "upperdir=/data/snapshots/c/diff",
        "workdir=/data/snapshots/c/work",
        "volatile",
    )
    overlay = MountStep("overlay", "/run/c/rootfs", "overlay", options, "/data/layers/l")
    shown = ("lowerdir=../init/a/fs:b", "upperdir=/run/c/mapped/snapshots/c/diff")
    assert VIEW.steps((overlay,)) == (
        MountStep("/data", "/run/c/mapped", "", ("bind",), mapping=NAMESPACE),
        MountStep(
            "overlay", "/run/c/rootfs", "overlay", (*shown, "workdir=/run/c/mapped/snapshots/c/work", "volatile"),
            "/run/c/mapped/layers/l", mapping=NAMESPACE,
        ),
    )  # fmt: skip


def test_what_is_only_read_needs_no_owner() -> None:
    read = MountStep("overlay", "/run/c/images/0", "overlay", ("lowerdir=a:b", "ro"), "/data/layers/l")
    copied = MountStep("/data/snapshots/c/root", "/run/c/rootfs", "", ("bind",))
    assert VIEW.steps((read, copied))[1:] == (
        MountStep("overlay", "/run/c/images/0", "overlay", ("lowerdir=a:b", "ro"), "/run/c/mapped/layers/l"),
        MountStep("/run/c/mapped/snapshots/c/root", "/run/c/rootfs", "", ("bind",)),
    )


def test_the_daemons_own_files_are_bound_from_the_view_but_what_is_mounted_among_them() -> None:
    table = (
        "1 0 8:1 / / rw shared:1 - ext4 /dev/a rw\n"
        "2 1 0:9 / /data/volumes/mem/_data rw - tmpfs tmpfs rw\n"
    )  # fmt: skip
    sources = ("/data/volumes/v/_data", "/data/volumes/mem/_data", "/srv", "/database", "/data/containers/c/hosts")
    mounts = [{"destination": source, "type": "bind", "source": source, "options": []} for source in sources]
    mounts.append({"destination": "/proc", "type": "proc", "source": "proc", "options": []})
    assert [mount["source"] for mount in VIEW.mounts(mounts, table)] == [
        "/run/c/mapped/volumes/v/_data",
        "/data/volumes/mem/_data",
        "/srv",
        "/database",
        "/run/c/mapped/containers/c/hosts",
        "proc",
    ]


def test_a_data_root_behind_a_link_has_two_names(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "root").symlink_to("disk")
    table = f"1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:9 / {tmp_path}/disk/volumes/mem/_data rw - tmpfs tmpfs rw\n"
    view = MappedView(tmp_path / "root", Path("/run/c"), NAMESPACE)
    sources = ("root/volumes/v/_data", "disk/volumes/v/_data", "root/volumes/mem/_data", "disk/volumes/mem/_data")
    mounts = [{"destination": "/x", "type": "bind", "source": f"{tmp_path}/{one}", "options": []} for one in sources]
    assert [mount["source"] for mount in view.mounts(mounts, table)] == [
        "/run/c/mapped/volumes/v/_data",
        "/run/c/mapped/volumes/v/_data",
        f"{tmp_path}/root/volumes/mem/_data",
        f"{tmp_path}/disk/volumes/mem/_data",
    ]
