"""Go's sentences for broken JSON."""

from __future__ import annotations

import pytest

from engine.containers.syntax import syntax_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{invalid json", "invalid character 'i' looking for beginning of object key string"),
        (b'{"a": 1, }', "invalid character '}' looking for beginning of object key string"),
        (b'{"a" 1}', "invalid character '1' after object key"),
        (b'{"a": 1 "b"}', "invalid character '\"' after object key:value pair"),
        (b"[1 2]", "invalid character '2' after array element"),
        (b"[1, ]", "invalid character ']' looking for beginning of value"),
        (b"'x'", r"invalid character '\'' looking for beginning of value"),
        (b"{]", "invalid character ']' looking for beginning of object key string"),
        (b"tree", "invalid character 'e' in literal true (expecting 'u')"),
        (b"[nul", "unexpected EOF"),
        (b'"a\nb"', r"invalid character '\x0a' in string literal"),
        (rb'"\q"', "invalid character 'q' in string escape code"),
        (rb'"\u12g4"', r"invalid character 'g' in \u hexadecimal character escape"),
        (b"-x", "invalid character 'x' in numeric literal"),
        (b"1.x", "invalid character 'x' after decimal point in numeric literal"),
        (b"1e+x", "invalid character 'x' in exponent of numeric literal"),
        (b'{"a": [{"b": "c', "unexpected EOF"),
        (b"", "unexpected EOF"),
        (b"[" * 100_000, "unexpected EOF"),
    ],
)
def test_broken_syntax_is_named_as_go_names_it(text: bytes, words: str) -> None:
    assert syntax_words(text) == f"invalid JSON: {words}"


def test_a_second_value_is_one_too_many() -> None:
    assert syntax_words(b"{} trailing content") == "unexpected content after JSON"
    assert syntax_words(b"01") == "unexpected content after JSON"


@pytest.mark.parametrize(
    "text",
    [b" {} \n", b"[]", b'{"a": [1, -2.5e+7, true, false, null, {"b": ""}], "c": "\\u00e9\\n"}', b"0", b'"x"', b"[[]]"],
)
def test_sound_texts_have_no_fault(text: bytes) -> None:
    assert syntax_words(text) is None
