"""The parts of ``docker system df``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest

from engine.api.usage import DiskUsageReport
from engine.api.views import ContainerViews
from engine.containers.listing import ListQuery
from engine.containers.service import ContainerService
from engine.images.service import ImageService
from engine.volumes.model import Volume
from engine.volumes.service import VolumeService


class Containers:
    """Two containers, whatever they are."""

    def select(self, query: ListQuery) -> list[str]:
        assert query.all
        return ["one", "two"]


class Views:
    """Rows that say what they were made of."""

    async def sizes(self, chosen: list[str]) -> dict[str, int]:
        return {name: len(name) for name in chosen}

    def rows(self, chosen: list[str], sizes: dict[str, int]) -> list[dict[str, Any]]:
        return [{"Id": name, "SizeRw": sizes[name]} for name in chosen]


class Images:
    """No images."""

    def list(self, *_: object, shared_size: bool, containers: bool) -> list[object]:
        assert shared_size
        assert containers
        return []


@dataclass
class Used:
    """A volume with its use."""

    volume: Volume
    size: int
    references: int


class Volumes:
    """One volume."""

    async def usage(self) -> tuple[Used, ...]:
        return (Used(Volume(name="data", created_at=1, mountpoint="/v"), 5, 2),)


REPORT = DiskUsageReport(
    cast(ContainerService, Containers()),
    cast(ContainerViews, Views()),
    cast(ImageService, Images()),
    cast(VolumeService, Volumes()),
    lambda: 77,
)


async def test_everything() -> None:
    document = await REPORT.report(())
    assert document["LayersSize"] == 77
    assert document["Images"] == []
    assert document["Containers"] == [{"Id": "one", "SizeRw": 3}, {"Id": "two", "SizeRw": 3}]
    assert [(v["Name"], v["UsageData"]) for v in document["Volumes"]] == [("data", {"Size": 5, "RefCount": 2})]
    assert document["BuildCache"] == []


@pytest.mark.parametrize(
    ("kind", "filled"),
    [("image", {"Images"}), ("container", {"Containers"}), ("volume", {"Volumes"}), ("build-cache", {"BuildCache"})],
)
async def test_only_what_was_asked_for(kind: str, filled: set[str]) -> None:
    document = await REPORT.report({kind})
    names = ("Images", "Containers", "Volumes", "BuildCache")
    assert {name for name in names if document.get(name) is not None} == filled
    assert document["LayersSize"] == (77 if kind == "image" else 0)
