"""Settings of the registry: registry:2's `config.yml` and `REGISTRY_*` variables, frozen, plus a `berth` section of
our own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Certificate chain and key in PEM, and the CAs a client certificate must come from (none: not asked for)."""

    certificate: Path
    key: Path
    client_cas: tuple[Path, ...] = ()
    minimum: str = "tls1.2"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the server needs to know, checked. Sizes in bytes, times in seconds."""

    root: Path
    address: str = "127.0.0.1:5000"
    network: str = "tcp"
    # TLS: files of the administrator's, or a folder where we keep a CA and certificate of our own; neither means plain
    # HTTP.
    tls: TlsFiles | None = None
    own_tls_folder: Path | None = None
    host: str = ""
    prefix: str = "/"
    relative_urls: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    drain_seconds: float = 10.0
    htpasswd: Path | None = None
    realm: str = "berth registry"
    anonymous: bool = False
    delete_enabled: bool = True
    read_only: bool = False
    catalog_max_entries: int = 1000
    tags_max: int = 1000
    access_log: bool = True
    access_log_json: bool = False
    purge_uploads: bool = True
    purge_age_seconds: float = 7 * 86400.0
    purge_interval_seconds: float = 86400.0
    sparse_indexes: bool = True

    @property
    def serves_tls(self) -> bool:
        """Whether connections are encrypted by us."""
        return self.tls is not None or self.own_tls_folder is not None

    def listen_on(self) -> tuple[str, int]:
        """Host (empty: every address) and port of `address`."""
        host, _, port = self.address.rpartition(":")
        return host.strip("[]"), int(port)
