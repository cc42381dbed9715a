"""What a kind of network must be able to do, and the two kinds that do nothing: host and none."""

from __future__ import annotations

from typing import Protocol

from engine.kernel.namespaces import NetworkNamespace
from engine.networks.model import EndpointState, Network


class Driver(Protocol):
    """A kind of network. Errors are ``OSError`` (the kernel refused) and ``ValueError`` (the options make no sense)."""

    def check(self, network: Network) -> None:
        """Whether the options make sense, before anything is done."""

    async def create(self, network: Network) -> None:
        """Make what the network needs on the host; what is there already is taken over."""

    async def remove(self, network: Network) -> None:
        """Remove what ``create`` made."""

    async def attach(self, network: Network, endpoint: EndpointState, namespace: NetworkNamespace) -> None:
        """Put the endpoint's interface into the namespace, with its addresses, up, without a default route."""

    async def detach(self, network: Network, endpoint: EndpointState, namespace: NetworkNamespace | None) -> None:
        """Return when the endpoint's interface is gone: removed now from the ``namespace`` of a container that lives
        on, else (``None``) with its namespace."""


class PassiveDriver:
    """The host's own network and no network: nothing to make, nothing to attach."""

    def check(self, network: Network) -> None:
        """See ``Driver``."""

    async def create(self, network: Network) -> None:
        """See ``Driver``."""

    async def remove(self, network: Network) -> None:
        """See ``Driver``."""

    async def attach(self, network: Network, endpoint: EndpointState, namespace: NetworkNamespace) -> None:
        """See ``Driver``."""

    async def detach(self, network: Network, endpoint: EndpointState, namespace: NetworkNamespace | None) -> None:
        """See ``Driver``."""
