from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from cli import logins


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))


def _header(image: str) -> dict[str, str]:
    return dict(json.loads(base64.urlsafe_b64decode(logins.auth_header(image)["X-Registry-Auth"])))


def test_a_login_is_sent_to_its_registry_only() -> None:
    path = logins.remember("localhost:5000", "me", "pass:word")
    assert path.stat().st_mode & 0o777 == 0o600
    assert _header("localhost:5000/a/b:c") == {
        "username": "me",
        "password": "pass:word",
        "serveraddress": "localhost:5000",
    }
    assert _header("busybox") == {}


def test_what_others_keep_in_the_file_stays() -> None:
    logins.config_file().parent.mkdir()
    logins.config_file().write_text('{"psFormat": "x", "auths": {"other": {}}}')
    logins.remember(logins.DOCKER_HUB, "me", "secret")
    assert logins.forget(logins.DOCKER_HUB) is True
    assert logins.forget(logins.DOCKER_HUB) is False
    assert json.loads(logins.config_file().read_text()) == {"psFormat": "x", "auths": {"other": {}}}


def test_a_token_of_a_token_service_stands_in_for_the_password() -> None:
    entry = {"auth": base64.b64encode(b"ann:").decode(), "identitytoken": "refresh"}
    logins.config_file().parent.mkdir()
    logins.config_file().write_text(json.dumps({"auths": {"reg:5000": entry}}))
    expected = {"username": "ann", "identitytoken": "refresh", "serveraddress": "reg:5000"}
    assert _header("reg:5000/a") == logins.login_of("reg:5000") == expected
    assert logins.login_of("other:5000") == {}


def test_a_login_survives_a_power_loss(synced: list[str]) -> None:
    logins.remember("reg:5000", "me", "secret")
    assert synced == ["config", "docker"]
