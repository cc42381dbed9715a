"""`berth check`: the host findings as a list for people, or as JSON; the exit code says whether containers can run."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import click

from cli.host_facts import State, look
from engine.config import Config

_COLOURS = {State.OK: "green", State.LIMITED: "yellow", State.MISSING: "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="A list of findings as JSON.")
@click.option("--data-root", type=click.Path(path_type=Path), default=None)
@click.option("--registry-addr", default=None)
def check(as_json: bool, data_root: Path | None, registry_addr: str | None) -> None:
    """Say what this host offers, and what to do about what is missing. Ends with 1 where containers cannot run."""
    config = Config()
    if data_root is not None:
        config = replace(config, data_root=data_root)
    if registry_addr is not None:
        config = replace(config, registry_addr=registry_addr)
    findings = []
    for finding in look(config):
        findings.append(finding)
        if as_json:
            continue
        click.echo(
            f"{click.style(finding.state.ljust(8), fg=_COLOURS[finding.state])} {finding.name}: {finding.detail}"
        )
        if finding.advice:
            click.echo(f"         → {finding.advice}")
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    if any(finding.state is State.MISSING for finding in findings):
        sys.exit(1)
