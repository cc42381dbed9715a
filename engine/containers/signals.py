"""Signals by name and number, as docker accepts them. Pure."""

from __future__ import annotations

import re
import signal

from engine.errors import InvalidParameter

_NUMBER = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)


def parse_signal(text: str) -> int:
    """``SIGTERM``, ``term``, ``15``, ``RTMIN+3`` to a number; one that is given may be none of the kernel's.

    Raises ``InvalidParameter``.
    """
    if _NUMBER.fullmatch(text):
        number = int(text)
        if number:
            return number
        raise InvalidParameter(f"invalid signal: {text}")
    name = text.upper().removeprefix("SIG")
    for base, sign in (("RTMIN+", 1), ("RTMAX-", -1)):
        if name.startswith(base) and name[len(base) :].isdecimal():
            start = signal.SIGRTMIN if sign == 1 else signal.SIGRTMAX
            number = start + sign * int(name[len(base) :])
            if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
                return number
    try:
        return signal.Signals[f"SIG{name}"].value
    except KeyError as error:
        raise InvalidParameter(f"invalid signal: {text}") from error


def can_be_sent(number: int) -> bool:
    """Whether the kernel has that signal, and the C library does not keep it for itself."""
    return signal.SIGRTMIN <= number <= signal.SIGRTMAX or number in _NAMED


_NAMED = frozenset(int(known) for known in signal.Signals)
