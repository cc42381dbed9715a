"""Options to flags, and what lies below a source."""

from pathlib import Path

import pytest

from engine.shim import mounts
from engine.shim.mounts import below, split_options


def test_flags_propagation_and_the_file_systems_own_options_are_told_apart() -> None:
    options = ("ro", "nosuid", "lowerdir=a:b", "rslave", "defaults", "userxattr", "rw")
    assert split_options(options) == (2, (1 << 19) | 16384, ["lowerdir=a:b", "userxattr"])


def test_a_subpath_stays_below_its_source(tmp_path: Path) -> None:
    (tmp_path / "image" / "sub").mkdir(parents=True)
    (tmp_path / "image" / "good").symlink_to("sub")
    (tmp_path / "image" / "bad").symlink_to("/")
    base = str(tmp_path / "image")
    assert below(base, "good") == f"{base}/sub"
    for path in ("bad", "..", "../imagex", "bad/etc"):
        with pytest.raises(OSError, match="path concatenation escapes the base directory"):
            below(base, path)
    with pytest.raises(OSError, match="cannot access path .*/none: lstat"):
        below(base, "none")


def test_what_a_child_cannot_mount_is_told(tmp_path: Path) -> None:
    step = {"source": "/x", "target": str(tmp_path), "fstype": "", "mapping": f"{tmp_path}/none"}
    with pytest.raises(OSError, match="No such file or directory: .*/none"):
        mounts._apply_mapped(step)
