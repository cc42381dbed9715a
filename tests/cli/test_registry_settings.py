import os
import tempfile
from pathlib import Path

import pytest

from cli.registry_settings import as_owner, default_settings, settings_for


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


def test_variables_alone_keep_everything_beside_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REGISTRY_CONFIGURATION_PATH", raising=False)
    monkeypatch.setenv("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", str(tmp_path))
    settings = settings_for(None, None)
    assert settings.root == tmp_path
    for path in (settings.own_tls_folder, settings.htpasswd, settings.grants_file):
        assert path is not None and path.is_relative_to(tmp_path)
    assert settings_for(None, "/from/line").root == Path("/from/line")
    monkeypatch.setenv("REGISTRY_BERTH_TLS", "false")
    assert not settings_for(None, None).serves_tls


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as somebody else")
def test_root_acts_as_the_owner_of_what_it_changes() -> None:
    # Not tmp_path: that lies in a folder which nobody else may enter.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        outer, folder = Path(name), Path(name) / "registry"
        folder.mkdir()
        outer.chmod(0o755)
        os.chown(folder, 12345, 12346)
        with as_owner(folder / "berth" / "tls"):
            (folder / "made").mkdir()
        status = (folder / "made").stat()
        assert (status.st_uid, status.st_gid, os.geteuid(), os.getegid()) == (12345, 12346, 0, 0)
        with as_owner(outer):
            (outer / "own").touch()
        assert (outer / "own").stat().st_uid == 0
