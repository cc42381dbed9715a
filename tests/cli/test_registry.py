from pathlib import Path

import pytest
import uvloop
from click.testing import CliRunner, Result

from cli.registry import registry

# libuv makes a pipe for the whole process with its first loop; it is nobody's leak.
uvloop.new_event_loop().close()


def berth(*arguments: str, **options: str) -> Result:
    return CliRunner().invoke(registry, list(arguments), **options)  # type: ignore[arg-type]


def test_users_are_kept_beside_the_data(tmp_path: Path) -> None:
    root = ["--root", str(tmp_path)]
    added = berth("user", "add", "ann", "--password-stdin", "--cost", "4", *root, input="secret\n")
    assert added.output == "added ann\n"
    berth("user", "add", "bob", "--cost", "4", *root, input="pw\npw\n")
    assert berth("user", "list", *root).output == "ann\nbob\n"
    assert berth("user", "rm", "ann", *root).output == "removed ann\n"
    missing = berth("user", "rm", "ann", *root)
    assert missing.exit_code == 1 and "no such user" in missing.output
    assert berth("user", "add", "a:b", "--password-stdin", *root, input="x\n").exit_code == 1


def test_the_ca_is_made_once(tmp_path: Path) -> None:
    first = berth("ca", "--root", str(tmp_path))
    assert first.output.startswith("-----BEGIN CERTIFICATE-----")
    assert berth("ca", "--root", str(tmp_path)).output == first.output


def test_serving_everybody_needs_to_be_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.registry._set_up_logging", lambda _: None)
    refused = berth("serve", "--root", str(tmp_path), "--addr", "0.0.0.0:0")
    assert refused.exit_code == 1 and "refusing to serve everybody" in refused.output


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version: 0.1\nstorage: {filesystem: {}}\nhttp: {adr: x}", "unknown configuration key: http.adr"),
        ("version: 0.2", "version must be 0.1"),
        ("version: 0.1\nstorage: {filesystem: {}}", "names no htpasswd file"),
    ],
)
def test_mistakes_in_the_configuration_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config.yml"
    path.write_text(text)
    answer = berth("user", "list", "-c", str(path))
    assert answer.exit_code == 1 and words in answer.output
