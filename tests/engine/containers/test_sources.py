"""Where mounts come from: folders of the host and images; volumes have stories of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import msgspec
import pytest

from engine.containers.mounts import parse_bind, parse_mount
from engine.containers.settings import BindOptions, ImageOptions, Mount
from engine.containers.sources import Sources
from engine.errors import InvalidParameter
from engine.kernel.mount import MountStep
from engine.snapshots.base import LayerKey, Snapshotter
from engine.volumes.service import VolumeService
from tests.support.containers import container


class Images:
    """A snapshotter that shows images."""

    async def image_steps(self, layers: Sequence[LayerKey], target: str) -> tuple[MountStep, ...]:
        return (MountStep("overlay", target, "overlay", (f"lowerdir={':'.join(layers)}",)),)


async def prepared(*points: object) -> tuple[list[str], list[MountStep]]:
    sources = Sources(cast(VolumeService, None), cast(Snapshotter, Images()))
    async with contextlib.AsyncExitStack() as undo:
        shown, steps = await sources.prepare(container(mounts=points), Path("/run/c"), undo)
    return [point.source for point in shown], steps


async def test_an_image_appears_below_the_run_folder() -> None:
    whole = msgspec.structs.replace(parse_mount(Mount(type="image", source="i", target="/a")), layers=("l1", "l2"))
    options = ImageOptions(subpath="usr/bin")
    part = parse_mount(Mount(type="image", source="i", target="/b", image_options=options))
    part = msgspec.structs.replace(part, layers=("l3",))
    shown, steps = await prepared(whole, part)
    assert shown == ["/run/c/images/0", "/run/c/images/1-part"]
    assert steps == [
        MountStep("overlay", "/run/c/images/0", "overlay", ("lowerdir=l1:l2",)),
        MountStep("overlay", "/run/c/images/1", "overlay", ("lowerdir=l3",)),
        MountStep("/run/c/images/1", "/run/c/images/1-part", "", ("bind", "ro"), subpath="usr/bin"),
    ]


async def test_missing_folders_are_made_where_the_short_form_says_so(tmp_path: Path) -> None:
    await prepared(parse_bind(f"{tmp_path}/new/folder:/x"))
    assert (tmp_path / "new" / "folder").is_dir()
    long = Mount(type="bind", source=f"{tmp_path}/none", target="/x")
    with pytest.raises(InvalidParameter, match="bind source path does not exist"):
        await prepared(parse_mount(long))
    made = msgspec.structs.replace(long, bind_options=BindOptions(create_mountpoint=True))
    await prepared(parse_mount(made))
    assert (tmp_path / "none").is_dir()


async def test_what_cannot_be_made_is_said_in_dockers_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    name = "x" * 300
    words = f"error while creating mount source path '{tmp_path}/{name}': mkdir .*: file name too long"
    with pytest.raises(InvalidParameter, match=words):
        await prepared(parse_bind(f"{tmp_path}/{name}:/x"))
    await prepared(parse_bind(f"{tmp_path}/file/x:/x"))  # the runtime has the words for this one
