"""What is asked of systemd, and what it is told."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from engine.runtime import hoststate


@pytest.mark.parametrize(
    ("answer", "stopping"), [("stopping\n", True), ("running\n", False), ("degraded\n", False), ("", False)]
)
async def test_whether_the_host_stops_is_systemds_to_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, stopping: bool
) -> None:
    async def run_program(argv: list[str], seconds: float) -> tuple[int, str, str]:
        assert argv == ["systemctl", "is-system-running"]
        return 1, answer, ""

    monkeypatch.setattr(hoststate, "SYSTEMD_RUNS", str(tmp_path))
    monkeypatch.setattr(hoststate, "run_program", run_program)
    assert await hoststate.host_is_stopping() is stopping


@pytest.mark.parametrize("failure", [FileNotFoundError(), TimeoutError()])
async def test_no_answer_is_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    async def run_program(argv: list[str], seconds: float) -> tuple[int, str, str]:
        raise failure

    monkeypatch.setattr(hoststate, "SYSTEMD_RUNS", str(tmp_path))
    monkeypatch.setattr(hoststate, "run_program", run_program)
    assert await hoststate.host_is_stopping() is False


async def test_without_systemd_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hoststate, "SYSTEMD_RUNS", str(tmp_path / "none"))
    assert await hoststate.host_is_stopping() is False


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_hears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind("\0" + name if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if abstract else name)
        hoststate.tell_service_manager_sync("READY=1")
        assert ear.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "/nobody/listens"])
def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    hoststate.tell_service_manager_sync("READY=1")
