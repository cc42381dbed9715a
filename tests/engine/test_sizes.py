"""Sizes as go-units reads them."""

from __future__ import annotations

import pytest

from engine.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("32", 32),
        ("32b", 32),
        ("32B", 32),
        ("32k", 32 << 10),
        ("32K", 32 << 10),
        ("32kb", 32 << 10),
        ("32Kib", 32 << 10),
        ("32Mb", 32 << 20),
        ("32GiB", 32 << 30),
        ("32t", 32 << 40),
        ("2pb", 2 << 50),
        ("32 mb", 32 << 20),
        ("32 ", 32),
        ("32.5kB", 33280),
        ("32.5 kB", 33280),
        (".5k", 512),
        ("1.", 1),
        ("+1k", 1024),
        ("1e3", 1000),
        ("0.3", 0),
    ],
)
def test_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(("text", "size"), [("32kb", 32000), ("1.5 GiB", 1_500_000_000), ("7", 7), ("1p", 10**15)])
def test_powers_of_1000(text: str, size: int) -> None:
    assert parse_size(text, decimal=True) == size


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "invalid size: ''"),
        ("hello", "invalid size: 'hello'"),
        ("-32", "invalid size: '-32'"),
        ("9999999p", "invalid size: '9999999p'"),
        ("1e999", "invalid size: '1e999'"),
        (" 32", 'strconv.ParseFloat: parsing " 32": invalid syntax'),
        (" ", 'strconv.ParseFloat: parsing "": invalid syntax'),
        (".", 'strconv.ParseFloat: parsing ".": invalid syntax'),
        ("32 . m", 'strconv.ParseFloat: parsing "32 .": invalid syntax'),
        ("1_0", 'strconv.ParseFloat: parsing "1_0": invalid syntax'),
        ("٣m", "invalid size: '٣m'"),
        ("32m b", 'strconv.ParseFloat: parsing "32m": invalid syntax'),
        ("32bm", "invalid suffix: 'bm'"),
        ("32KK", "invalid suffix: 'kk'"),
        ("32kibi", "invalid suffix: 'kibi'"),
        ("32x", "invalid suffix: 'x'"),
    ],
)
def test_what_is_no_size(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_size(text)
    assert str(caught.value) == words
