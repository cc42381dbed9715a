"""``docker system df``: images, containers, volumes and build cache with what each holds on disk."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from engine.api.shapes import images as image_shapes
from engine.api.shapes.volumes import volume_json
from engine.api.views import ContainerViews
from engine.containers.listing import ListQuery
from engine.containers.service import ContainerService
from engine.filters import Filters
from engine.images.service import ImageService
from engine.volumes.service import VolumeService


class DiskUsageReport:
    """Builds the document of ``GET /system/df``."""

    def __init__(
        self,
        containers: ContainerService,
        views: ContainerViews,
        images: ImageService,
        volumes: VolumeService,
        layers_size: Callable[[], int],
    ) -> None:
        self._containers = containers
        self._views = views
        self._images = images
        self._volumes = volumes
        self._layers_size = layers_size

    async def report(self, kinds: Collection[str]) -> dict[str, Any]:
        """The parts named in ``kinds``, or all when it is empty."""
        document: dict[str, Any] = {"LayersSize": 0, "Images": None, "Containers": None, "Volumes": None}
        if not kinds or "image" in kinds:
            rows = self._images.list(Filters(), shared_size=True, containers=True)
            document["Images"] = [image_shapes.summary(row, (1, 43)) for row in rows]
            document["LayersSize"] = self._layers_size()
        if not kinds or "container" in kinds:
            document["Containers"] = await self._container_rows()
        if not kinds or "volume" in kinds:
            document["Volumes"] = [
                {**volume_json(u.volume), "UsageData": {"Size": u.size, "RefCount": u.references}}
                for u in await self._volumes.usage()
            ]
        if not kinds or "build-cache" in kinds:
            document["BuildCache"] = []
        document["BuilderSize"] = 0
        return document

    async def _container_rows(self) -> list[dict[str, Any]]:
        chosen = self._containers.select(ListQuery(all=True))
        return self._views.rows(chosen, await self._views.sizes(chosen))
