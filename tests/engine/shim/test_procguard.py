"""Where mounts land: links of the image and of volumes lead where the runtime would go."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.shim.procguard import Planned, check


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    root = tmp_path / "rootfs"
    for folder in ("proc", "sys", "etc", "data"):
        (root / folder).mkdir(parents=True)
    for name, target in {"p": "/proc", "up": "../../proc", "s": "proc/sys", "e": "/etc", "a": "b", "b": "a"}.items():
        (root / name).symlink_to(target)
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "in").symlink_to("../proc")
    return root


@pytest.mark.parametrize(
    "mounts",
    [
        [("/proc", "/proc", "bind")],
        [("/proc/cpuinfo", "/x", "bind")],
        [("/p/net/dev", "/x", "bind")],
        [("/proc/acpi", "tmpfs", "tmpfs")],
        [("/process", "/x", "bind"), ("/e/proc", "/x", "bind"), ("/a/x", "/x", "bind")],
        [("/data/in", "/x", "bind")],
        [("/p", "/proc", "bind")],
    ],
)
def test_what_may_be_mounted(rootfs: Path, mounts: list[Planned]) -> None:
    before = sorted(str(path) for path in rootfs.rglob("*"))
    check(str(rootfs), mounts)
    assert sorted(str(path) for path in rootfs.rglob("*")) == before


def test_what_mounts_cover_is_made_where_they_land(rootfs: Path) -> None:
    volume = rootfs.parent / "volume"
    file = rootfs.parent / "file"
    file.touch()
    mounts = [
        ("/e/new", str(volume), "bind"),
        ("/data", str(volume), "bind"),
        ("/data/sub", "tmpfs", "tmpfs"),
        ("/data/sub/file", str(file), "bind"),
        ("/one/file", str(file), "bind"),
        ("/lost", "/no/such/source", "bind"),
    ]
    check(str(rootfs), mounts)
    assert (rootfs / "etc" / "new").is_dir() and (rootfs / "one" / "file").is_file()
    assert [path.name for path in volume.iterdir() if not path.is_symlink()] == ["sub"]
    assert not list((rootfs / "data").iterdir()) and not (rootfs / "lost").exists()


@pytest.mark.parametrize(
    ("mounts", "place", "why"),
    [
        ([("/proc", "/x", "bind")], "/proc", "not of type proc"),
        ([("/proc", "tmpfs", "tmpfs")], "/proc", "not of type proc"),
        ([("/p", "/x", "bind")], "/proc", "not of type proc"),
        ([("/up", "tmpfs", "tmpfs")], "/proc", "not of type proc"),
        ([("/proc/version", "/x", "bind")], "/proc/version", "inside /proc"),
        ([("/e/../p/self/attr", "/x", "bind")], "/proc/self/attr", "inside /proc"),
        ([("/s", "/x", "bind")], "/proc/sys", "inside /proc"),
        ([("/data", "VOLUME", "bind"), ("/data/in/x", "/x", "bind")], "/proc/x", "inside /proc"),
    ],
)
def test_what_may_not(rootfs: Path, mounts: list[Planned], place: str, why: str) -> None:
    volume = str(rootfs.parent / "volume")
    mounts = [(where, volume if source == "VOLUME" else source, kind) for where, source, kind in mounts]
    with pytest.raises(OSError, match="unable to start container process") as failure:
        check(str(rootfs), mounts)
    destination, source, _ = mounts[-1]
    words = f'error mounting "{source}" to rootfs at "{destination}": "{rootfs}{place}" cannot be mounted'
    assert words in str(failure.value) and str(failure.value).endswith(why)


@pytest.mark.parametrize("name", ["proc", "sys"])
def test_the_kernels_views_need_folders_of_their_own(rootfs: Path, name: str) -> None:
    (rootfs / name).rmdir()
    (rootfs / name).symlink_to("data")
    with pytest.raises(OSError, match=f'filesystem "{name}" must be mounted on ordinary directory'):
        check(str(rootfs), [])
