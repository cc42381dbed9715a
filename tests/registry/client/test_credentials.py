"""The auth header and config.json."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from registry.client.credentials import (
    ANONYMOUS,
    INDEX_SERVER,
    AuthConfig,
    decode_auth_header,
    encode_auth_header,
    read_config_sync,
    server_of,
)


def test_header_round_trip() -> None:
    auth = AuthConfig(username="joe", password="s3cret?~", serveraddress="localhost:5000")
    assert decode_auth_header(encode_auth_header(auth)) == auth
    assert decode_auth_header(encode_auth_header(auth).rstrip("=")) == auth


@pytest.mark.parametrize(
    "value", ["", "!!!", base64.urlsafe_b64encode(b"[]").decode(), base64.b64encode(b"{").decode(), "e30="]
)
def test_what_cannot_be_read_is_anonymous(value: str) -> None:
    assert decode_auth_header(value) == ANONYMOUS
    assert decode_auth_header(value).is_empty


@pytest.mark.parametrize(
    ("auth", "pair"),
    [
        (AuthConfig(username="a", password="b"), ("a", "b")),
        (AuthConfig(auth=base64.b64encode(b"a:b:c").decode()), ("a", "b:c")),
        (AuthConfig(auth="***"), None),
        (AuthConfig(auth=base64.b64encode(b"nothing").decode()), None),
        (ANONYMOUS, None),
    ],
)
def test_user_and_password(auth: AuthConfig, pair: tuple[str, str] | None) -> None:
    assert auth.basic() == pair


@pytest.mark.parametrize(
    ("address", "server"),
    [
        ("", INDEX_SERVER),
        ("docker.io", INDEX_SERVER),
        ("https://index.docker.io/v1/", INDEX_SERVER),
        ("localhost:5000", "localhost:5000"),
        ("https://reg.example/v2/", "reg.example"),
        ("http://reg.example", "reg.example"),
    ],
)
def test_servers(address: str, server: str) -> None:
    assert server_of(address) == server


def test_config_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    assert read_config_sync(path) == {}
    path.write_text('{"auths": {"localhost:5000": {"auth": "am9lOnNlY3JldA=="}}, "other": 1}')
    assert read_config_sync(path)["localhost:5000"].basic() == ("joe", "secret")
    path.write_text("{")
    with pytest.raises(ValueError, match=r"config\.json"):
        read_config_sync(path)
