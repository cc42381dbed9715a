import pytest

from registry.patterns import matches, matches_any


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("team/*", "team/app", True),
        ("team/*", "team/app/sub", False),
        ("team/**", "team/app/sub", True),
        ("team/**", "team", True),
        ("team/**", "teams/app", False),
        ("**", "anything/at/all", True),
        ("v?", "v1", True),
        ("v?", "v12", False),
        ("a.b", "axb", False),
        ("", "", True),
        ("[ab]", "a", False),
    ],
)
def test_stars_stop_at_slashes_unless_doubled(pattern: str, name: str, fits: bool) -> None:
    assert matches(pattern, name) is fits


def test_one_fitting_pattern_is_enough() -> None:
    assert matches_any(["x", "y*"], "yes")
    assert not matches_any([], "yes")
