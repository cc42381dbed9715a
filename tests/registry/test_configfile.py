import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from registry.config import Settings, split_address
from registry.configfile import embedded_settings, load_settings
from registry.configvalues import ConfigError, openssl_cipher

BASE = Settings(root=Path("/base"), own_tls_folder=Path("/base/tls"), htpasswd=Path("/base/users"))

BARE = "version: 0.1\nstorage: {filesystem: {rootdirectory: /data}}\n"

FULL = """
version: 0.1
log: {level: debug, formatter: json, accesslog: {disabled: true}, fields: {service: registry}}
storage:
  cache: {blobdescriptor: inmemory}
  filesystem: {rootdirectory: /data, maxthreads: 100}
  delete: {enabled: true}
  maintenance: {uploadpurging: {enabled: true, age: 48h, interval: 1h30m, dryrun: false}, readonly: {enabled: true}}
auth: {htpasswd: {realm: here, path: /users}}
http:
  addr: 0.0.0.0:5000
  host: https://reg.example.com
  secret: x
  relativeurls: true
  headers: {X-Content-Type-Options: [nosniff], X-Two: [a, b]}
  tls: {certificate: /c, key: /k, clientcas: [/ca], minimumtls: tls1.3}
  debug: {addr: ":5001", prometheus: {enabled: true, path: /m}}
notifications:
  endpoints:
    - {name: one, url: "http://hook/", timeout: 500ms, threshold: 3, backoff: 2s, headers: {Authorization: [Bearer t]},
       ignore: {actions: [pull]}, ignoredmediatypes: [application/octet-stream]}
    - {name: off, url: "http://hook/", disabled: true}
proxy: {remoteurl: "https://registry-1.docker.io", username: u, password: p, ttl: 24h}
validation: {manifests: {urls: {allow: ["^https://"]}}}
catalog: {maxentries: 500}
berth:
  tokens: true
  groups: {devs: [ann]}
  grants: [{who: "@devs", repositories: ["team/**"], actions: ["*"]}]
  immutable: ["rel/*:v*"]
  quotas: {team: 10GiB}
  gc: {interval: 24h, grace: 2h}
  retention: [{repositories: ["ci/**"], keeplast: 3, keepyounger: 7d}]
"""


def load(tmp_path: Path, text: str, environment: dict[str, str] | None = None) -> Settings:
    path = tmp_path / "config.yml"
    path.write_text(text)
    return load_settings(path, environment or {}, BASE)


def test_every_section_arrives(tmp_path: Path) -> None:
    settings = load(tmp_path, FULL)
    assert settings.root == Path("/data") and settings.listen_on() == ("0.0.0.0", 5000)
    assert settings.tls is not None and settings.tls.minimum == "tls1.3" and settings.own_tls_folder is None
    assert settings.headers == {"X-Content-Type-Options": "nosniff", "X-Two": "a, b"}
    assert (settings.purge_age_seconds, settings.purge_interval_seconds) == (172800.0, 5400.0)
    assert settings.read_only and settings.delete_enabled and settings.relative_urls
    assert (settings.htpasswd, settings.realm) == (Path("/users"), "here")
    assert [hook.name for hook in settings.webhooks] == ["one"]
    assert settings.webhooks[0].timeout_seconds == 0.5
    assert settings.webhooks[0].headers == {"Authorization": "Bearer t"}
    assert (settings.upstreams[0].prefix, settings.upstreams[0].ttl_seconds) == ("", 86400.0)
    assert settings.grants[0].actions == {"pull", "push", "delete"}
    assert settings.quotas == {"team": 10 * 1024**3}
    assert settings.retention[0].keep_seconds == 7 * 86400
    assert (settings.metrics_path, settings.log_format, settings.access_log) == ("/m", "json", False)


def test_a_bare_file_means_what_it_means_to_registry2(tmp_path: Path) -> None:
    settings = load(tmp_path, "version: 0.1\nstorage: {filesystem: }\n")
    assert settings.root == Path("/var/lib/registry")
    assert not settings.serves_tls and settings.htpasswd is None and not settings.delete_enabled


def test_without_a_file_the_base_stays() -> None:
    settings = load_settings(None, {"REGISTRY_HTTP_ADDR": "127.0.0.1:1"}, BASE)
    assert settings.own_tls_folder == BASE.own_tls_folder and settings.address == "127.0.0.1:1"


def test_the_environment_overrides_and_is_yaml(tmp_path: Path) -> None:
    environment = {
        "REGISTRY_STORAGE_DELETE_ENABLED": "true",
        "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": "/env",
        "REGISTRY_HTTP_HEADERS_X-Foo": "['a']",
        "REGISTRY_NOTIFICATIONS_ENDPOINTS_0_URL": "http://hook/0",
        "REGISTRY_LOG_LEVEL": "warn",
        "REGISTRY_CONFIGURATION_PATH": "/ignored",
        "UNRELATED": "1",
    }
    settings = load(tmp_path, "version: 0.1\nstorage: {filesystem: {}}\n", environment)
    assert settings.delete_enabled and settings.root == Path("/env") and settings.log_level == "warn"
    assert settings.headers == {"x-foo": "a"} and settings.webhooks[0].url == "http://hook/0"


@pytest.mark.parametrize(
    ("value", "folder"),
    [("true", "/data/berth/tls"), ("on", "/data/berth/tls"), ("false", None), ("", None), ("/tls", "/tls")],
)
def test_tls_of_our_own_is_had_by_a_word(tmp_path: Path, value: str, folder: str | None) -> None:
    file = tmp_path / "config.yml"
    file.write_text(BARE)
    settings = load_settings(file, {"REGISTRY_BERTH_TLS": value}, BASE)
    assert settings.own_tls_folder == (Path(folder) if folder else None)


def test_tls_of_our_own_lies_below_the_root_without_a_file_too() -> None:
    assert load_settings(None, {"REGISTRY_BERTH_TLS": "true"}, BASE).own_tls_folder == Path("/base/berth/tls")
    with pytest.raises(ConfigError, match="the folder where they lie"):
        load_settings(None, {"REGISTRY_BERTH_TLS": "1"}, BASE)


def test_a_variable_can_say_a_text_that_looks_like_a_flag() -> None:
    with pytest.raises(ConfigError, match="in a variable they belong to the value"):
        load_settings(None, {"REGISTRY_HTTP_HOST": "no"}, BASE)
    assert load_settings(None, {"REGISTRY_HTTP_HOST": '"no"'}, BASE).host == "no"


def test_naming_a_kind_alone_replaces_the_section(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        "version: 0.1\nstorage: {s3: {bucket: b}}\n",
        {"REGISTRY_STORAGE": "filesystem", "REGISTRY_AUTH": "htpasswd", "REGISTRY_AUTH_HTPASSWD_PATH": "/u"},
    )
    assert settings.s3 is None and settings.htpasswd == Path("/u")


def test_unknown_variables_are_passed_over_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    # Kubernetes sets REGISTRY_PORT and the like for a service that is called "registry".
    settings = load_settings(None, {"REGISTRY_PORT": "tcp://10.0.0.1:5000", "REGISTRY_SERVICE_HOST": "10.0.0.1"}, BASE)
    assert settings.address == BASE.address
    assert "REGISTRY_PORT" in caplog.text and "REGISTRY_SERVICE_HOST" in caplog.text


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("storage: {filesystem: {}}", "version"),
        ("version: 0.1", "storage"),
        ("version: 0.1\nstorage: {filesystem: {rootdir: /x}}", "storage.filesystem.rootdir"),
        ("version: 0.1\nstorage: {filesystem: {}}\nnonsense: 1", "nonsense"),
        ("version: 0.1\nstorage: {filesystem: {}, s3: {bucket: b}}", "multiple storage drivers"),
        ("version: 0.1\nstorage: {inmemory: {}}", "storage.inmemory"),
        ("version: 0.1\nstorage: {gcs: {bucket: x}}", "storage.gcs"),
        ("version: 0.1\nstorage: {filesystem: {}, delete: {enabled: maybe}}", "storage.delete.enabled"),
        ("version: 0.1\nstorage: {filesystem: {}}\nhttp: {addr: nowhere}", "http.addr"),
        ("version: 0.1\nstorage: {filesystem: {}}\nhttp: {tls: {certificate: /c}}", "http.tls"),
        ("version: 0.1\nstorage: {filesystem: {}}\nberth: {tls: 1}", "berth.tls: must be true"),
        ("version: 0.1\nstorage: {filesystem: {}}\nproxy: {remoteurl: 'https://x', password: on}", "proxy.password"),
        ("version: 0.1\nstorage: {filesystem: {}}\nauth: {htpasswd: {realm: x}}", "auth.htpasswd.path"),
        ("version: 0.1\nstorage: {filesystem: {}}\nauth: {token: {realm: x}}", "auth.token.service"),
        ("version: 0.1\nstorage: {filesystem: {}}\nlog: {level: loud}", "log.level"),
        ("version: 0.1\nstorage: {filesystem: {}}\nberth: {grants: [{who: a}]}", "berth.grants[0]"),
        ("version: 0.1\nstorage: {filesystem: {}}\nberth: {quotas: {a: lots}}", "berth.quotas.a"),
        ('version: 0.1\nstorage: {filesystem: {}}\nberth: {warnings: {"a/**": "two\\nlines"}}', "berth.warnings.a/**"),
        ("version: 0.1\nstorage: {s3: {bucket: b, storageclass: GLACIER}}", "storage.s3.storageclass"),
        (
            "version: 0.1\nstorage: {filesystem: {}}\nhttp: {tls: {certificate: /c, key: /k, clientauth: none}}",
            "clientauth",
        ),
        (
            "version: 0.1\nstorage: {filesystem: {}}\nhttp: {tls: {certificate: /c, key: /k, ciphersuites: [RC4]}}",
            "http.tls.ciphersuites: RC4",
        ),
        ("version: 0.1\nstorage: {filesystem: {}}\nhttp: {h2c: {enabled: true}}", "http.h2c.enabled"),
        (
            "version: 0.1\nstorage: {filesystem: {}}\nvalidation: {manifests: {indexes: {platforms: list}}}",
            "validation.manifests.indexes.platforms",
        ),
        ("- a list", "mapping"),
        ("{", "cannot read"),
    ],
)
def test_mistakes_are_errors_that_name_the_key(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert key in str(caught.value)


def test_addresses() -> None:
    assert split_address("[::1]:5000") == ("::1", 5000)
    assert split_address(":5000") == ("", 5000)
    for text in ("host", "host:", "host:x", "host:70000"):
        with pytest.raises(ValueError):
            split_address(text)


def test_an_engines_registry_is_told_by_one_object(tmp_path: Path) -> None:
    base = Settings(root=tmp_path, address="127.0.0.1:5000", own_tls_folder=tmp_path / "tls", delete_enabled=True)
    document = {
        "tokens": True,
        "groups": {"devs": ["ann", "bob"]},
        "grants": [{"who": "@devs", "repositories": ["team/**"], "actions": ["pull", "push"]}],
        "immutable": ["team/**:v*"],
        "quotas": {"team": "2GiB"},
        "warnings": {"old/**": "moved"},
        "gc": {"interval": "12h", "untagged": True},
        "retention": [{"repositories": ["ci/**"], "keeplast": 3}],
        "upstreams": [{"prefix": "docker.io", "url": "https://registry-1.docker.io", "namespaces": ["docker.io"]}],
        "storage": {"maintenance": {"readonly": {"enabled": True}}},
        "http": {"debug": {"addr": "127.0.0.1:5001"}},
        "notifications": {"endpoints": [{"url": "http://127.0.0.1:9/x"}]},
    }
    settings = embedded_settings(document, base)
    assert (settings.root, settings.address, settings.own_tls_folder) == (base.root, base.address, base.own_tls_folder)
    assert settings.tokens and settings.groups == {"devs": ("ann", "bob")}
    assert settings.grants[0].actions == {"pull", "push"}
    assert settings.immutable_tags == ("team/**:v*",)
    assert settings.quotas == {"team": 2 * 1024**3}
    assert settings.warnings == {"old/**": "moved"}
    assert (settings.collect_interval_seconds, settings.collect_untagged) == (43200.0, True)
    assert settings.retention[0].keep_last == 3
    assert settings.upstreams[0].prefix == "docker.io"
    assert settings.read_only and settings.delete_enabled
    assert settings.debug_address == "127.0.0.1:5001"
    assert settings.webhooks[0].url == "http://127.0.0.1:9/x"
    assert embedded_settings({}, base) == replace(base, source="daemon.json")


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"grant": []}, "registry: unknown configuration key: grant"),
        ({"grants": [{"who": "a"}]}, "registry: grants[0]: who and repositories are needed"),
        ({"grants": [{"who": "a", "where": "b"}]}, "registry: unknown configuration key: grants[0].where"),
        ({"quotas": {"team": "much"}}, "registry: quotas.team: 'much' is no size"),
        ({"upstreams": [{"url": "docker.io"}]}, "registry: upstreams[0].url: must be"),
        ({"http": {"addr": ":1"}}, "registry: unknown configuration key: http.addr"),
        ({"storage": {"s3": {}}}, "registry: unknown configuration key: storage.s3"),
        ({"tls": "/x"}, "registry: unknown configuration key: tls"),
    ],
)
def test_what_an_engines_registry_does_not_know_is_named(
    tmp_path: Path, document: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        embedded_settings(document, Settings(root=tmp_path))
    assert str(caught.value).startswith(words)


def test_settings_of_tls_and_s3_are_honoured(tmp_path: Path) -> None:
    tls = (
        "certificate: /c, key: /k, clientcas: [/ca], clientauth: verify-client-cert-if-given,"
        " ciphersuites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256]"
    )
    s3 = "bucket: b, encrypt: true, keyid: k, storageclass: STANDARD, objectacl: private"
    settings = load(tmp_path, f"version: 0.1\nstorage: {{s3: {{{s3}}}}}\nhttp: {{tls: {{{tls}}}}}")
    assert settings.tls is not None and settings.s3 is not None
    assert settings.tls.ciphers == "ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-CHACHA20-POLY1305"
    assert settings.tls.client_optional
    assert (settings.s3.encrypt, settings.s3.key_id) == (True, "k")
    names = ("TLS_RSA_WITH_AES_256_CBC_SHA", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers(":".join(map(openssl_cipher, names)))
    assert {"AES256-SHA", "ECDHE-RSA-AES256-GCM-SHA384"} <= {cipher["name"] for cipher in context.get_ciphers()}


def test_what_tokens_may_be_signed_with(tmp_path: Path) -> None:
    token = "auth: {token: {realm: r, service: s, issuer: i, jwks: /k, signingalgorithms: [%s]}}"
    settings = load(tmp_path, BARE + token % "RS256, ES256")
    assert settings.token_auth is not None and settings.token_auth.algorithms == {"RS256", "ES256"}
    with pytest.raises(ConfigError, match=r"auth\.token\.signingalgorithms: HS256"):
        load(tmp_path, BARE + token % "HS256")


def test_fields_and_form_of_the_log(tmp_path: Path) -> None:
    assert load(tmp_path, BARE + "log: {fields: {service: x, n: 1}}").log_fields == {"service": "x", "n": "1"}
    with pytest.raises(ConfigError, match=r"log\.formatter"):
        load(tmp_path, BARE + "log: {formatter: xml}")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("reporting: {bugsnag: {apikey: k}}", "reporting"),
        ("compatibility: {schema1: {enabled: true}}", r"compatibility\.schema1\.enabled"),
    ],
)
def test_what_is_not_done_is_named(tmp_path: Path, text: str, key: str) -> None:
    load(tmp_path, BARE + "compatibility: {schema1: {enabled: false}}")
    with pytest.raises(ConfigError, match=key):
        load(tmp_path, BARE + text)


def test_users_that_the_configuration_names_must_be_there(tmp_path: Path) -> None:
    base = replace(BASE, htpasswd_optional=True)
    assert not load_settings(None, {"REGISTRY_AUTH_HTPASSWD_PATH": "/users"}, base).htpasswd_optional
    assert load_settings(None, {}, base).htpasswd_optional


def test_upstreams_without_prefix_have_a_home(tmp_path: Path) -> None:
    text = (
        BARE
        + """proxy: {remoteurl: "https://all/"}
berth:
  upstreams:
    - {url: "https://registry-1.docker.io", namespaces: [docker.io]}
    - {url: "https://ghcr.io/", prefix: github}
"""
    )
    found = [(item.url, item.prefix, item.is_default) for item in load(tmp_path, text).upstreams]
    assert found == [
        ("https://all", "", False),
        ("https://registry-1.docker.io", "docker.io", True),
        ("https://ghcr.io", "github", False),
    ]
    for upstreams in ('[{url: "https://a"}, {url: "https://b"}]', '[{url: "https://[::1]"}]'):
        with pytest.raises(ConfigError, match=r"berth\.upstreams"):
            load(tmp_path, BARE + f"berth: {{upstreams: {upstreams}}}")
