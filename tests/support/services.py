"""The container service as the daemon wires it, on fakes."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from engine.containers.create import CreateRequest, Creator
from engine.containers.model import Container
from engine.containers.service import ContainerService
from engine.errors import EngineError
from engine.images.service import ImageService
from engine.networks.service import NetworkService
from tests.support.containers import container
from tests.support.runs import Bench, FakeImage, FakeImages, FakeNetworks


class FakeCreator:
    """Remembers what was asked for and answers with one container."""

    def __init__(self) -> None:
        self.asked: list[CreateRequest] = []
        self.failure: EngineError | None = None

    async def create(self, request: CreateRequest) -> tuple[Container, list[str]]:
        if self.failure is not None:
            raise self.failure
        self.asked.append(request)
        return container(99), ["mind the gap"]


class ServiceBench(Bench):
    """A bench with the service on top."""

    def __init__(self, root: Path, *records: Container) -> None:
        super().__init__(root, *records)
        self.networks = FakeNetworks()
        self.images = FakeImages({"busybox": FakeImage("sha256:" + "e" * 64, size=1000)})
        self.creator = FakeCreator()
        self.service = ContainerService(
            self.records,
            self.live,
            cast(Creator, self.creator),
            self.lifecycle,
            self.remover,
            self.execs,
            self.lifecycle._assembly,
            cast(ImageService, self.images),
            cast(NetworkService, self.networks),
            self.locks,
        )
