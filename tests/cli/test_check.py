from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from cli import check as check_module
from cli.commands import berth
from cli.host_facts import Finding, State


@pytest.mark.parametrize(("worst", "code"), [(State.OK, 0), (State.LIMITED, 0), (State.MISSING, 1)])
def test_the_exit_code_says_whether_containers_can_run(
    monkeypatch: pytest.MonkeyPatch, worst: State, code: int
) -> None:
    findings = [Finding("kernel", State.OK, "6.1"), Finding("runtime", worst, "x", "install it")]
    monkeypatch.setattr(check_module, "look", lambda config: iter(findings))
    result = CliRunner().invoke(berth, ["check"])
    assert result.exit_code == code
    assert "runtime: x" in result.output
    assert "→ install it" in result.output


def test_json_is_the_same_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        check_module, "look", lambda config: iter([Finding("disk", State.LIMITED, "1 GiB", "free some")])
    )
    result = CliRunner().invoke(berth, ["check", "--json", "--registry-addr", "none"])
    assert json.loads(result.output) == [{"name": "disk", "state": "limited", "detail": "1 GiB", "advice": "free some"}]
