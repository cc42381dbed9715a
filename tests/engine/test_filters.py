"""The filters query language: parsing, and each way of matching."""

from __future__ import annotations

import pytest

from engine.clock import SECOND
from engine.errors import InvalidParameter
from engine.filters import Filters

ALLOWED = {"label", "name", "id", "dangling", "label!", "until"}


def parse(raw: str | None) -> Filters:
    return Filters.parse(raw, ALLOWED)


@pytest.mark.parametrize("raw", [None, "", "{}"])
def test_nothing_asked_is_falsy_and_lets_everything_through(raw: str | None) -> None:
    filters = parse(raw)
    assert not filters
    assert filters.matches("name", "x")
    assert filters.matches_pattern("name", "x")
    assert filters.matches_prefix("id", "x")
    assert filters.match_labels({})
    assert not filters.excludes_labels({"a": "b"})
    assert "name" not in filters


def test_lists_and_the_older_maps_mean_the_same() -> None:
    assert parse('{"name": ["a", "b"]}').get("name") == ("a", "b")
    older = parse('{"name": {"a": true, "b": false}}')
    assert older.get("name") == ("a",)
    assert "name" in older
    assert older


@pytest.mark.parametrize("raw", ["[", "[]", '{"name": "a"}', '{"name": [1]}', '{"name": {"a": "b"}}'])
def test_bad_json_is_the_clients_error(raw: str) -> None:
    with pytest.raises(InvalidParameter, match="invalid filter"):
        parse(raw)


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(InvalidParameter, match="^invalid filter 'colour'$"):
        parse('{"colour": ["red"]}')


def test_exact_pattern_and_prefix() -> None:
    filters = parse('{"name": ["web.*1", "db"], "id": ["ab", "cd"]}')
    assert filters.matches("name", "db")
    assert not filters.matches("name", "db2")
    assert filters.matches_pattern("name", "my-web-1")
    assert filters.matches_pattern("name", "db2")
    assert not filters.matches_pattern("name", "cache")
    assert filters.matches_prefix("id", "cdef")
    assert not filters.matches_prefix("id", "xab")


def test_a_name_that_is_no_regular_expression_is_matched_exactly() -> None:
    filters = parse('{"name": ["a["]}')
    assert filters.matches_pattern("name", "a[")
    assert not filters.matches_pattern("name", "a")


def test_labels_must_all_be_there() -> None:
    filters = parse('{"label": ["a", "b=c"]}')
    assert filters.match_labels({"a": "", "b": "c"})
    assert not filters.match_labels({"a": "", "b": "d"})
    assert not filters.match_labels({"b": "c"})
    assert parse('{"label": ["a="]}').match_labels({"a": ""})
    assert not parse('{"label": ["a="]}').match_labels({"a": "x"})


def test_one_excluded_label_is_enough() -> None:
    filters = parse('{"label!": ["keep", "tier=db"]}')
    assert filters.excludes_labels({"keep": "yes"})
    assert filters.excludes_labels({"tier": "db"})
    assert not filters.excludes_labels({"tier": "web"})


@pytest.mark.parametrize(
    ("text", "instant"),
    [("5s", 5 * SECOND), ("7", 7 * SECOND), ("7.5", 7_500_000_000), ("1970-01-01T00:00:03Z", 3 * SECOND)],
)
def test_until_is_an_instant_or_a_time_before_now(text: str, instant: int) -> None:
    assert parse(f'{{"until": ["{text}"]}}').until(10 * SECOND) == instant
    assert parse("{}").until(1) is None


def test_until_is_one_that_can_be_read() -> None:
    with pytest.raises(InvalidParameter, match="^more than one until filter specified$"):
        parse('{"until": ["1h", "2h"]}').until(0)
    with pytest.raises(InvalidParameter, match='^failed to parse value as time or duration: "x"$'):
        parse('{"until": ["x"]}').until(0)


@pytest.mark.parametrize(("text", "truth"), [("1", True), ("true", True), ("T", True), ("0", False), ("False", False)])
def test_booleans(text: str, truth: bool) -> None:
    assert parse(f'{{"dangling": ["{text}"]}}').boolean("dangling", default=not truth) is truth


def test_absent_booleans_have_their_default() -> None:
    assert parse("{}").boolean("dangling", default=True) is True
    assert parse("{}").boolean("dangling") is False


@pytest.mark.parametrize("values", ['["maybe"]', '["1", "0"]'])
def test_what_is_no_boolean_is_refused(values: str) -> None:
    with pytest.raises(InvalidParameter, match=r"invalid filter 'dangling=\["):
        parse(f'{{"dangling": {values}}}').boolean("dangling")


def test_agreeing_booleans_are_one() -> None:
    assert parse('{"dangling": ["1", "true"]}').boolean("dangling") is True
