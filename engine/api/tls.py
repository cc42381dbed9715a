"""TLS that can be half open: a client that has said its last word still hears ours, as attach and exec need it.

The loop's TLS protocol closes a connection when the client ends its side. The cipher of such a connection keeps that to
itself and tells the connection's handler, which then decides.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any


class HalfOpenCipher(ssl.SSLObject):
    """A connection's cipher; ``on_end`` is called once, after what came before the client's end has been delivered."""

    on_end: Callable[[], None] | None = None
    _has_ended = False

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        """As the base class, but the end looks like silence once somebody wants to know of it."""
        got = super().read(len, buffer) if buffer is not None else super().read(len)
        if got or self.on_end is None:
            return got
        if not self._has_ended:
            self._has_ended = True
            asyncio.get_running_loop().call_soon(self.on_end)
        raise ssl.SSLWantReadError


def server_context() -> ssl.SSLContext:
    """The context of a server whose connections can be half open."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslobject_class = HalfOpenCipher
    return context
