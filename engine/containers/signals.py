"""Signals by name and number, as docker accepts them. Pure."""

from __future__ import annotations

import signal

from engine.errors import InvalidParameter


def parse_signal(text: str) -> int:
    """``SIGTERM``, ``term``, ``15``, ``RTMIN+3`` to a number. Raises ``InvalidParameter``."""
    if text.isascii() and text.isdigit():
        number = int(text)
        if 1 <= number <= signal.SIGRTMAX:
            return number
        if number:
            raise InvalidParameter(f"the linux daemon does not support signal {number}")
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
