"""Wires pull and push together: host policy from the configuration, connections, the embedded registry."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from engine.config import Config
from engine.images.embedded import Embedded, Gate, Rules, Upstreams
from engine.images.pull import Puller
from engine.images.push import Pusher
from engine.images.release import Release
from engine.images.remote import Remotes
from engine.images.service import ImageService
from engine.images.transfers import Transfers
from engine.tasks import Nursery
from registry.client.hosts import CERTS, HostPolicy
from registry.client.proxies import Proxies
from registry.client.session import Transport
from registry.digest import Digest
from registry.manifest import Platform
from registry.store.collector import Collector
from registry.store.repositories import Repositories

_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "i386": ("386", ""),
}


class Notices(Protocol):
    """Where the registry tells webhooks and metrics what happened."""

    def pushed(self, repository: str, reference: str, digest: Digest, data: bytes, media_type: str) -> None: ...


class LocalRegistry(Protocol):
    """The part of ``RegistryServer`` that is used without HTTP."""

    repositories: Repositories

    @property
    def access(self) -> Gate: ...
    @property
    def rules(self) -> Rules: ...
    @property
    def notices(self) -> Notices: ...
    @property
    def proxy(self) -> Upstreams | None: ...
    @property
    def collector(self) -> Collector: ...
    def addresses(self) -> list[tuple[str, int]]: ...


class ImageTransport:
    """``puller`` and ``pusher`` for a daemon; ``registry`` (listening) is the embedded one or None.

    Also lets the service's content give blobs back, unless it has been told how already.
    """

    def __init__(
        self,
        config: Config,
        service: ImageService,
        registry: LocalRegistry | None,
        nursery: Nursery,
        certs: tuple[Path, ...] = CERTS,
    ) -> None:
        self.platform = host_platform()
        self.policy = HostPolicy(config.registry_mirrors, config.insecure_registries, certs)
        self.transport = Transport(self.policy, _proxies(config))
        embedded = None
        if registry is not None:
            registry.collector.extra_roots = service.store.roots
            embedded = Embedded(
                registry.access,
                registry.repositories,
                registry.addresses(),
                (os.uname().nodename,),
                pushed=registry.notices.pushed,
                rules=registry.rules,
                upstreams=registry.proxy,
            )
        repositories = registry.repositories if registry is not None else None
        content = service.content
        if content.release is None:
            repositories = repositories or Repositories(content.blobs, content.leases)
            content.release = Release(repositories, service.store.blobs, nursery)
        transfers = Transfers(nursery)
        remotes = Remotes(self.transport, config.max_download_attempts, embedded)
        self.puller = Puller(service, remotes, transfers, self.platform, config.max_concurrent_downloads)
        self.pusher = Pusher(service, remotes, transfers, config.max_concurrent_uploads)

    def reload(self, config: Config) -> None:
        """Take up changed mirrors, insecure registries, proxies and limits."""
        self.policy.reload(config.registry_mirrors, config.insecure_registries)
        self.transport.proxies = _proxies(config)
        self.puller.max_downloads = config.max_concurrent_downloads
        self.pusher.max_uploads = config.max_concurrent_uploads

    async def aclose(self) -> None:
        """Close connections to registries."""
        await self.transport.aclose()


def _proxies(config: Config) -> Proxies:
    return Proxies.given(config.http_proxy, config.https_proxy, config.no_proxy)


def host_platform() -> Platform:
    """This machine in the words of image indexes."""
    machine = os.uname().machine
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Platform(os="linux", architecture=architecture, variant=variant)
