from pathlib import Path

import pytest

from cli.registry_settings import default_settings, settings_for


def test_without_configuration_it_is_safe(tmp_path: Path) -> None:
    settings = default_settings(tmp_path)
    assert settings.address.startswith("127.0.0.1:") and settings.serves_tls and not settings.anonymous
    assert settings.htpasswd is not None and settings.htpasswd.is_relative_to(tmp_path)


def test_the_command_line_outweighs_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.yml"
    path.write_text("version: 0.1\nstorage: {filesystem: {rootdirectory: /from/file}}\n")
    assert settings_for(str(path), None).root == Path("/from/file")
    assert settings_for(str(path), "/from/line").root == Path("/from/line")
    monkeypatch.setenv("REGISTRY_CONFIGURATION_PATH", str(path))
    assert settings_for(None, None).root == Path("/from/file")
    monkeypatch.setenv("REGISTRY_HTTP_ADDR", "127.0.0.1:9")
    assert settings_for(None, None).address == "127.0.0.1:9"
