"""Which proxy a request goes through, by the rules of Go's programs (``HTTP_PROXY``, ``HTTPS_PROXY``, ``NO_PROXY``).

Pure but for the environment, which says what was not given. The machine itself is always spoken to directly.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxies:
    """Proxies as URLs by the scheme of what is asked for; ``no`` lists, comma separated, who is asked directly."""

    http: str = ""
    https: str = ""
    no: str = ""

    @classmethod
    def given(
        cls, http: str = "", https: str = "", no: str = "", environment: Mapping[str, str] = os.environ
    ) -> Proxies:
        """What was given, and the environment's for the rest."""

        def known(value: str, name: str) -> str:
            return value or environment.get(name) or environment.get(name.lower(), "")

        return cls(known(http, "HTTP_PROXY"), known(https, "HTTPS_PROXY"), known(no, "NO_PROXY"))

    def of_url(self, url: str) -> str | None:
        """The proxy for ``url``, None to ask its host itself."""
        parts = urlsplit(url)
        proxy = {"http": self.http, "https": self.https}.get(parts.scheme, "")
        if not proxy or self._is_direct((parts.hostname or "").lower(), parts.port or _PORTS[parts.scheme]):
            return None
        return proxy if "://" in proxy else f"http://{proxy}"

    def _is_direct(self, host: str, port: int) -> bool:
        address = _address(host)
        if host == "localhost" or (address is not None and address.is_loopback):
            return True
        return any(_matches(entry.strip().lower(), host, port, address) for entry in self.no.split(","))


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _matches(entry: str, host: str, port: int, address: _Address | None) -> bool:
    """An entry is ``*``, a network, an address, or a domain with what is below it (only that, with a dot before it)."""
    if entry == "*":
        return True
    network = _network(entry)
    if network is not None:
        return address is not None and address in network
    name, wanted_port = _split(entry)
    if not name or (wanted_port and wanted_port != str(port)):
        return False
    if address is not None:
        return _address(name) == address
    if name.startswith(("*.", ".")):
        return host.endswith(name.removeprefix("*"))
    return host == name or host.endswith(f".{name}")


def _split(entry: str) -> tuple[str, str]:
    if _address(entry) is not None:
        return entry, ""
    name, colon, port = entry.rpartition(":")
    return (name.strip("[]"), port) if colon else (entry.strip("[]"), "")


def _address(text: str) -> _Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False) if "/" in text else None
    except ValueError:
        return None
