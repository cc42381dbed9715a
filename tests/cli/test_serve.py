from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli.commands import berth
from cli.serve import flags_to_keys, serve


def _keys(*arguments: str) -> dict[str, Any]:
    params = serve.make_context("serve", list(arguments)).params
    params.pop("config_file")
    params.pop("validate")
    return flags_to_keys(params)


def test_nothing_given_says_nothing() -> None:
    assert _keys() == {}


def test_flags_become_the_keys_of_daemon_json() -> None:
    found = _keys(
        *("-H", "unix:///a", "-H", "tcp://127.0.0.1:1", "--data-root", "/d", "-D", "--icc=false", "--mtu", "1400"),
        *("--add-runtime", "youki=/usr/bin/youki", "--log-opt", "max-size=1m", "--default-ulimit", "nofile=10:20"),
        *("--default-address-pool", "base=10.0.0.0/8,size=24", "--registry-addr", "none"),
    )
    assert found == {
        "hosts": ["unix:///a", "tcp://127.0.0.1:1"],
        "data-root": "/d",
        "debug": True,
        "icc": False,
        "mtu": 1400,
        "runtimes": {"youki": {"path": "/usr/bin/youki"}},
        "log-opts": {"max-size": "1m"},
        "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 10, "Hard": 20}},
        "default-address-pools": [{"base": "10.0.0.0/8", "size": "24"}],
        "registry-addr": "none",
    }


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ('{"no-such-key": 1}', "no-such-key"),
        ("{", "invalid JSON"),
        ('{"mtu": "x"}', "mtu"),
        ("[]", "one JSON object"),
        ('{"registry": {"grant": []}}', "registry: unknown configuration key: grant"),
    ],
)
def test_a_bad_configuration_is_refused_with_its_name(tmp_path: Path, document: str, words: str) -> None:
    path = tmp_path / "daemon.json"
    path.write_text(document)
    result = CliRunner().invoke(berth, ["serve", "--config-file", str(path), "--validate"])
    assert result.exit_code == 1
    assert words in result.output


def test_a_good_configuration_is_said_to_be_good(tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    path.write_text('{"data-root": "/x", "log-level": "debug", "registry": {"immutable": ["**:v*"]}}')
    result = CliRunner().invoke(berth, ["serve", "--config-file", str(path), "--validate"])
    assert (result.exit_code, result.output) == (0, "configuration OK\n")
