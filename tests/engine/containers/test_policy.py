"""Restart decisions and their back-off."""

from __future__ import annotations

import pytest

from engine.clock import SECOND
from engine.containers.policy import BackOff, starts_with_daemon, wants_restart
from engine.containers.settings import RestartPolicy


def policy(name: str, most: int = 0) -> RestartPolicy:
    return RestartPolicy(name=name, maximum_retry_count=most)


@pytest.mark.parametrize(
    ("name", "most", "exit_code", "restarts", "wanted"),
    [
        ("no", 0, 1, 0, False),
        ("", 0, 1, 0, False),
        ("always", 0, 0, 99, True),
        ("unless-stopped", 0, 0, 99, True),
        ("on-failure", 0, 0, 0, False),
        ("on-failure", 0, 1, 99, True),
        ("on-failure", 3, 1, 2, True),
        ("on-failure", 3, 1, 3, False),
    ],
)
def test_after_an_exit(name: str, most: int, exit_code: int, restarts: int, wanted: bool) -> None:
    assert wants_restart(policy(name, most), exit_code, restarts, manually_stopped=False) is wanted
    assert wants_restart(policy(name, most), exit_code, restarts, manually_stopped=True) is False


@pytest.mark.parametrize(
    ("name", "exit_code", "stopped", "was_running", "wanted"),
    [
        ("no", 1, False, True, False),
        ("always", 0, True, False, True),
        ("unless-stopped", 0, False, False, True),
        ("unless-stopped", 0, True, True, False),
        ("on-failure", 1, False, True, True),
        ("on-failure", 0, False, True, False),
        ("on-failure", 1, True, True, False),
        ("on-failure", 1, False, False, False),
    ],
)
def test_when_the_daemon_starts(name: str, exit_code: int, stopped: bool, was_running: bool, wanted: bool) -> None:
    for ever_started in (True, False):
        decided = starts_with_daemon(
            policy(name), exit_code, ever_started=ever_started, manually_stopped=stopped, was_running=was_running
        )
        assert decided is (wanted and ever_started)


def test_the_delay_doubles_up_to_a_minute() -> None:
    back_off = BackOff()
    delays = [back_off.next_delay(0) for _ in range(12)]
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert delays[-1] == 60.0
    assert delays == sorted(delays)


def test_a_run_of_ten_seconds_starts_over() -> None:
    back_off = BackOff(12.8)
    assert back_off.next_delay(10 * SECOND - 1) == 25.6
    assert back_off.next_delay(10 * SECOND) == 0.1
    assert back_off.next_delay(0) == 0.2
    back_off.reset()
    assert back_off.next_delay(0) == 0.1
