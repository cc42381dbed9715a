"""The forms of a syslog record, and how they travel."""

import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from engine.shim import syslog
from engine.shim.syslog import Syslog, rfc3339
from engine.shim.wire import STDERR, STDOUT

AT = 1_700_000_000_123_456_789
PID = os.getpid()


def settings(path: Path, **changed: Any) -> dict[str, Any]:
    given = {"network": "unixgram", "address": str(path), "facility": 3, "format": "", "tag": "t", "hostname": "h"}
    return given | changed


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "localtime", time.gmtime)


@pytest.mark.parametrize(
    ("form", "record"),
    [
        ("", f"<30>Nov 14 22:13:20 t[{PID}]: hello\n"),
        ("rfc3164", f"<30>Nov 14 22:13:20 h t[{PID}]: hello\n"),
        ("rfc5424", f"<30>1 2023-11-14T22:13:20Z h t {PID} t - hello\n"),
        ("rfc5424micro", f"<30>1 2023-11-14T22:13:20.123456Z h t {PID} t - hello\n"),
    ],
)
def test_formats(tmp_path: Path, form: str, record: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "log"))
        sink = Syslog(settings(tmp_path / "log", format=form))
        sink.send([(AT, STDOUT, b"hello", None), (AT, STDOUT, b"", None), (AT, STDERR, b"bad", None)])
        assert server.recv(1000).decode() == record
        assert server.recv(1000).startswith(b"<27>")
        sink.close()


def test_a_stream_carries_many_records_and_is_made_again(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "log"))
        server.listen(2)
        sink = Syslog(settings(tmp_path / "log", network="unix"))
        sink.send([(AT, STDOUT, b"one", None), (AT, STDOUT, b"two", None)])
        first, _ = server.accept()
        assert re.findall(r": (\w+)\n", first.recv(1000).decode()) == ["one", "two"]
        first.close()
        sink.send([(AT, STDOUT, b"three", None)])
        second, _ = server.accept()
        assert second.recv(1000).endswith(b": three\n")
        second.close()
        sink.close()


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(syslog, "_LOCAL", (str(tmp_path / "none"),))
    with pytest.raises(OSError, match="^Unix syslog delivery error$"):
        Syslog(settings(tmp_path, network=""))


def test_the_machines_own_syslog_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(syslog, "_LOCAL", (str(tmp_path / "none"), str(tmp_path / "log")))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "log"))
        sink = Syslog(settings(tmp_path, network=""))
        sink.send([(AT, STDOUT, b"here", None)])
        assert server.recv(100).endswith(b": here\n")
        sink.close()


def test_times_have_the_machines_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert re.fullmatch(r"2023-11-1\dT\d\d:\d\d:20(Z|[+-]\d\d:\d\d)", rfc3339(AT, micro=False))
