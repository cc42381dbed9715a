import pytest

from registry.configvalues import ConfigError, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"), [("10s", 10.0), ("1h30m", 5400.0), ("300ms", 0.3), ("2d", 172800.0), ("0", 0.0), (5, 5e-9)]
)
def test_durations_are_gos(text: object, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


def test_wrong_durations_and_sizes_are_refused() -> None:
    for text in ("", "h", "10", "1x", "-1s"):
        with pytest.raises(ConfigError):
            parse_duration(text)
    assert (parse_size("500MB"), parse_size(7), parse_size("1 KiB")) == (500 * 1024**2, 7, 1024)
    with pytest.raises(ConfigError):
        parse_size("1.5G")
