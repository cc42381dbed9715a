"""Between a taken-over client connection and a shim's stream: bytes both ways, each direction closing alone.

Docker's order on the client's half-close: its end of input reaches the container, output goes on until the container's
end. Detach keys, where a terminal is attached, end the attachment and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from engine.api.streams import Takeover
from engine.errors import InvalidParameter
from engine.tasks import wait_any

CHUNK = 256 * 1024
DEFAULT_DETACH_KEYS = "ctrl-p,ctrl-q"

Pending = socket.socket | asyncio.Future[socket.socket]
"""A container's stream, or a future of it for a container that is yet to start."""


def parse_detach_keys(text: str) -> bytes:
    """``ctrl-p,ctrl-q`` or ``a,b`` to bytes. Raises ``InvalidParameter``."""
    keys = bytearray()
    for part in (text or DEFAULT_DETACH_KEYS).split(","):
        if len(part) == 1 and part.isascii():
            keys.append(ord(part))
        elif part.startswith("ctrl-") and len(part) == 6 and part[5] in "abcdefghijklmnopqrstuvwxyz@[\\]^_":
            keys.append(ord(part[5].upper()) & 0x1F)
        elif part == "DEL":
            keys.append(0x7F)
        else:
            raise InvalidParameter(f"Invalid detach keys ({text}) provided")
    return bytes(keys)


class DetachScanner:
    """Finds the detach sequence in typed bytes; holds back a beginning of it until the next key decides."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""
        self.detached = False

    def feed(self, data: bytes) -> bytes:
        """The bytes to pass on; ``detached`` tells whether the sequence is complete."""
        joined = self._held + data
        at = joined.find(self._keys)
        if at >= 0:
            self.detached = True
            return joined[:at]
        keep = 0
        for length in range(min(len(self._keys) - 1, len(joined)), 0, -1):
            if joined.endswith(self._keys[:length]):
                keep = length
                break
        self._held = joined[len(joined) - keep :]
        return joined[: len(joined) - keep]


def release(pending: Pending) -> None:
    """Give up a stream, or the wait for one."""
    if isinstance(pending, socket.socket):
        pending.close()
    elif pending.done() and not pending.cancelled():
        pending.result().close()
    else:
        pending.cancel()


def stdout_frame(data: bytes) -> bytes:
    """Bytes in docker's frame for standard output."""
    return b"\x01\x00\x00\x00" + len(data).to_bytes(4, "big") + data


async def relay(
    client: Takeover, stream: socket.socket, scanner: DetachScanner | None, *, frame_output: bool = False
) -> bool:
    """Carry bytes until the container's output ends, the client goes, or it detaches; True when it detached.

    ``frame_output`` puts docker's frames around a terminal's raw bytes, for a client that asked for frames.
    """
    loop = asyncio.get_running_loop()

    async def inward() -> None:
        try:
            while data := await client.read():
                if scanner is not None:
                    data = scanner.feed(data)
                if data:
                    await loop.sock_sendall(stream, data)
                if scanner is not None and scanner.detached:
                    return
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionError):
            pass  # the container takes no more input
        await client.lost.wait()

    async def outward() -> None:
        with contextlib.suppress(ConnectionError):
            while data := await loop.sock_recv(stream, CHUNK):
                if frame_output:
                    client.write(stdout_frame(data))
                else:
                    client.write(data)
                await client.drain()

    try:
        await wait_any(inward(), outward())
    finally:
        stream.close()
    return scanner is not None and scanner.detached
