"""Networks as the Engine API writes them, and the bodies of its network requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import field

from engine.clock import rfc3339
from engine.containers.settings import EndpointSettings
from engine.networks.creation import CreateNetwork
from engine.networks.model import EndpointState, IpamBlock, Network


class IpamConfigBody(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """One subnet of a create request."""

    subnet: str | None = None
    ip_range: str | None = field(default=None, name="IPRange")
    gateway: str | None = None
    auxiliary_addresses: dict[str, str] | None = None
    aux_address: dict[str, str] | None = None


class IpamBody(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """The addressing part of a create request."""

    driver: str | None = None
    config: tuple[IpamConfigBody, ...] | None = None
    options: dict[str, str] | None = None


class ConfigReference(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """The network whose configuration is taken over."""

    network: str | None = None


class NetworkCreateBody(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """``POST /networks/create``."""

    name: str | None = None
    check_duplicate: bool | None = None
    driver: str | None = None
    scope: str | None = None
    internal: bool | None = None
    attachable: bool | None = None
    ingress: bool | None = None
    config_only: bool | None = None
    config_from: ConfigReference | None = None
    ipam: IpamBody | None = field(default=None, name="IPAM")
    enable_ipv4: bool | None = field(default=None, name="EnableIPv4")
    enable_ipv6: bool | None = field(default=None, name="EnableIPv6")
    options: dict[str, str] | None = None
    labels: dict[str, str] | None = None

    def request(self, version: tuple[int, int]) -> CreateNetwork:
        """The request in the engine's words; before API 1.47 all networks had IPv4."""
        ipam = self.ipam or IpamBody()
        return CreateNetwork(
            name=self.name or "",
            driver=self.driver or "bridge",
            scope=self.scope or "",
            is_internal=bool(self.internal),
            is_attachable=bool(self.attachable),
            is_ingress=bool(self.ingress),
            is_config_only=bool(self.config_only),
            config_from=(self.config_from.network if self.config_from is not None else "") or "",
            has_ipv4=self.enable_ipv4 is not False or version < (1, 47),
            has_ipv6=bool(self.enable_ipv6),
            ipam_driver=ipam.driver or "default",
            ipam_options=ipam.options,
            blocks=tuple(
                IpamBlock(
                    subnet=block.subnet or "",
                    ip_range=block.ip_range or "",
                    gateway=block.gateway or "",
                    aux=block.auxiliary_addresses or block.aux_address or {},
                )
                for block in ipam.config or ()
            ),
            options=self.options or {},
            labels=self.labels or {},
        )


class ConnectBody(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """``POST /networks/{id}/connect``."""

    container: str | None = None
    endpoint_config: EndpointSettings | None = None


class DisconnectBody(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """``POST /networks/{id}/disconnect``."""

    container: str | None = None
    force: bool | None = None


def _block(block: IpamBlock) -> dict[str, Any]:
    shape: dict[str, Any] = {"Subnet": block.subnet}
    if block.ip_range:
        shape["IPRange"] = block.ip_range
    if block.gateway and block.is_gateway_told:
        shape["Gateway"] = block.gateway
    if block.aux:
        shape["AuxiliaryAddresses"] = block.aux
    return shape


def network_shape(network: Network, endpoints: Mapping[str, tuple[str, EndpointState]]) -> dict[str, Any]:
    """``Network``; ``endpoints`` maps container ids to the container's name and its endpoint here."""
    return {
        "Name": network.name,
        "Id": network.id,
        "Created": rfc3339(network.created_ns),
        "Scope": network.scope,
        "Driver": network.driver,
        "EnableIPv4": network.has_ipv4,
        "EnableIPv6": network.has_ipv6,
        "IPAM": {
            "Driver": network.ipam_driver,
            "Options": network.ipam_options,
            "Config": [_block(block) for block in network.blocks],
        },
        "Internal": network.is_internal,
        "Attachable": network.is_attachable,
        "Ingress": network.is_ingress,
        "ConfigFrom": {"Network": network.config_from},
        "ConfigOnly": network.is_config_only,
        "Containers": {
            container_id: {
                "Name": name,
                "EndpointID": endpoint.endpoint_id,
                "MacAddress": endpoint.mac_address,
                "IPv4Address": _with_prefix(endpoint.ip_address, endpoint.ip_prefix_len),
                "IPv6Address": _with_prefix(endpoint.global_ipv6_address, endpoint.global_ipv6_prefix_len),
            }
            for container_id, (name, endpoint) in endpoints.items()
        },
        "Options": network.options,
        "Labels": network.labels,
    }


def _with_prefix(address: str, prefix: int) -> str:
    return f"{address}/{prefix}" if address else ""
