"""Keep the C library's heap small: a daemon of a few threads needs no arena for each of them."""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8


def limit_arenas_sync() -> None:
    """One malloc(3) arena for all threads; a C library without mallopt(3) is left as it is.

    Must be called before threads are started. Every arena keeps pages that its thread once used.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def give_back_sync() -> None:
    """Return free pages of the heap to the kernel (malloc_trim(3)), after work that needed much."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
