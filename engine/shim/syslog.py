"""The syslog driver: lines as RFC 3164, RFC 5424 or the local daemon's traditional form."""

import contextlib
import os
import time
from typing import Any

from engine.shim import wire
from engine.shim.logqueue import Message, Sink
from engine.shim.sinks import Connection

_ERROR, _INFO = 3, 6
_LOCAL = ("/dev/log", "/var/run/syslog", "/var/run/log")


class Syslog(Sink):
    """Connects at once; after a broken connection tries each batch a second time."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._facility = int(settings["facility"])
        self._format = settings["format"]
        self._tag = settings["tag"]
        self._hostname = settings["hostname"]
        # RFC 5425: on TLS a message begins with its length.
        self._counted = self._format.startswith("rfc5424") and settings["network"] == "tcp+tls"
        self._connection = _connected(settings)

    def send(self, messages: list[Message]) -> None:
        records = [self._record(message) for message in messages if message[2]]
        for data in records if self._connection.keeps_bounds else [b"".join(records)] if records else []:
            try:
                self._connection.send(data)
            except OSError:
                self._connection.send(data)

    def close(self) -> None:
        self._connection.finish()

    def _record(self, message: Message) -> bytes:
        at, stream, line, _partial = message
        priority = self._facility * 8 + (_ERROR if stream == wire.STDERR else _INFO)
        record = self._head(priority, at).encode() + line
        if not record.endswith(b"\n"):
            record += b"\n"
        return b"%d %s" % (len(record), record) if self._counted else record

    def _head(self, priority: int, at: int) -> str:
        pid = os.getpid()
        if self._format.startswith("rfc5424"):
            when = rfc3339(at, micro=self._format == "rfc5424micro")
            return f"<{priority}>1 {when} {self._hostname} {self._tag} {pid} {self._tag} - "
        when = time.strftime("%b %e %H:%M:%S", time.localtime(at // 10**9))
        host = f"{self._hostname} " if self._format == "rfc3164" else ""
        return f"<{priority}>{when} {host}{self._tag}[{pid}]: "


def rfc3339(at: int, *, micro: bool) -> str:
    """A time in nanoseconds with the machine's offset, to the second or the microsecond."""
    local = time.localtime(at // 10**9)
    fraction = f".{at % 10**9 // 1000:06d}" if micro else ""
    minutes = local.tm_gmtoff // 60
    sign, minutes = "-" if minutes < 0 else "+", abs(minutes)
    offset = f"{sign}{minutes // 60:02d}:{minutes % 60:02d}" if minutes else "Z"
    return time.strftime("%Y-%m-%dT%H:%M:%S", local) + fraction + offset


def _connected(settings: dict[str, Any]) -> Connection:
    if settings["network"]:
        connection = Connection(settings["network"], settings["address"], settings.get("tls"))
        connection.connect()
        return connection
    for path in _LOCAL:
        for network in ("unixgram", "unix"):
            connection = Connection(network, path)
            with contextlib.suppress(OSError):
                connection.connect()
                return connection
    raise OSError("Unix syslog delivery error")
