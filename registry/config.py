"""What the registry needs to know, as frozen values. `configfile.py` reads them from registry:2's `config.yml` and
environment."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Certificate chain and key in PEM, and the CAs a client certificate must come from (none: not asked for)."""

    certificate: Path
    key: Path
    client_cas: tuple[Path, ...] = ()
    minimum: str = "tls1.2"
    # OpenSSL's names for TLS 1.2 and before; empty: OpenSSL's own choice.
    ciphers: str = ""
    client_optional: bool = False


@dataclass(frozen=True, slots=True)
class TokenAuth:
    """A token server that others run: where clients get tokens, and by which keys they are believed."""

    realm: str
    service: str
    issuer: str
    root_certificates: Path | None = None
    jwks: Path | None = None
    auto_redirect: bool = False
    auto_redirect_path: str = "/auth/token"
    # What a token may be signed with; empty: everything we know.
    algorithms: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Grant:
    """Somebody may do something somewhere. `who`: a user, `@group`, `*` (every known user) or `anonymous`.

    `repositories` are shell patterns in which `*` does not cross a slash and `**` does.
    """

    who: str
    repositories: tuple[str, ...]
    actions: frozenset[str]


@dataclass(frozen=True, slots=True)
class Upstream:
    """A registry that is cached. Its images appear below `prefix`, or when asked for with `ns=`.

    With an empty prefix the whole registry is a cache (`proxy.remoteurl`). The default upstream is also asked for names
    that were never pushed here: dockerd's `registry-mirrors` name no upstream.
    """

    url: str
    prefix: str = ""
    namespaces: tuple[str, ...] = ()
    username: str = ""
    password: str = ""
    ttl_seconds: float = 7 * 86400.0
    is_default: bool = False


@dataclass(frozen=True, slots=True)
class Webhook:
    """Who is told of events, and how patiently."""

    name: str
    url: str
    headers: dict[str, str] = field(default_factory=dict)
    timeout_seconds: float = 5.0
    threshold: int = 5
    backoff_seconds: float = 5.0
    ignored_media_types: tuple[str, ...] = ()
    ignored_actions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class S3:
    """An S3-compatible bucket; the keys mean what registry:2's mean."""

    bucket: str
    region: str = "us-east-1"
    endpoint: str = ""
    access_key: str = ""
    secret_key: str = ""
    root: str = ""
    secure: bool = True
    skip_verify: bool = False
    path_style: bool = True
    chunk_bytes: int = 10 * 1024 * 1024
    redirect: bool = True
    encrypt: bool = False
    key_id: str = ""


@dataclass(frozen=True, slots=True)
class Retention:
    """Which tags of matching repositories stay. A tag goes when no rule that matches its repository keeps it."""

    repositories: tuple[str, ...]
    keep_last: int = 0
    keep_seconds: float = 0.0
    keep_pulled_seconds: float = 0.0
    keep_tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the server needs to know, checked. Sizes in bytes, times in seconds."""

    root: Path
    address: str = "127.0.0.1:5000"
    network: str = "tcp"
    # TLS: files of the administrator's, or a folder where we keep a CA and certificate of our own; neither: plain HTTP.
    tls: TlsFiles | None = None
    own_tls_folder: Path | None = None
    host: str = ""
    prefix: str = "/"
    relative_urls: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    drain_seconds: float = 10.0
    debug_address: str = ""
    metrics: bool = True
    metrics_path: str = "/metrics"
    # Access: no users at all means everybody, which is refused beyond loopback unless `anonymous`.
    htpasswd: Path | None = None
    # The file is where `berth registry user` would put one; one that the configuration names lets nobody in until it
    # is there.
    htpasswd_optional: bool = False
    realm: str = "berth registry"
    anonymous: bool = False
    tokens: bool = False
    token_auth: TokenAuth | None = None
    grants: tuple[Grant, ...] = ()
    grants_file: Path | None = None
    # The file is where `berth registry grant` would put one; as long as there is none, there are no rules.
    grants_file_optional: bool = False
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    immutable_tags: tuple[str, ...] = ()
    quotas: dict[str, int] = field(default_factory=dict)
    delete_enabled: bool = True
    read_only: bool = False
    # Lists and validation
    catalog_max_entries: int = 1000
    tags_max: int = 1000
    validate_manifests: bool = True
    sparse_indexes: bool = True
    url_allow: tuple[str, ...] = ()
    url_deny: tuple[str, ...] = ()
    # What clients of matching repositories are told with every manifest (`Warning` header), by pattern.
    warnings: dict[str, str] = field(default_factory=dict)
    # Upkeep
    purge_uploads: bool = True
    purge_dry_run: bool = False
    purge_age_seconds: float = 7 * 86400.0
    purge_interval_seconds: float = 86400.0
    collect_interval_seconds: float = 0.0
    collect_grace_seconds: float = 3600.0
    collect_untagged: bool = False
    retention: tuple[Retention, ...] = ()
    # Elsewhere
    s3: S3 | None = None
    upstreams: tuple[Upstream, ...] = ()
    webhooks: tuple[Webhook, ...] = ()
    event_references: bool = False
    log_level: str = "info"
    log_format: str = "text"
    # Put into every line of the program's own log.
    log_fields: dict[str, str] = field(default_factory=dict)
    access_log: bool = False
    health_files: tuple[Path, ...] = ()
    storage_check_seconds: float = 0.0
    # How many checks in a row have to fail before that counts.
    storage_check_threshold: int = 1
    source: str = ""

    @property
    def serves_tls(self) -> bool:
        """Whether connections are encrypted by us."""
        return self.tls is not None or self.own_tls_folder is not None

    def listen_on(self) -> tuple[str, int]:
        """Host (empty: every address) and port of `address`."""
        return split_address(self.address)


# What a running server does not take over, by the keys an administrator knows; everything else it does.
NEEDS_RESTART: Final[dict[str, str]] = {
    "root": "storage.filesystem.rootdirectory",
    "s3": "storage.s3",
    "address": "http.addr",
    "network": "http.net",
    "prefix": "http.prefix",
    "tls": "http.tls",
    "own_tls_folder": "berth.tls",
    "debug_address": "http.debug.addr",
    "metrics": "http.debug.prometheus.enabled",
    "metrics_path": "http.debug.prometheus.path",
    "htpasswd": "auth.htpasswd.path",
    "htpasswd_optional": "auth.htpasswd.path",
    "anonymous": "berth.anonymous",
    "tokens": "berth.tokens",
    "token_auth": "auth.token",
    "grants_file": "berth.grantsfile",
    "grants_file_optional": "berth.grantsfile",
    "log_format": "log.formatter",
    "access_log": "log.accesslog",
    "health_files": "health.file",
    "storage_check_seconds": "health.storagedriver",
    "storage_check_threshold": "health.storagedriver.threshold",
    "source": "the configuration's path",
}


def take_over(current: Settings, wanted: Settings) -> tuple[Settings, list[str]]:
    """`wanted` as far as a running server can have it, and the keys of what has to wait for a restart."""
    kept = {name: getattr(current, name) for name in NEEDS_RESTART}
    waiting = sorted({NEEDS_RESTART[name] for name, value in kept.items() if getattr(wanted, name) != value})
    return replace(wanted, **kept), waiting


def changes(current: Settings, wanted: Settings) -> set[str]:
    """The names of the fields that differ."""
    return {item.name for item in fields(Settings) if getattr(current, item.name) != getattr(wanted, item.name)}


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`, `[v6]:port` or `:port`; ValueError when it is none of these."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{address!r} is not host:port")
    return host.strip("[]"), int(port)
