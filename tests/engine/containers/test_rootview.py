"""The list of mounts of a container's view."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import pytest

from engine.containers.mounts import MountPoint, parse_bind, parse_mount
from engine.containers.rootview import check_propagation, hand_over, keep_source_flags, mount_list, root_propagation
from engine.containers.settings import BindOptions, HostConfig, Mount, TmpfsOptions
from engine.kernel.mount import MountStep

FILES = {"/etc/hosts": "/c/hosts", "/etc/hostname": "/c/hostname"}


def listed(
    host: HostConfig, *points: MountPoint, shm: str | None = None, rro: bool = False
) -> dict[str, dict[str, Any]]:
    mounts = mount_list(host, points, FILES, shm, recursive_readonly=rro)
    return {mount["destination"]: mount for mount in mounts}


def test_the_standard_view() -> None:
    mounts = listed(HostConfig(shm_size=5))
    assert list(mounts)[:3] == ["/proc", "/dev", "/dev/pts"]
    assert "size=5" in mounts["/dev/shm"]["options"]
    assert "ro" in mounts["/sys"]["options"]
    assert mounts["/etc/hosts"] == {
        "destination": "/etc/hosts", "type": "bind", "source": "/c/hosts", "options": ["rbind", "rprivate"],
    }  # fmt: skip


def test_shared_memory_modes() -> None:
    assert listed(HostConfig(ipc_mode="shareable"), shm="/c/shm")["/dev/shm"]["source"] == "/c/shm"
    assert "/dev/shm" not in listed(HostConfig(ipc_mode="none"), shm="/c/shm")


def test_user_mounts_replace_ours_and_hide_nothing() -> None:
    mounts = listed(
        HostConfig(), parse_bind("/a:/x/y"), parse_bind("/b:/x"), parse_bind("/h:/etc/hosts"), parse_bind("/d:/dev")
    )
    assert list(mounts).index("/x") < list(mounts).index("/x/y")
    assert mounts["/etc/hosts"]["source"] == "/h"
    assert mounts["/dev"]["source"] == "/d"
    assert not {"/dev/pts", "/dev/shm"} & set(mounts)


def test_a_read_only_root_leaves_what_must_be_written() -> None:
    mounts = listed(HostConfig(readonly_rootfs=True), parse_bind("/a:/x"))
    assert "ro" in mounts["/etc/hosts"]["options"]
    assert "ro" not in mounts["/dev"]["options"] + mounts["/proc"]["options"] + mounts["/x"]["options"]


def test_privileged_sees_a_writable_sys() -> None:
    mounts = listed(HostConfig(privileged=True))
    assert "ro" not in mounts["/sys"]["options"] + mounts["/sys/fs/cgroup"]["options"]
    assert "ro" in listed(HostConfig(privileged=True, readonly_rootfs=True))["/sys"]["options"]


@pytest.mark.parametrize(
    ("options", "rro", "words"),
    [
        (BindOptions(), False, ["rbind", "ro", "rprivate"]),
        (BindOptions(), True, ["rbind", "rro", "rprivate"]),
        (BindOptions(non_recursive=True), True, ["bind", "ro", "private"]),
        (BindOptions(read_only_non_recursive=True), True, ["rbind", "ro", "rprivate"]),
        (BindOptions(read_only_force_recursive=True, propagation="rprivate"), True, ["rbind", "rro", "rprivate"]),
    ],
)
def test_read_only_binds(options: BindOptions, rro: bool, words: list[str]) -> None:
    point = parse_mount(Mount(type="bind", source="/a", target="/x", read_only=True, bind_options=options))
    assert listed(HostConfig(), point, rro=rro)["/x"]["options"] == words


def test_binds_keep_the_restrictions_of_their_sources() -> None:
    flags = {"/locked": os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME, "/free": 0}
    mounts = [
        {"destination": "/a", "type": "bind", "source": "/locked", "options": ["rbind", "rprivate", "nodev"]},
        {"destination": "/b", "type": "bind", "source": "/locked", "options": ["rbind", "rro"]},
        {"destination": "/c", "type": "bind", "source": "/free", "options": ["rbind"]},
        {"destination": "/d", "type": "tmpfs", "source": "tmpfs", "options": []},
    ]
    kept = keep_source_flags(mounts, flags.__getitem__)
    assert kept[0]["options"] == ["rbind", "rprivate", "nodev", "ro", "nosuid", "noexec", "noatime"]
    assert kept[1]["options"] == ["rbind", "rro", "nosuid", "nodev", "noexec", "noatime"]
    assert kept[2:] == mounts[2:]


def test_what_a_runtime_cannot_make_read_only_is_handed_over() -> None:
    mounts = [
        {"destination": "/a", "type": "bind", "source": "/x", "options": ["rbind", "rro", "rslave"]},
        {"destination": "/b", "type": "bind", "source": "/y", "options": ["rbind", "ro"]},
        {"destination": "/c", "type": "bind", "source": "/z", "options": ["rbind", "rro", "rprivate"]},
    ]
    left, steps = hand_over(mounts, "/run/c/read-only")
    assert left == [
        {"destination": "/a", "type": "bind", "source": "/run/c/read-only/0", "options": ["rbind", "ro", "rslave"]},
        mounts[1],
        {"destination": "/c", "type": "bind", "source": "/run/c/read-only/1", "options": ["rbind", "ro", "rprivate"]},
    ]
    assert steps == [
        MountStep("/x", "/run/c/read-only/0", "", ("rbind", "rslave", "rro")),
        MountStep("/z", "/run/c/read-only/1", "", ("rbind", "rprivate", "rro")),
    ]


def test_recursive_read_only_where_it_cannot_be() -> None:
    options = BindOptions(read_only_force_recursive=True)
    point = parse_mount(Mount(type="bind", source="/a", target="/x", read_only=True, bind_options=options))
    with pytest.raises(ValueError, match="rro is not supported"):
        listed(HostConfig(), point)


def test_a_tmpfs_of_the_short_form_hides_a_mount_at_its_place() -> None:
    point = parse_mount(Mount(type="bind", source="/s", target="/t"))
    mounts = listed(HostConfig(tmpfs={"/t/": "exec"}), point)
    assert mounts["/t"]["type"] == "tmpfs"


def test_tmpfs_of_both_forms() -> None:
    point = parse_mount(Mount(type="tmpfs", target="/t", tmpfs_options=TmpfsOptions(size_bytes=1024)))
    mounts = listed(HostConfig(tmpfs={"/run/": "exec"}), point)
    assert mounts["/t"]["options"][-1] == "size=1k"
    assert mounts["/run"]["options"] == ["nosuid", "nodev", "rprivate", "exec"]


def test_volumes_carry_no_propagation() -> None:
    point = MountPoint(type="volume", destination="/v", source="/s", rw=False)
    assert listed(HostConfig(), point)["/v"]["options"] == ["rbind", "ro"]


def test_the_root_propagates_as_its_binds_need() -> None:
    assert root_propagation([parse_bind("/a:/b")]) == ""
    assert root_propagation([parse_bind("/a:/b:slave")]) == "rslave"
    assert root_propagation([parse_bind("/a:/b:slave"), parse_bind("/a:/c:shared")]) == "shared"


MOUNTINFO = """\
22 1 8:1 / / rw,relatime - ext4 /dev/sda rw
30 22 8:2 / /shared rw shared:5 - ext4 /dev/sdb rw
31 22 8:3 / /slave\\040x rw master:5 - ext4 /dev/sdc rw
"""


def test_sharing_needs_a_shared_mount_below() -> None:
    check_propagation(
        [parse_bind("/shared/a:/x:rshared"), parse_bind("/slave x/a:/y:slave"), parse_bind("/p:/z")], MOUNTINFO, "/b"
    )
    with pytest.raises(ValueError, match="path /p is mounted on / but it is not a shared mount"):
        check_propagation([parse_bind("/p:/z:shared")], MOUNTINFO, "/b")
    with pytest.raises(ValueError, match="path /p is mounted on / but it is not a shared or slave mount"):
        check_propagation([parse_bind("/p:/z:rslave")], MOUNTINFO, "/b")


def test_what_lies_near_the_daemons_folder_is_private_where_it_cannot_follow() -> None:
    unsaid = msgspec.structs.replace(parse_bind("/p:/z"), propagation="rslave")
    (around,) = check_propagation([unsaid], MOUNTINFO, "/p/berth")
    assert around.propagation == "rprivate"
    with pytest.raises(ValueError, match="not a shared or slave mount"):
        check_propagation([parse_bind("/p:/z:rslave")], MOUNTINFO, "/p/berth")
    (within,) = check_propagation([parse_bind("/slave x/b/c:/z:rslave")], MOUNTINFO, "/slave x/b")
    assert within.propagation == "rslave"


def test_cgroups_are_writable_when_asked_for() -> None:
    for privileged, asked, writable in (
        (False, None, False),
        (False, True, True),
        (True, None, True),
        (True, False, False),
    ):
        mounts = mount_list(
            HostConfig(privileged=privileged), (), FILES, None, recursive_readonly=False, writable_cgroups=asked
        )
        (cgroup,) = [mount for mount in mounts if mount["type"] == "cgroup"]
        assert ("ro" not in cgroup["options"]) is writable


def test_the_hosts_cgroups_are_bound_where_their_namespace_is_shared() -> None:
    """Mounting v2 from the first cgroup namespace takes nsdelegate and memory_recursiveprot from the whole host."""
    for privileged, options in (
        (False, ["rbind", "ro", "nosuid", "noexec", "nodev", "rprivate"]),
        (True, ["rbind", "nosuid", "noexec", "nodev", "rprivate"]),
    ):
        host = HostConfig(privileged=privileged)
        mounts = mount_list(host, (), FILES, None, recursive_readonly=False, cgroups_bound=True)
        (cgroup,) = [mount for mount in mounts if mount["destination"] == "/sys/fs/cgroup"]
        assert cgroup == {
            "destination": "/sys/fs/cgroup",
            "type": "bind",
            "source": "/sys/fs/cgroup",
            "options": options,
        }
