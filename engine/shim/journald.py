"""The journald driver: the journal's native protocol, one datagram an entry.

Spec: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/
"""

import struct
from typing import Any

from engine.shim import wire
from engine.shim.logqueue import Message, Sink
from engine.shim.sinks import Connection
from engine.shim.syslog import rfc3339

SOCKET = "/run/systemd/journal/socket"
_PRIORITIES = {wire.STDOUT: b"6", wire.STDERR: b"3"}


class Journald(Sink):
    """Needs a journal at the start; one that restarts is found again."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._fields = b"".join(field(key, value.encode()) for key, value in settings["fields"].items())
        self._connection = Connection("unixgram", settings.get("socket") or SOCKET)
        try:
            self._connection.connect()
        except OSError as error:
            raise OSError("journald is not enabled on this host") from error

    def send(self, messages: list[Message]) -> None:
        for message in messages:
            entry = self._entry(message)
            try:
                self._connection.send(entry)
            except OSError:
                self._connection.send(entry)

    def close(self) -> None:
        self._connection.close()

    def _entry(self, message: Message) -> bytes:
        at, stream, line, partial = message
        parts = [
            field("MESSAGE", line),
            field("PRIORITY", _PRIORITIES[stream]),
            field("SYSLOG_TIMESTAMP", rfc3339(at, micro=True).encode()),
            self._fields,
        ]
        if partial is not None:
            group, ordinal, last = partial
            parts.append(field("CONTAINER_PARTIAL_ID", group.encode()))
            parts.append(field("CONTAINER_PARTIAL_ORDINAL", str(ordinal).encode()))
            parts.append(field("CONTAINER_PARTIAL_LAST", b"true" if last else b"false"))
            if not last:
                parts.append(field("CONTAINER_PARTIAL_MESSAGE", b"true"))
        return b"".join(parts)


def field(name: str, value: bytes) -> bytes:
    """One field; a value with a newline goes with its length."""
    if b"\n" in value:
        return name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
    return name.encode() + b"=" + value + b"\n"
