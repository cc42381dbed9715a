from __future__ import annotations

import platform
import socket
from pathlib import Path

import pytest

from cli import host_facts
from cli.host_facts import State


@pytest.mark.parametrize(
    ("release", "state"), [("6.1.0-18-amd64", State.OK), ("5.4", State.OK), ("4.19.0", State.MISSING), ("6", State.OK)]
)
def test_kernel_versions(monkeypatch: pytest.MonkeyPatch, release: str, state: State) -> None:
    monkeypatch.setattr(platform, "release", lambda: release)
    assert host_facts.kernel().state is state


def test_a_missing_program_is_named() -> None:
    assert host_facts._run("berth-no-such-program") == (False, "berth-no-such-program is not installed")


def test_a_taken_port_is_noticed() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        assert host_facts.registry_port(address).state is State.LIMITED
    assert host_facts.registry_port(address).state is State.OK


def test_a_socket_that_answers_is_noticed(short_root: Path) -> None:
    path = short_root / "d.sock"
    assert host_facts.api_socket(path).state is State.OK
    with socket.socket(socket.AF_UNIX) as holder:
        holder.bind(str(path))
        assert host_facts.api_socket(path).state is State.OK
        holder.listen()
        assert host_facts.api_socket(path).state is State.LIMITED


def test_a_missing_capability_is_named_with_its_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_facts.os, "geteuid", lambda: 0)
    monkeypatch.setattr(host_facts, "_text", lambda _path: f"CapEff:\t{(1 << 41) - 1 - (1 << 24):016x}\n")
    finding = host_facts.privileges()
    assert finding.state is State.LIMITED
    assert "CAP_SYS_RESOURCE" in finding.detail
    monkeypatch.setattr(host_facts, "_text", lambda _path: f"CapEff:\t{(1 << 41) - 1 - (1 << 21):016x}\n")
    assert host_facts.privileges().state is State.MISSING


def test_disk_space_is_measured_where_the_data_root_will_be(tmp_path: Path) -> None:
    assert str(tmp_path) in host_facts.disk(tmp_path / "not" / "there").detail
