"""The fluentd driver: the forward protocol's messages in msgpack over TCP, TLS or a unix socket.

Spec: https://github.com/fluent/fluentd/wiki/Forward-Protocol-Specification-v1 (message mode).
"""

import base64
import os
import struct
import time
from collections.abc import Mapping
from typing import Any

from engine.shim import wire
from engine.shim.logqueue import Message, Sink
from engine.shim.sinks import Connection

MOST_WAIT_SECONDS = 60.0
_GROWTH = 1.5
_SOURCES = {wire.STDOUT: b"stdout", wire.STDERR: b"stderr"}


class Fluentd(Sink):
    """Without `async` connects at once; tries a batch again and again, ever more slowly."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._tag = settings["tag"].encode()
        self._record = {key.encode(): value.encode() for key, value in settings["record"].items()}
        self._sub_second = bool(settings["sub_second"])
        self._acknowledged = bool(settings["ack"])
        self._retry_wait = float(settings["retry_wait"])
        self._max_retries = int(settings["max_retries"])
        self._connection = Connection(settings["network"], settings["address"])
        if not settings["async"]:
            self._connection.connect()

    def send(self, messages: list[Message]) -> None:
        if not self._acknowledged:
            self._deliver(b"".join(self._message(message) for message in messages))
            return
        for message in messages:
            chunk = base64.b64encode(os.urandom(16))
            self._deliver(self._message(message, {b"chunk": chunk}), chunk)

    def close(self) -> None:
        self._connection.finish()

    def _message(self, message: Message, option: Mapping[bytes, bytes] | None = None) -> bytes:
        at, stream, line, partial = message
        record = {
            b"container_id": self._record[b"container_id"],
            b"container_name": self._record[b"container_name"],
            b"source": _SOURCES[stream],
            b"log": line,
            **self._record,
        }
        if partial is not None:
            group, ordinal, last = partial
            record[b"partial_message"] = b"true"
            record[b"partial_id"] = group.encode()
            record[b"partial_ordinal"] = str(ordinal).encode()
            record[b"partial_last"] = b"true" if last else b"false"
        return b"\x94" + text(self._tag) + moment(at, sub_second=self._sub_second) + table(record) + table(option or {})

    def _deliver(self, data: bytes, chunk: bytes = b"") -> None:
        attempt = 0
        while True:
            try:
                self._connection.send(data)
                if chunk:
                    self._await(chunk)
                return
            except OSError:
                if attempt >= self._max_retries:
                    raise
                time.sleep(min(MOST_WAIT_SECONDS, self._retry_wait * _GROWTH ** min(attempt, 40)))
                attempt += 1

    def _await(self, chunk: bytes) -> None:
        """Wait for {"ack": chunk}."""
        wanted, seen = table({b"ack": chunk}), b""
        while wanted not in seen:
            seen += self._connection.receive(4096)


def text(value: bytes) -> bytes:
    """A msgpack string."""
    size = len(value)
    if size < 32:
        return bytes((0xA0 | size,)) + value
    if size < 1 << 8:
        return b"\xd9" + bytes((size,)) + value
    if size < 1 << 16:
        return struct.pack(">BH", 0xDA, size) + value
    return struct.pack(">BL", 0xDB, size) + value


def table(entries: Mapping[bytes, bytes]) -> bytes:
    """A msgpack map of strings."""
    head = bytes((0x80 | len(entries),)) if len(entries) < 16 else struct.pack(">BH", 0xDE, len(entries))
    return head + b"".join(text(key) + text(value) for key, value in entries.items())


def moment(nanoseconds: int, *, sub_second: bool) -> bytes:
    """Seconds, or fluentd's EventTime."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return struct.pack(">BBLL", 0xD7, 0, seconds, rest) if sub_second else struct.pack(">BL", 0xCE, seconds)
