"""Identifiers, prefixes, random names and the grammar of names."""

from __future__ import annotations

import itertools
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.names import PrefixIndex, is_valid_name, new_id, random_name, short


def test_identifiers_are_64_hex_digits_and_differ() -> None:
    made = {new_id() for _ in range(50)}
    assert len(made) == 50
    assert all(len(i) == 64 and set(i) <= set("0123456789abcdef") for i in made)


def test_an_identifier_never_looks_like_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["1" * 64, "123456789012" + "a" * 52, "12345678901a" + "0" * 52])
    monkeypatch.setattr(secrets, "token_hex", lambda size: next(answers))
    assert new_id() == "12345678901a" + "0" * 52


def test_short_is_twelve_digits_without_algorithm() -> None:
    assert short("sha256:" + "ab" * 32) == "ab" * 6
    assert short("cd" * 32) == "cd" * 6


@pytest.mark.parametrize("name", ["ab", "a1", "web_1.x-y", "0x"])
def test_good_names(name: str) -> None:
    assert is_valid_name(name)


@pytest.mark.parametrize("name", ["", "a", "-a", "_ab", ".ab", "a b", "a/b", "é1", "ab\n", "a:b"])
def test_bad_names(name: str) -> None:
    assert not is_valid_name(name)


def test_prefixes_find_none_one_or_proof_of_more() -> None:
    index = PrefixIndex()
    for identifier in ("aa11", "aa22", "bb33", "aa11"):
        index.add(identifier)
    assert list(index) == ["aa11", "aa22", "bb33"]
    assert index.find("aa") == ["aa11", "aa22"]
    assert index.find("aa1") == ["aa11"]
    assert index.find("b") == ["bb33"]
    assert index.find("c") == []
    assert index.find("xyz") == []
    assert index.find("") == []
    index.discard("aa11")
    index.discard("zz")
    index.discard("aa12")
    assert index.find("aa") == ["aa22"]


@given(
    st.sets(st.text("0123456789abcdef", min_size=4, max_size=4)), st.text("0123456789abcdef", min_size=1, max_size=3)
)
def test_find_agrees_with_a_plain_search(identifiers: set[str], prefix: str) -> None:
    index = PrefixIndex()
    for identifier in identifiers:
        index.add(identifier)
    expected = sorted(i for i in identifiers if i.startswith(prefix))
    assert index.find(prefix) == expected[:2]


def test_random_names_are_valid_and_various() -> None:
    made = [random_name() for _ in range(30)]
    assert all(is_valid_name(name) and name.count("_") == 1 for name in made)
    assert any(a != b for a, b in itertools.pairwise(made))
