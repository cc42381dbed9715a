"""The keys of `config.yml`, as a tree: what registry:2 and 3 know, and our `berth` section. Data only.

`None` is a plain value, `OPEN` a mapping of anything, a list a list of what it holds.
"""

from __future__ import annotations

from typing import Any, Final

OPEN: Final[dict[str, Any]] = {"*": None}

_S3 = dict.fromkeys(
    """accesskey secretkey region regionendpoint bucket rootdirectory encrypt keyid secure skipverify v4auth chunksize
    multipartcopychunksize multipartcopymaxconcurrency multipartcopythresholdsize storageclass objectacl useragent
    usedualstack accelerate forcepathstyle loglevel usefipsendpoint redirectendpoint""".split()
)
_TLS = {
    "certificate": None,
    "key": None,
    "clientcas": None,
    "minimumtls": None,
    "ciphersuites": None,
    "letsencrypt": OPEN,
    "clientauth": None,
}
_ENDPOINT = {
    "name": None,
    "disabled": None,
    "url": None,
    "headers": OPEN,
    "timeout": None,
    "threshold": None,
    "backoff": None,
    "ignoredmediatypes": None,
    "ignore": {"mediatypes": None, "actions": None},
}
_GRANT = {"who": None, "repositories": None, "actions": None}

KNOWN_KEYS: Final[dict[str, Any]] = {
    "version": None,
    "log": {
        "level": None,
        "formatter": None,
        "fields": OPEN,
        "accesslog": {"disabled": None},
        "hooks": OPEN,
        "reportcaller": None,
    },
    "loglevel": None,
    "storage": {
        "filesystem": {"rootdirectory": None, "maxthreads": None},
        "inmemory": OPEN,
        "s3": _S3,
        "gcs": OPEN,
        "azure": OPEN,
        "swift": OPEN,
        "oss": OPEN,
        "cache": {"blobdescriptor": None, "layerinfo": None, "blobdescriptorsize": None},
        "delete": {"enabled": None},
        "redirect": {"disable": None},
        "maintenance": {
            "uploadpurging": {"enabled": None, "age": None, "interval": None, "dryrun": None},
            "readonly": {"enabled": None},
        },
        "tag": {"concurrencylimit": None},
    },
    "auth": {
        "none": OPEN,
        "htpasswd": {"realm": None, "path": None},
        "token": dict.fromkeys(
            "realm service issuer rootcertbundle jwks signingalgorithms autoredirect autoredirectpath".split()
        ),
        "silly": OPEN,
    },
    "middleware": OPEN,
    "reporting": OPEN,
    "compatibility": {"schema1": {"enabled": None, "signingkeyfile": None}},
    "http": {
        "addr": None,
        "net": None,
        "host": None,
        "prefix": None,
        "secret": None,
        "relativeurls": None,
        "draintimeout": None,
        "headers": OPEN,
        "http2": {"disabled": None},
        "h2c": {"enabled": None},
        "tls": _TLS,
        "debug": {"addr": None, "prometheus": {"enabled": None, "path": None}},
    },
    "notifications": {"events": {"includereferences": None}, "endpoints": [_ENDPOINT]},
    "redis": OPEN,
    "health": {
        "storagedriver": {"enabled": None, "interval": None, "threshold": None},
        "file": [{"file": None, "interval": None}],
        "http": [dict.fromkeys("uri headers statuscode timeout interval threshold".split())],
        "tcp": [dict.fromkeys("addr timeout interval threshold".split())],
    },
    "proxy": {
        "remoteurl": None,
        "username": None,
        "password": None,
        "ttl": None,
        "exec": OPEN,
        "cachewritetimeout": None,
    },
    "validation": {
        "disabled": None,
        "enabled": None,
        "manifests": {"urls": {"allow": None, "deny": None}, "indexes": {"platforms": None, "platformlist": OPEN}},
    },
    "policy": {"repository": {"classes": None}},
    "catalog": {"maxentries": None},
    "tags": {"maxtags": None},
    "berth": {
        "anonymous": None,
        "tokens": None,
        "tls": None,
        "groups": OPEN,
        "grants": [_GRANT],
        "grantsfile": None,
        "immutable": None,
        "quotas": OPEN,
        "warnings": OPEN,
        "gc": {"interval": None, "grace": None, "untagged": None},
        "retention": [dict.fromkeys("repositories keeplast keepyounger keeppulled keeptags".split())],
        "upstreams": [dict.fromkeys("url prefix namespaces username password ttl".split())],
    },
}

# The `registry` object of an engine's daemon.json: our section's keys stand at its top, beside registry:2's sections.
# Where an engine's registry listens and what it keeps its content in are the engine's own settings.
EMBEDDED_KEYS: Final[dict[str, Any]] = {
    **{name: keys for name, keys in KNOWN_KEYS["berth"].items() if name != "tls"},
    **{name: KNOWN_KEYS[name] for name in ("auth", "notifications", "health", "validation", "catalog", "tags")},
    "http": {name: keys for name, keys in KNOWN_KEYS["http"].items() if name not in ("addr", "net")},
    "storage": {name: KNOWN_KEYS["storage"][name] for name in ("delete", "maintenance")},
}

# Known, but berth does not do it: saying so beats ignoring it. Caches and Redis are left out on purpose: berth needs
# none.
UNSUPPORTED: Final[dict[str, str]] = {
    "storage.gcs": "this storage driver is not supported; filesystem and s3 are",
    "storage.azure": "this storage driver is not supported; filesystem and s3 are",
    "storage.swift": "this storage driver is not supported; filesystem and s3 are",
    "storage.oss": "this storage driver is not supported; filesystem and s3 are",
    "storage.inmemory": "this storage driver is not supported; filesystem and s3 are",
    **dict.fromkeys(
        [f"storage.s3.{name}" for name in "storageclass objectacl accelerate usedualstack usefipsendpoint".split()],
        "this option of S3 is not supported",
    ),
    "storage.s3.redirectendpoint": "addresses are signed for the endpoint itself",
    "auth.silly": "this kind of authentication is a test stub and not supported",
    "middleware": "middleware is not supported",
    "reporting": "reports to other services are not supported",
    "compatibility.schema1.enabled": "images of schema 1 are not supported",
    "storage.s3.v4auth": "requests are always signed with version 4",
    "http.tls.letsencrypt": "certificates from Let's Encrypt are left to other programs; berth takes up renewed files",
    "http.h2c.enabled": "HTTP/2 is not supported",
    "log.hooks": "mail hooks are not supported",
    "proxy.exec": "credential helpers are not supported",
    "policy.repository": "repository classes are not supported",
    "health.http": "http checks are not supported",
    "health.tcp": "tcp checks are not supported",
}

# Values of keys in `UNSUPPORTED` that say what is the case anyway.
HARMLESS: Final[dict[str, tuple[str | bool, ...]]] = {
    "storage.s3.storageclass": ("STANDARD",),
    "storage.s3.objectacl": ("private",),
    "storage.s3.v4auth": (True,),
}

# RFC 7518's names of what tokens may be signed with; shared secrets are left out on purpose.
SIGNING_ALGORITHMS: Final[tuple[str, ...]] = (
    *(kind + bits for kind in ("RS", "ES", "PS") for bits in ("256", "384", "512")),
    "EdDSA",
)

# Variables of registry:2's world that carry the prefix and are no configuration.
NOT_CONFIGURATION: Final[frozenset[str]] = frozenset({"REGISTRY_CONFIGURATION_PATH"})
