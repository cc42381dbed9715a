"""Which servers to ask for a repository, in which order, and how far to trust each.

Docker's rules: Docker Hub may have mirrors (pull only); a host is secure unless the administrator listed it or it is on
127.0.0.0/8; an insecure host is tried over TLS without verification first and over plain HTTP then. `certs.d/<host>`
holds CAs (`*.crt`) and client certificates (`*.cert` with `*.key`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DOCKER_HUB = "docker.io"
HUB_ENDPOINT = "https://registry-1.docker.io"
CERTS = (Path("/etc/docker/certs.d"),)
LOOPBACK = ("127.0.0.0/8", "::1/128")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server: `base` is scheme, host and prefix without a trailing slash."""

    base: str
    host: str
    is_mirror: bool = False
    verify: bool = True

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.base.startswith("https:")


class HostPolicy:
    """Mirrors, insecure registries and certificates; `reload` changes the first two."""

    def __init__(
        self,
        mirrors: Sequence[str] = (),
        insecure: Sequence[str] = (),
        certs: Sequence[Path] = CERTS,
        loopback: Sequence[str] = LOOPBACK,
    ) -> None:
        self._certs = tuple(certs)
        self._loopback = tuple(loopback)
        self._contexts: dict[tuple[str, bool], tuple[object, ssl.SSLContext]] = {}
        self.reload(mirrors, insecure)

    def reload(self, mirrors: Sequence[str], insecure: Sequence[str]) -> None:
        """Take new settings; running transfers keep the old ones."""
        self._mirrors = tuple(mirror.rstrip("/") for mirror in mirrors)
        self._names = {name.lower() for name in insecure if "/" not in name}
        self._networks = [ipaddress.ip_network(n, strict=False) for n in (*self._loopback, *insecure) if "/" in n]

    async def endpoints(self, domain: str, *, for_push: bool = False) -> list[Endpoint]:
        """The servers for a reference's domain, best first."""
        found: list[Endpoint] = []
        if domain == DOCKER_HUB:
            if not for_push:
                for mirror in self._mirrors:
                    host = mirror.partition("://")[2].partition("/")[0]
                    found.append(Endpoint(mirror, host, is_mirror=True, verify=not await self.is_insecure(host)))
            return [*found, Endpoint(HUB_ENDPOINT, "registry-1.docker.io")]
        if await self.is_insecure(domain):
            return [Endpoint(f"https://{domain}", domain, verify=False), Endpoint(f"http://{domain}", domain)]
        return [Endpoint(f"https://{domain}", domain)]

    async def is_insecure(self, host: str) -> bool:
        """Whether plain HTTP and unverified TLS are allowed: listed by name, or an address in a listed network."""
        host = host.lower()
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if host in self._names or name in self._names:
            return True
        return any(address in network for address in await _addresses(name) for network in self._networks)

    def tls_sync(self, endpoint: Endpoint) -> ssl.SSLContext:
        """The TLS settings for an endpoint; read again when its certificate folder changes. Reads files."""
        folders = [root / endpoint.host for root in self._certs if (root / endpoint.host).is_dir()]
        files = sorted(file for folder in folders for file in folder.iterdir())
        mark = tuple((str(file), file.stat().st_mtime_ns) for file in files)
        key = (endpoint.host, endpoint.verify)
        known = self._contexts.get(key)
        if known is not None and known[0] == mark:
            return known[1]
        context = ssl.create_default_context()
        # As Go: a host's own CA makes its certificate good even where it is not a CA-marked root.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not endpoint.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        for file in files:
            if file.suffix == ".crt":
                context.load_verify_locations(file)
            elif file.suffix == ".cert":
                private = file.with_suffix(".key")
                if not private.exists():
                    raise ValueError(f"missing key {private.name} for client certificate {file.name}")
                context.load_cert_chain(file, private)
        self._contexts[key] = (mark, context)
        return context


async def _addresses(name: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    try:
        return [ipaddress.ip_address(name)]
    except ValueError:
        pass
    if name == "localhost":
        return [ipaddress.ip_address("127.0.0.1")]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
