from pathlib import Path

from registry.config import Settings
from registry.server.grants import Grants

from .test_registry import berth


def test_grants_come_and_go(tmp_path: Path) -> None:
    config, file = tmp_path / "c.yml", tmp_path / "grants.yml"
    config.write_text(f"version: 0.1\nstorage: {{filesystem: {{}}}}\nberth: {{grantsfile: {file}}}\n")
    at = ("-c", str(config))
    assert berth("grant", "add", "ann", "team/**", "pull", "push", *at).output == "ann may pull, push in team/**\n"
    berth("grant", "add", "ann", "team/**", "pull", "push", *at)
    berth("grant", "add", "anonymous", "public/*", "pull", *at)
    assert berth("grant", "list", *at).output == "ann\tteam/**\tpull push\nanonymous\tpublic/*\tpull\n"
    grants = Grants(Settings(root=tmp_path, grants_file=file))
    grants._load_sync(file)
    assert grants.allows("ann", "team/a", "push") and grants.allows("", "public/x", "pull")
    assert berth("grant", "rm", "ann", "team/**", *at).exit_code == 0
    assert berth("grant", "rm", "ann", "team/**", *at).exit_code == 1
    assert berth("grant", "add", "ann", "x", "fly", *at).exit_code == 1
    config.write_text("version: 0.1\nstorage: {filesystem: {}}\n")
    assert "no file of grants" in berth("grant", "add", "a", "b", "pull", *at).output


def test_without_a_configuration_they_lie_beside_the_users(tmp_path: Path) -> None:
    assert berth("grant", "list", "--root", str(tmp_path)).output == ""
    assert berth("grant", "add", "ann", "x", "pull", "--root", str(tmp_path)).exit_code == 0
    assert (tmp_path / "berth" / "grants.yml").exists()


def test_grants_survive_a_power_loss(tmp_path: Path, synced: list[str]) -> None:
    assert berth("grant", "add", "ann", "x", "pull", "--root", str(tmp_path)).exit_code == 0
    assert berth("grant", "rm", "ann", "x", "--root", str(tmp_path)).exit_code == 0
    assert synced == ["grants", "berth", "grants", "berth"]
