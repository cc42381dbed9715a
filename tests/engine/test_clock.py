"""Times and durations as Go reads and writes them."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.clock import SECOND, ZERO_TIME, duration_ns, now_ns, parse_rfc3339, rfc3339, rfc3339_fixed

YEAR_2100 = 4_102_444_800 * SECOND


def test_now_is_the_wall_clock() -> None:
    before = time.time_ns()
    assert before <= now_ns() <= time.time_ns()


@pytest.mark.parametrize(
    ("instant", "text"),
    [
        (0, ZERO_TIME),
        (SECOND, "1970-01-01T00:00:01Z"),
        (1_767_323_045_123_456_789, "2026-01-02T03:04:05.123456789Z"),
        (1_767_323_045_120_000_000, "2026-01-02T03:04:05.12Z"),
    ],
)
def test_rfc3339_drops_trailing_zeros(instant: int, text: str) -> None:
    assert rfc3339(instant) == text


def test_the_fixed_form_has_nine_digits() -> None:
    assert rfc3339_fixed(1_767_323_045 * SECOND) == "2026-01-02T03:04:05.000000000Z"
    assert rfc3339_fixed(1_767_323_045_120_000_000) == "2026-01-02T03:04:05.120000000Z"


@given(st.integers(1, YEAR_2100))
def test_both_forms_are_read_back(instant: int) -> None:
    assert parse_rfc3339(rfc3339(instant)) == instant
    assert parse_rfc3339(rfc3339_fixed(instant)) == instant


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("1970-01-02", 86_400 * SECOND),
        ("1970-01-02T00:01", 86_460 * SECOND),
        ("1970-01-02T00:01:02", 86_462 * SECOND),
        ("1970-01-01 00:00:01.5", SECOND + SECOND // 2),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01T00:00:00-00:30", 1800 * SECOND),
        ("1970-01-01t00:00:00z", 0),
        ("1970-01-01T00:00:00.1234567899Z", 123_456_789),
    ],
)
def test_partial_times_and_zones(text: str, instant: int) -> None:
    assert parse_rfc3339(text) == instant


@pytest.mark.parametrize(
    "text", ["", "yesterday", "1970-13-01", "1970-01-01T25:00:00Z", "1970-01-01T00:00:00X", "70-1-1"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_rfc3339(text)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("-0", 0),
        ("1ns", 1),
        ("3us", 3_000),
        ("3µs", 3_000),
        ("3μs", 3_000),
        ("5ms", 5_000_000),
        ("1.5s", 1_500_000_000),
        (".5s", 500_000_000),
        ("1.s", SECOND),
        ("2m", 120 * SECOND),
        ("1h30m", 5400 * SECOND),
        ("-1.5s", -1_500_000_000),
        ("+2s", 2 * SECOND),
        ("123456789.123456789s", 123_456_789_123_456_789),
    ],
)
def test_go_durations(text: str, nanoseconds: int) -> None:
    assert duration_ns(text) == nanoseconds


@pytest.mark.parametrize("text", ["", "-", "5", "5x", "s", "1h 2m", "--5s", "-+5s", "1h-2m", ".s", "٣s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        duration_ns(text)


@given(st.integers(-(10**18), 10**18))
def test_durations_round_trip_exactly(nanoseconds: int) -> None:
    hours, rest = divmod(abs(nanoseconds), 3600 * SECOND)
    minutes, rest = divmod(rest, 60 * SECOND)
    sign = "-" if nanoseconds < 0 else ""
    assert duration_ns(f"{sign}{hours}h{minutes}m{rest // SECOND}.{rest % SECOND:09d}s") == nanoseconds
