"""Signals by name and number."""

from __future__ import annotations

import signal

import pytest

from engine.containers.signals import can_be_sent, parse_signal
from engine.errors import InvalidParameter


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("SIGTERM", 15),
        ("term", 15),
        ("sigkill", 9),
        ("9", 9),
        ("64", 64),
        ("USR1", 10),
        ("RTMIN", signal.SIGRTMIN),
        ("RTMIN+3", signal.SIGRTMIN + 3),
        ("sigrtmax-2", signal.SIGRTMAX - 2),
        ("SIGRTMAX", signal.SIGRTMAX),
    ],
)
def test_names_and_numbers(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "0", "-0", "SIGNOPE", "RTMIN+99", "RTMIN+x", "RTMAX-99", "²", "9 ", "SIGSIGTERM"])
def test_what_is_no_signal_is_named(text: str) -> None:
    with pytest.raises(InvalidParameter, match="invalid signal: "):
        parse_signal(text)


def test_any_number_is_taken_but_not_each_can_be_sent() -> None:
    assert [parse_signal(text) for text in ("65", "-3", "+9", "32")] == [65, -3, 9, 32]
    assert [number for number in range(-3, 100) if not can_be_sent(number)] == [-3, -2, -1, 0, 32, 33, *range(65, 100)]
