"""One request-and-answer connection to a zygote or shim, on the daemon's loop.

`engine/shim/wire.py` tells what is said.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from engine.shim import wire

Message = wire.Message


class Channel:
    """Owns the socket. Answers go to who asked, events to `on_event`, the end to `on_end` (once; not after `close`)."""

    def __init__(self, sock: socket.socket, on_event: Callable[[Message], None], on_end: Callable[[], None]) -> None:
        self._sock = sock
        self._on_event = on_event
        self._on_end = on_end
        self._asked: dict[int, asyncio.Future[Message]] = {}
        self._next = 0
        self._open = True
        self._loop = asyncio.get_running_loop()
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._readable)

    async def ask(self, op: str, descriptors: Sequence[int] = (), **fields: Any) -> Message:
        """Send a request and wait for its answer.

        Raises what the other side answers, ConnectionError when it has ended.
        """
        if not self._open:
            raise ConnectionResetError("the connection has ended")
        self._next += 1
        number = self._next
        answer: asyncio.Future[Message] = self._loop.create_future()
        self._asked[number] = answer
        try:
            await self._send({"id": number, "op": op, **fields}, descriptors)
            message = await answer
        finally:
            self._asked.pop(number, None)
        if "error" in message:
            raise wire.exception(message)
        return message

    def close(self) -> None:
        """End the conversation on purpose."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
            for answer in self._asked.values():
                if not answer.done():
                    answer.set_exception(ConnectionResetError("the connection has ended"))

    @property
    def open(self) -> bool:
        return self._open

    async def _send(self, message: Message, descriptors: Sequence[int]) -> None:
        while True:
            try:
                wire.send(self._sock, message, descriptors)
                return
            except BlockingIOError:  # the other side is behind; it never stops reading for long
                await asyncio.sleep(0.002)

    def _readable(self) -> None:
        # bounded, so that one talkative peer does not hold the loop
        for _ in range(64):
            try:
                message, descriptors = wire.receive(self._sock)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # the peer left with our words unread; its own last ones still wait behind this error
            except (OSError, ValueError):
                message, descriptors = None, []
            for descriptor in descriptors:
                os.close(descriptor)
            if message is None:
                self.close()
                self._on_end()
                return
            if "event" in message:
                self._on_event(message)
            else:
                answer = self._asked.get(message.get("id", 0))
                if answer is not None and not answer.done():
                    answer.set_result(message)
            if not self._open:
                return


def connect_sync(path: str) -> socket.socket | None:
    """Connect to a control socket, however long its name; None when nobody listens there.

    Short enough to be called on the loop: a local connect either succeeds or fails at once.
    """
    folder, name = os.path.split(path)
    try:
        descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.setblocking(False)
        sock.connect(f"/proc/self/fd/{descriptor}/{name}")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, wire.CONTROL_BUFFER)
        return sock
    except OSError:
        sock.close()
        return None
    finally:
        os.close(descriptor)
