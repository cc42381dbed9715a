"""What is wrong with a JSON text, in the words of Go's decoder, which docker's clients and their tests know. Pure.

Only texts that the fast decoder has refused come here, so it may take its time; nesting costs no recursion.
"""

from __future__ import annotations

import re

_SPACE = re.compile(rb"[ \t\r\n]*")
_STRING_BODY = re.compile(rb'(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*')
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_NUMBER_PLACES = (
    (re.compile(rb"-?(?:0|[1-9][0-9]*)\.[0-9]*"), "after decimal point in numeric literal"),
    (re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?[eE][+-]?"), "in exponent of numeric literal"),
    (re.compile(rb"-"), "in numeric literal"),
)
_LITERALS = {b"t": b"true", b"f": b"false", b"n": b"null"}
_VALUE, _FIRST_VALUE, _KEY, _FIRST_KEY, _COLON, _AFTER = range(6)


class _Fault(Exception):
    """Carries the sentence out of the scan."""


def syntax_words(text: bytes) -> str | None:
    """The sentence for a text that is not exactly one JSON value; None when its syntax is sound."""
    try:
        end = _scan(text)
    except _Fault as fault:
        return f"invalid JSON: {fault}"
    return "unexpected content after JSON" if _skip(text, end) < len(text) else None


def _skip(text: bytes, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def _fault(text: bytes, at: int, place: str) -> _Fault:
    if at >= len(text):
        return _Fault("unexpected EOF")
    quoted = {"'": r"'\''", '"': "'\"'"}.get(chr(text[at]))
    shown = quoted or "'" + (chr(text[at]) if text[at] >= 0x20 else f"\\x{text[at]:02x}") + "'"
    return _Fault(f"invalid character {shown} {place}")


def _scan(text: bytes) -> int:
    """The end of the first value."""
    closers: list[bytes] = []
    state, at = _VALUE, 0
    while True:
        at = _skip(text, at)
        here = text[at : at + 1]
        if state == _AFTER:
            if not closers:
                return at
            state, at = _follow(text, at, closers)
        elif state == _COLON:
            if here != b":":
                raise _fault(text, at, "after object key")
            state, at = _VALUE, at + 1
        elif here and closers and here == closers[-1] and state in (_FIRST_VALUE, _FIRST_KEY):
            closers.pop()
            state, at = _AFTER, at + 1
        elif state in (_KEY, _FIRST_KEY):
            if here != b'"':
                raise _fault(text, at, "looking for beginning of object key string")
            state, at = _COLON, _string_end(text, at)
        elif here in (b"{", b"["):
            closers.append(b"}" if here == b"{" else b"]")
            state, at = (_FIRST_KEY if here == b"{" else _FIRST_VALUE), at + 1
        else:
            state, at = _AFTER, _scalar_end(text, at)


def _follow(text: bytes, at: int, closers: list[bytes]) -> tuple[int, int]:
    """After a member: the next one, or the end of its object or array."""
    here, in_object = text[at : at + 1], closers[-1] == b"}"
    if here == b",":
        return (_KEY if in_object else _VALUE), at + 1
    if here == closers[-1]:
        closers.pop()
        return _AFTER, at + 1
    raise _fault(text, at, "after object key:value pair" if in_object else "after array element")


def _scalar_end(text: bytes, at: int) -> int:
    here = text[at : at + 1]
    if here == b'"':
        return _string_end(text, at)
    if here in _LITERALS:
        return _literal_end(text, at, _LITERALS[here])
    if here == b"-" or here.isdigit():
        return _number_end(text, at)
    raise _fault(text, at, "looking for beginning of value")


def _string_end(text: bytes, at: int) -> int:
    match = _STRING_BODY.match(text, at + 1)
    assert match is not None
    end = match.end()
    if text[end : end + 1] == b'"':
        return end + 1
    if text[end : end + 1] != b"\\":
        raise _fault(text, end, "in string literal")
    if text[end + 1 : end + 2] != b"u":
        raise _fault(text, end + 1, "in string escape code")
    wrong = end + 2
    while text[wrong : wrong + 1] and chr(text[wrong]) in "0123456789abcdefABCDEF":
        wrong += 1
    raise _fault(text, wrong, "in \\u hexadecimal character escape")


def _literal_end(text: bytes, at: int, word: bytes) -> int:
    for offset, expected in enumerate(word):
        if text[at + offset : at + offset + 1] != bytes([expected]):
            raise _fault(text, at + offset, f"in literal {word.decode()} (expecting '{chr(expected)}')")
    return at + len(word)


def _number_end(text: bytes, at: int) -> int:
    match = _NUMBER.match(text, at)
    end = match.end() if match is not None else at
    if match is not None and text[end : end + 1] not in (b".", b"e", b"E"):
        return end
    for pattern, place in _NUMBER_PLACES:
        match = pattern.match(text, at)
        if match is not None and match.end() > end:
            raise _fault(text, match.end(), place)
    return end
