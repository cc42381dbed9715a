"""The runtime's last words, and the counter of out-of-memory kills."""

from pathlib import Path

import pytest

from engine.shim import oom
from engine.shim.invoke import last_words, read_pid


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (
            (
                '{"level":"warning","msg":"careful"}\n'
                '{"level":"error","msg":"runc run failed: no"}\n'
                '{"level":"debug","msg":"x"}\n'
            ),
            "runc run failed: no",
        ),
        ('{"level":"warning","msg":"only this"}\n', "only this"),
        ("not json at all\n", "not json at all"),
        ("", "runtime ended with code 5"),
    ],
)
def test_the_last_error_counts(tmp_path: Path, log: str, words: str) -> None:
    (tmp_path / "log").write_text(log)
    assert last_words(str(tmp_path / "log"), 5) == words


def test_a_missing_log_is_no_surprise(tmp_path: Path) -> None:
    assert last_words(str(tmp_path / "none"), 1) == "runtime ended with code 1"


def test_a_pid_is_read(tmp_path: Path) -> None:
    (tmp_path / "pid").write_text("4711")
    assert read_pid(str(tmp_path / "pid")) == 4711


def test_kills_are_read_from_either_version(tmp_path: Path) -> None:
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    (tmp_path / "memory.events").write_text("low 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n")
    assert oom.kills(str(tmp_path / "memory.oom_control")) == 2
    assert oom.kills(str(tmp_path / "memory.events")) == 1
    assert oom.kills(str(tmp_path / "missing")) == 0
    assert oom.kills("") == 0
