"""Reads registry:2's `config.yml` and `REGISTRY_*` variables into `Settings`, plus a `berth` section of our own.

Every key registry:2 knows is accepted. One that it does not know, or that berth cannot honour, is an error that names
it: a setting that is silently without effect is worse than a server that does not start.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from registry.config import (
    S3,
    Grant,
    Retention,
    Settings,
    TlsFiles,
    TokenAuth,
    Upstream,
    Webhook,
    split_address,
)
from registry.configkeys import (
    EMBEDDED_KEYS,
    HARMLESS,
    KNOWN_KEYS,
    NOT_CONFIGURATION,
    OPEN,
    SIGNING_ALGORITHMS,
    UNSUPPORTED,
)
from registry.configvalues import ConfigError, openssl_cipher, parse_duration, parse_size, read_warning, texts_of
from registry.reference import is_repository_path

_CLIENT_REQUIRED, _CLIENT_OPTIONAL = "require-and-verify-client-cert", "verify-client-cert-if-given"
_ACTIONS = frozenset({"pull", "push", "delete"})
# Where a variable is named after registry:2's field and not after its key.
_SPELLINGS = {"eventconfig": "events", "filecheckers": "file", "httpcheckers": "http", "tcpcheckers": "tcp"}

log = logging.getLogger("berth.registry")


def load_settings(path: Path | None, environment: Mapping[str, str], base: Settings) -> Settings:
    """Settings from a file (if any) and the environment. Without file, `base` holds what is not overridden."""
    document: dict[str, Any] = {}
    if path is not None:
        try:
            document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"cannot read {path}: {error}") from error
        if not isinstance(document, dict):
            raise ConfigError(f"{path}: not a mapping")
        if str(document.get("version")) != "0.1":
            raise ConfigError(f"{path}: version must be 0.1")
    document = apply_environment(document, environment)
    _check_keys(document, KNOWN_KEYS, "")
    if path is not None:
        # A file of registry:2's means what it means there: plain HTTP, no users, no deletion unless it says so.
        base = replace(
            base,
            own_tls_folder=None,
            htpasswd=None,
            grants_file=None,
            delete_enabled=False,
            access_log=True,
            address=":5000",
        )
        if "storage" not in document:
            raise ConfigError("storage: no storage driver is configured")
    return _Reader(document).settings(base, str(path or ""))


def embedded_settings(document: Mapping[str, Any], base: Settings) -> Settings:
    """Settings of an engine's registry: `base`, changed by the `registry` object of its daemon.json."""
    ours = KNOWN_KEYS["berth"]
    sections = {name: value for name, value in document.items() if name not in ours}
    sections["berth"] = {name: value for name, value in document.items() if name in ours}
    try:
        _check_keys(dict(document), EMBEDDED_KEYS, "")
        return _Reader(sections).settings(base, "daemon.json")
    except ConfigError as error:
        # The reader knows our section by its name in config.yml.
        raise ConfigError(f"registry: {str(error).removeprefix('berth.')}") from error


def apply_environment(document: dict[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """The document with `REGISTRY_A_B=value` put at `a.b`; values are YAML. Shorter names come before longer ones."""
    for name in sorted(key for key in environment if key.startswith("REGISTRY_")):
        parts = name.removeprefix("REGISTRY_").split("_")
        if name in NOT_CONFIGURATION or not all(parts) or parts[0] == "VERSION":
            continue
        try:
            value = yaml.safe_load(environment[name])
        except yaml.YAMLError as error:
            raise ConfigError(f"{name}: not YAML: {error}") from error
        if parts == ["STORAGE"] or parts == ["AUTH"]:
            # Naming a driver alone selects it and replaces the whole section.
            document[parts[0].lower()] = {str(value): {}}
            continue
        if not _is_known(parts):
            # A cluster sets variables for a service that happens to be called "registry"; they are not meant for us.
            log.warning("the variable %s is no known setting and is ignored", name)
            continue
        _put(document, parts, value, name)
    return document


def _is_known(parts: list[str]) -> bool:
    node: Any = KNOWN_KEYS
    for part in parts:
        if node is None or node is OPEN:
            return True
        if isinstance(node, list):
            node = node[0]
            continue
        name = _SPELLINGS.get(part.lower(), part.lower())
        if name not in node:
            return False
        node = node[name]
    return True


def _put(node: Any, parts: list[str], value: Any, name: str) -> None:
    for position, part in enumerate(parts):
        is_last = position == len(parts) - 1
        if isinstance(node, list):
            if not part.isdigit() or int(part) > len(node):
                raise ConfigError(f"{name}: {part} is no index of this list")
            if int(part) == len(node):
                node.append({})
            key: Any = int(part)
        else:
            key = next((known for known in node if str(known).upper() == part.upper()), None)
            if key is None:
                key = _SPELLINGS.get(part.lower(), part.lower())
        if is_last:
            node[key] = value
            return
        child = node[key] if isinstance(node, list) or key in node else None
        if not isinstance(child, dict | list):
            child = [] if parts[position + 1].isdigit() else {}
            node[key] = child
        node = child


def _check_keys(document: Any, known: Any, where: str) -> None:
    if known is OPEN or document is None:
        return
    if isinstance(known, list):
        if not isinstance(document, list):
            raise ConfigError(f"{where}: must be a list")
        for position, item in enumerate(document):
            _check_keys(item, known[0], f"{where}[{position}]")
        return
    if not isinstance(document, dict):
        raise ConfigError(f"{where}: must be a mapping")
    for key, value in document.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in known:
            raise ConfigError(f"unknown configuration key: {path}")
        if path in UNSUPPORTED and value not in (None, {}, [], False, *HARMLESS.get(path, ())):
            raise ConfigError(f"{path}: {UNSUPPORTED[path]}")
        if known[key] is not None:
            _check_keys(value, known[key], path)


class _Reader:
    """Typed access to a checked document; every complaint names its key."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document

    def _get(self, path: str) -> Any:
        node: Any = self._document
        for part in path.split("."):
            if not isinstance(node, dict) or part not in node:
                return None
            node = node[part]
        return node

    def _has(self, path: str) -> bool:
        parent, _, name = path.rpartition(".")
        node = self._get(parent) if parent else self._document
        return isinstance(node, dict) and name in node

    def text(self, path: str, default: str = "") -> str:
        value = self._get(path)
        if value is None:
            return default
        if isinstance(value, dict | list):
            raise ConfigError(f"{path}: must be text")
        if isinstance(value, bool):
            # YAML reads yes, no, on and off as these: what was meant (a password?) cannot be known any more.
            quotes = "put it in quotes if it is meant to be (in a variable they belong to the value)"
            raise ConfigError(f"{path}: must be text, not true or false; {quotes}")
        return str(value)

    def flag(self, path: str, default: bool) -> bool:
        value = self._get(path)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ConfigError(f"{path}: must be true or false")
        return value

    def number(self, path: str, default: int) -> int:
        value = self._get(path)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ConfigError(f"{path}: must be a number, not negative")
        return value

    def seconds(self, path: str, default: float) -> float:
        value = self._get(path)
        return default if value is None else parse_duration(value, path)

    def texts(self, path: str) -> tuple[str, ...]:
        value = self._get(path)
        if value is None:
            return ()
        return texts_of(value, path)

    def settings(self, base: Settings, source: str) -> Settings:
        changes: dict[str, Any] = {"source": source}
        for section in (
            self._http,
            self._storage,
            self._auth,
            self._limits,
            self._log,
            self._notifications,
            self._berth,
        ):
            changes.update(section(base))
        settings = replace(base, **changes)
        try:
            settings.listen_on()
            if settings.debug_address:
                split_address(settings.debug_address)
        except ValueError as error:
            raise ConfigError(f"http.addr: {error}") from error
        return settings

    def _http(self, base: Settings) -> dict[str, Any]:
        headers = self._get("http.headers") or {}
        if not isinstance(headers, dict):
            raise ConfigError("http.headers: must be a mapping")
        prefix = self.text("http.prefix", base.prefix)
        if not prefix.startswith("/") or not prefix.endswith("/"):
            raise ConfigError("http.prefix: must start and end with /")
        network = self.text("http.net", base.network)
        if network != "tcp":
            raise ConfigError("http.net: only tcp is supported")
        prometheus = self.flag("http.debug.prometheus.enabled", base.metrics)
        return {
            "address": self.text("http.addr", base.address),
            "host": self.text("http.host", base.host),
            "prefix": prefix,
            "relative_urls": self.flag("http.relativeurls", base.relative_urls),
            "drain_seconds": self.seconds("http.draintimeout", base.drain_seconds),
            "headers": {str(k): ", ".join(texts_of(v, f"http.headers.{k}")) for k, v in headers.items()}
            or base.headers,
            "debug_address": self.text("http.debug.addr", base.debug_address),
            "metrics": prometheus,
            "metrics_path": self.text("http.debug.prometheus.path", base.metrics_path),
            **self._tls(base),
        }

    def _tls(self, base: Settings) -> dict[str, Any]:
        certificate, key = self.text("http.tls.certificate"), self.text("http.tls.key")
        if not certificate and not key:
            return {}
        if not certificate or not key:
            raise ConfigError("http.tls: certificate and key go together")
        minimum = self.text("http.tls.minimumtls", "tls1.2")
        if minimum not in ("tls1.0", "tls1.1", "tls1.2", "tls1.3"):
            raise ConfigError(f"http.tls.minimumtls: unknown version {minimum}")
        authorities = tuple(Path(item) for item in self.texts("http.tls.clientcas"))
        client = self.text("http.tls.clientauth", _CLIENT_REQUIRED)
        if client not in (_CLIENT_REQUIRED, _CLIENT_OPTIONAL):
            raise ConfigError(f"http.tls.clientauth: {_CLIENT_REQUIRED} or {_CLIENT_OPTIONAL}, not {client}")
        ciphers = ":".join(openssl_cipher(name) for name in self.texts("http.tls.ciphersuites"))
        files = TlsFiles(Path(certificate), Path(key), authorities, minimum, ciphers, client == _CLIENT_OPTIONAL)
        return {"tls": files, "own_tls_folder": None}

    def _storage(self, base: Settings) -> dict[str, Any]:
        section = self._get("storage") or {}
        drivers = [key for key in section if key in ("filesystem", "inmemory", "s3")]
        if len(drivers) > 1:
            raise ConfigError(f"storage: multiple storage drivers: {', '.join(sorted(drivers))}")
        purge = "storage.maintenance.uploadpurging"
        changes: dict[str, Any] = {
            "delete_enabled": self.flag("storage.delete.enabled", base.delete_enabled),
            "read_only": self.flag("storage.maintenance.readonly.enabled", base.read_only),
            "purge_uploads": self.flag(f"{purge}.enabled", base.purge_uploads),
            "purge_age_seconds": self.seconds(f"{purge}.age", base.purge_age_seconds),
            "purge_interval_seconds": self.seconds(f"{purge}.interval", base.purge_interval_seconds),
            "purge_dry_run": self.flag(f"{purge}.dryrun", base.purge_dry_run),
        }
        if "inmemory" in drivers:
            raise ConfigError(f"storage.inmemory: {UNSUPPORTED['storage.inmemory']}")
        if "s3" in drivers:
            changes["s3"] = self._s3()
        return {**changes, "root": self._root(base)}

    def _root(self, base: Settings) -> Path:
        if "filesystem" not in (self._get("storage") or {}):
            return base.root
        return Path(self.text("storage.filesystem.rootdirectory", "/var/lib/registry"))

    def _s3(self) -> S3:
        bucket = self.text("storage.s3.bucket")
        if not bucket:
            raise ConfigError("storage.s3.bucket: no bucket is named")
        return S3(
            bucket=bucket,
            region=self.text("storage.s3.region", "us-east-1"),
            endpoint=self.text("storage.s3.regionendpoint"),
            access_key=self.text("storage.s3.accesskey"),
            secret_key=self.text("storage.s3.secretkey"),
            root=self.text("storage.s3.rootdirectory").strip("/"),
            secure=self.flag("storage.s3.secure", True),
            skip_verify=self.flag("storage.s3.skipverify", False),
            path_style=self.flag("storage.s3.forcepathstyle", bool(self.text("storage.s3.regionendpoint"))),
            chunk_bytes=max(self.number("storage.s3.chunksize", 10 * 1024 * 1024), 5 * 1024 * 1024),
            redirect=not self.flag("storage.redirect.disable", False),
            encrypt=self.flag("storage.s3.encrypt", False),
            key_id=self.text("storage.s3.keyid"),
        )

    def _auth(self, base: Settings) -> dict[str, Any]:
        section = self._get("auth") or {}
        kinds = [kind for kind in section if kind != "none"]
        if len(kinds) > 1:
            raise ConfigError(f"auth: one kind at a time, not {', '.join(sorted(kinds))}")
        if "htpasswd" in kinds:
            path = self.text("auth.htpasswd.path")
            if not path:
                raise ConfigError("auth.htpasswd.path: missing")
            realm = self.text("auth.htpasswd.realm", base.realm)
            return {"htpasswd": Path(path), "htpasswd_optional": False, "realm": realm}
        if "token" in kinds:
            return {"token_auth": self._token()}
        return {}

    def _token(self) -> TokenAuth:
        values = {name: self.text(f"auth.token.{name}") for name in ("realm", "service", "issuer")}
        for name, value in values.items():
            if not value:
                raise ConfigError(f"auth.token.{name}: missing")
        bundle, jwks = self.text("auth.token.rootcertbundle"), self.text("auth.token.jwks")
        if not bundle and not jwks:
            raise ConfigError("auth.token.rootcertbundle: neither it nor auth.token.jwks is given")
        return TokenAuth(
            **values,
            root_certificates=Path(bundle) if bundle else None,
            jwks=Path(jwks) if jwks else None,
            auto_redirect=self.flag("auth.token.autoredirect", False),
            auto_redirect_path=self.text("auth.token.autoredirectpath", "/auth/token"),
            algorithms=self._algorithms("auth.token.signingalgorithms"),
        )

    def _algorithms(self, path: str) -> frozenset[str]:
        for name in self.texts(path):
            if name not in SIGNING_ALGORITHMS:
                raise ConfigError(f"{path}: {name} is not supported; {', '.join(SIGNING_ALGORITHMS)} are")
        return frozenset(self.texts(path))

    def _limits(self, base: Settings) -> dict[str, Any]:
        disabled = self.flag("validation.disabled", not base.validate_manifests)
        platforms = self.text("validation.manifests.indexes.platforms", "none")
        if platforms not in ("all", "none"):
            raise ConfigError(f"validation.manifests.indexes.platforms: all or none, not {platforms}")
        return {
            "catalog_max_entries": self.number("catalog.maxentries", base.catalog_max_entries),
            "tags_max": self.number("tags.maxtags", base.tags_max),
            "validate_manifests": not disabled,
            "sparse_indexes": platforms != "all",
            "url_allow": self._patterns("validation.manifests.urls.allow"),
            "url_deny": self._patterns("validation.manifests.urls.deny"),
            "health_files": tuple(Path(str(item.get("file", ""))) for item in self._get("health.file") or ()),
            "storage_check_seconds": self.seconds("health.storagedriver.interval", 10.0)
            if self.flag("health.storagedriver.enabled", False)
            else 0.0,
            "storage_check_threshold": self.number("health.storagedriver.threshold", 1) or 1,
        }

    def _patterns(self, path: str) -> tuple[str, ...]:
        for pattern in self.texts(path):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"{path}: {pattern!r} is no regular expression: {error}") from error
        return self.texts(path)

    def _log(self, base: Settings) -> dict[str, Any]:
        level = self.text("log.level") or self.text("loglevel") or base.log_level
        if level not in ("error", "warn", "info", "debug"):
            raise ConfigError(f"log.level: must be error, warn, info or debug, not {level}")
        form = self.text("log.formatter", base.log_format)
        if form not in ("text", "json", "logstash"):
            raise ConfigError(f"log.formatter: must be text, json or logstash, not {form}")
        return {
            "log_level": level,
            "log_format": form,
            "log_fields": {str(name): str(value) for name, value in (self._get("log.fields") or {}).items()}
            or base.log_fields,
            "access_log": not self.flag("log.accesslog.disabled", not base.access_log),
        }

    def _notifications(self, base: Settings) -> dict[str, Any]:
        hooks = []
        for position, entry in enumerate(self._get("notifications.endpoints") or ()):
            where = f"notifications.endpoints[{position}]"
            reader = _Reader(entry)
            if reader.flag("disabled", False):
                continue
            url = reader.text("url")
            if not url.startswith(("http://", "https://")):
                raise ConfigError(f"{where}.url: must be an http or https address")
            headers = entry.get("headers") or {}
            hooks.append(
                Webhook(
                    name=reader.text("name", url),
                    url=url,
                    headers={str(k): ", ".join(texts_of(v, f"{where}.headers")) for k, v in headers.items()},
                    timeout_seconds=reader.seconds("timeout", 5.0),
                    threshold=reader.number("threshold", 5) or 1,
                    backoff_seconds=reader.seconds("backoff", 5.0),
                    ignored_media_types=reader.texts("ignoredmediatypes") + reader.texts("ignore.mediatypes"),
                    ignored_actions=reader.texts("ignore.actions"),
                )
            )
        references = self.flag("notifications.events.includereferences", base.event_references)
        return {"webhooks": tuple(hooks) or base.webhooks, "event_references": references}

    def _berth(self, base: Settings) -> dict[str, Any]:
        changes: dict[str, Any] = {
            "anonymous": self.flag("berth.anonymous", base.anonymous),
            "tokens": self.flag("berth.tokens", base.tokens),
            "immutable_tags": self.texts("berth.immutable") or base.immutable_tags,
            "collect_interval_seconds": self.seconds("berth.gc.interval", base.collect_interval_seconds),
            "collect_grace_seconds": self.seconds("berth.gc.grace", base.collect_grace_seconds),
            "collect_untagged": self.flag("berth.gc.untagged", base.collect_untagged),
        }
        if self._has("berth.tls"):
            changes["own_tls_folder"] = self._own_tls_folder(base)
        if self._has("berth.groups"):
            groups = self._get("berth.groups") or {}
            changes["groups"] = {str(name): texts_of(users, f"berth.groups.{name}") for name, users in groups.items()}
        if self._has("berth.grants"):
            changes["grants"] = tuple(
                read_grant(entry, f"berth.grants[{i}]") for i, entry in enumerate(self._get("berth.grants") or ())
            )
        if self._has("berth.grantsfile"):
            changes.update(grants_file=Path(self.text("berth.grantsfile")), grants_file_optional=False)
        if self._has("berth.quotas"):
            quotas = self._get("berth.quotas") or {}
            changes["quotas"] = {
                str(prefix): parse_size(size, f"berth.quotas.{prefix}") for prefix, size in quotas.items()
            }
        if self._has("berth.warnings"):
            warnings = self._get("berth.warnings") or {}
            changes["warnings"] = {
                str(pattern): read_warning(text, f"berth.warnings.{pattern}") for pattern, text in warnings.items()
            }
        changes["upstreams"] = self._upstreams() or base.upstreams
        if self._has("berth.retention"):
            changes["retention"] = tuple(_retention(entry) for entry in self._get("berth.retention") or ())
        return changes

    def _own_tls_folder(self, base: Settings) -> Path | None:
        """Where a CA and certificate of our own lie; None: there are none."""
        value = self._get("berth.tls")
        if value is True:
            return self._root(base) / "berth" / "tls"
        if value in (None, False, ""):
            return None
        if not isinstance(value, str):
            raise ConfigError(
                "berth.tls: must be true (a CA and certificate of its own, below the root), false (none: plain HTTP), "
                "or the folder where they lie"
            )
        return Path(value)

    def _upstreams(self) -> tuple[Upstream, ...]:
        found = []
        if url := self.text("proxy.remoteurl").rstrip("/"):
            found.append(
                Upstream(
                    url=url,
                    username=self.text("proxy.username"),
                    password=self.text("proxy.password"),
                    ttl_seconds=self.seconds("proxy.ttl", 7 * 86400.0),
                )
            )
        for position, entry in enumerate(self._get("berth.upstreams") or ()):
            reader = _Reader(entry)
            url = reader.text("url").rstrip("/")
            if not url.startswith(("http://", "https://")):
                raise ConfigError(f"berth.upstreams[{position}].url: must be an http or https address")
            prefix, namespaces = reader.text("prefix").strip("/"), reader.texts("namespaces")
            home = prefix or next(iter(namespaces), urlsplit(url).hostname or "")
            if not is_repository_path(home):
                raise ConfigError(f"berth.upstreams[{position}].prefix: {home!r} cannot begin a repository's name")
            found.append(
                Upstream(
                    url=url,
                    prefix=home,
                    is_default=not prefix,
                    namespaces=namespaces,
                    username=reader.text("username"),
                    password=reader.text("password"),
                    ttl_seconds=reader.seconds("ttl", 7 * 86400.0),
                )
            )
        if len([upstream for upstream in found if upstream.is_default]) > 1:
            raise ConfigError("berth.upstreams: only one can be without prefix")
        return tuple(found)


def _retention(entry: dict[str, Any]) -> Retention:
    reader = _Reader(entry)
    return Retention(
        repositories=reader.texts("repositories") or ("**",),
        keep_last=reader.number("keeplast", 0),
        keep_seconds=reader.seconds("keepyounger", 0.0),
        keep_pulled_seconds=reader.seconds("keeppulled", 0.0),
        keep_tags=reader.texts("keeptags"),
    )


def read_grant(entry: Any, where: str) -> Grant:
    """A grant from `{who, repositories, actions}`."""
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: must be a mapping")
    reader = _Reader(entry)
    who, repositories = reader.text("who"), reader.texts("repositories")
    actions = frozenset(reader.texts("actions"))
    if not who or not repositories:
        raise ConfigError(f"{where}: who and repositories are needed")
    if "*" in actions:
        actions = _ACTIONS
    if not actions or actions - _ACTIONS:
        raise ConfigError(f"{where}.actions: any of pull, push, delete")
    return Grant(who, repositories, actions)
